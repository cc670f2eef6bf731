"""How long a function may run, where it can be interrupted: one timer for many that run one after the other."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from smqueue import limits
from smqueue.errors import HandlerTimeout
from smqueue.limits import alarms, time_limit

LONG_S = 30.0
"""So long nothing here takes: a wait that has not been interrupted ends."""


def interrupted(what: str, seconds: float) -> float:
    """Wait within a limit until it strikes; returns after how many seconds it did."""
    began = time.monotonic()
    with pytest.raises(HandlerTimeout, match=what), time_limit(what, seconds):
        threading.Event().wait(LONG_S)
    return time.monotonic() - began


def test_each_block_has_its_own_time_though_the_timer_was_set_for_an_earlier_one() -> None:
    """A block is interrupted when its own time is up: the timer of one that has ended strikes nobody else."""
    with alarms():
        with time_limit("over at once", 0.05):
            pass
        assert 0.1 <= interrupted("second", 0.1) < LONG_S
        assert 0.05 <= interrupted("third", 0.05) < LONG_S


def test_blocks_that_end_in_time_set_the_timer_but_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Setting it and taking it back for each would take longer than a small handler runs."""
    timers: list[float] = []
    setitimer = signal.setitimer

    def noted(which: int, seconds: float) -> None:
        timers.append(seconds)
        setitimer(which, seconds)

    monkeypatch.setattr(signal, "setitimer", noted)
    with alarms():
        for _ in range(100):
            with time_limit("short", LONG_S):
                pass
    assert len([seconds for seconds in timers if seconds]) == 1
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_block_within_another_has_the_shorter_time() -> None:
    """Of blocks in each other that strikes first whose time is up first; the others go on."""
    with alarms(), time_limit("outer", LONG_S):
        assert interrupted("inner", 0.05) < LONG_S
    longer = time_limit("inner", LONG_S)
    with alarms(), pytest.raises(HandlerTimeout, match="outer"), time_limit("outer", 0.05), longer:
        threading.Event().wait(LONG_S)


def test_the_block_around_one_that_was_interrupted_keeps_its_own_time() -> None:
    """The timer that has struck the inner one is set for the outer one."""

    def both() -> None:
        with time_limit("outer", 0.2):
            interrupted("inner", 0.05)
            threading.Event().wait(LONG_S)

    with alarms(), pytest.raises(HandlerTimeout, match="outer"):
        both()


def test_code_that_takes_the_timer_back_frees_nobody_after_it() -> None:
    """A handler may use SIGALRM for a limit of its own, and leave the timer off: those after it have theirs."""
    with alarms():
        with time_limit("has its own", 0.1):
            signal.setitimer(signal.ITIMER_REAL, 5)
            signal.setitimer(signal.ITIMER_REAL, 0)
        assert 0.05 <= interrupted("next", 0.05) < LONG_S
        assert 0.05 <= interrupted("after the first's time", 0.05) < LONG_S


def test_a_block_whose_end_was_cut_short_strikes_nobody_later() -> None:
    """What another signal's exception leaves behind goes with the block around it, or when the alarm is given back."""
    with alarms():
        with time_limit("around", LONG_S):
            limits.Limited("left behind", 0.05).__enter__()
        assert not limits._limited  # pyright: ignore[reportPrivateUsage]
        limits.Limited("left behind too", 0.05).__enter__()
    assert not limits._limited  # pyright: ignore[reportPrivateUsage]


def test_a_forked_process_has_limits_of_its_own() -> None:
    """A child inherits what is known of the timer, but not the timer."""
    with alarms(), time_limit("parent's", LONG_S):
        pid = os.fork()
        if pid == 0:
            try:
                interrupted("child's", 0.05)
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_alarms_without_a_limit_leave_the_timer_alone() -> None:
    """Whoever has set it for something else keeps it."""
    signal.setitimer(signal.ITIMER_REAL, LONG_S)
    try:
        with alarms():
            pass
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def test_an_alarm_as_a_block_ends_leaves_nothing_behind() -> None:
    """One that strikes while its block is being left raises there, and no later block is taken for it."""
    late = limits.Limited("late", 0.0)

    def begin() -> None:  # it strikes before the block has begun: nothing leaves it
        late.__enter__()
        threading.Event().wait(LONG_S)

    with alarms():
        with pytest.raises(HandlerTimeout, match="late"):
            begin()
        assert not limits._limited  # pyright: ignore[reportPrivateUsage]
        late.__exit__()
        assert interrupted("next", 0.05) < LONG_S

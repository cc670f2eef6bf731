"""Bounding how long a user's function may run."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from threading import get_ident
from typing import Any

from smqueue.errors import HandlerTimeout


@dataclass(eq=False)
class Overrun:
    """Code that nothing can interrupt, for as long as it runs.

    Attributes:
        what: Which.
        limit_s: How long it may run, in seconds.
        since: When it began, by the monotonic clock, in seconds.
        told: Whether it has been told of.
    """

    what: str
    limit_s: float
    since: float
    told: bool = False


_running: set[Overrun] = set()


def overruns() -> list[Overrun]:
    """What runs in this process past its limit and cannot be interrupted: each holds a slot of the pool."""
    now = time.monotonic()
    return [one for one in _running.copy() if now - one.since > one.limit_s]


class Limited:
    """Interrupts its block after some seconds, on a thread that has taken the alarm.

    Handlers run one after the other, each for a moment: to set the timer and to take it back takes longer than most of
    them run. It is set if it would not ring before this block's time is up, and left alone after it; when it rings and
    nobody's time is up, it is set for whoever runs then. Whether it is set the system is asked each time: code that a
    handler runs may have taken it back.
    """

    __slots__ = ("seconds", "until", "what")

    def __init__(self, what: str, seconds: float) -> None:
        self.what, self.seconds = what, seconds

    def __enter__(self) -> None:
        self.until = time.monotonic() + self.seconds
        _limited.append(self)
        if not 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= self.seconds:
            _ring_for(self)

    def __exit__(self, *_: object) -> None:
        if self in _limited:  # unless the alarm has come, perhaps just now
            del _limited[_limited.index(self) :]  # what is left of blocks within it, too


def time_limit(what: str, seconds: float) -> AbstractContextManager[None]:
    """Interrupt the block after ``seconds``.

    An alarm reaches only a process's main thread: there (prefork and solo pools) the block is interrupted, in whatever
    call it waits. On other threads it cannot be; there the leases of what it holds are renewed no longer than the
    limit, so that the machine is tried elsewhere, and in the end set aside; the block is one of ``overruns``.

    Raises:
        HandlerTimeout: In the block, when its time is up.
    """
    return Limited(what, seconds) if _taken == get_ident() else _limited_alone(what, seconds)


@contextmanager
def _limited_alone(what: str, seconds: float) -> Generator[None]:
    if _interruptible():
        with alarms(), Limited(what, seconds):
            yield
        return
    running = Overrun(what, seconds, time.monotonic())
    _running.add(running)
    try:
        yield
    finally:
        _running.discard(running)


@contextmanager
def alarms() -> Generator[None]:
    """Take SIGALRM for all limits of the block: to take it for each costs more than a small handler's run."""
    global _taken, _set
    if _taken or not _interruptible():
        yield
        return
    before = signal.signal(signal.SIGALRM, _alarm)
    _taken = get_ident()
    try:
        yield
    finally:
        _taken = 0
        _limited.clear()
        if _set:
            _set = False
            signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


_taken = 0
"""The thread that has taken it, which is the main one; 0: none."""
_set = False
"""Whether that has set the timer."""
_limited: list[Limited] = []
"""What that thread is running; the last is within those before it."""
SOON_S = 0.000_001
"""A timer that is set to no time at all is one that is taken back."""


def _ring_for(first: Limited) -> None:
    global _set
    _set = True
    signal.setitimer(signal.ITIMER_REAL, max(first.until - time.monotonic(), SOON_S))


def _alarm(_signal: int, _frame: Any) -> None:
    now = time.monotonic()
    over = min((one for one in _limited if one.until <= now), key=_until, default=None)
    if over is not None:
        _limited.remove(over)  # here, for the end of its block may be what is interrupted
    if _limited:
        _ring_for(min(_limited, key=_until))
    if over is not None:
        raise HandlerTimeout(over.what, over.seconds)


def _until(one: Limited) -> float:
    return one.until


def _interruptible() -> bool:
    return threading.current_thread() is threading.main_thread() and not _patched()


def _patched() -> bool:
    """Whether gevent has made threads of greenlets: then "the main thread" is all of them."""
    return "gevent" in type(threading.current_thread()).__module__ or getattr(
        threading.current_thread, "__module__", ""
    ).startswith("gevent")

"""Bounding how long a user's function may run."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
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


@contextmanager
def time_limit(what: str, seconds: float) -> Generator[None]:
    """Interrupt the block after ``seconds``.

    An alarm reaches only a process's main thread: there (prefork and solo pools) the block is interrupted, in whatever
    call it waits. On other threads it cannot be; there the leases of what it holds are renewed no longer than the
    limit, so that the machine is tried elsewhere, and in the end set aside; the block is one of ``overruns``.

    Raises:
        HandlerTimeout: In the block, when its time is up.
    """
    if _taken != get_ident() and not _interruptible():
        running = Overrun(what, seconds, time.monotonic())
        _running.add(running)
        try:
            yield
        finally:
            _running.discard(running)
        return

    with nullcontext() if _taken else alarms():
        depth = len(_limited)
        _limited.append((what, seconds))
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            try:
                yield
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        finally:
            del _limited[depth:]  # though the alarm came just now


@contextmanager
def alarms() -> Generator[None]:
    """Take SIGALRM for all limits of the block: to take it for each costs more than a small handler's run."""
    global _taken
    if _taken or not _interruptible():
        yield
        return
    before = signal.signal(signal.SIGALRM, _alarm)
    _taken = get_ident()
    try:
        yield
    finally:
        _taken = 0
        signal.signal(signal.SIGALRM, before)


_taken = 0
"""The thread that has taken it, which is the main one; 0: none."""
_limited: list[tuple[str, float]] = []
"""What the main thread is running, and for how many seconds it may."""


def _alarm(_signal: int, _frame: Any) -> None:
    if _limited:
        raise HandlerTimeout(*_limited[-1])


def _interruptible() -> bool:
    return threading.current_thread() is threading.main_thread() and not _patched()


def _patched() -> bool:
    """Whether gevent has made threads of greenlets: then "the main thread" is all of them."""
    return "gevent" in type(threading.current_thread()).__module__ or getattr(
        threading.current_thread, "__module__", ""
    ).startswith("gevent")

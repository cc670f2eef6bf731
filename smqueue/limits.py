"""Bounding how long a user's function may run."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from smqueue.errors import HandlerTimeout


@contextmanager
def time_limit(what: str, seconds: float) -> Generator[None]:
    """Interrupt the block after ``seconds``.

    An alarm reaches only a process's main thread: there (prefork and solo pools) the block is interrupted, in whatever
    call it waits. On other threads it cannot be; there the leases of what it holds are renewed no longer than the
    limit, so that the machine is tried elsewhere, and in the end set aside.

    Raises:
        HandlerTimeout: In the block, when its time is up.
    """
    if threading.current_thread() is not threading.main_thread() or _patched():
        yield
        return

    def alarm(_signal: int, _frame: Any) -> None:
        raise HandlerTimeout(what, seconds)

    before = signal.signal(signal.SIGALRM, alarm)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _patched() -> bool:
    """Whether gevent has made threads of greenlets: then "the main thread" is all of them."""
    return "gevent" in type(threading.current_thread()).__module__ or getattr(
        threading.current_thread, "__module__", ""
    ).startswith("gevent")

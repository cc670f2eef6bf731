"""The collector of cyclic garbage while drains run."""

from __future__ import annotations

import gc
import threading
from collections.abc import Generator
from contextlib import contextmanager

DEFAULTS = frozenset({(700, 10, 10), (2_000, 10, 10), (2_000, 10, 0)})
"""Thresholds of the versions of Python: who has set others has a reason."""
AT_EASE = (10_000, 10, 10)
"""What a few groups have in their hands: fewer looks than that gain little, and what handlers leave in cycles, perhaps
with large things in them, waits as long."""

_lock = threading.Lock()
_running, _before = 0, (0, 0, 0)


@contextmanager
def at_ease() -> Generator[None]:
    """Look less often, until the last drain of this process has ended.

    What a drain has in its hands would be gone through again and again, in vain: none of it is in a cycle. What
    handlers leave in cycles waits a little longer, and so does what other threads do meanwhile; tasks of users that run
    on this one do not meet it.
    """
    global _running, _before
    with _lock:
        if _running == 0:
            _before = gc.get_threshold()
            if _before in DEFAULTS:
                gc.set_threshold(*AT_EASE)
        _running += 1
    try:
        yield
    finally:
        with _lock:
            _running -= 1
            if _running == 0 and _before in DEFAULTS:
                gc.set_threshold(*_before)

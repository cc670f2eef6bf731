"""How tests wait: for a fact, with a limit, never for a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(predicate: Callable[[], T], description: str, timeout_s: float = 20) -> T:
    """Wait until ``predicate`` returns something true, and return that.

    Raises:
        AssertionError: It did not within ``timeout_s`` seconds; the text has the description and the last answer.
    """
    deadline = time.monotonic() + timeout_s
    pause = threading.Event()
    while not (answer := predicate()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s:g} s in vain until {description} (last answer: {answer!r})")
        pause.wait(0.01)
    return answer

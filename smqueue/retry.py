"""How often something that raises is tried again, and what a trigger that was given up brings."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

from smqueue.checks import MILLISECOND, duration, whole
from smqueue.errors import DefinitionError
from smqueue.places import here


@dataclass(frozen=True)
class Failed:
    """The outcome of a ``call``, ``wait`` or ``task`` that was given up.

    Attributes:
        error: The last error as ``Type: message``.
        attempts: How many attempts were made.
    """

    error: str
    attempts: int


@dataclass(frozen=True)
class Retry:
    """How often and how spaced something that raises is tried again.

    The delay doubles with each attempt: ``base``, 2 ``base``, 4 ``base``, … up to ``cap``.

    Attributes:
        max_attempts: Attempts in all, the first one included.
        base: The delay after the first failure.
        cap: The longest delay.
        on: Exceptions that are worth another attempt; any other is final at once.

    Raises:
        DefinitionError: A field of the wrong type or range.
    """

    max_attempts: int = 5
    base: timedelta = timedelta(seconds=1)
    cap: timedelta = timedelta(minutes=10)
    on: tuple[type[BaseException], ...] = (Exception,)

    def __post_init__(self) -> None:
        where = here()
        whole(self.max_attempts, "Retry(max_attempts=…)", where, least=1)
        duration(self.base, "Retry(base=…)", where)
        duration(self.cap, "Retry(cap=…)", where)
        kinds: Any = self.on
        if not isinstance(kinds, tuple) or not all(
            isinstance(kind, type) and issubclass(kind, BaseException) for kind in cast("tuple[Any, ...]", kinds)
        ):
            raise DefinitionError(f"Retry(on={kinds!r}): give a tuple of exception classes, on=(OSError,)", where)

    def delay_ms(self, attempt: int) -> int:
        """Return the delay after failed attempt number ``attempt`` (from 1), in milliseconds, without jitter."""
        doublings = min(max(attempt - 1, 0), 64)  # 2**64 ms is past any cap that can be written
        base_us = self.base // timedelta(microseconds=1)  # whole numbers: a timedelta has a longest
        return max(min(base_us * 2**doublings // 1000, self.cap // MILLISECOND), 1)

    def jittered_ms(self, attempt: int) -> int:
        """Return a half to the whole of ``delay_ms``, so that what failed together does not return together."""
        return max(round(self.delay_ms(attempt) * random.uniform(0.5, 1.0)), 1)

    def exhausted(self, error: BaseException, attempts: int) -> bool:
        """Return whether ``error``, raised by attempt number ``attempts`` (from 1), is final."""
        return attempts >= self.max_attempts or not isinstance(error, self.on)

"""Waiting as values: generators that yield what they wait for and are sent what has come.

What protocols are to round trips these are to whole calls that look, listen and look again. One body so serves whoever
calls from a thread (``smqueue.drivers.waiter``) and from an event loop (``smqueue.drivers.switchboard``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar, cast

from smqueue.errors import AwaitTimeout, InvalidInput
from smqueue.roundtrip import Run, Steps

T = TypeVar("T")
Timeout = timedelta | float | None


class Look(NamedTuple):
    """Run a protocol in a shard. Reply: its result; what it raised is thrown.

    Attributes:
        shard: Whose server is asked.
        steps: The protocol.
        until_s: On an event loop it is waited for until then, and a moment at least; then TimeoutError is thrown. A
            thread cannot leave a request that it has sent: there the socket's timeout counts.
    """

    shard: int
    steps: Steps[Any]
    until_s: float = math.inf


class Listen(NamedTuple):
    """Be subscribed to doorbells, from here to the end: whoever looks afterwards misses nothing. Reply: ``None``."""

    channels: tuple[str, ...]


class Now(NamedTuple):
    """Reply: seconds, by the clock that ``Rest`` and ``Take`` go by."""


class Rest(NamedTuple):
    """Wait until a bell rings, until that time, or for less. Reply: ``None``."""

    until_s: float


class Take(NamedTuple):
    """Wait for a list to have an element. Reply: the first one, which stays; ``None`` when there is none by then."""

    shard: int
    key: str
    until_s: float


Turn = Look | Listen | Now | Rest | Take
Turns = Generator[Turn, Any, T]


class Course(Run[T]):
    """Turns under way, as ``Run`` has a protocol."""

    def __init__(self, turns: Turns[T]) -> None:
        super().__init__(cast("Any", turns))

    @property
    def turn(self) -> Turn | None:
        """The one whose reply is waited for; ``None`` at the end."""
        return cast("Turn | None", self.request)


def seconds_of(timeout: Timeout) -> float | None:
    """A timeout in seconds; ``None``: for ever.

    Raises:
        InvalidInput: It is neither seconds nor a timedelta.
    """
    if timeout is None or isinstance(timeout, timedelta):
        return None if timeout is None else timeout.total_seconds()
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidInput("timeout", f"expected seconds or a timedelta, got {type(timeout).__name__}")
    if math.isnan(timeout):
        raise InvalidInput("timeout", "expected seconds, got NaN")
    return timeout


def deadline(seconds: float | None) -> Turns[float]:
    """So many seconds from now, by the clock of the turns."""
    return math.inf if seconds is None else (yield Now()) + seconds


def await_look(
    shard: int, bell: str, look: Callable[[], Steps[T | None]], seconds: float | None, what: str
) -> Turns[T]:
    """Look, and look again when a bell rings; subscribed before the look that counts, so nothing between is missed.

    Raises:
        AwaitTimeout: ``look`` was in vain for so long.
    """
    until_s = yield from deadline(seconds)
    try:
        if (found := (yield Look(shard, look(), until_s))) is not None:
            return found
        yield Listen((bell,))
        while (found := (yield Look(shard, look(), until_s))) is None:
            if (yield Now()) >= until_s:
                raise AwaitTimeout(what, seconds)
            yield Rest(until_s)
    except TimeoutError:
        raise AwaitTimeout(what, seconds) from None
    return found

"""Taking turns on the calling thread."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

from smqueue.drivers.driver import Bell, Driver
from smqueue.roundtrip import over, single
from smqueue.turns import Course, Listen, Look, Now, Rest, Take, Turn, Turns

T = TypeVar("T")
LONGEST_S, SHORTEST_S = 2.0, 0.01
"""Of one blocking command: less than the socket's timeout, and never 0, which would be for ever."""


class Waiter:
    """One who waits. What it listens to is heard over a connection of its own, from one call to the next, until closed.

    Args:
        driver: Gives what runs its protocols; asked for no sooner than the first turn.
    """

    def __init__(self, driver: Callable[[], Driver]) -> None:
        self._driver = driver
        self._bell: Bell | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        if self._bell is not None:
            self._bell.close()

    def ring(self) -> None:
        """From another thread: have it look again."""
        if self._bell is not None:
            self._bell.ring()

    def run(self, turns: Turns[T]) -> T:
        """Take turns to the end.

        Raises:
            Exception: What a turn raised, or the turns themselves.
        """
        course = Course(turns)
        while (turn := course.turn) is not None:
            course.answer(self.reply(turn))
        return course.result()

    def reply(self, turn: Turn) -> Any:
        """The reply to one turn; what it raised as a value."""
        try:
            return self._take(turn)
        except Exception as error:
            return error

    def _take(self, turn: Turn) -> Any:
        match turn:
            case Look(_, steps, _):
                return self._driver().run(steps)
            case Listen(channels):
                self._bell = self._driver().doorbell(*channels)
                self._bell.__enter__()
                return None
            case Now():
                return self._listening().clock()
            case Rest(until_s):
                bell = self._listening()
                bell.wait(until_s - bell.clock())
                return None
            case Take(_, key, until_s):
                return self._first(key, until_s)

    def _listening(self) -> Bell:
        return self._bell or self._driver().doorbell()

    def _first(self, key: str, until_s: float) -> Any:
        """Moved to where it is: a reply that is lost has taken nothing away."""
        clock = self._listening().clock
        while (left := until_s - clock()) > 0:
            command = ("BLMOVE", key, key, "LEFT", "LEFT", max(SHORTEST_S, min(left, LONGEST_S)))
            found = self._driver().run(over(partial(single, *command)))
            if found is not None:
                return found
        return None


def run(driver: Callable[[], Driver], turns: Turns[T]) -> T:
    """Take turns to the end, and hang up."""
    with Waiter(driver) as waiter:
        return waiter.run(turns)

"""What an asynchronous client calls through in memory: no thread, and each turn at once, on the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from smqueue.drivers.switchboard import Caller
from smqueue.drivers.waiter import Waiter
from smqueue.roundtrip import Steps
from smqueue.testing.memory import Memory
from smqueue.turns import Course, Turns

T = TypeVar("T")
R = TypeVar("R")


class LocalBoard:
    """See ``smqueue.drivers.switchboard.Board``. Other tasks get on before each turn, and so before time passes.

    Args:
        driver: What it runs on.
    """

    def __init__(self, driver: Memory) -> None:
        self._driver = driver

    async def run(self, kind: str, shard: int, steps: Steps[T], then: Callable[[T], R]) -> R:  # noqa: ARG002
        """Run a protocol, and ``then``."""
        await asyncio.sleep(0)
        return then(self._driver.run(steps))

    def caller(self) -> Caller:
        """One who waits by letting virtual time pass."""
        return LocalCaller(self._driver)

    async def aclose(self) -> None:
        """Nothing to close."""


class LocalCaller:
    """See ``smqueue.drivers.switchboard.Caller``."""

    def __init__(self, driver: Memory) -> None:
        self._waiter = Waiter(lambda: driver)

    async def run(self, turns: Turns[T]) -> T:
        """Take turns to the end."""
        course = Course(turns)
        while (turn := course.turn) is not None:
            await asyncio.sleep(0)
            course.answer(self._waiter.reply(turn))
        return course.result()

    def close(self) -> None:
        """Nothing to close."""

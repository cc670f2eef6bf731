"""What an asynchronous client calls through in memory: no thread, and each turn at once, on the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from smqueue.drivers.switchboard import Caller
from smqueue.drivers.together import ClientClosed
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
        self.closed = False

    async def turn(self) -> None:
        """Let the other tasks get on; raises ClientClosed."""
        await asyncio.sleep(0)
        if self.closed:
            raise ClientClosed

    async def run(self, kind: str, shard: int, steps: Steps[T], then: Callable[[T], R]) -> R:  # noqa: ARG002
        """Run a protocol, and ``then``."""
        await self.turn()
        return then(self._driver.run(steps))

    def caller(self) -> Caller:
        """One who waits by letting virtual time pass."""
        return LocalCaller(self, self._driver)

    async def aclose(self) -> None:
        """Who still waits is told, and so is who comes later."""
        self.closed = True


class LocalCaller:
    """See ``smqueue.drivers.switchboard.Caller``."""

    def __init__(self, board: LocalBoard, driver: Memory) -> None:
        self._board = board
        self._waiter = Waiter(lambda: driver)

    async def run(self, turns: Turns[T]) -> T:
        """Take turns to the end."""
        course = Course(turns)
        while (turn := course.turn) is not None:
            await self._board.turn()
            course.answer(self._waiter.reply(turn))
        return course.result()

    def close(self) -> None:
        """Nothing to close."""

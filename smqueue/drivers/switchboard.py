"""What the tasks of event loops call through: a few threads run their protocols, and one listens for all of them.

No thread and no connection belongs to a task, so that thousands may wait at the same time; and no call holds up a loop.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Protocol, TypeVar
from weakref import finalize

from smqueue.drivers.bells import CONFIRMED_S, Bells, Ear
from smqueue.drivers.blocking import Blocking
from smqueue.drivers.together import ClientClosed, Together
from smqueue.roundtrip import Steps, over, single
from smqueue.turns import Course, Listen, Look, Now, Rest, Take, Turn, Turns

T = TypeVar("T")
R = TypeVar("R")
LONGEST_S = 2.0
"""An answer is looked for after so long, though nothing has rung: its worker may be of an earlier version."""
SHORTEST_S = 1.0
"""So long is a look waited for, however short the timeout is: what is so already has to be found."""


class Caller(Protocol):
    """Takes turns for one task at a time; what it listens to it hears from one call to the next, until closed.

    One that is used again listens again.
    """

    async def run(self, turns: Turns[T]) -> T:
        """Take turns to the end.

        Raises:
            ClientClosed: It is closed.
            Exception: What a turn raised, or the turns themselves.
        """
        ...

    def close(self) -> None:
        """Hang up; who rests in ``run`` goes on."""
        ...


class Board(Protocol):
    """What an asynchronous client calls through."""

    def run(self, kind: str, shard: int, steps: Steps[T], then: Callable[[T], R]) -> Awaitable[R]:
        """Run a protocol, and ``then`` where that has run; those of a kind that are asked for meanwhile together."""
        ...

    def caller(self) -> Caller:
        """One who waits."""
        ...

    async def aclose(self) -> None:
        """Stop; who still waits is told."""
        ...


class Switchboard:
    """The board of a real deployment, for any number of loops.

    Args:
        driver: Gives the driver; called on threads, since it may have to connect.
    """

    def __init__(self, driver: Callable[[], Blocking]) -> None:
        self._driver = driver
        self._lines: dict[tuple[str, int], Together] = {}
        self._bells = Bells(driver)
        self.closed = False

    def run(self, kind: str, shard: int, steps: Steps[T], then: Callable[[T], R]) -> Awaitable[R]:
        """See ``Board``. Commits and scripts do not wait for each other, nor one shard for another."""
        if self.closed:
            raise ClientClosed
        if (line := self._lines.get((kind, shard))) is None:
            line = self._lines.setdefault((kind, shard), Together(self._driver))
        return line.run(steps, then)

    def caller(self) -> Caller:
        """See ``Board``."""
        return TaskCaller(self)

    def hear(self, *channels: str) -> Ear:
        """An ear on the running loop for these channels.

        Raises:
            ClientClosed: It is closed.
        """
        ear = Ear(channels)
        self._bells.hear(ear)
        if self.closed:  # looked at only now: what was ordered before the end is rung
            raise ClientClosed
        return ear

    def leave(self, ear: Ear) -> None:
        """Listen with this one no more."""
        self._bells.leave(ear)

    async def aclose(self) -> None:
        """See ``Board``. What was asked for is done, and then its threads have ended and its connections are closed."""
        self.closed = True
        ending = [self._bells.close(ClientClosed()), *[line.close() for line in list(self._lines.values())]]
        await asyncio.gather(*[_done(one) for one in ending if one is not None])


class TaskCaller:
    """See ``Caller``."""

    def __init__(self, board: Switchboard) -> None:
        self._board = board
        self._channels: tuple[str, ...] = ()
        self._ear: Ear | None = None
        self._leaving: Any = None

    async def run(self, turns: Turns[T]) -> T:
        """See ``Caller``."""
        course = Course(turns)
        while (turn := course.turn) is not None:
            course.answer(await self._reply(turn))
        return course.result()

    def close(self) -> None:
        """See ``Caller``."""
        if self._leaving is not None:
            self._leaving()
        if self._ear is not None:
            self._ear.ring()
        self._ear = self._leaving = None

    async def _reply(self, turn: Turn) -> Any:
        try:
            return await self._take(turn)
        except Exception as error:
            return error

    async def _take(self, turn: Turn) -> Any:
        match turn:
            case Look(shard, steps, until_s):
                return await self._look(shard, steps, until_s)
            case Listen(channels):
                await self._listen(*channels)
                return None
            case Now():
                return time.monotonic()
            case Rest(until_s):
                await self._rest(until_s - time.monotonic())
                return None
            case Take(shard, key, until_s):
                return await self._first(shard, key, until_s)

    async def _look(self, shard: int, steps: Steps[T], until_s: float) -> T:
        """Raises TimeoutError: the thread goes on with it, and nobody waits for that."""
        asked = self._board.run("look", shard, steps, lambda result: result)
        if until_s == math.inf:
            return await asked
        async with asyncio.timeout(max(SHORTEST_S, until_s - time.monotonic())):
            return await asked

    async def _listen(self, *channels: str) -> None:
        self.close()
        self._channels = channels
        self._ear = self._board.hear(*channels)
        self._leaving = finalize(self, _leave, self._board, self._ear, os.getpid())  # also one that is forgotten
        self._leaving.atexit = False
        await self._rest(CONFIRMED_S)

    async def _rest(self, seconds: float) -> None:
        if self._ear is None:  # what rang meanwhile went unheard: look
            await self._listen(*self._channels)
        else:
            await self._ear.rest(seconds)

    async def _first(self, shard: int, key: str, until_s: float) -> Any:
        await self._listen(key)
        while True:
            found = await self._look(shard, over(lambda: single("LINDEX", key, 0)), until_s)
            left_s = until_s - time.monotonic()
            if found is not None or left_s <= 0:
                return found
            await self._rest(min(left_s, LONGEST_S))


async def _done(future: Future[None]) -> None:
    """Until a thread has ended. Unlike ``wrap_future`` it cancels nothing: who closes again waits for the same one."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def tell(_: object) -> None:
        with suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(ended.set)

    future.add_done_callback(tell)
    await ended.wait()


def _leave(board: Switchboard, ear: Ear, pid: int) -> None:
    if pid == os.getpid():
        board.leave(ear)

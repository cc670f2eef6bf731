"""Our clients: tasks on an ``executor.async_client()``, in one process or, as producers are, in several."""

from __future__ import annotations

import asyncio
import functools
import multiprocessing
import os
import selectors
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, Self

from benchmarks.app import from_environment
from benchmarks.machines import FINISHED, Awaiting, payment
from benchmarks.systems.scripts.drive import each
from smqueue import Executor, State, StateMachine

LOOK_EVERY_S = 0.01


class Orders:
    """The work, by an asyncio client."""

    state: type[State] = Awaiting

    def __init__(self, executor: Executor) -> None:
        self._client = executor.async_client()
        self._driver = executor.deployment.driver
        self._counters = [keys.data("bench", FINISHED) for keys in executor.deployment.all_keys()]
        self._before = 0

    async def start(self, key: str) -> None:
        """Add the machine."""
        made: Any = self.state
        await self._client.add([StateMachine(key, made(5))])

    async def signal(self, key: str) -> None:
        """Send the payment."""
        await self._client.signal(key, payment, 5)

    async def finished(self, keys: Sequence[str]) -> None:
        """Look at the counter, which is everybody's."""
        wanted = self._before = self._before + len(keys)
        while await asyncio.to_thread(self._count) < wanted:
            await asyncio.sleep(LOOK_EVERY_S)

    def _count(self) -> int:
        return sum(int(self._driver.command("GET", counter) or 0) for counter in self._counters)


class Crew:
    """The processes of the clients: this one, and siblings that wait to be told their share, until the block's end.

    Args:
        processes: How many, with this one.

    Attributes:
        pids: Of all of them, this one first.
    """

    def __init__(self, processes: int) -> None:
        spawn = multiprocessing.get_context("spawn")  # a fork would share this one's threads and connections
        self._siblings = [ProcessPoolExecutor(1, spawn) for _ in range(processes - 1)]
        self.pids = [os.getpid(), *[sibling.submit(os.getpid).result() for sibling in self._siblings]]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for sibling in self._siblings:
            sibling.shutdown()

    async def each(self, call: Callable[[str], Awaitable[Any]], keys: Sequence[str], clients: int) -> None:
        """As ``drive.each``, by all of the processes; returns when all have done their share.

        ``call`` is a method of ``Orders``; each sibling has its own ``Orders``.
        """
        count, loop = len(self.pids), asyncio.get_running_loop()
        shares = [(keys[at::count], (clients + at) // count) for at in range(count)]
        theirs = [
            loop.run_in_executor(sibling, _share, call.__name__, *some)
            for sibling, some in zip(self._siblings, shares[1:], strict=True)
        ]
        await asyncio.gather(each(call, *shares[0]), *theirs)


def new_loop() -> asyncio.AbstractEventLoop:
    """Of select(): timeouts in µs. That of epoll is rounded up to whole milliseconds, which a load would be late by."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


@functools.cache
def _own() -> tuple[asyncio.Runner, Orders]:
    """A sibling's loop and orders, which outlive a share."""
    _, executor = from_environment()
    return asyncio.Runner(loop_factory=new_loop), Orders(executor)


def _share(call: str, keys: Sequence[str], clients: int) -> None:
    """In a sibling: do what it is told to."""
    runner, orders = _own()
    runner.run(each(getattr(orders, call), keys, clients))

"""What one Flower process keeps: samples of its namespaces, and who watches which operation."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from smqueue.async_client import TypedAsyncClient
from smqueue.errors import SmqueueError
from smqueue.executor import Executor
from smqueue.flower.looks import seen
from smqueue.flower.rates import EVERY_S, Rates
from smqueue.overview import Overview, overview

T = TypeVar("T")
log = logging.getLogger("smqueue.flower")

FRESH_S = 1.0
"""For so long one look at a namespace serves all who ask."""
WATCHED_S = 2.0
"""How often an operation that somebody watches is looked at for what is no step: attempts, errors, pauses."""


class Namespace:
    """What is kept of one.

    Args:
        executor: Its executor.
        threads: Where Redis is asked.
    """

    def __init__(self, executor: Executor, threads: Any) -> None:
        self.executor, self._threads = executor, threads
        self.rates = Rates()
        self.changes = Changes()
        self._sampling: asyncio.Task[None] | None = None
        self._looking: asyncio.Future[Overview] | None = None
        self._looked_s = 0.0
        self._client: TypedAsyncClient | None = None
        self._watches: dict[str, Watch] = {}

    async def run(self, look: Callable[[], T]) -> T:
        """Run what blocks in Flower's threads."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, look)

    def sample(self) -> None:
        """From now on look at the totals every few seconds."""
        if self._sampling is None or self._sampling.done():
            self._sampling = asyncio.create_task(self._sample())

    async def overview(self) -> Overview:
        """The namespace now, or a second ago."""
        self.sample()
        if self._looking is None or (self._looking.done() and time.monotonic() - self._looked_s > FRESH_S):
            self._looked_s = time.monotonic()
            self._looking = asyncio.ensure_future(self.run(self.executor.overview))
        return await asyncio.shield(self._looking)

    @property
    def client(self) -> TypedAsyncClient:
        """Follows operations for all who watch: a few threads and one subscription, however many they are."""
        if self._client is None:
            self._client = self.executor.async_client()
        return self._client

    @asynccontextmanager
    async def watch(self, op: str) -> AsyncGenerator[Changes]:
        """Be told when something about an operation has changed; all who watch one share one look."""
        watch = self._watches.get(op)
        if watch is None:
            watch = self._watches[op] = Watch(self, op)
        watch.viewers += 1
        try:
            yield watch.changes
        finally:
            watch.viewers -= 1
            if not watch.viewers:
                watch.stop()
                self._watches.pop(op, None)

    async def _sample(self) -> None:
        before = ""
        while True:
            try:
                found = await self.run(lambda: overview(self.executor.deployment, walked=0))
            except SmqueueError as error:
                log.debug("no sample: %s", error)
            else:
                self.rates.add(found)
                now = str((found.edges, found.causes, found.quarantined, found.operations, self.rates.transitions))
                if now != before:
                    self.changes.tell()
                before = now
            await asyncio.sleep(EVERY_S)


class Changes:
    """A number that grows with each change, and can be waited for."""

    def __init__(self) -> None:
        self.number = 0
        self._told = asyncio.Event()

    def tell(self) -> None:
        """Something has changed."""
        self.number += 1
        self._told.set()
        self._told = asyncio.Event()

    async def beyond(self, number: int) -> int:
        """Wait until it is another one, and return it."""
        while self.number == number:
            await self._told.wait()
        return self.number


class Watch:
    """Looks at one operation while somebody watches it."""

    def __init__(self, namespace: Namespace, op: str) -> None:
        self.viewers = 0
        self.changes = Changes()
        self._task = asyncio.create_task(self._look(namespace, op))

    def stop(self) -> None:
        """Nobody watches any more."""
        self._task.cancel()

    async def _look(self, namespace: Namespace, op: str) -> None:
        before: str | None = None
        while True:
            try:
                now = (await namespace.run(lambda: seen(namespace.executor, op, drawn=False))).fingerprint
            except SmqueueError as error:
                now = f"{type(error).__name__}"
            if before not in {None, now}:
                self.changes.tell()
            before = now
            await asyncio.sleep(WATCHED_S)


def namespace_of(kept: dict[str, Any], executor: Executor, threads: Any) -> Namespace:
    """What is kept of an executor's namespace in Flower's settings."""
    name = executor.deployment.settings.namespace
    found = kept.get(name)
    if found is None or found.executor is not executor:
        found = kept[name] = Namespace(executor, threads)
    return found

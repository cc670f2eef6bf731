"""Live updates, as Server-Sent Events: what has changed is told, and the page fetches that part of itself anew."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from tornado.iostream import StreamClosedError
from tornado.web import HTTPError, authenticated

from smqueue.errors import HistoryRewound, SmqueueError
from smqueue.flower.base import MachinesHandler
from smqueue.sse import HEARTBEAT, event_of, rewound

MOST = 200
"""Streams of one Flower; each costs a connection of a browser, and no thread."""
HEARTBEAT_S = 15.0
AGAIN_MS = 2_000
"""After how long a browser whose stream has ended connects again."""


class Stream(MachinesHandler):
    """Writes events until the browser has gone."""

    open = 0

    async def stream(self, *sources: Callable[[], Awaitable[None]]) -> None:
        """Run what writes events, beside a heartbeat; the first that ends, ends all."""
        if Stream.open >= MOST:
            raise HTTPError(503, f"{MOST} pages are open already")
        self.set_header("Content-Type", "text/event-stream; charset=UTF-8")
        self.set_header("X-Accel-Buffering", "no")  # a proxy that gathers would hold them back
        self._gone = asyncio.Event()
        Stream.open += 1
        tasks = [asyncio.ensure_future(source()) for source in (self._gone.wait, self._heartbeat, *sources)]
        try:
            await self.tell(f"retry: {AGAIN_MS}\n\n")
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            Stream.open -= 1
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def tell(self, event: str) -> None:
        """Write one."""
        self.write(event)
        try:
            await self.flush()
        except StreamClosedError:
            self._gone.set()

    async def _heartbeat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            await self.tell(HEARTBEAT)

    def on_connection_close(self) -> None:
        """The browser has gone."""
        if hasattr(self, "_gone"):
            self._gone.set()


class OverviewEvents(Stream):
    """An event ``changed`` when something about the namespace has, every five seconds at most."""

    @authenticated
    async def get(self) -> None:
        """Stream."""
        namespace = self.kept
        namespace.sample()

        async def changes() -> None:
            number = namespace.changes.number
            while True:
                number = await namespace.changes.beyond(number)
                await self.tell(f"event: changed\ndata: {number}\n\n")

        await self.stream(changes)


class OperationEvents(Stream):
    """Each step as ``smqueue.sse`` tells it, behind ``Last-Event-ID`` or ``after``; ``changed`` for all else."""

    @authenticated
    async def get(self, op: str) -> None:
        """Stream."""
        op = self.operation(op)
        namespace, after = self.kept, self.sequence("after", self.request.headers.get("Last-Event-ID"))

        async def steps() -> None:
            try:
                async with namespace.client.subscribe(op, after=after) as updates:
                    async for update in updates:
                        await self.tell(event_of(update))
            except HistoryRewound as problem:
                await self.tell(rewound(problem))
            except SmqueueError:
                return  # Redis is away: the browser connects again, and goes on where it was

        async def changes() -> None:
            async with namespace.watch(op) as changed:
                number = changed.number
                while True:
                    number = await changed.beyond(number)
                    await self.tell("event: changed\ndata:\n\n")

        await self.stream(steps, changes)

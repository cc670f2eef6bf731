"""A proxy before a Redis socket, for a whole run: it loses requests and replies, holds back, delays, and cuts.

Unlike ``tests/proxy.py``, which a test steers request by request, it outlives its server and thousands of connections:
one event loop on a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

Fate = Literal["reply", "request", "late"]
"""What is lost: the reply to a request that was executed; the request; or the reply to one that is executed late."""
WRITES = (b"\r\nEXEC\r\n", b"\r\nEVALSHA\r\n")


class Middle:
    """Listens on a Unix socket of its own and passes on to another one.

    Args:
        upstream: The server's socket.
    """

    def __init__(self, upstream: Path) -> None:
        self._upstream = str(upstream)
        self._folder = Path(tempfile.mkdtemp(prefix="middle-"))
        self._path = self._folder / "s.sock"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="middle", daemon=True)
        self.links: set[Link] = set()
        self.losing: list[Fate] = []
        """What becomes of the next writing requests."""
        self.late_s = 0.0
        self.delay_s = 0.0
        """How much later everything arrives, each way."""

    @property
    def url(self) -> str:
        """As redis-py writes it."""
        return f"unix://{self._path}?db=0"

    def lose(self, fate: Fate, count: int, late_s: float = 0.0) -> None:
        """Lose so many of the next writing requests, or their replies; late ones reach the server that much later."""
        fates: list[Fate] = [fate] * count
        self._do(lambda: self.losing.extend(fates), lambda: setattr(self, "late_s", late_s))

    def forget(self) -> int:
        """Lose nothing more; returns how many were not lost yet."""
        left = len(self.losing)
        self._do(self.losing.clear)
        return left

    def slow(self, delay_s: float) -> None:
        """Delay what comes from now on; 0 ends it."""
        self._do(lambda: setattr(self, "delay_s", delay_s))

    def cut(self) -> int:
        """Cut all connections; returns how many those were."""
        links = len(self.links)
        self._do(lambda: [link.cut() for link in list(self.links)])
        return links

    def __enter__(self) -> Self:
        self._thread.start()
        serving = self._loop.create_unix_server(lambda: Link(self), self._path, backlog=256)
        asyncio.run_coroutine_threadsafe(serving, self._loop).result(10)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.cut()
        self._do(self._loop.stop)
        self._thread.join(10)
        shutil.rmtree(self._folder, ignore_errors=True)

    def connect(self, link: Link) -> None:
        """Connect a new link to the server."""
        link.connecting = asyncio.ensure_future(self._connect(link))

    async def _connect(self, link: Link) -> None:
        try:
            await self._loop.create_unix_connection(lambda: link.server, self._upstream)
        except OSError:
            link.cut()

    def _do(self, *what: Callable[[], object]) -> None:
        for one in what:
            self._loop.call_soon_threadsafe(one)


class Way(asyncio.Protocol):
    """One end of a link; what it reads goes to the other."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.transport: asyncio.Transport | None = None
        self._waiting: list[bytes] = []
        self._due = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        for data in self._waiting:
            transport.write(data)
        self._waiting.clear()

    def data_received(self, data: bytes) -> None:
        self.link.server_said(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.link.ended(self)

    def pass_on(self, data: bytes, delay_s: float) -> None:
        """Write, later if need be, and never before what came earlier."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._due = max(now + delay_s, self._due + 1e-6 if self._due > now else 0.0)
        if self._due > now:
            loop.call_at(self._due, self._write, data)
        else:
            self._write(data)

    def _write(self, data: bytes) -> None:
        if self.transport is None:
            self._waiting.append(data)
        elif not self.transport.is_closing():
            self.transport.write(data)


class Link(Way):
    """One connection through the proxy: its client's end, with the server's beside it."""

    def __init__(self, middle: Middle) -> None:
        super().__init__(self)
        self._middle = middle
        self._tail = b""
        self._silent = False
        self.connecting: asyncio.Task[None] | None = None
        self.server = Way(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._middle.links.add(self)
        self._middle.connect(self)

    def data_received(self, data: bytes) -> None:
        if self._silent:
            return
        seen, self._tail = self._tail + data, data[-16:]
        if self._middle.losing and any(word in seen for word in WRITES):
            self._silent = True
            match self._middle.losing.pop():
                case "request":
                    self.cut()
                    return
                case "late":
                    self.server.pass_on(data, self._middle.late_s)
                    self._hang_up()
                    asyncio.get_running_loop().call_later(self._middle.late_s + 2, self.cut)
                    return
                case "reply":
                    pass  # the client is hung up on once the server has replied
        self.server.pass_on(data, self._middle.delay_s)

    def server_said(self, data: bytes) -> None:
        """The server's bytes go to the client, unless their loss is due."""
        if self._silent:
            self.cut()
        else:
            self.pass_on(data, self._middle.delay_s)

    def ended(self, end: Way) -> None:
        """One end has hung up: so does the other, except where a late request is still on its way."""
        if end is self and self._silent:
            return
        self.cut()

    def cut(self) -> None:
        """End both connections at once."""
        self._middle.links.discard(self)
        self._hang_up()
        if self.server.transport is not None:
            self.server.transport.abort()

    def _hang_up(self) -> None:
        if self.transport is not None:
            with contextlib.suppress(OSError):
                self.transport.abort()

"""A proxy in front of a Redis socket that loses replies after the server has executed, loses requests, or cuts off."""

from __future__ import annotations

import contextlib
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from smqueue.embedded import EmbeddedServer

CHUNK = 65_536


@dataclass(eq=False)
class Link:
    """One connection through the proxy; ``silenced``: the client hears nothing more; ``ended``: the server hung up."""

    client: socket.socket
    server: socket.socket
    silenced: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)


def hang_up(*ends: socket.socket) -> None:
    """End connections; whoever reads from them sees the end."""
    for end in ends:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


class Proxy:
    """Listens on a Unix socket of its own and passes on to another one.

    Args:
        upstream: The server's socket.
    """

    def __init__(self, upstream: Path) -> None:
        self._upstream = str(upstream)
        self._folder = Path(tempfile.mkdtemp(prefix="proxy-"))
        self._path = self._folder / "s.sock"
        self._lock = threading.Lock()
        self._links: set[Link] = set()
        self._lose, self._refuse, self._hold, self._token = 0, 0, 0, b""
        self._held: list[tuple[Link, bytes]] = []
        self.lost = 0
        """How many replies and requests it has lost so far."""
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self._path))
        self._listener.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        """As redis-py writes it."""
        return f"unix://{self._path}?db=0"

    def lose_replies(self, count: int, to: bytes = b"EXEC") -> None:
        """Lose the replies to the next ``count`` requests that hold the token ``to``, once they have been executed."""
        with self._lock:
            self._lose, self._refuse, self._hold, self._token = count, 0, 0, to

    def lose_requests(self, count: int, holding: bytes = b"EXEC") -> None:
        """Lose the next ``count`` requests that hold the token, so that the server never sees them."""
        with self._lock:
            self._lose, self._refuse, self._hold, self._token = 0, count, 0, holding

    def hold_requests(self, count: int, holding: bytes = b"EXEC") -> None:
        """Hold back the next ``count`` such requests and hang up: they reach the server, late, by ``release``."""
        with self._lock:
            self._lose, self._refuse, self._hold, self._token = 0, 0, count, holding

    def release(self) -> None:
        """Let what is held back reach the server, and wait until that has executed it."""
        with self._lock:
            held, self._held = self._held, []
        for link, data in held:
            link.server.sendall(data)
            link.server.shutdown(socket.SHUT_WR)
            link.ended.wait(10)

    def cut(self) -> None:
        """Cut all connections."""
        with self._lock:
            for link in self._links:
                hang_up(link.client, link.server)

    def close(self) -> None:
        """Stop."""
        hang_up(self._listener)
        self._listener.close()
        self.cut()
        for link in self._links:
            link.client.close()
            link.server.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._upstream)
            except OSError:
                return
            link = Link(client, server)
            with self._lock:
                self._links.add(link)
            threading.Thread(target=self._requests, args=(link,), daemon=True).start()
            threading.Thread(target=self._replies, args=(link,), daemon=True).start()

    def _requests(self, link: Link) -> None:
        tail = b""
        with contextlib.suppress(OSError):
            while data := link.client.recv(CHUNK):
                seen, tail = tail + data, data[-32:]
                match self._fate(seen):
                    case "lost":
                        link.silenced.set()
                        link.server.sendall(data)
                        link.server.shutdown(socket.SHUT_WR)  # it reads to the end, executes that, and hangs up
                        return
                    case "held":
                        link.silenced.set()
                        with self._lock:
                            self._held.append((link, data))
                        hang_up(link.client)
                        return
                    case "refused":
                        break
                    case _:
                        link.server.sendall(data)
        hang_up(link.client, link.server)

    def _replies(self, link: Link) -> None:
        with contextlib.suppress(OSError):
            while data := link.server.recv(CHUNK):
                if not link.silenced.is_set():
                    link.client.sendall(data)
        hang_up(link.client, link.server)
        link.ended.set()

    def _fate(self, seen: bytes) -> str:
        with self._lock:
            if not self._token or b"\r\n" + self._token + b"\r\n" not in seen:
                return "passed"
            if self._refuse:
                self._refuse, self.lost = self._refuse - 1, self.lost + 1
                return "refused"
            if self._hold:
                self._hold, self.lost = self._hold - 1, self.lost + 1
                return "held"
            if self._lose:
                self._lose, self.lost = self._lose - 1, self.lost + 1
                return "lost"
            return "passed"


@pytest.fixture
def proxy(server: EmbeddedServer) -> Iterator[Proxy]:
    """A proxy in front of this test process's server."""
    with Proxy(server.socket_path) as proxy:
        yield proxy

"""A proxy in front of a Redis socket that loses replies after the server has executed, loses requests, or cuts off."""

from __future__ import annotations

import contextlib
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from smqueue.embedded import EmbeddedServer

CHUNK = 65_536


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
        self._open: set[socket.socket] = set()
        self._lose, self._refuse, self._token = 0, 0, b""
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
            self._lose, self._refuse, self._token = count, 0, to

    def lose_requests(self, count: int, holding: bytes = b"EXEC") -> None:
        """Lose the next ``count`` requests that hold the token, so that the server never sees them."""
        with self._lock:
            self._lose, self._refuse, self._token = 0, count, holding

    def cut(self) -> None:
        """Cut all connections."""
        with self._lock:
            for end in self._open:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Stop."""
        self._listener.close()
        self.cut()
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
            with self._lock:
                self._open |= {client, server}
            silenced = threading.Event()
            for source, target, requests in ((client, server, True), (server, client, False)):
                threading.Thread(target=self._pump, args=(source, target, requests, silenced), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, requests: bool, silenced: threading.Event) -> None:
        tail = b""
        with contextlib.suppress(OSError):
            while data := source.recv(CHUNK):
                if requests:
                    seen, tail = tail + data, data[-32:]
                    fate = self._fate(seen)
                    if fate == "refused":
                        break
                    if fate == "lost":
                        silenced.set()
                        target.sendall(data)
                        # The server reads to the end, and so executes all of it, before it hangs up.
                        target.shutdown(socket.SHUT_WR)
                        return
                if not silenced.is_set():
                    target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            if not requests or not silenced.is_set():
                with self._lock:
                    self._open.discard(end)
                end.close()

    def _fate(self, seen: bytes) -> str:
        with self._lock:
            if not self._token or b"\r\n" + self._token + b"\r\n" not in seen:
                return "passed"
            if self._refuse:
                self._refuse, self.lost = self._refuse - 1, self.lost + 1
                return "refused"
            if self._lose:
                self._lose, self.lost = self._lose - 1, self.lost + 1
                return "lost"
            return "passed"


@pytest.fixture
def proxy(server: EmbeddedServer) -> Iterator[Proxy]:
    """A proxy in front of this test process's server."""
    with Proxy(server.socket_path) as proxy:
        yield proxy

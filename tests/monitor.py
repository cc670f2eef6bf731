"""Everything that a server is asked while a block runs, argument by argument, scripts' commands included."""

from __future__ import annotations

import codecs
import json
import re
import threading
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, NamedTuple

import redis

from tests.waiting import wait_until

LINE = re.compile(rb"[\d.]+ \[(\d+) ([^\]]*)\] (.*)", re.DOTALL)
ARGUMENT = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)


class Asked(NamedTuple):
    """One command."""

    db: int
    client: str
    """Its address; ``lua`` within a script."""
    args: tuple[bytes, ...]

    @property
    def name(self) -> str:
        """In capitals."""
        return self.args[0].decode().upper()


class Monitor:
    """The commands so far."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._asked: list[Asked] = []
        self._marks: set[bytes] = set()
        self._connection: Any = client.connection_pool.make_connection()  # type: ignore[no-untyped-call]
        self._connection.send_command("MONITOR")
        assert self._connection.read_response() == b"OK"
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            while True:
                found = LINE.fullmatch(self._connection.read_response(timeout=None))
                assert found is not None
                args = tuple(map(_unquoted, ARGUMENT.findall(found[3])))
                if args[0].upper() == b"ECHO":
                    self._marks.add(args[1])
                else:
                    self._asked.append(Asked(int(found[1]), found[2].decode(), args))
        except (redis.ConnectionError, OSError, ValueError, AttributeError):
            return  # the block is over

    @property
    def asked(self) -> list[Asked]:
        """All commands until now."""
        mark = uuid.uuid4().hex.encode()
        self._client.echo(mark)
        wait_until(lambda: mark in self._marks, "the monitor has caught up", timeout_s=60)
        return list(self._asked)

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The messages that were put into queues until now, as kombu renders them."""
        return [json.loads(one.args[2]) for one in self.asked if one.name == "LPUSH" and b'"headers"' in one.args[2]]

    def close(self) -> None:
        """Stop."""
        self._connection.disconnect()
        self._thread.join(5)


def _unquoted(shown: bytes) -> bytes:
    """The server quotes as C does, and so as Python's bytes do. (Not by ``ast``: one thread at a time.)"""
    return codecs.escape_decode(shown[1:-1])[0] if b"\\" in shown else shown[1:-1]  # type: ignore[attr-defined]


@contextmanager
def monitoring(client: redis.Redis) -> Generator[Monitor]:
    """Watch a server."""
    monitor = Monitor(client)
    try:
        yield monitor
    finally:
        monitor.close()

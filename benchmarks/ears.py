"""Hearing the ends that commits publish, for as little as can be: what a listener takes is taken from the measured."""

from __future__ import annotations

from socket import socket
from typing import Any, cast

import hiredis
import redis

from benchmarks.machines import FINISHED

CHUNK = 65_536
"""Bytes read at a time."""


class Ears:
    """A connection that is subscribed from its making on.

    (redis-py's own subscriptions take 50 to 100 µs for each message, of an event loop or not.)

    Args:
        url: Of the server.

    Attributes:
        socket: Readable when there may be something to hear.
    """

    def __init__(self, url: str) -> None:
        self._client = redis.Redis.from_url(url, protocol=2)
        self._connection: Any = self._client.connection_pool.get_connection()
        self._connection.send_command("SUBSCRIBE", FINISHED)
        self.socket: socket = self._connection._sock
        self._reader: Any = cast("Any", hiredis).Reader(encoding="utf-8")
        while not any(message[0] == "subscribe" for message in self._read()):
            pass

    def hear(self) -> list[str]:
        """What has been published since; waits for something unless there is something to read.

        Raises:
            ConnectionError: The server has gone away.
        """
        return [message[2] for message in self._read()]

    def _read(self) -> list[Any]:
        if not (data := self.socket.recv(CHUNK)):
            raise ConnectionError("the server has gone away")
        self._reader.feed(data)
        return list(iter(self._reader.gets, False))

    def close(self) -> None:
        """Hear no more."""
        self._connection.disconnect()
        self._client.close()

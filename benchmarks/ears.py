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
        self._connection.read_response()  # its confirmation
        self.socket: socket = self._connection._sock
        self._reader: Any = cast("Any", hiredis).Reader(encoding="utf-8")

    def hear(self) -> list[str]:
        """What has been published since; waits for something unless there is something to read."""
        self._reader.feed(self.socket.recv(CHUNK))
        heard: list[str] = []
        while (message := self._reader.gets()) is not False:
            heard.append(message[2])
        return heard

    def close(self) -> None:
        """Hear no more."""
        self._connection.disconnect()
        self._client.close()

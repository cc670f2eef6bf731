"""Waiting for a doorbell: a sharded pub/sub channel that only says "look again".

Sharded, because a plain channel of a cluster is told to all of its nodes; on a single server there is no difference.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from redis.exceptions import ResponseError

from smqueue.drivers.connect import ELSEWHERE, LOST, translated
from smqueue.drivers.nodes import Node, Nodes
from smqueue.errors import StoreUnavailable

LONGEST_S = 2.0
"""One look at the latest after this long: a ring that was lost with a connection delays, and loses nothing."""


class Doorbell:
    """A subscription, made when it is entered; whoever looks afterwards misses nothing.

    Args:
        nodes: The servers.
        channels: Whose rings count.
    """

    def __init__(self, nodes: Nodes, *channels: str) -> None:
        self._nodes, self._channels = nodes, channels
        self._connections: list[Any] = []

    def __enter__(self) -> Self:
        self._subscribe()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        for connection in self._connections:
            connection.disconnect()
        self._connections = []

    def ring(self) -> None:
        """From another thread: end a ``wait`` that is under way, as if the connection were lost."""
        for connection in list(self._connections):
            with suppress(OSError, AttributeError):  # lost already
                connection._sock.shutdown(socket.SHUT_RDWR)

    def clock(self) -> float:
        """Seconds by the clock that ``wait`` goes by."""
        return time.monotonic()

    def wait(self, seconds: float) -> None:
        """Until it rings, or for ``seconds``; several rings count as one."""
        until = time.monotonic() + min(seconds, LONGEST_S)
        try:
            if not self._connections:
                self._subscribe()
                if self._connections:
                    return  # what rang meanwhile went unheard: look
            for connection in self._ringing(until - time.monotonic()):
                while connection.can_read(timeout=0):
                    said: Any = connection.read_response(disable_decoding=True)
                    if said[0] == b"sunsubscribe":  # the channel's slot has moved to another node
                        self._lose()
                        return
        except LOST:
            self._lose()
        if not self._connections:
            time.sleep(max(0.0, min(0.2, until - time.monotonic())))

    def _lose(self) -> None:
        self.close()
        self._nodes.look_again()

    def _ringing(self, seconds: float) -> Sequence[Any]:
        """Those with something to read, within so many seconds."""
        found = [connection for connection in self._connections if connection.can_read(timeout=0)]
        if found or not self._connections:
            return found
        with selectors.DefaultSelector() as selector:
            for connection in self._connections:
                selector.register(connection._sock, selectors.EVENT_READ, connection)
            return [key.data for key, _ in selector.select(max(0.0, seconds))]

    def _subscribe(self) -> None:
        """Subscribe and see it confirmed; not when there is no answer.

        Raises:
            StoreRefused: The user may not.
        """
        try:
            found: dict[Node, list[str]] = {}
            for channel in self._channels:
                found.setdefault(self._nodes.node(channel), []).append(channel)
            for node, channels in found.items():
                connection = node.apart()
                self._connections.append(connection)
                connection.connect()
                for channel in channels:
                    _see_confirmed(connection, channel, node.url)
        except (*LOST, *ELSEWHERE, StoreUnavailable):
            self._lose()


def _see_confirmed(connection: Any, channel: str, url: str) -> None:
    connection.send_command("SSUBSCRIBE", channel)  # more than its reply may come: what reads on must be one parser
    said: Any = None
    while not isinstance(said, list) or said[0] != b"ssubscribe":  # another channel's ring may come first
        try:
            said = connection.read_response(disable_decoding=True)
        except ELSEWHERE:
            raise
        except ResponseError as error:
            raise translated(url, error) from None

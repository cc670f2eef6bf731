"""Listening to many plain pub/sub channels over one connection, on an event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import redis.asyncio

from smqueue.drivers.connect import SOCKET_TIMEOUT_S

log = logging.getLogger("smqueue.channels")


class Channels:
    """Subscriptions of one process.

    Args:
        url: Of the server.
        heard: Called for each message, on the loop, with channel and payload.
        confirmed: Called when the server has confirmed a subscription: from here on nothing is missed.
    """

    def __init__(self, url: str, heard: Callable[[str, bytes], None], confirmed: Callable[[str], None]) -> None:
        client: Any = redis.asyncio.from_url(_plain(url), socket_connect_timeout=SOCKET_TIMEOUT_S, protocol=2)
        self._pubsub: Any = client.pubsub()
        self._client = client
        self._heard, self._confirmed = heard, confirmed
        self._wanted: set[str] = set()
        self._subscribed: set[str] = set()
        self._changed = asyncio.Event()

    def want(self, channel: str) -> None:
        """Subscribe soon; one that is subscribed already is confirmed at once."""
        if channel in self._subscribed:
            self._confirmed(channel)
        self._wanted.add(channel)
        self._changed.set()

    def unwant(self, channel: str) -> None:
        """Unsubscribe soon."""
        self._wanted.discard(channel)
        self._changed.set()

    async def run(self) -> None:
        """Listen until cancelled, over reconnects; what is published meanwhile is missed, as with any pub/sub."""
        try:
            while True:
                try:
                    await self._listen()
                except Exception as error:  # a lost connection, or a channel that the server's ACL refuses
                    log.warning("channels are not heard for a moment: %s: %s", type(error).__name__, error)
                    self._subscribed.clear()
                    await self._pubsub.aclose()
                    self._pubsub = self._client.pubsub()
                    await asyncio.sleep(0.5)
        finally:
            await self._pubsub.aclose()
            await self._client.aclose()

    async def _listen(self) -> None:
        reader: asyncio.Task[Any] | None = None
        try:
            while True:
                await self._adjust()
                self._changed.clear()
                if not self._pubsub.subscribed:
                    await self._changed.wait()
                    continue
                reading = reader = reader or asyncio.ensure_future(self._pubsub.get_message(timeout=None))
                changed = asyncio.ensure_future(self._changed.wait())
                try:
                    await asyncio.wait([reading, changed], return_when=asyncio.FIRST_COMPLETED)
                finally:
                    changed.cancel()
                if reading.done():
                    reader = None
                    self._take(reading.result())
        finally:
            if reader is not None:
                reader.cancel()

    async def _adjust(self) -> None:
        known: set[str] = {name.decode() if isinstance(name, bytes) else name for name in self._pubsub.channels}
        fresh, gone = self._wanted - known, known - self._wanted
        if fresh:
            await self._pubsub.subscribe(*fresh)
        if gone:
            self._subscribed -= gone
            await self._pubsub.unsubscribe(*gone)

    def _take(self, message: dict[str, Any] | None) -> None:
        if message is None:
            return
        channel = message["channel"].decode()
        if message["type"] == "message":
            self._heard(channel, message["data"])
        elif message["type"] == "subscribe":
            self._subscribed.add(channel)
            self._confirmed(channel)


def _plain(url: str) -> str:
    if url.startswith("redis+socket://"):
        return "unix://" + url.removeprefix("redis+socket://").replace("virtual_host=", "db=")
    return url

"""Listening to many plain pub/sub channels over one connection, on an event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Any

import redis.asyncio
import redis.asyncio.sentinel

from smqueue.drivers.cluster import PORT
from smqueue.drivers.connect import CONNECT_TIMEOUT_S, one_each, plain, verification
from smqueue.drivers.nodes import sentinels_of

log = logging.getLogger("smqueue.channels")
LOGIN = frozenset({"username", "password", "db"})


class Channels:
    """Subscriptions of one process.

    Args:
        url: Of the server.
        heard: Called for each message, on the loop, with channel and payload.
        confirmed: Called when the server has confirmed a subscription: from here on nothing is missed.
    """

    def __init__(self, url: str, heard: Callable[[str, bytes], None], confirmed: Callable[[str], None]) -> None:
        self._clients = _clients(url)
        self._client = next(self._clients)
        self._pubsub: Any = self._client.pubsub()
        self._heard, self._confirmed = heard, confirmed
        self._wanted: set[str] = set()
        self._subscribed: set[str] = set()
        self._changed = asyncio.Event()

    def want(self, channel: str) -> bool:
        """Subscribe soon; returns whether that is confirmed already."""
        if channel not in self._wanted:
            self._wanted.add(channel)
            self._changed.set()
        return channel in self._subscribed

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
                    await self._client.aclose()
                    self._client = next(self._clients)
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


def _clients(url: str) -> Iterator[Any]:
    """A client for each attempt: of a cluster each node in its turn, for all of them hear a plain channel."""
    more: dict[str, Any] = {"socket_connect_timeout": CONNECT_TIMEOUT_S, "protocol": 2}
    while True:
        scheme, _, _ = url.partition("://")
        if scheme.endswith("+sentinel"):
            service, options, sentinels, theirs = sentinels_of(url)
            login = {name: value for name, value in options.items() if name in LOGIN or name.startswith("ssl")}
            theirs = {name: value for name, value in theirs.items() if name != "retry"}
            yield redis.asyncio.sentinel.Sentinel(sentinels, sentinel_kwargs=theirs).master_for(
                service, **login, **more
            )
            continue
        for one in one_each(url, PORT) if scheme.endswith("+cluster") else [plain(url)]:
            yield redis.asyncio.from_url(one, **verification(one), **more)

"""Waiting for a doorbell: a plain pub/sub channel that only says "look again"."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

import redis

from smqueue.drivers.connect import LOST, pool_of
from smqueue.drivers.driver import Driver
from smqueue.errors import AwaitTimeout

T = TypeVar("T")

LONGEST_S = 2.0
"""One look at the latest after this long: a ring that was lost with a connection delays, and loses nothing."""


class Doorbell:
    """A subscription, made when it is entered; whoever looks afterwards misses nothing.

    Args:
        url: Of the server.
        channels: Whose rings count; all or none end with ``*``, which stands for anything.
    """

    def __init__(self, url: str, *channels: str) -> None:
        self._client = redis.Redis(connection_pool=pool_of(url))
        self._channels = channels
        self._pubsub: Any = None

    def __enter__(self) -> Self:
        self._subscribe()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the connection back."""
        if self._pubsub is not None:
            self._pubsub.close()
            self._pubsub = None
        self._client.connection_pool.disconnect()

    def clock(self) -> float:
        """Seconds by the clock that ``wait`` goes by."""
        return time.monotonic()

    def wait(self, seconds: float) -> None:
        """Until it rings, or for ``seconds``; several rings count as one."""
        until = time.monotonic() + min(seconds, LONGEST_S)
        try:
            if self._pubsub is None:
                self._subscribe()
                return  # what rang meanwhile went unheard: look
            pubsub = self._pubsub
            while (left := until - time.monotonic()) > 0:
                if pubsub.get_message(ignore_subscribe_messages=True, timeout=left) is not None:
                    break
            while pubsub.get_message(ignore_subscribe_messages=True, timeout=0) is not None:
                pass
        except LOST:
            self._pubsub = None
            time.sleep(max(0.0, min(0.2, until - time.monotonic())))

    def _subscribe(self) -> None:
        """Subscribe and see it confirmed."""
        pubsub: Any = self._client.pubsub()
        try:
            pattern = any(channel.endswith("*") for channel in self._channels)
            (pubsub.psubscribe if pattern else pubsub.subscribe)(*self._channels)
            for _ in self._channels:
                pubsub.get_message(timeout=5.0)
        except LOST:
            pubsub.close()
            return
        self._pubsub = pubsub


def wait_for(driver: Driver, channel: str, look: Callable[[], T | None], seconds: float | None, what: str) -> T:
    """Look, and look again when a bell rings; subscribed before the look that counts, so nothing between is missed.

    Raises:
        AwaitTimeout: ``look`` was in vain for so long.
    """
    if (already := look()) is not None:
        return already
    with driver.doorbell(channel) as bell:
        until = None if seconds is None else bell.clock() + seconds
        while (found := look()) is None:
            left = 2.0 if until is None else until - bell.clock()
            if left <= 0:
                raise AwaitTimeout(what, seconds)
            bell.wait(left)
        return found

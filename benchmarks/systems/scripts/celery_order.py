"""Celery: a chain of two tasks, or a group of two, for each order; started by what would be the signal.

``chain`` and ``group`` keep results, and the clients ask for them; they are sent one at a time, since Celery's
consumer of results on Redis is not safe in threads. ``counted`` is a chain without results, whose second task counts in
Redis, sent by as many threads as there are clients.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Any

import celery
from celery_app import COUNTER, count, finish, ship, state
from drive import InThreads, arguments, drive

RESULT_S = 60.0
LOOK_EVERY_S = 0.005
"""Also at the results of a group, at which Celery itself looks every half second."""


class Asked:
    """Orders whose results are asked for."""

    def __init__(self) -> None:
        self._thread = InThreads(1)
        self._sent: dict[str, Any] = {}

    async def start(self, key: str) -> None:
        """There is nothing that could wait."""

    async def signal(self, key: str) -> None:
        """Send both tasks."""
        self._sent[key] = await self._thread(self._send, key)

    async def finished(self, keys: Sequence[str]) -> None:
        """When all are sent, ask for all."""
        while not all(key in self._sent for key in keys):
            await asyncio.sleep(LOOK_EVERY_S)
        await self._thread(lambda: [self._sent.pop(key).get(timeout=RESULT_S, interval=LOOK_EVERY_S) for key in keys])

    def _send(self, key: str) -> Any:
        if os.environ["ORDERS_KIND"] == "group":
            return celery.group(ship.s(key), finish.s(key)).apply_async()
        return celery.chain(ship.s(key), finish.s()).apply_async()


class Counted:
    """Orders that count themselves."""

    def __init__(self, clients: int) -> None:
        self._threads = InThreads(clients)
        self._before = 0

    async def start(self, key: str) -> None:
        """There is nothing that could wait."""

    async def signal(self, key: str) -> None:
        """Send both tasks."""
        await self._threads(lambda: celery.chain(ship.s(key), count.s()).apply_async())

    async def finished(self, keys: Sequence[str]) -> None:
        """Look at the counter."""
        wanted = self._before = self._before + len(keys)
        while int(state.get(COUNTER) or 0) < wanted:
            await asyncio.sleep(LOOK_EVERY_S)


given = arguments()
asyncio.run(drive(Counted(given.clients) if os.environ["ORDERS_KIND"] == "counted" else Asked(), given))

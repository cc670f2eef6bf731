"""docket has no signals: the wait is a future task under a key, which the signal replaces by one for now."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from docket import Docket, Worker
from drive import TIMEOUT_S, Seen, arguments, drive

CONNECTIONS = 500
seen = Seen()


async def expired(key: str) -> None:
    """Half an hour has passed."""
    seen.add(key)


async def paid(key: str) -> None:
    """The one step."""
    seen.add(key)


class Orders:
    """The work, on a docket."""

    def __init__(self, docket: Docket) -> None:
        self._docket = docket

    async def start(self, key: str) -> None:
        """Schedule the timeout."""
        await self._docket.add(expired, when=datetime.now(UTC) + timedelta(seconds=TIMEOUT_S), key=key)(key)

    async def signal(self, key: str) -> None:
        """Replace it by the step."""
        await self._docket.replace(paid, when=datetime.now(UTC), key=key)(key)

    async def finished(self, keys: Sequence[str]) -> None:
        """Worker and clients are one process."""
        await seen.all(keys)


async def main() -> None:
    """A worker and the clients on one event loop."""
    given = arguments()
    url = f"{given.url}{'&' if '?' in given.url else '?'}max_connections={CONNECTIONS}"
    async with Docket(name="orders", url=url) as docket:
        docket.register(expired)
        docket.register(paid)
        tick = timedelta(milliseconds=5)
        worker = Worker(
            docket, concurrency=50, minimum_check_interval=tick, scheduling_resolution=timedelta(milliseconds=50)
        )
        async with worker:
            running = asyncio.create_task(worker.run_forever())
            await drive(Orders(docket), given)
            running.cancel()


asyncio.run(main())

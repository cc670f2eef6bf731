"""DBOS: a function that waits in ``recv``; a thread for each that waits, in the process of its clients."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from dbos import DBOS, DBOSConfig, SetWorkflowID
from drive import TIMEOUT_S, InThreads, arguments, drive


@DBOS.step()
def ship(key: str) -> str:
    """The one step."""
    return f"shipped {key}"


@DBOS.workflow()
def order(key: str) -> str | None:
    """Wait, then run the step."""
    return ship(key) if DBOS.recv("payment", timeout_seconds=TIMEOUT_S) is not None else None


class Orders:
    """The work; its calls block, so each client has a thread."""

    def __init__(self, clients: int) -> None:
        self._threads = InThreads(clients + 1)  # one more waits for the end
        self._handles: dict[str, Any] = {}

    async def start(self, key: str) -> None:
        """Start it under its key."""
        self._handles[key] = await self._threads(self._start, key)

    async def signal(self, key: str) -> None:
        """Send what it waits for."""
        await self._threads(DBOS.send, key, 5, "payment")

    async def finished(self, keys: Sequence[str]) -> None:
        """Their results are there."""
        await self._threads(lambda: [self._handles[key].get_result() for key in keys])

    def _start(self, key: str) -> Any:
        with SetWorkflowID(key):
            return DBOS.start_workflow(order, key)


given = arguments()
config: DBOSConfig = {
    "name": "orders", "system_database_url": given.url, "log_level": "WARNING", "run_admin_server": False,
}  # fmt: skip
DBOS(config=config)
DBOS.launch()
asyncio.run(drive(Orders(given.clients), given))
DBOS.destroy()

"""Temporal: code that is replayed, an activity as its step; a worker in the process of its clients."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from drive import TIMEOUT_S, arguments, drive, each
from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

QUEUE = "orders"


@activity.defn
async def ship(key: str) -> str:
    """The one step."""
    return f"shipped {key}"


@workflow.defn
class Order:
    """Wait, then run the step."""

    def __init__(self) -> None:
        self._paid: int | None = None

    @workflow.signal
    def payment(self, amount: int) -> None:
        """The signal."""
        self._paid = amount

    @workflow.run
    async def run(self, key: str) -> str | None:
        """From start to finish."""
        try:
            await workflow.wait_condition(lambda: self._paid is not None, timeout=timedelta(seconds=TIMEOUT_S))
        except TimeoutError:
            return None
        return await workflow.execute_activity(ship, key, start_to_close_timeout=timedelta(seconds=10))


class Orders:
    """The work, by a client."""

    def __init__(self, client: Client, clients: int) -> None:
        self._client, self._clients = client, clients
        self._handles: dict[str, Any] = {}

    async def start(self, key: str) -> None:
        """Start it under its key."""
        self._handles[key] = await self._client.start_workflow(Order.run, args=[key], id=key, task_queue=QUEUE)

    async def signal(self, key: str) -> None:
        """Send the signal."""
        await self._handles[key].signal(Order.payment, 5)

    async def finished(self, keys: Sequence[str]) -> None:
        """Their results are there."""
        await each(lambda key: self._handles[key].result(), keys, self._clients)


async def main() -> None:
    """A worker and the clients on one event loop."""
    given = arguments()
    client = await Client.connect(given.url)
    worker = Worker(
        client, task_queue=QUEUE, workflows=[Order], activities=[ship], workflow_runner=UnsandboxedWorkflowRunner()
    )
    async with worker:
        await drive(Orders(client, given.clients), given)


if __name__ == "__main__":
    asyncio.run(main())

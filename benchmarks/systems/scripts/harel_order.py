"""harel: state machines in a language of its own, on Redis; a worker in the process of its clients."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import redis.asyncio
from drive import TIMEOUT_S, arguments, drive
from harel.dsl import definition_from_dsl
from harel.engine.aio.distributed import AsyncDistributedRunner, AsyncWorker
from harel.engine.aio_store import AsyncRedisStore
from harel.engine.aio_transport import AsyncRedisTransport
from harel.spec.states import Event

LOOK_EVERY_S = 0.005
CONNECTIONS = 300
ORDER = f"""
event Pay {{}}
machine order {{
  initial Awaiting
  state Awaiting {{ timeout {TIMEOUT_S:.0f} }}
  final Shipped success {{}}
  final Cancelled cancelled {{}}
  from Awaiting to Shipped on Pay
  from Awaiting to Cancelled on Timeout
}}
"""


class Orders:
    """The work, by a runner."""

    def __init__(self, runner: AsyncDistributedRunner, store: AsyncRedisStore, definition: str) -> None:
        self._runner, self._store, self._definition = runner, store, definition
        self._ids: dict[str, str] = {}

    async def start(self, key: str) -> None:
        """It chooses the id."""
        self._ids[key] = (await self._runner.create(self._definition)).id

    async def signal(self, key: str) -> None:
        """Send the event."""
        await self._runner.send(self._ids[key], Event(kind="Pay"))

    async def finished(self, keys: Sequence[str]) -> None:
        """It is asked, for there is no other way."""
        for key in keys:
            while (await self._store.load(self._ids[key])).status.name == "RUNNING":
                await asyncio.sleep(LOOK_EVERY_S)


async def main() -> None:
    """A worker and the clients on one event loop."""
    given = arguments()
    order = definition_from_dsl(ORDER, "order")
    known = {order.id: order}
    clients = [redis.asyncio.Redis.from_url(given.url, max_connections=CONNECTIONS) for _ in range(2)]
    store, transport = AsyncRedisStore(clients[0]), AsyncRedisTransport(clients[1])
    stop = asyncio.Event()
    worker = asyncio.create_task(AsyncWorker(store, transport, known, concurrency=16).run(stop))
    await drive(Orders(AsyncDistributedRunner(store, transport, known), store, order.id), given)
    stop.set()
    await worker


asyncio.run(main())

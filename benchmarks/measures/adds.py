"""Machines added each second: one call after the other, in batches of 100, and by 50 clients at a time.

No worker runs. Each machine waits for a signal and a 30-minute timeout; each call returns when it is acknowledged.
"""

from __future__ import annotations

import asyncio
import time

from benchmarks.feeding import add_all
from benchmarks.figure import Measured, figure
from benchmarks.machines import Awaiting
from benchmarks.settings import Settings, Workers
from benchmarks.stage import Stage
from benchmarks.systems.scripts.drive import each
from smqueue import Executor, StateMachine

BATCH = 100


def measure(settings: Settings) -> Measured:
    """A fresh server each round."""
    count = settings.sizes.machines
    states = [Awaiting(5)] * count
    rates: dict[str, list[float]] = {"one_by_one": [], "batches": [], "clients": []}
    for number in range(settings.rounds):
        with Stage(Workers(count=0)) as stage:
            executor = stage.executor
            add_all(executor, "warm", states[:100], 1)
            began = time.perf_counter()
            add_all(executor, "one", states, 1)
            rates["one_by_one"].append(count / (time.perf_counter() - began))
            began = time.perf_counter()
            add_all(executor, "batch", states, BATCH)
            rates["batches"].append(count / (time.perf_counter() - began))
            rates["clients"].append(count / asyncio.run(by_clients(executor, count, settings.clients)))
        settings.say(f"round {number + 1}: {', '.join(f'{name} {some[-1]:,.0f}/s' for name, some in rates.items())}")
    titles = {"one_by_one": "one by one", "batches": f"batches of {BATCH}", "clients": f"{settings.clients} clients"}
    return Measured({f"{name}.rate": figure("machines/s", *some) for name, some in rates.items()}, titles)


async def by_clients(executor: Executor, count: int, clients: int) -> float:
    """Seconds that it takes."""
    client = executor.async_client()

    async def add(name: str) -> None:
        await client.add([StateMachine(name, Awaiting(5))])

    began = time.perf_counter()
    await each(add, [f"client-{number}" for number in range(count)], clients)
    return time.perf_counter() - began

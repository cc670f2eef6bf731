"""Signals accepted each second: one call after the other, in batches of 500, and by 50 clients at a time.

No worker runs: what is measured is the sender's side. A machine waits for each; each call returns when it is
acknowledged.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from benchmarks.feeding import add_all
from benchmarks.figure import Absent, Measured, figure
from benchmarks.machines import Awaiting, payment
from benchmarks.settings import Settings, Workers
from benchmarks.stage import Stage
from benchmarks.systems.scripts.drive import each
from smqueue import Executor
from smqueue.producer import SignalFor

BATCH = 500


def measure(settings: Settings) -> Measured:
    """A fresh server each round."""
    count = settings.sizes.machines
    states = [Awaiting(5)] * count
    rates: dict[str, list[float]] = {"one_by_one": [], "batches": [], "clients": []}
    for number in range(settings.rounds):
        with Stage(Workers(count=0)) as stage:
            executor = stage.executor
            names = {name: add_all(executor, name, states) for name in ("warm", *rates)}
            for name in names["warm"][:100]:
                executor.signal(name, payment, 5)
            began = time.perf_counter()
            for name in names["one_by_one"]:
                executor.signal(name, payment, 5)
            rates["one_by_one"].append(count / (time.perf_counter() - began))
            began = time.perf_counter()
            in_batches(executor, names["batches"])
            rates["batches"].append(count / (time.perf_counter() - began))
            rates["clients"].append(count / asyncio.run(by_clients(executor, names["clients"], settings.clients)))
        settings.say(f"round {number + 1}: {', '.join(f'{name} {some[-1]:,.0f}/s' for name, some in rates.items())}")
    titles = {"one_by_one": "one by one", "batches": f"batches of {BATCH}", "clients": f"{settings.clients} clients"}
    return Measured({f"{name}.rate": figure("signals/s", *some) for name, some in rates.items()}, titles)


def in_batches(executor: Executor, names: Sequence[str]) -> None:
    """By ``signal_many``."""
    for at in range(0, len(names), BATCH):
        done = executor.signal_many([SignalFor(name, payment, 5) for name in names[at : at + BATCH]])
        refused = [one for one in done if isinstance(one, Exception)]
        if refused:
            raise Absent(f"{len(refused)} signals of a batch were refused: {refused[0]}")


async def by_clients(executor: Executor, names: Sequence[str], clients: int) -> float:
    """Seconds that it takes."""
    client = executor.async_client()

    async def signal(name: str) -> None:
        await client.signal(name, payment, 5)

    began = time.perf_counter()
    await each(signal, names, clients)
    return time.perf_counter() - began

"""Drives our clients: ``drive.py``'s cycle, and loads that do not wait for anybody.

Each client is a task of an event loop, on one ``executor.async_client()`` in each process. The end of many is a counter
that handlers increment with their commit, looked at every 10 ms; the end of one a message that its commit publishes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import time
from collections.abc import Sequence
from typing import Any

import psutil
import redis

from benchmarks.app import from_environment
from benchmarks.ears import Ears
from benchmarks.machines import Watched
from benchmarks.surroundings import Steal
from benchmarks.systems.clients import Crew, Orders, new_loop
from benchmarks.systems.scripts.drive import SETTLE_S, Seen, arguments, cycle, drive, each, latency_ms
from smqueue import Executor

BEGIN, END = "bench-begin", "bench-end"
"""Echoed around the cycles whose command stream is recorded; the first with the process ids of all clients."""
LATE_S = 60
SHARES = (0.25, 0.5, 0.75)


class Watcher(Orders):
    """Machines whose commit is heard of at once."""

    state = Watched

    def __init__(self, executor: Executor, url: str) -> None:
        super().__init__(executor)
        self._ears = Ears(url)
        self.at: dict[str, float] = {}
        self._seen = Seen()
        asyncio.get_running_loop().add_reader(self._ears.socket, self._hear)

    def _hear(self) -> None:
        heard = self._ears.hear()
        now = time.perf_counter()
        for key in heard:
            self.at[key] = now
            self._seen.add(key)

    async def finished(self, keys: Sequence[str]) -> None:
        """All have been heard of."""
        await self._seen.all(keys)


async def open_loop_ms(orders: Watcher, keys: Sequence[str], per_s: float) -> list[float]:
    """Signal at random instants, so many a second, whether or not anybody keeps up.

    Returns:
        Milliseconds from when each signal was meant to be sent until its commit was heard of.
    """
    chance, due_s = random.Random(len(keys)), 0.0
    meant: dict[str, float] = {}
    tasks: set[asyncio.Task[None]] = set()
    began = time.perf_counter()
    for key in keys:
        due_s += chance.expovariate(per_s)
        meant[key] = began + due_s
        if (wait_s := meant[key] - time.perf_counter()) > 0:
            await asyncio.sleep(wait_s)
        tasks.add(task := asyncio.create_task(orders.signal(key)))
        task.add_done_callback(tasks.discard)
    await asyncio.wait_for(orders.finished(keys), LATE_S)
    return [(orders.at[key] - meant[key]) * 1000 for key in keys]


def pings_ms(url: str, count: int) -> list[float]:
    """Milliseconds of one exchange with the server that does nothing, after as long a rest as before a signal alone."""
    found: list[float] = []
    with redis.Redis.from_url(url) as client:
        client.ping()  # connects
        for _ in range(count):
            time.sleep(SETTLE_S)
            began = time.perf_counter()
            client.ping()
            found.append((time.perf_counter() - began) * 1000)
    return found


async def loads(executor: Executor, given: argparse.Namespace) -> dict[str, Any]:
    """Latencies alone, then at shares of what signals and commits can do at once."""
    orders = Watcher(executor, given.url)
    await cycle(orders, [f"w{n}" for n in range(given.warm)], given.clients)
    steal = Steal()
    found: dict[str, Any] = {"alone": await latency_ms(orders, [f"l{n}" for n in range(given.samples)])}
    found["steal"] = {"alone": steal.percent()}
    found["ping"] = pings_ms(given.url, given.samples)
    took = await cycle(orders, [f"c{n}" for n in range(given.cycles)], given.clients)
    found["capacity"] = capacity = given.cycles / took["finish_s"]
    for share in SHARES:
        keys = [f"o{share}-{n}" for n in range(max(2, int(capacity * share * given.seconds)))]
        await each(orders.start, keys, given.clients)
        steal = Steal()
        found[str(share)] = await open_loop_ms(orders, keys, capacity * share)
        found["steal"][str(share)] = steal.percent()
    return found


async def recorded(executor: Executor, given: argparse.Namespace) -> dict[str, Any]:
    """Cycles between two marks."""
    orders = Orders(executor)
    with crew_of(given) as crew, redis.Redis.from_url(given.url) as marks:
        await cycle(orders, [f"w{n}" for n in range(given.warm)], given.clients, crew.each)
        marks.echo(" ".join([BEGIN, *map(str, crew.pids)]))
        took = await cycle(orders, [f"c{n}" for n in range(given.cycles)], given.clients, crew.each)
        marks.echo(END)
    return took


async def cycles(executor: Executor, given: argparse.Namespace) -> None:
    """As every system, and what CPU time it took; the latency alone in this process."""
    watcher = Watcher(executor, given.url) if given.samples else None
    with crew_of(given) as crew:
        await drive(Orders(executor), given, lone=watcher, around=Spent(given.url, crew.pids), spread=crew.each)


def crew_of(given: argparse.Namespace) -> Crew:
    """A process without a client would do nothing."""
    return Crew(min(given.processes, given.clients))


class Spent:
    """CPU time of server, workers and clients: microseconds for each cycle."""

    def __init__(self, url: str, clients: Sequence[int]) -> None:
        self._server = redis.Redis.from_url(url)
        workers = filter(None, os.environ.get("BENCH_PIDS", "").split(","))
        self._processes = {
            "workers": [psutil.Process(int(pid)) for pid in workers],
            "clients": [psutil.Process(pid) for pid in clients],
        }

    def __call__(self) -> dict[str, float]:
        """So far, in seconds."""
        server: Any = self._server.info("cpu")
        spent = {"server": server["used_cpu_user"] + server["used_cpu_sys"]}
        for name, processes in self._processes.items():
            times = [process.cpu_times() for process in processes]
            spent[name] = sum(one.user + one.system for one in times)
        return spent


def main() -> None:
    """``URL [--processes N] [--seconds S | --record 1] …``: what ``drive.py`` takes, and what to do."""
    given = arguments(("seconds", float), ("record", int), ("processes", int))
    _, executor = from_environment()
    with asyncio.Runner(loop_factory=new_loop) as runner:
        if given.seconds:
            print(json.dumps(runner.run(loads(executor, given))), flush=True)
        elif given.record:
            print(json.dumps(runner.run(recorded(executor, given))), flush=True)
        else:
            runner.run(cycles(executor, given))


if __name__ == "__main__":
    main()

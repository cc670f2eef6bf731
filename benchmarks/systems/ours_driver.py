"""The process of our clients: ``drive.py``'s cycle, and loads that do not wait for anybody.

Each client is a task of one event loop, on one ``executor.async_client()``. The end of many is a counter that handlers
increment with their commit, looked at every 10 ms; the end of one a message that its commit publishes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import selectors
import time
from collections.abc import Sequence
from typing import Any

import psutil
import redis
import redis.asyncio

from benchmarks.app import from_environment
from benchmarks.machines import FINISHED, Awaiting, Watched, payment
from benchmarks.systems.scripts.drive import Seen, arguments, cycle, drive, each, latency_ms
from smqueue import Executor, State, StateMachine

LOOK_EVERY_S = 0.01
BEGIN, END = "bench-begin", "bench-end"
"""Echoed around the cycles whose command stream is recorded."""
LATE_S = 60
SHARES = (0.25, 0.5, 0.75)


class Orders:
    """The work, by an asyncio client."""

    state: type[State] = Awaiting

    def __init__(self, executor: Executor) -> None:
        self._client = executor.async_client()
        self._driver = executor.deployment.driver
        self._counters = [keys.data("bench", FINISHED) for keys in executor.deployment.all_keys()]
        self._before = 0

    async def start(self, key: str) -> None:
        """Add the machine."""
        made: Any = self.state
        await self._client.add([StateMachine(key, made(5))])

    async def signal(self, key: str) -> None:
        """Send the payment."""
        await self._client.signal(key, payment, 5)

    async def finished(self, keys: Sequence[str]) -> None:
        """Look at the counter."""
        wanted = self._before = self._before + len(keys)
        while await asyncio.to_thread(self._count) < wanted:
            await asyncio.sleep(LOOK_EVERY_S)

    def _count(self) -> int:
        return sum(int(self._driver.command("GET", counter) or 0) for counter in self._counters)


class Watcher(Orders):
    """Machines whose commit is heard of at once."""

    state = Watched

    def __init__(self, executor: Executor, url: str) -> None:
        super().__init__(executor)
        self._heard: Any = redis.asyncio.Redis.from_url(url).pubsub(ignore_subscribe_messages=True)
        self.at: dict[str, float] = {}
        self._seen = Seen()
        self._listening: asyncio.Task[None] | None = None

    async def listen(self) -> Watcher:
        """From here on."""
        await self._heard.subscribe(FINISHED)
        self._listening = asyncio.create_task(self._listen())
        return self

    async def _listen(self) -> None:
        async for message in self._heard.listen():
            key = message["data"].decode()
            self.at[key] = time.perf_counter()
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


async def loads(executor: Executor, given: argparse.Namespace) -> dict[str, Any]:
    """Latencies alone, then at shares of what signals and commits can do at once."""
    orders = await Watcher(executor, given.url).listen()
    await cycle(orders, [f"w{n}" for n in range(given.warm)], given.clients)
    found: dict[str, Any] = {"alone": await latency_ms(orders, [f"l{n}" for n in range(given.samples)])}
    took = await cycle(orders, [f"c{n}" for n in range(given.cycles)], given.clients)
    found["capacity"] = capacity = given.cycles / took["finish_s"]
    for share in SHARES:
        keys = [f"o{share}-{n}" for n in range(max(2, int(capacity * share * given.seconds)))]
        await each(orders.start, keys, given.clients)
        found[str(share)] = await open_loop_ms(orders, keys, capacity * share)
    return found


async def recorded(executor: Executor, given: argparse.Namespace) -> dict[str, Any]:
    """Cycles between two marks."""
    orders = Orders(executor)
    await cycle(orders, [f"w{n}" for n in range(given.warm)], given.clients)
    with redis.Redis.from_url(given.url) as marks:
        marks.echo(BEGIN)
        took = await cycle(orders, [f"c{n}" for n in range(given.cycles)], given.clients)
        marks.echo(END)
    return took


async def cycles(executor: Executor, given: argparse.Namespace) -> None:
    """As every system, and what CPU time it took."""
    watcher = await Watcher(executor, given.url).listen() if given.samples else None
    await drive(Orders(executor), given, lone=watcher, around=Spent(given.url))


class Spent:
    """CPU time of server, workers and this process: microseconds for each cycle."""

    def __init__(self, url: str) -> None:
        self._server = redis.Redis.from_url(url)
        pids = filter(None, os.environ.get("BENCH_PIDS", "").split(","))
        self._workers = [psutil.Process(int(pid)) for pid in pids]

    def __call__(self) -> dict[str, float]:
        """So far, in seconds."""
        server: Any = self._server.info("cpu")
        workers = [process.cpu_times() for process in self._workers]
        return {
            "server": server["used_cpu_user"] + server["used_cpu_sys"],
            "workers": sum(times.user + times.system for times in workers),
            "clients": time.process_time(),
        }


def main() -> None:
    """``URL [--load seconds | --record] …``: what ``drive.py`` takes, and what to do."""
    given = arguments(("seconds", float), ("record", int))
    _, executor = from_environment()
    # Of select(): timeouts in µs. That of epoll is rounded up to whole milliseconds, which a load would be late by.
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        if given.seconds:
            print(json.dumps(runner.run(loads(executor, given))), flush=True)
        elif given.record:
            print(json.dumps(runner.run(recorded(executor, given))), flush=True)
        else:
            runner.run(cycles(executor, given))


if __name__ == "__main__":
    main()

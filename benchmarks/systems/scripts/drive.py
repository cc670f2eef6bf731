"""The one piece of work that all systems are measured with. Standard library only: it runs in each peer's environment.

One cycle: start a machine that waits for a payment signal or a 30-minute timeout; signal; one step runs; it is seen
finished. First all machines are started, then all are signalled, with as many calls under way as there are clients;
the clock stops when the last is seen finished. Then the latency from signal to finished, one machine at a time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
Spread = Callable[[Callable[[str], Awaitable[Any]], Sequence[str], int], Awaitable[None]]
"""Calls for each key, with so many calls under way."""
TIMEOUT_S = 1800.0
"""What a machine waits for at most: the work's 30 minutes."""
SETTLE_S = 0.05
"""Between start and signal of a latency sample: what the start has left behind is done by then."""


class Subject(Protocol):
    """What is driven. Each call returns when the system has acknowledged it."""

    async def start(self, key: str) -> None:
        """Start a machine that waits for a signal or half an hour."""
        ...

    async def signal(self, key: str) -> None:
        """Signal it."""
        ...

    async def finished(self, keys: Sequence[str]) -> None:
        """Return when all of these are seen finished."""
        ...


async def each(call: Callable[[T], Awaitable[Any]], items: Iterable[T], clients: int) -> None:
    """Call for each item, with so many calls under way."""
    left = iter(items)

    async def client() -> None:
        for item in left:
            await call(item)

    await asyncio.gather(*[client() for _ in range(clients)])


async def cycle(subject: Subject, keys: Sequence[str], clients: int, spread: Spread = each) -> dict[str, float]:
    """Seconds from the first start to the last finish, and of both halves. ``spread`` makes the calls of each half."""
    began = time.perf_counter()
    await spread(subject.start, keys, clients)
    started = time.perf_counter()
    seen = asyncio.ensure_future(subject.finished(keys))
    await spread(subject.signal, keys, clients)
    signalled = time.perf_counter()
    await seen
    ended = time.perf_counter()
    return {"seconds": ended - began, "start_s": started - began, "signal_s": signalled - started,
            "finish_s": ended - started}  # fmt: skip


async def latency_ms(subject: Subject, keys: Sequence[str]) -> list[float]:
    """Milliseconds from sending the signal to finished, one machine at a time."""
    found: list[float] = []
    for key in keys:
        await subject.start(key)
        await asyncio.sleep(SETTLE_S)
        began = time.perf_counter()
        seen = asyncio.ensure_future(subject.finished([key]))
        await subject.signal(key)
        await seen
        found.append((time.perf_counter() - began) * 1000)
    return found


async def drive(
    subject: Subject, given: argparse.Namespace, lone: Subject | None = None,
    around: Callable[[], dict[str, float]] | None = None, spread: Spread = each,
) -> None:  # fmt: skip
    """Warm up, measure, and print the figures as one line of JSON.

    Args:
        subject: What is driven.
        given: How much.
        lone: What is driven one at a time, when that is seen finished in another way.
        around: Asked before and after the cycles for seconds that have been spent, by name.
        spread: How the calls of the cycles are made.
    """
    await cycle(subject, [f"w{n}" for n in range(given.warm)], given.clients, spread)
    before = around() if around else {}
    figures: dict[str, Any] = {"cycles": given.cycles}
    figures |= await cycle(subject, [f"c{n}" for n in range(given.cycles)], given.clients, spread)
    after = around() if around else {}
    figures["spent_us"] = {name: (after[name] - before[name]) / given.cycles * 1e6 for name in before}
    figures["latency_ms"] = await latency_ms(lone or subject, [f"l{n}" for n in range(given.samples)])
    print(json.dumps(figures), flush=True)


def arguments(*more: tuple[str, Callable[[str], Any]]) -> argparse.Namespace:
    """What a driver is told: where its system is, and how much to do."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    for name in ("cycles", "clients", "samples", "warm"):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name, kind in more:
        parser.add_argument(f"--{name}", type=kind)
    return parser.parse_args()


class Seen:
    """What this process has seen finished."""

    def __init__(self) -> None:
        self._done: set[str] = set()
        self._missing: set[str] = set()
        self._none_missing = asyncio.Event()

    def add(self, key: str) -> None:
        """One more."""
        self._done.add(key)
        self._missing.discard(key)
        if not self._missing:
            self._none_missing.set()

    async def all(self, keys: Sequence[str]) -> None:
        """Return when all of these are."""
        self._missing = set(keys) - self._done
        if self._missing:
            self._none_missing.clear()
            await self._none_missing.wait()


class InThreads:
    """Awaitable calls of a library that blocks: one thread for each client."""

    def __init__(self, clients: int) -> None:
        self._pool = ThreadPoolExecutor(clients)

    async def __call__(self, call: Callable[..., T], *args: Any) -> T:
        """Run it on a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, call, *args)

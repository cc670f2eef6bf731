"""Which workers there are: each notes itself in Redis every few seconds, so that whoever looks needs no broker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import msgspec

from smqueue.drivers.driver import Driver
from smqueue.keys import Keys
from smqueue.queries import moment
from smqueue.records import compact
from smqueue.roundtrip import commit, read, time_us

NOTED_S = 5.0
"""How often a worker notes itself."""
ALIVE_MS = 15_000
"""A worker that has not done so for three times as long is taken for gone."""
KEPT_MS = 24 * 3_600_000
"""How long it is told of that there was one."""
SHOWN = 1_000


@dataclass(frozen=True)
class Worker:
    """A worker of a namespace, or one that there was.

    Attributes:
        name: As Celery names it.
        queues: What it consumes.
        transition_queue: Where it sends, and looks for, transitions.
        trigger_queue: The same for triggers' code.
        modules: Module id → version of those that it has.
        seen: When it last noted itself, by Redis's clock.
        alive: Whether that is less than 15 s ago.
    """

    name: str
    queues: tuple[str, ...]
    transition_queue: str
    trigger_queue: str
    modules: dict[str, int]
    seen: datetime
    alive: bool = True


class Noted(msgspec.Struct, array_like=True, frozen=True):
    """What a worker says of itself: the member of the zset ``workers``; its score is when, ms."""

    name: str
    queues: tuple[str, ...]
    transition_queue: str
    trigger_queue: str
    modules: dict[str, int]


_parse = msgspec.json.Decoder(Noted).decode


def note(driver: Driver, keys: Keys, noted: Noted) -> None:
    """Note a worker, and forget those of yesterday; 2 round trips."""
    (time,) = driver.run(read([], ("TIME",)))
    now_ms = time_us(time) // 1000
    gone = ("ZREMRANGEBYSCORE", keys.workers, "-inf", now_ms - KEPT_MS)
    driver.run(commit([("ZADD", keys.workers, now_ms, compact(noted)), gone]))


def leave(driver: Driver, keys: Keys, noted: Noted) -> None:
    """A worker that ends in order is no longer told of; 1 round trip."""
    driver.command("ZREM", keys.workers, compact(noted))


def workers(driver: Driver, keys: Keys) -> list[Worker]:
    """Those of the last day, the last seen first, each name once; 1 round trip."""
    time, flat = driver.run(read([], ("TIME",), ("ZRANGE", keys.workers, 0, SHOWN - 1, "REV", "WITHSCORES")))
    return read_workers(time, flat)


def read_workers(time: Sequence[bytes], flat: Sequence[bytes]) -> list[Worker]:
    """The replies to ``TIME`` and to the look at the zset."""
    found: dict[str, Worker] = {}
    now_ms = time_us(time) // 1000
    for raw, score in zip(flat[::2], flat[1::2], strict=True):
        try:
            one = _parse(raw)
        except ValueError:  # of newer code, or garbage
            continue
        seen_ms = float(score)
        worker = Worker(**msgspec.structs.asdict(one), seen=moment(seen_ms * 1000), alive=now_ms - seen_ms < ALIVE_MS)
        found.setdefault(one.name, worker)  # restarted with other queues: the later counts
    return list(found.values())

"""When something happens next: virtual time jumps there.

What merely waits is looked at every hour in production, should a message have been lost. Here none is, and those looks
are left out: a machine that waits for a month costs nothing.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from typing import Any

from smqueue.drivers.driver import Driver
from smqueue.keys import Keys, shard_of
from smqueue.pauses import controls_of
from smqueue.records import Machine, deadline_ms, kind_of
from smqueue.roundtrip import text


def next_due_ms(driver: Driver, keys: Keys, held: Collection[str], shards: int) -> int | None:
    """When the first entry of a shard does more than being looked at again, in ms; ``None``: none ever will.

    Args:
        driver: Where.
        keys: Of the shard.
        held: Hosted entries that are pending in this process.
        shards: Of the namespace.
    """
    best: int | None = None
    for schedule in (keys.schedule, keys.hosted):
        flat = driver.command("ZRANGE", schedule, 0, -1, "WITHSCORES")
        for raw, score in zip(flat[::2], flat[1::2], strict=True):
            at_ms = int(float(score))
            if best is not None and at_ms >= best:
                break  # none happens before its score
            entry = text(raw)
            due = None if entry in held else _due(driver, keys, entry, at_ms, shards)
            if due is not None and (best is None or due < best):
                best = due
    return best


def _due(driver: Driver, keys: Keys, entry: str, at_ms: int, shards: int) -> int | None:
    record, _, rest = entry.partition(":")
    if entry.startswith("~"):
        return at_ms
    raw: Any = driver.command("GET", keys.machine(record))
    if raw is None:
        return at_ms  # stale: it goes when it is looked at
    if driver.command("HEXISTS", keys.quarantine, record):
        return None
    machine = _parsed(raw)
    flat = [text(part) for part in driver.command("HGETALL", keys.race(record))]
    race = dict(zip(flat[::2], flat[1::2], strict=True))
    trigger = rest.partition(":")[2]
    if not trigger:
        deadline = deadline_ms(machine.armed)
        if ("won" not in race and deadline is None) or _controlled(driver, keys, machine):
            return None
        return at_ms if "won" in race else max(at_ms, deadline or 0)
    if "won" in race or trigger not in machine.armed:
        return None
    match kind_of(machine.armed[trigger]):
        case "task":  # sent; or its end is there; or it could not be sent
            sent = int(race.get(f"tries:{trigger}", 0)) and f"sent:{trigger}" not in race
            return None if sent and not {f"error:{trigger}", f"ended:{trigger}"} & set(race) else at_ms
        case "reached" | "finished":  # those of the same shard are rung for
            wait: Any = machine.armed[trigger]
            return None if shard_of(str(wait[1]), shards) == keys.shard and f"sent:{trigger}" not in race else at_ms
        case _:
            return at_ms


def _controlled(driver: Driver, keys: Keys, machine: Machine) -> bool:
    """Whether the machine is paused, or being cancelled."""
    return any(driver.command("EXISTS", name) for name in controls_of(keys, machine.op, machine.field))


@lru_cache(maxsize=100_000)
def _parsed(raw: bytes) -> Machine:
    return Machine.parse(raw)

"""Forgetting finished operations, a bounded number at a time; never one with an active state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from smqueue.errors import SmqueueError
from smqueue.instances import Instances
from smqueue.keys import Keys
from smqueue.records import Field
from smqueue.roundtrip import Command, Steps, call, commit, read

BATCH = 100
PAGE = 500
ENTRY = "~retention"


class Swept(NamedTuple):
    """What one round of forgetting did."""

    forgotten: int
    again_ms: int | None
    """In how many ms the next operation may be forgotten; ``None`` when none is noted."""


def sweep(keys: Keys, instances: Instances) -> Steps[Swept]:
    """Forget the operations that ended longest ago, as far as their modules say so; some 3 round trips for each."""
    (time,) = yield from read([], ("TIME",))
    now_ms = int(time[0]) * 1000 + int(time[1]) // 1000
    (oldest,) = yield from read([], ("ZRANGE", keys.finished, 0, BATCH - 1, "WITHSCORES"))
    forgotten, waits = 0, list[int]()
    for raw, score in zip(oldest[::2], oldest[1::2], strict=True):
        op = raw.decode()
        modules = yield from _modules(keys, op)
        keep_ms = _keep_ms(instances, modules)
        if keep_ms is None:  # one of its modules keeps for ever, or is not known here
            yield from commit([("ZREM", keys.finished, op)])
        elif (wait := int(float(score)) + keep_ms - now_ms) > 0:
            waits.append(wait)
        else:
            forgotten += yield from _forget(keys, instances, op, modules)
    if len(oldest) == 2 * BATCH:
        return Swept(forgotten, 0 if forgotten else min(waits, default=None))
    again_ms = min(waits, default=None)
    command: Command = ("ZADD", keys.schedule, now_ms + again_ms, ENTRY) if again_ms else ("ZREM", keys.schedule, ENTRY)
    yield from commit([command])
    return Swept(forgotten, again_ms)


def _modules(keys: Keys, op: str) -> Steps[set[str]]:
    found: set[str] = set()
    cursor: Any = 0
    while True:
        ((cursor, flat),) = yield from read([], ("HSCAN", keys.inactive(op), cursor, "COUNT", PAGE))
        for raw in flat[::2]:
            try:
                found.add(Field.parse(raw.decode()).module)
            except ValueError:
                found.add("")  # garbage is kept, for whoever looks into it
        if int(cursor) == 0:
            return found


def _keep_ms(instances: Instances, modules: set[str]) -> int | None:
    longest = 0
    for module in modules:
        try:
            keep = instances.get(module).module.keep
        except SmqueueError:
            return None
        if keep is None:
            return None
        longest = max(longest, int(keep.total_seconds() * 1000))
    return longest


def _forget(keys: Keys, instances: Instances, op: str, modules: Sequence[str] | set[str]) -> Steps[int]:
    gone = [keys.inactive(op), keys.history(op), keys.seen(op), keys.children(op), keys.watchers(op)]
    for module in modules:
        for signal in instances.get(module).module.signals:
            gone += [keys.inbox(op, module, signal), keys.waiting(op, module, signal)]
    return (yield from call("forget", (keys.active(op), keys.finished, *gone), (op,), int))

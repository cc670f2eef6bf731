"""Forgetting finished operations, a bounded number at a time; never one with an active state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from smqueue.errors import SmqueueError
from smqueue.instances import Instances
from smqueue.keys import Keys
from smqueue.protocols.bounds import PARK_MS
from smqueue.records import Field
from smqueue.roundtrip import Steps, call, commit, read, time_us
from smqueue.standing import parse_inactive

BATCH = 100
PAGE = 500
ENTRY = "~retention"


class Swept(NamedTuple):
    """What one round of forgetting did."""

    forgotten: int
    again_ms: int
    """In how many ms to look again."""


def sweep(keys: Keys, instances: Instances) -> Steps[Swept]:
    """Forget the operations whose time is up, as far as all of their modules say so; some 3 round trips for each."""
    time, due = yield from read([], ("TIME",), ("ZRANGE", keys.finished, 0, BATCH - 1, "WITHSCORES"))
    now_ms, forgotten = time_us(time) // 1000, 0
    for raw, score in zip(due[::2], due[1::2], strict=True):
        if float(score) > now_ms:
            break
        op = raw.decode()
        modules, ended_ms = yield from _past(keys, op)
        try:
            keep_ms = _keep_ms(instances, modules)
        except SmqueueError:  # only a worker that has all of its modules may judge
            yield from commit([("ZADD", keys.finished, "XX", now_ms + PARK_MS, op)])
            continue
        if keep_ms is None:
            yield from commit([("ZREM", keys.finished, op)])
        elif ended_ms + keep_ms > now_ms:  # another of its modules keeps for longer
            yield from commit([("ZADD", keys.finished, "XX", ended_ms + keep_ms, op)])
        else:
            forgotten += yield from _forget(keys, instances, op, modules)
    (first,) = yield from read([keys.finished], ("ZRANGE", keys.finished, 0, 0, "WITHSCORES"))
    # Watched: one that ends meanwhile is noted in the entry, and must not be overwritten. Then the lease runs out.
    again_ms = min(max(0, int(float(first[1])) - now_ms), PARK_MS) if first else PARK_MS
    yield from commit([("ZADD", keys.schedule, now_ms + again_ms, ENTRY) if first else ("ZREM", keys.schedule, ENTRY)])
    return Swept(forgotten, again_ms)


def _past(keys: Keys, op: str) -> Steps[tuple[set[str], int]]:
    """The modules of an operation's states, and when the last of them was left, ms."""
    found, ended_us = set[str](), 0
    cursor: Any = 0
    while True:
        ((cursor, flat),) = yield from read([], ("HSCAN", keys.inactive(op), cursor, "COUNT", PAGE))
        for raw, value in zip(flat[::2], flat[1::2], strict=True):
            try:
                found.add(Field.parse(raw.decode()).module)
                ended_us = max(ended_us, int(parse_inactive(value)["exited"]))
            except (ValueError, KeyError, TypeError):
                found.add("")  # garbage is kept, for whoever looks into it
        if int(cursor) == 0:
            return found, ended_us // 1000


def _keep_ms(instances: Instances, modules: set[str]) -> int | None:
    """The longest that any of these modules keeps; ``None``: for ever. Raises UnknownModule."""
    keeps = [None if module == "" else instances.get(module).module.keep for module in modules]
    longest = [keep.total_seconds() for keep in keeps if keep is not None]
    return None if len(longest) < len(keeps) else int(max(longest, default=0) * 1000)


def _forget(keys: Keys, instances: Instances, op: str, modules: Sequence[str] | set[str]) -> Steps[int]:
    gone = [keys.inactive(op), keys.history(op), keys.seen(op), keys.children(op)]
    # Not its watchers: they wait for what may begin under this id again, and leave the set themselves.
    for module in modules:
        for signal in instances.get(module).module.signals:
            gone += [keys.inbox(op, module, signal), keys.waiting(op, module, signal)]
    return (yield from call("forget", (keys.active(op), keys.finished, *gone), (op,), int))

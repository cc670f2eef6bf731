"""What is waited for, and for how long: a look at the machines of the operations that are active longest."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from smqueue.keys import Keys, digest
from smqueue.records import Active, Field, Machine, kind_of
from smqueue.roundtrip import Command, Steps, read, time_us

OPERATIONS = 100
MACHINES = 20
"""Of one operation about so many are looked at."""


class Wait(NamedTuple):
    """A trigger that is armed."""

    module: str
    state: str
    trigger: str
    kind: str


def longest_waits(keys: Keys) -> Steps[dict[Wait, float]]:
    """For how long, in seconds, each trigger has been waited for at the longest; 3 round trips."""
    time, operations = yield from read([], ("TIME",), ("ZRANGE", keys.operations, 0, OPERATIONS - 1))
    now_us = time_us(time)
    names = [raw.decode(errors="replace") for raw in operations]
    scans: list[Command] = [("HSCAN", keys.active(name), 0, "COUNT", MACHINES) for name in names]
    replies = (yield from read([], *scans)) if scans else []
    records = {
        keys.machine(digest(op, field.decode(errors="replace"))): (field, value)
        for op, reply in zip(names, replies, strict=True)
        if not isinstance(reply, Exception)
        for field, value in zip(reply[1][: 2 * MACHINES : 2], reply[1][1 : 2 * MACHINES : 2], strict=True)
    }
    machines = (yield from read([], *[("GET", key) for key in records])) if records else []
    found: dict[Wait, float] = {}
    for (field, value), raw in zip(records.values(), machines, strict=True):
        try:
            waits = list(_waits(field, raw))
            seconds = (now_us - Active.parse(value).at_us) / 1_000_000
        except (ValueError, TypeError):  # garbage: the patrol tells of it
            continue
        for wait in waits:
            found[wait] = max(seconds, found.get(wait, 0.0))
    return found


def _waits(field: bytes, raw: bytes) -> Iterator[Wait]:
    module, state, _ = Field.parse(field.decode())
    for name, wait in Machine.parse(raw).armed.items():
        if (kind := kind_of(wait)) != "now":  # of such a machine the handler fails, or it is held
            yield Wait(module, state, name, kind)

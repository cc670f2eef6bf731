"""Waiting for another operation: register, then look; whoever commits there makes the entry due, and it looks again."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from smqueue.instances import Instances
from smqueue.keys import Keys, encode
from smqueue.roundtrip import Steps, answers, call
from smqueue.standing import version_of
from smqueue.states import State

PAGE = 500
LOOK_AGAIN_MS = 5_000
"""How often another shard is looked at: a commit there cannot make an entry of this shard due."""


def has_finished(keys: Keys, op: str) -> Steps[bool]:
    """Whether an operation has had states and none is active; 1 round trip."""
    active, inactive = yield from answers(("EXISTS", keys.active(op)), ("EXISTS", keys.inactive(op)))
    return not active and bool(inactive)


def has_reached(keys: Keys, instances: Instances, op: str, classes: Collection[type[State]]) -> Steps[State | None]:
    """A state of one of these classes that any machine of the operation has been in; a page of fields a round trip."""
    wanted = {
        f"{encode(module)} {encode(known.name)} "
        for module in instances.ids()
        for known in instances.get(module).module.types.values()
        if known.cls in classes
    }
    for key in (keys.active(op), keys.inactive(op)):
        cursor: Any = 0
        while True:
            ((cursor, flat),) = yield from answers(("HSCAN", key, cursor, "COUNT", PAGE))
            for raw, value in zip(flat[::2], flat[1::2], strict=True):
                field = raw.decode()
                if any(field.startswith(prefix) for prefix in wanted):
                    return instances.load(op, field, version_of(value))[1].state
            if int(cursor) == 0:
                break
    return None


def watch(keys: Keys, op: str, entry: str) -> Steps[None]:
    """Register an entry to become due with each commit of the operation, unless its arming is over; 1 round trip."""
    yield from call("watch", (keys.watchers(op), keys.schedule), (entry,), bool)

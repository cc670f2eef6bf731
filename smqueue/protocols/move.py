"""Moving a machine by a script, which needs no look: what most transitions are."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from functools import lru_cache
from random import randrange
from typing import Literal

from msgspec import Raw, Struct

from smqueue.buffer import INCREMENTS, KIND_OF_WRITE, Buffer
from smqueue.instances import Instances
from smqueue.keys import HOSTED_KINDS, Keys, encode
from smqueue.protocols.arming import Entry, edge, first_entry
from smqueue.protocols.begin import Waits, waits_of
from smqueue.protocols.bounds import PARK_MS, UPDATES_KEPT, WATCH_MS
from smqueue.protocols.claim import Claimed
from smqueue.protocols.past import ended_record, left_record
from smqueue.protocols.spawn import Spawned
from smqueue.records import Active, Placed, compact, compact_bytes
from smqueue.roundtrip import Arg, Steps, own_call, own_reply
from smqueue.transaction import Transaction

NOW = Raw(b"\0")
"""Stands for the clock in what a script stores: JSON has none of its own."""
MOST_WRITES = 100
"""More commands than this, or as many arguments of one, are for EXEC: Lua can take no more than some thousands."""
FAR = 2**52
"""What is added to a counter has to stay exact in Lua."""
NEVER = HOSTED_KINDS | {"reached", "finished"}
"""Triggers that leave more behind than an entry in the schedule."""

NO_WAITS = Waits((), ())


class Transitioned(Struct, gc=False):
    """What has become of a claimed machine."""

    kind: Literal["moved", "merged", "kept", "stale", "held", "torn"]
    to: Spawned | None = None
    """The machine in its new state."""
    machines: tuple[Spawned, ...] = ()
    """Machines that the handler has started."""
    requests: tuple[bytes, ...] = ()
    hint: bool = False
    detail: str = ""
    """When held: the control key that holds it. When torn: what failed inside EXEC, while the state moved."""


def move(
    keys: Keys, instances: Instances, it: Claimed, to: Placed, tx: Transaction, commit_id: str
) -> Steps[Transitioned | None]:
    """Leave one state for another that is terminal or waits for signals and deadlines; 1 round trip.

    The script finds out what a look would, and leaves what EXEC would; that it is the one that was claimed, too.

    Args:
        keys: Of the operation's shard.
        instances: The registered modules.
        it: The claimed machine.
        to: Where its handler wants it, which has read nothing.
        tx: What it has written.
        commit_id: Of this transition.

    Returns:
        ``None``: nothing was written, and it takes a look to say what is to be done.

    Raises:
        LostReply: It may have been applied.
    """
    machine, active, left, ends = it.machine, it.active, it.placed, to.type.terminal
    if to.wide or left.wide or machine.field == to.field or machine.field in to.older or tx.starting or tx.requests:
        return None
    spelled = bool(to.older) or instances.current(left) is not left  # may be there under another field
    if spelled and not active.lone:
        return None
    registered: list[tuple[str, str]] = []
    scheduled: list[str] = []
    for name, wait in machine.armed.items():
        if isinstance(wait, str):
            registered.append((wait, name))
        elif isinstance(wait, list):
            if wait[0] in NEVER:
                return None
            scheduled.append(name)
    waits = NO_WAITS if ends else waits_of(instances, to)
    written = _writes(tx.buffer)
    if waits is None or written is None or instances.chain is not None:
        return None
    writes, written_to = written
    module = to.type.module
    args = _in_common(
        keys.prefix, left.module, left.type.name, to.type.name, it.won, tuple(registered), tuple(scheduled),
        waits.triggers, ends=ends, keep=module.keep, spelled=spelled,
    )  # fmt: skip
    moved = Active(active.machine, active.step + 1, 0, module.version, commit_id, lone=False)
    armed: tuple[Arg, ...] = ()
    if ends:
        there = compact_bytes(ended_record(moved.machine, moved.step, moved.version, NOW, commit_id))
    else:
        there = moved.dump().encode().replace(b",0,", b",%b," % bytes(NOW), 1)
        begins = f'["{commit_id}",0,{compact(to.op)},{compact(to.field)},{{'
        closes = "},1]" if to.type.on_cancel is not None else "}]"
        armed = (begins, closes, PARK_MS + randrange(PARK_MS // 10), *waits.deadlines)
    step = Entry(moved.machine, moved.step, to.field, NOW, commit_id, moved.version, ends, it.won)
    own = (
        to.op, encode(to.op), commit_id, machine.field, left.record, machine.guard, machine.arming,
        compact_bytes(first_entry(machine.field, active)) if active.lone else "",
        left_record(it, {}, NOW, commit_id, to.field), to.field, to.record,
        compact_bytes(step), there, *armed, *writes,
    )  # fmt: skip
    done = own_reply((yield own_call("move", (keys.schedule, *written_to), args, own, commits=True)))
    if done is None:
        return None
    at, _, torn = done.decode(errors="replace").partition(" ")
    moved.at_us = int(at)
    return Transitioned("torn" if torn else "moved", Spawned(to, moved), hint=bool(torn), detail=torn)


@lru_cache(maxsize=256)
def _in_common(
    prefix: str, module: str, left: str, to: str, won: str, registered: Sequence[tuple[str, str]],
    scheduled: Sequence[str], triggers: Sequence[Arg], *, ends: bool, keep: timedelta | None, spelled: bool,
) -> tuple[Arg, ...]:  # fmt: skip
    """What all have in common that leave one state type for another, as a script takes it."""
    here = encode(module)
    return (
        prefix, WATCH_MS, UPDATES_KEPT, here, encode(left), len(registered), len(scheduled),
        edge(here, encode(left), here, encode(to), encode(won), ends=ends), "end" if ends else "",
        "" if keep is None else round(keep.total_seconds() * 1000), "1" if spelled else "", len(triggers),
        *[part for signal, name in registered for part in (encode(signal), name)], *scheduled,
        *triggers,
    )  # fmt: skip


def _writes(buffer: Buffer) -> tuple[Sequence[Arg], Sequence[str]] | None:
    """The handler's commands, each with its length in front, and the keys that they write.

    ``None`` when to see that none fails takes more.
    """
    if len(buffer.writes) > MOST_WRITES:
        return None
    kinds: dict[str, str] = {}
    found: list[Arg] = []
    for command in buffer.writes:
        name, key = str(command[0]), str(command[1])
        kind = name if name in INCREMENTS else KIND_OF_WRITE.get(name, name)
        if kinds.setdefault(key, kind) != kind or len(command) > MOST_WRITES:
            return None
        if name in INCREMENTS and not -FAR < int(command[-1]) < FAR:
            return None
        found += [len(command), *command]
    return found, [key for key, kind in kinds.items() if kind != "PUBLISH"]

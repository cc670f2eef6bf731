"""Moving a machine by a script, which needs no look: what most transitions are."""

from __future__ import annotations

from collections.abc import Sequence
from random import randrange
from typing import Any, Literal, NamedTuple

from smqueue.buffer import INCREMENTS, KIND_OF_WRITE, Buffer
from smqueue.instances import Instances
from smqueue.keys import HOSTED_KINDS, Keys, encode
from smqueue.protocols.arming import counted, first_entry, step_entry
from smqueue.protocols.begin import waits_of
from smqueue.protocols.bounds import PARK_MS, UPDATES_KEPT, WATCH_MS
from smqueue.protocols.claim import Claimed
from smqueue.protocols.past import ended_record, left_record
from smqueue.protocols.spawn import Spawned
from smqueue.records import Active, Placed, compact
from smqueue.roundtrip import Arg, Steps, call_each
from smqueue.transaction import Transaction

NOW = "\0"
"""Stands for the clock in what a script stores: JSON has none of its own."""
MOST_WRITES = 100
"""More commands than this, or as many arguments of one, are for EXEC: Lua can take no more than some thousands."""
FAR = 2**52
"""What is added to a counter has to stay exact in Lua."""
NEVER = HOSTED_KINDS | {"reached", "finished"}
"""Triggers that leave more behind than an entry in the schedule."""


class Transitioned(NamedTuple):
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
    machine, left, ends = it.machine, it.placed, to.type.terminal
    if to.wide or left.wide or machine.field in {to.field, *to.older} or tx.starting or tx.requests:
        return None
    spelled = bool(to.older) or instances.current(left) is not left  # may be there under another field
    if spelled and not it.active.lone:
        return None
    registered, scheduled = list[str](), list[str]()
    for name, wait in machine.armed.items():
        if isinstance(wait, str):
            registered += [encode(wait), name]
        elif isinstance(wait, list):
            if wait[0] in NEVER:
                return None
            scheduled.append(name)
    waits = [] if ends else waits_of(instances, to)
    writes = _writes(tx.buffer)
    if waits is None or writes is None or instances.chain is not None:
        return None
    keep = to.type.module.keep
    args = (
        keys.prefix, WATCH_MS, UPDATES_KEPT, encode(left.module), encode(left.type.name), len(registered) // 2,
        len(scheduled), counted(keys, machine.field, to.field, encode(it.won), ends=ends)[2],
        "end" if ends else "", "" if keep is None else round(keep.total_seconds() * 1000),
        "1" if spelled else "", *registered, *scheduled,
    )  # fmt: skip
    step, version = it.active.step + 1, to.type.module.version
    moved = Active(it.active.machine, step, 0, version, commit_id, lone=False)
    entry = compact(step_entry(moved, to.field, 0, commit_id, terminal=ends, won=it.won))
    if ends:
        there = compact({**ended_record(moved.machine, step, version, 0, commit_id), "visits": 1})
        there = there.replace('"at":0,"exited":0', f'"at":{NOW},"exited":{NOW}', 1)
        armed: tuple[Arg, ...] = ()
    else:
        there = moved.dump().replace(",0,", f",{NOW},", 1)
        begins = f'["{commit_id}",0,{compact(to.op)},{compact(to.field)},{{'
        closes = "},1]" if to.type.on_cancel is not None else "}]"
        armed = (begins, closes, PARK_MS + randrange(PARK_MS // 10), len(waits), *waits)
    own = (
        to.op, encode(to.op), commit_id, machine.field, left.record, machine.guard, machine.arming,
        compact(first_entry(machine.field, it.active)) if it.active.lone else "",
        left_record(it, {}, 0, commit_id, to=to.field).replace('"exited":0', f'"exited":{NOW}', 1),
        to.field, to.record, entry.replace('"at":0', f'"at":{NOW}', 1), there, *armed, *writes,
    )  # fmt: skip
    names = (keys.schedule, *[str(key) for name, key, *_ in tx.buffer.writes if name != "PUBLISH"])
    done: tuple[int, str] | None = yield from call_each("move", names, args, own, _moved, commits=True)
    if done is None:
        return None
    at_us, torn = done
    there_now = Spawned(to, moved._replace(at_us=at_us))
    return Transitioned("torn" if torn else "moved", there_now, hint=bool(torn), detail=torn)


def _moved(reply: Any) -> tuple[int, str] | None:
    return None if reply is None else (int(reply[0]), reply[1].decode(errors="replace"))


def _writes(buffer: Buffer) -> Sequence[Arg] | None:
    """The handler's commands, each with its length in front; ``None`` when to see that none fails takes more."""
    if len(buffer.writes) > MOST_WRITES:
        return None
    kinds, found = dict[Arg, str](), list[Arg]()
    for command in buffer.writes:
        name, key = str(command[0]), command[1]
        kind = name if name in INCREMENTS else KIND_OF_WRITE.get(name, name)
        if kinds.setdefault(key, kind) != kind or len(command) > MOST_WRITES:
            return None
        if name in INCREMENTS and not -FAR < int(command[-1]) < FAR:
            return None
        found += [len(command), *command]
    return found

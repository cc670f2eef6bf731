"""Starting machines within a commit, and beginning an operation's history.

A history begins with the second thing that happens in an operation. Until then it is one machine that waits, and costs
no list: its active record is marked ``lone``, and whoever commits next in that operation writes its entry first.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from smqueue.instances import Instances
from smqueue.keys import Keys, digest
from smqueue.protocols.arming import (
    ADDED,
    Entry,
    counted_all,
    enter,
    first_entry,
    hint,
    note,
    register,
    ring,
    sealed,
)
from smqueue.protocols.decide import Look
from smqueue.records import Active, Item, Machine, Placed
from smqueue.roundtrip import Command, Steps
from smqueue.standing import begun, first_for, head, inbox_keys, watchers
from smqueue.transaction import Transaction

REQUEST_LEASE_MS = 4_000


class Spawned(NamedTuple):
    """One machine started by a commit."""

    placed: Placed
    active: Active


class Started(NamedTuple):
    """What starting machines takes: commands, entries for the history of their own operation, whether any is due."""

    commands: list[Command]
    entries: list[Entry]
    machines: list[Spawned]
    due: bool


def machine_id(commit_id: str, index: int, placed: Placed) -> str:
    """The id of a machine that a commit starts: the same when the commit is tried again."""
    return commit_id if index == 0 else digest(commit_id, placed.record)[:16]


def buffered(
    keys: Keys, instances: Instances, placed: Placed, machine: str, look: Look
) -> Steps[dict[str, Item | None]]:
    """Signal name → the oldest signal that this machine may take.

    The look at the heads is packed with all others; a second one is needed only if a head is for another machine.
    """
    found: dict[str, Item | None] = {}
    for signal, inbox in inbox_keys(keys, instances, placed).items():
        raw = look.known[head(inbox)]
        item = first_for([raw] if raw is not None and raw not in look.taken else [], machine)
        if raw is not None and item is None:
            everything: Command = ("LRANGE", inbox, 0, -1)
            yield from look.fetch([], [everything])
            item = first_for([one for one in look.known[everything] if one not in look.taken], machine)
        found[signal] = item
    return found


def start(
    keys: Keys, instances: Instances, spawned: Sequence[Placed], look: Look, commit_id: str, own: str | None = None,
    trace: str = "",
) -> Steps[Started]:  # fmt: skip
    """The commands that make new machines active.

    Args:
        keys: Of the shard.
        instances: The registered modules.
        spawned: The machines, each found to be new, with their arrival looks in ``look``.
        look: What this attempt has seen.
        commit_id: Of the commit that this is part of.
        own: The operation of the transition that this is part of: its history is written by the caller.
        trace: The header of the commit's span, if there is one.
    """
    commands, told, all_of_them, due = list[Command](), list[Entry](), list[Spawned](), False
    if not spawned:
        return Started(commands, told, all_of_them, due)
    now_us = look.now_us
    by_op: dict[str, list[tuple[Placed, str]]] = {}
    for index, placed in enumerate(spawned):
        machine = machine_id(commit_id, index if own is None else index + 1, placed)
        by_op.setdefault(placed.op, []).append((placed, machine))
    for op, machines in by_op.items():
        so_far = 2 if op == own else look.known[begun(keys, op)]
        lone = so_far == 0 and len(machines) == 1
        entries: list[Entry] = []
        if so_far == 1:
            entries += yield from _begin(keys, op, look, commands)
        for placed, machine in machines:
            active = Active(machine, 1, now_us, placed.type.module.version, commit_id, lone)
            entry = Entry(machine, 1, placed.field, now_us, commit_id, active.version)
            active, entry = sealed(instances.chain, op, "", active, entry)
            items = yield from buffered(keys, instances, placed, active.machine, look)
            handlers = instances.handlers(placed)
            entered = enter(keys, placed, handlers, active, commit_id, now_us, items.get, unknown=True, trace=trace)
            look.taken |= entered.taken
            commands += entered.commands
            all_of_them.append(Spawned(placed, active))
            due = due or entered.due
            entries.append(entry)
        if op == own:
            told += entries
            continue
        written = note(keys, op, *entries, told=so_far == 1)
        commands += written[1:] if lone else written  # a lone machine is told of, not written
        if waiting := ring(keys, look.known[watchers(keys, op)], now_us):
            commands += waiting
            due = True
        if own is not None:
            commands.append(("SADD", keys.children(own), op))
    commands += counted_all(keys, [("", placed.field) for placed in spawned], ADDED)
    return Started(commands, told, all_of_them, due)


def _begin(keys: Keys, op: str, look: Look, commands: list[Command]) -> Steps[list[Entry]]:
    """Begin the history of an operation that has a lone machine, which from now on registers for its signals.

    Returns:
        The entry of its adding.
    """
    everyone: Command = ("HGETALL", keys.active(op))
    yield from look.fetch([], [everyone])
    pairs = parse_pairs(look.known[everyone])
    since = {field: active.at_us for field, active in pairs}
    fields = [raw.decode(errors="replace") for raw in look.known[everyone][::2]]
    armed = [keys.machine(digest(op, field)) for field in fields]
    yield from look.fetch(armed, [("GET", key) for key in armed])
    for key, field in zip(armed, fields, strict=True):
        with suppress(ValueError, TypeError):  # no machine's key
            commands += register(keys, Machine.parse(look.known["GET", key]), since.get(field, 0))
    return [first_entry(*pair) for pair in pairs]


def parse_pairs(flat: Any) -> list[tuple[str, Active]]:
    """Field and value of active records, in the order of their entering."""
    found: list[tuple[str, Active]] = []
    for field, raw in zip(flat[::2], flat[1::2], strict=True):
        try:
            found.append((field.decode(), Active.parse(raw)))
        except ValueError:
            continue  # garbage has no place in a history
    return sorted(found, key=lambda pair: pair[1].at_us)


def tail(
    keys: Keys, instances: Instances, tx: Transaction, now_us: int, due: bool, commit_id: str, trace: str = ""
) -> tuple[list[Command], list[bytes]]:
    """What ends every commit: the function's own writes, its requests, and the hint (last, so that its reply is found).

    Returns:
        The commands, and the requests as they are stored.
    """
    from smqueue.protocols.requests import stored

    commands = list(tx.buffer.writes)
    more = {"trace": trace} if trace else {}
    requests = [stored({**request, **more}, now_us // 1000 + REQUEST_LEASE_MS) for request in tx.requests]
    if requests:
        commands.append(("RPUSH", keys.requests, *requests))
        commands.append(("ZADD", keys.schedule, "NX", now_us // 1000 + REQUEST_LEASE_MS, "~requests"))
    if due:
        commands.append(hint(keys, instances.push(keys), commit_id))
    return commands, requests


def unbegun(keys: Keys, ops: Collection[str], look: Look) -> set[str]:
    """Of these operations, those whose history has begun: a later attempt need not watch it."""
    return {op for op in ops if look.known.get(begun(keys, op), 0) > 1}

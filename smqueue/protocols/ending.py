"""How the machines of an operation that is being cancelled end, and what has a cancel handler commits it with that.

What has none ends a hundred at a time; what has one ends in a commit of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, NamedTuple

from msgspec.structs import replace

from smqueue.chain import Chain
from smqueue.errors import CommitFailed, InvalidInput, SecretDamaged, SmqueueError, UndecodableRecord
from smqueue.handlers import Handler
from smqueue.instances import Instances
from smqueue.keys import Keys, digest
from smqueue.protocols.arming import (
    CANCELLED,
    Entry,
    counted_all,
    first_entry,
    hint,
    leave,
    note,
    ring,
    sealed,
    settle,
)
from smqueue.protocols.bounds import LEASE_MS, MAX_ATTEMPTS
from smqueue.protocols.cancel import Noted, entry_of
from smqueue.protocols.decide import Look, decide
from smqueue.protocols.spawn import Spawned, start, tail, unbegun
from smqueue.protocols.transition import attempt_id
from smqueue.records import Active, Field, Machine, Placed, compact
from smqueue.retry import Retry
from smqueue.roundtrip import Command, LostReply, Steps, back_off, commit, read, time_us
from smqueue.standing import TIME, begun, parse_inactive, watched, watchers
from smqueue.transaction import Transaction

BATCH = 100
UNDOING = "undoing"
"""Of a race: how often a worker has begun to run the machine's cancel handler, and has not come back from it."""


class Leaving(NamedTuple):
    """An active record as it is about to end."""

    raw: bytes
    """Its field in the active hash, as it is stored."""
    active: Active
    undo: tuple[Placed, Handler] | None = None
    """Its cancel handler, where this code knows of one."""
    lacking: str | None = None
    """Why its cancel handler, which others know of, cannot be run here."""
    aside: bool = False
    """It was set aside, because its cancel handler kept failing."""
    entry: str = ""
    """Of its race; empty when that cannot be read."""

    @property
    def field(self) -> str:
        """The field as text; of one that is none, as much as can be told."""
        return self.raw.decode(errors="replace")


class Ended(NamedTuple):
    """What one commit of a cancelling has done."""

    machines: tuple[tuple[Leaving, Machine | None], ...] = ()
    """What has ended, and what it was armed with, where that could be read."""
    started: tuple[Spawned, ...] = ()
    requests: tuple[bytes, ...] = ()
    hint: bool = False
    watched: bool = False


def page(keys: Keys, instances: Instances, op: str, cursor: Any, force: bool) -> Steps[tuple[Any, list[Leaving]]]:
    """Some active machines of an operation, and where to go on: at 0 that was all; 1 to 2 round trips."""
    ((cursor, flat),) = yield from read([], ("HSCAN", keys.active(op), cursor, "COUNT", BATCH))
    found = [_leaving(field, raw) for field, raw in zip(flat[::2], flat[1::2], strict=True)]
    if force or not found:
        return cursor, found
    found = [_judged(instances, op, one) for one in found]
    records = [digest(op, one.field) for one in found]
    looks: list[Command] = [("HGET", keys.quarantine, record) for record in records]
    looks += [("GET", keys.machine(record)) for record in records]
    replies = yield from read([], *looks)
    asides, machines = replies[: len(found)], replies[len(found) :]
    return cursor, [_marked(*told) for told in zip(found, asides, machines, strict=True)]


def _leaving(field: bytes, raw: bytes) -> Leaving:
    try:
        return Leaving(field, Active.parse(raw))
    except ValueError:  # garbage ends too
        return Leaving(field, Active("", 0, 0, 0, "", lone=False))


def _judged(instances: Instances, op: str, one: Leaving) -> Leaving:
    """The same with its cancel handler, or why that cannot be run here, should there be one; what can never be read by
    anyone ends without."""
    if not one.active.machine:
        return one
    try:
        module_id, type_name, _ = Field.parse(one.field)
        module = instances.get(module_id).module
        known = module.types.get(type_name)
        if one.active.version <= module.version and (known is None or known.on_cancel is None):
            return one._replace(lacking=f"the code here has none for {module_id}.{type_name}")
        _, placed = instances.load(op, one.field, one.active.version)
    except (ValueError, UndecodableRecord, SecretDamaged):
        return one
    except SmqueueError as error:  # an unknown module, a newer version, a key that is missing
        return one._replace(lacking=str(error))
    handler = placed.type.on_cancel
    return one if handler is None else one._replace(undo=(placed, handler))


def _marked(one: Leaving, aside: bytes | None, raw: bytes | None) -> Leaving:
    """Where no handler is known, the mark of a machine tells whether whoever entered its state knew of one.

    One that has entered its state before that had a cancel handler has no mark: who lacks the code ends it without,
    for code that has none at all must be cancelled where there is no code, too.
    """
    one = one._replace(aside=aside is not None and b'"undo":' in aside)
    try:
        machine = Machine.parse(raw or b"")
    except (ValueError, TypeError):
        return one._replace(lacking=None)
    return one._replace(lacking=one.lacking if machine.undo else None, entry=machine.entry)


def end(
    keys: Keys, op: str, batch: Sequence[Leaving], noted: Noted, commit_id: str, keep: timedelta | None,
    chain: Chain | None = None,
) -> Steps[Ended]:  # fmt: skip
    """End machines without a cancel handler, at most ``BATCH``; 2 round trips.

    Args:
        keys: Of the operation's shard.
        op: The operation.
        batch: Its machines; those that have gone meanwhile are passed over.
        noted: The cancelling; one that was finished, or begun anew, ends nothing more.
        commit_id: Of this run.
        keep: When its end may be forgotten; ``None``: never.
        chain: What seals the steps of histories, if they are sealed.

    Raises:
        CommitFailed: After 100 conflicts.
    """
    doubt = False
    for attempt in range(MAX_ATTEMPTS):
        look = Look()
        try:
            yield from _look(keys, op, batch, look)
            if doubt and (done := _applied(keys, op, batch, commit_id, look)):
                return done
            there = _there(keys, op, batch, noted, look)
            if not there:
                return Ended()
            commands, done = _ending(keys, op, there, look, commit_id, noted.reason, keep, chain)
            replies = yield from commit([*commands, *([hint(keys, None)] if done.hint else [])])
        except LostReply:
            doubt = True
            continue
        if replies is not None:
            return done._replace(hint=done.hint and replies[-1] is not None)
        yield from back_off(attempt)
    raise CommitFailed(MAX_ATTEMPTS, "conflict")


def undo(
    keys: Keys, instances: Instances, op: str, one: Leaving, noted: Noted, commit_id: str, keep: timedelta | None
) -> Steps[Ended]:
    """Run the cancel handler of a machine, and end it in the same commit; 2 round trips, 1 for each dependent read.

    Args:
        keys: Of the operation's shard.
        instances: The registered modules.
        op: The operation.
        one: The machine, with its handler.
        noted: The cancelling.
        commit_id: Of this machine's end: the same over all attempts, and no other's.
        keep: When its end may be forgotten; ``None``: never.

    Raises:
        CommitFailed: After 100 conflicts.
        TornCommit: A command of the handler's failed inside EXEC, while the machine ended.
        Exception: What the handler raised on reads that have held still; nothing was written.
    """
    assert one.undo is not None
    placed, handler = one.undo
    attempted = attempt_id(f"{one.active.machine}:{one.active.step}", "~cancel")
    context = instances.context(placed, one.active.machine, attempted)
    elsewhere, doubt = set[str](), False
    for attempt in range(MAX_ATTEMPTS):
        look = Look()
        try:
            decided = yield from decide(
                keys,
                instances,
                placed.module,
                lambda tx: _run(instances, handler, tx, placed, noted.reason or None, lambda: context),
                look,
                elsewhere,
            )
            if decided is None:
                yield from back_off(attempt)
                continue
            tx, _ = decided
            look.known.pop(TIME, None)  # as the handler saw it; the commit has a time of its own
            yield from _look(keys, op, [one], look, tx)
            if doubt and (done := _applied(keys, op, [one], commit_id, look)):
                return done
            there = _there(keys, op, [one], noted, look)
            if not there:
                yield from _came_back(keys, op, one)
                return Ended()
            yield from look.verify(tx)
            elsewhere |= unbegun(keys, {other.op for other in tx.starting}, look)
            started = yield from start(keys, instances, tx.starting, look, commit_id)
            commands, done = _ending(keys, op, there, look, commit_id, noted.reason, keep, instances.chain)
            due = done.hint or started.due
            ending, requests = tail(keys, instances, tx, look.now_us, due, commit_id)
            later: list[Command] = [("ZADD", keys.schedule, "XX", look.now_us // 1000 + LEASE_MS, entry_of(op))]
            replies = yield from commit([*commands, *later, *started.commands, *ending])
        except LostReply:  # if it was applied the machine has gone, and its handler does not commit again
            doubt = True
            continue
        if replies is not None:
            done = done._replace(started=tuple(started.machines), requests=tuple(requests))
            return done._replace(hint=due and replies[-1] is not None)
        yield from back_off(attempt)
    yield from _came_back(keys, op, one)
    raise CommitFailed(MAX_ATTEMPTS, "conflict")


def _run(
    instances: Instances, handler: Handler, tx: Transaction, placed: Placed, reason: str | None, context: Any
) -> None:
    instances.apply(handler, tx, placed, reason, context)
    if any(one.op == placed.op for one in tx.starting):
        raise InvalidInput(
            "add_state_machines",
            f"operation {placed.op} is being cancelled: what is started in it would end at once; start it in another",
        )


def failed(
    keys: Keys, op: str, one: Leaving, noted: Noted, error: Exception, text: str, *, retry: Retry | None
) -> Steps[int | None]:
    """Note that a cancel handler has failed; 2 round trips.

    Args:
        keys: Of the operation's shard.
        op: The operation.
        one: The machine, which stays.
        noted: The cancelling; when it is over, or was begun anew, nothing is noted.
        error: What the handler raised.
        text: The same in words, to be shown.
        retry: Of its module; ``None``: it is not tried again.

    Returns:
        In how many ms to try again; ``None``: that was the last time, and the machine is set aside.
    """
    record = digest(op, one.field)
    race, guard, control = keys.race(record), keys.machine(record), keys.control(op)
    for attempt in range(MAX_ATTEMPTS):
        try:
            looks: list[Command] = [("GET", guard), ("GET", control), ("HGET", race, "undo"), TIME]
            raw, said, so_far, time = yield from read([guard, control], *looks)
            if raw is None or said != noted.raw:  # another has ended it, or is about to
                return 0
            times = 1 + (int(so_far) if isinstance(so_far, bytes) and so_far.isdigit() else 0)
            final = retry is None or retry.exhausted(error, times)
            commands: list[Command] = [("HSET", race, "undo", times, "attempts", times, "error", text)]
            commands.append(("HDEL", race, UNDOING))
            if final:
                entry = _entry(raw, record)
                why = {"error": text, "op": op, "entry": entry, "at": time_us(time), "undo": times}
                commands.append(("HSET", keys.quarantine, record, compact(why)))
            if (yield from commit(commands)) is not None:
                return None if retry is None or final else retry.jittered_ms(times)
        except LostReply:
            continue
        yield from back_off(attempt)
    raise CommitFailed(MAX_ATTEMPTS, "conflict")


def _entry(raw: bytes, record: str) -> str:
    """The schedule entry of a race; of one that is unreadable, what there is of it."""
    try:
        return Machine.parse(raw).entry
    except ValueError:
        return record


# --- inside ----------------------------------------------------------------------------------------------------------


def _look(keys: Keys, op: str, batch: Sequence[Leaving], look: Look, tx: Transaction | None = None) -> Steps[None]:
    """WATCH and read all that the end of these machines depends on, and what a handler has done; 1 round trip."""
    guards = [keys.machine(digest(op, one.field)) for one in batch]
    watch = [*guards, keys.watchers(op), keys.history(op), keys.active(op), keys.control(op)]
    looks: list[Command] = [TIME, ("GET", keys.control(op)), begun(keys, op), watchers(keys, op), watched(keys)]
    looks += [("HGET", keys.active(op), one.raw) for one in batch]
    looks += [("HGET", keys.inactive(op), one.field) for one in batch]
    looks += [("GET", guard) for guard in guards]
    checks = [] if tx is None else tx.buffer.checks()
    yield from look.fetch(watch, [*looks, *checks], check=[str(c[1]) for c in checks])


def _there(keys: Keys, op: str, batch: Sequence[Leaving], noted: Noted, look: Look) -> list[Leaving]:
    """Which of them are to end: none any more when that cancelling is over."""
    if look.known["GET", keys.control(op)] != noted.raw:
        return []
    return [one for one in batch if look.known["HGET", keys.active(op), one.raw] is not None]


def _applied(keys: Keys, op: str, batch: Sequence[Leaving], commit_id: str, look: Look) -> Ended | None:
    """After a lost reply: what that commit has ended; ``None``: nothing. What it has left is done by who finds it."""
    found: list[tuple[Leaving, Machine | None]] = []
    for one in batch:
        past = look.known["HGET", keys.inactive(op), one.field]
        with suppress(ValueError):
            if past is not None and parse_inactive(past).get("by") == commit_id:
                found.append((one, None))
    return Ended(tuple(found), hint=True) if found else None


def _came_back(keys: Keys, op: str, one: Leaving) -> Steps[None]:
    """Its handler has not killed its worker, though its machine has not ended by it."""
    yield from commit([("HDEL", keys.race(digest(op, one.field)), UNDOING)])


def _ending(
    keys: Keys, op: str, batch: Sequence[Leaving], look: Look, commit_id: str, reason: str, keep: timedelta | None,
    chain: Chain | None,
) -> tuple[list[Command], Ended]:  # fmt: skip
    """The commands that end these machines, and what they do; with ``hint`` set when they make something due."""
    commands: list[Command] = []
    entries: list[Entry] = []
    armed: list[tuple[Leaving, Machine | None]] = []
    now_us = look.now_us
    for one in batch:
        record = digest(op, one.field)
        machine: Machine | None = None
        with suppress(ValueError, TypeError):
            machine = Machine.parse(look.known["GET", keys.machine(record)])
        if machine is not None:
            commands += leave(keys, machine)
        else:
            commands += [("HDEL", keys.active(op), one.raw), ("DEL", keys.machine(record), keys.race(record))]
        armed.append((one, machine))
        commands.append(("HDEL", keys.quarantine, record))
        past = look.known["HGET", keys.inactive(op), one.field]
        before: dict[str, Any] = {}
        if past is not None:
            with suppress(ValueError):  # garbage is overwritten
                before = parse_inactive(past)
        left = {"machine": one.active.machine, "step": one.active.step, "at": before.get("at", one.active.at_us)}
        left |= {"exited": now_us, "version": one.active.version, "made": one.active.made, "by": commit_id}
        left |= {"visits": before.get("visits", 0) + 1}
        commands.append(("HSET", keys.inactive(op), one.field, compact({**left, "cancelled": reason})))
        if one.active.lone and look.known[begun(keys, op)] == 1:
            entries.append(first_entry(one.field, one.active))
        ended = replace(one.active, step=one.active.step + 1)
        step = (ended.machine, ended.step, one.field, now_us, commit_id, ended.version)
        entry = Entry(*step, terminal=True, cancelled=reason)
        entries.append(sealed(chain, op, one.active.seal, ended, entry)[1])
    commands += note(keys, op, *entries, told=entries[0].commit != commit_id)
    rung = ring(keys, look.known[watchers(keys, op)], now_us)
    gone = [(one.field, "") for one in batch if one.active.machine]  # garbage was never counted
    commands += [*rung, *counted_all(keys, gone, CANCELLED), *settle(keys, op, now_us, keep, certain=False)]
    return commands, Ended(tuple(armed), hint=bool(rung), watched=bool(look.known[watched(keys)]))

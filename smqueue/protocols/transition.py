"""One transition: the recorded outcome of a race turns the old state into the new one, exactly once."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any, Literal

from msgspec.structs import replace

from smqueue.errors import (
    CommitFailed,
    InvalidOutcome,
    InvalidState,
    NothingToWaitFor,
    StateAlreadyExists,
    TornCommit,
    UndecodableRecord,
)
from smqueue.handlers import Handler
from smqueue.instances import Instances
from smqueue.keys import Keys, encode
from smqueue.protocols.arming import (
    MERGED,
    Entry,
    Plan,
    counted,
    enter,
    first_entry,
    keep,
    leave,
    note,
    ring,
    sealed,
    settle,
)
from smqueue.protocols.claim import Claimed
from smqueue.protocols.decide import Look, decide
from smqueue.protocols.move import Transitioned, move
from smqueue.protocols.past import ended_record, left_record
from smqueue.protocols.spawn import Spawned, buffered, start, tail, unbegun
from smqueue.records import Active, Placed, compact, guard_of
from smqueue.roundtrip import NOTHING, Command, LostReply, Steps, back_off, commit, read
from smqueue.schemas import ValidationProblem
from smqueue.standing import (
    TIME,
    Standing,
    begun,
    head,
    inbox_keys,
    parse_inactive,
    standing,
    standing_looks,
    watchers,
)
from smqueue.states import Context, State
from smqueue.tracing import Span, header_of
from smqueue.transaction import Transaction
from smqueue.trigger_types import Poll

MAX_ATTEMPTS = 100


def controls(keys: Keys, placed: Placed) -> tuple[str, str, str]:
    """The keys that can hold a machine back: of its operation, its module, its state type."""
    return (
        keys.control(placed.op),
        keys.control_module(placed.module),
        keys.control_module(placed.module, placed.type.name),
    )


def transition(
    keys: Keys, instances: Instances, it: Claimed, commit_id: str, span: Span | None = None
) -> Steps[Transitioned]:
    """Apply the recorded outcome, exactly once.

    Args:
        keys: Of the operation's shard.
        instances: The registered modules.
        it: The claimed machine; its guard is the fencing token.
        commit_id: The same over all attempts, so that a lost commit is recognised.
        span: Its span, if there is one: the handler runs in it, and what the commit makes carries it on. The caller
            ends it.

    Returns:
        What became of it; ``stale`` when another worker committed first, and then nothing was written.

    Raises:
        CommitFailed: After 100 conflicts.
        Exception: What the handler raised on reads that have held still; nothing was written.

    Redis: 2 round trips (WATCH and reads, MULTI/EXEC), one more for each dependent ``tx.get``.
    """
    op, placed = it.machine.op, it.placed
    instance = instances.get(placed.module)
    handler = instances.handlers(placed).get(it.won)
    if handler is None:
        raise UndecodableRecord(f"state {placed.type.name} has no handler {it.won} any more")
    outcome = _outcome(instances, handler, it)
    doubt, history_begun = False, NOTHING
    made: Context[Any, Any] | None = None

    def context() -> Context[Any, Any]:
        nonlocal made
        attempt = attempt_id(f"{placed.record}:{it.machine.arming}", it.won)
        made = made or instances.context(placed, it.active.machine, attempt)
        return made

    def run(tx: Transaction) -> State | None:
        return instances.apply(handler, tx, placed, outcome, context)

    decider = run if span is None else span.inside(run)
    for attempt in range(MAX_ATTEMPTS):
        look = Look()
        if attempt and span is not None:
            span.happened("conflict")
        try:
            if doubt:  # still ours to do, or done already? Asked before the handler runs again
                asked = (("GET", keys.machine(placed.record)), ("HGET", keys.inactive(op), it.machine.field))
                mine, past = yield from read([], *asked)
                if (known := _own(it, commit_id, guard_of(mine), past)) is not None:
                    return Transitioned(known, hint=known != "stale")
            decided = yield from decide(keys, instances, instance.id, decider, look, (op, *history_begun))
            if decided is None:
                yield from back_off(attempt)
                continue
            tx, result = decided
            to = instances.place_state(op, instance, result) if result is not None else None
            if attempt == 0 and to is not None and span is None and not look.known:
                moved = yield from move(keys, instances, it, to, tx, commit_id)
                if moved is not None:
                    return moved
            yield from _look(keys, instances, it, to, tx, look)
            if (raw := look.known["GET", keys.machine(placed.record)]) != it.raw and guard_of(raw) != it.machine.guard:
                return Transitioned("stale")
            if control := next((key for key in controls(keys, it.placed) if look.known["GET", key] is not None), ""):
                return Transitioned("held", detail=control)
            yield from look.verify(tx)
            history_begun |= unbegun(keys, {placed.op for placed in tx.starting}, look)
            done, commands = yield from _plan(keys, instances, it, to, handler, tx, look, commit_id, header_of(span))
            try:
                replies = yield from commit(commands)
            except TornCommit as torn:
                return replace(done, kind="torn", hint=True, detail=torn.problem)
        except LostReply:
            doubt = True
            continue
        except (InvalidState, NothingToWaitFor, StateAlreadyExists):
            # A verdict on what was read counts once that is seen to hold still.
            try:
                held = yield from look.has_held()
            except LostReply:
                held = False
            if held:
                raise
            continue
        if replies is not None:
            return replace(done, hint=done.hint and replies[-1] is not None)
        yield from back_off(attempt)
    raise CommitFailed(MAX_ATTEMPTS, "conflict")


def attempt_id(entry: str, trigger: str) -> str:
    """The id of a trigger from arming to end: of its Celery task, and the idempotency key of what it calls."""
    return blake2b(f"{entry}:{trigger}".encode(), digest_size=16).hexdigest()


def _outcome(instances: Instances, handler: Handler, it: Claimed) -> Any:
    try:
        return instances.outcome(handler, it.placed, it.value)
    except ValidationProblem as problem:
        raise InvalidOutcome(f"{handler.name}.{problem.field}".rstrip("."), problem.problem) from None


def _own(
    it: Claimed, commit_id: str, guard: str | None, past: bytes | None
) -> Literal["moved", "kept", "stale"] | None:
    """After a lost reply: what this very attempt has done; ``None``: nothing."""
    if guard == it.machine.guard:
        return None
    if past is not None and parse_inactive(past).get("by") == commit_id:
        return "moved"
    return "kept" if guard == commit_id else "stale"


def _look(keys: Keys, instances: Instances, it: Claimed, to: Placed | None, tx: Transaction, look: Look) -> Steps[None]:
    """WATCH and read all that the commit depends on, in one round trip."""
    op, guard = it.machine.op, keys.machine(it.machine.record)
    target = to or it.placed
    inboxes = list(inbox_keys(keys, instances, target).values())
    checks = tx.buffer.checks()
    there, left = standing_looks(keys, target), standing_looks(keys, instances.current(it.placed))
    records = [*there.commands, *left.commands]
    holding = controls(keys, it.placed)
    watch = [*there.watch, *left.watch, guard, *holding, *inboxes, keys.watchers(op)]
    commands = [TIME, ("GET", guard), watchers(keys, op), *map(head, inboxes), *[("GET", key) for key in holding]]
    commands += checks
    for command in (TIME, begun(keys, op)):  # seen by the handler's own looks, but not under these watches
        look.known.pop(command, None)
    checked = [str(c[1]) for c in checks]
    if not it.active.lone:
        yield from look.fetch(watch, [*records, *commands], check=checked)
        return
    watch += [keys.history(op), keys.active(op)]
    commands.append(begun(keys, op))
    if it.machine.field in {target.field, *target.older} or target.wide or it.placed.wide:  # it may be found itself
        commands += records
    yield from look.fetch(watch, commands, check=checked)
    if look.known[begun(keys, op)] == 1:  # then there is no other record to be found
        for command in records:
            look.known.setdefault(command, None)
    yield from look.fetch([], records)


def _plan(
    keys: Keys, instances: Instances, it: Claimed, to: Placed | None, handler: Handler, tx: Transaction, look: Look,
    commit_id: str, trace: str,
) -> Steps[tuple[Transitioned, list[Command]]]:  # fmt: skip
    """All that belongs to the commit, in the order in which EXEC applies it."""
    op, now_us = it.machine.op, look.now_us
    started = yield from start(keys, instances, tx.starting, look, commit_id, own=op, trace=trace)
    if to is None:
        entries: list[Entry] = []
        items = yield from buffered(keys, instances, it.placed, it.active.machine, look)
        trigger = handler.trigger
        again_ms = trigger.every_ms(it.placed.state, it_polls(it)) if isinstance(trigger, Poll) else None
        kept = keep(keys, it, commit_id, now_us, items.get, again_ms)
        if kept is None:
            raise NothingToWaitFor(handler.name, it.placed.type.name)
        kind, plan, target = "kept", kept, None
        if started.entries and it.active.lone and look.known[begun(keys, op)] == 1:
            entries.append(first_entry(it.machine.field, it.active))
    else:
        if any(placed.record == to.record for placed in tx.starting):
            raise StateAlreadyExists(op, to.module, str(to))
        spawns = any(placed.op == op for placed in tx.starting)
        moving = _move(keys, instances, it, to, look, commit_id, trace, spawns=spawns)
        kind, plan, target, entries = yield from moving
    entries += started.entries
    due = plan.due or started.due
    commands = [*plan.commands, *started.commands]
    if entries:
        late = entries[0].commit != commit_id  # the adding of a lone machine
        commands += note(keys, op, *entries, told=late)
        rung = ring(keys, look.known[watchers(keys, op)], now_us)
        commands, due = [*commands, *rung], due or bool(rung)
    if elsewhere := {
        one["operation_id"] for asked in tx.requests if asked["kind"] == "add" for one in asked["machines"]
    }:
        commands.append(("SADD", keys.children(op), *sorted(elsewhere)))  # of another shard: started by request
    ending, requests = tail(keys, instances, tx, now_us, due, commit_id, trace)
    done = Transitioned(kind, target, tuple(started.machines), tuple(requests), due)
    return done, [*commands, *ending]


def it_polls(it: Claimed) -> int:
    """How often the poll that won has been run."""
    return int(it.race.get(f"tries:{it.won}", 0))


def _move(
    keys: Keys, instances: Instances, it: Claimed, to: Placed, look: Look, commit_id: str, trace: str, *, spawns: bool
) -> Steps[tuple[Literal["moved", "merged"], Plan, Spawned, list[Entry]]]:
    """Leave one record, and enter another: active, terminal, or one that is active already."""
    op, now_us = it.machine.op, look.now_us
    there = standing(keys, instances, to, look.known)
    version = to.type.module.version
    moved = Active(it.active.machine, it.active.step + 1, now_us, version, _made(there, commit_id), lone=False)
    past = standing(keys, instances, instances.current(it.placed), look.known).inactive
    merged = ""
    kind: Literal["moved", "merged"] = "moved"
    plan = Plan([], due=False)
    if there.active is not None and there.active[0] != it.machine.field:
        kind, merged = "merged", there.active[1].machine  # an equal machine is active, and goes on
    entry = Entry(moved.machine, moved.step, to.field, now_us, commit_id, version, to.type.terminal, it.won, merged)
    moved, entry = sealed(instances.chain, op, it.active.seal, moved, entry)
    alone = it.active.lone and look.known[begun(keys, op)] == 1  # and no other can come: all of it is watched
    ends: list[str] = []
    if kind == "moved" and to.type.terminal:
        ends = _end(to, moved, there, commit_id, now_us)
        plan = Plan([] if alone else touch(keys.machine(to.record), commit_id), due=False)
    elif kind == "moved":
        items = yield from buffered(keys, instances, to, moved.machine, look)
        plan = enter(keys, to, instances.handlers(to), moved, commit_id, now_us, items.get, trace=trace)
    left = left_record(it, past[1] if past is not None else {}, now_us, commit_id, to.field, merged)
    visited = past[0] if past is not None else it.machine.field  # perhaps in the form of an earlier version
    commands = [*leave(keys, it.machine), ("HSET", keys.inactive(op), visited, left, *ends), *plan.commands]
    if kind == "merged" or to.type.terminal:
        retained = instances.get(to.module).module.keep
        commands += settle(keys, op, now_us, retained, certain=alone and not spawns)
    commands.append(counted(keys, it.machine.field, to.field, encode(it.won), ends=to.type.terminal))
    if kind == "merged":  # the one that was there goes on, and this one is not
        commands.append(counted(keys, to.field, "", MERGED))
    entries = [first_entry(it.machine.field, it.active), entry] if alone else [entry]
    return kind, Plan(commands, plan.due), Spawned(to, moved), entries


def _made(there: Standing, commit_id: str) -> str:
    return there.made or commit_id


def _end(to: Placed, moved: Active, there: Standing, commit_id: str, now_us: int) -> list[str]:
    """A terminal record, as field and value: there is one, visits are counted, and the first times kept."""
    first = ended_record(moved.machine, moved.step, moved.version, now_us, commit_id)
    if there.inactive is None:
        return [to.field, compact(first)]
    field, record = there.inactive
    return [field, compact({**record, "visits": record["visits"] + 1})]


def touch(guard: str, commit_id: str) -> list[Command]:
    """Whoever watches the guard of a terminal state, to end there too, looks again."""
    return [("SET", guard, commit_id), ("DEL", guard)]

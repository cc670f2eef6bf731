"""Pausing, resuming and retrying."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from smqueue.errors import CommitFailed, SmqueueError
from smqueue.instances import Instances
from smqueue.keys import Keys, digest, encode
from smqueue.protocols.arming import arm, deadline_ms, hint, leave, wait_of
from smqueue.protocols.bounds import HINT_MS, LEASE_MS, MAX_ATTEMPTS, RESENDS, WATCH_MS
from smqueue.protocols.cancel import entry_of
from smqueue.protocols.decide import Look
from smqueue.protocols.spawn import buffered
from smqueue.records import Active, Armed, Field, Machine, loads
from smqueue.roundtrip import Command, Steps, back_off, call, commit, read, repeat
from smqueue.standing import TIME, head, inbox_keys

PAGE = 500
RESUME_BATCH = 1_000


def pause(keys: Keys, control: str, reason: str = "") -> Steps[None]:
    """Set a control: once this has returned, nothing that it covers commits; 1 round trip.

    Every transition watches its controls, so one that is under way fails. Triggers and deadlines run on; what falls
    due fires at the resume. A cancelling that is under way goes on; what is added to its operation then is paused.
    """
    args = (keys.controlled(control), reason, encode(reason))
    yield from repeat("pause", (control, keys.controls), args, bool, RESENDS)


def resume(keys: Keys, control: str, lift: bool = True) -> Steps[bool]:
    """Lift a control and make due what it has held; a round trip for each 1,000.

    Args:
        keys: Of the shard.
        control: The control's key.
        lift: ``False``: only go on where another who lifted it has ended.

    Returns:
        Whether to send a hint.
    """
    names = (control, keys.held(control), keys.schedule, keys.hint, keys.controls)
    args = (RESUME_BATCH, HINT_MS, LEASE_MS, "1" if lift else "", keys.controlled(control))
    due = False
    while True:
        left, hint = yield from call("resume", names, args, lambda r: (int(r[0]), bool(r[1])))
        due = due or hint
        if not left:
            return due


# --- retry -----------------------------------------------------------------------------------------------------------


class Aside(NamedTuple):
    """A machine in quarantine."""

    op: str
    entry: str
    """Of its race."""
    field: str | None = None
    """``None``: its machine key is unreadable."""
    raw: bytes | None = None
    """The value of its active record."""


Page = Steps[tuple[Any, list[Aside]]]
"""Some of them, and the cursor to go on with: at 0 that was all."""


def aside_in(keys: Keys, op: str, cursor: Any) -> Page:
    """Quarantined machines of an operation; 2 round trips a page."""
    ((cursor, flat),) = yield from read([], ("HSCAN", keys.active(op), cursor, "COUNT", PAGE))
    fields = [(raw.decode(errors="replace"), value) for raw, value in zip(flat[::2], flat[1::2], strict=True)]
    records = [digest(op, field) for field, _ in fields]
    notes = (yield from read([], ("HMGET", keys.quarantine, *records)))[0] if records else []
    found = zip(fields, records, notes, strict=True)
    return cursor, [Aside(op, _noted(note, record)[1], *one) for one, record, note in found if note is not None]


def aside(keys: Keys, cursor: Any, wanted: tuple[str, str | None] | None) -> Page:
    """Quarantined machines of a shard, or of a module and perhaps one state type of it; 3 round trips a page."""
    ((cursor, flat),) = yield from read([], ("HSCAN", keys.quarantine, cursor, "COUNT", PAGE))
    notes = {record.decode(): _noted(raw, record.decode()) for record, raw in zip(flat[::2], flat[1::2], strict=True)}
    guards = (yield from read([], *[("GET", keys.machine(record)) for record in notes])) if notes else []
    found: list[Aside] = []
    for (op, entry), raw in zip(notes.values(), guards, strict=True):
        try:
            machine = Machine.parse(raw or b"")
            if wanted is None or _is(machine.field, *wanted):
                found.append(Aside(machine.op, machine.entry, machine.field))
        except ValueError:
            found += [Aside(op, entry)] if wanted is None else []
    looks: list[Command] = [("HGET", keys.active(one.op), one.field) for one in found if one.field is not None]
    values = dict(zip(looks, (yield from read([], *looks)), strict=True)) if looks else {}
    return cursor, [one._replace(raw=values.get(("HGET", keys.active(one.op), one.field or ""))) for one in found]


def _noted(raw: bytes, record: str) -> tuple[str, str]:
    """Operation and entry of what was set aside, as far as they can be told."""
    try:
        data = loads(raw)
    except ValueError:
        data = None
    match data:
        case {"entry": str(entry), **rest}:
            return str(rest.get("op", "")), entry
        case _:
            return "", record


def _is(field: str, module: str, type_name: str | None) -> bool:
    parsed = Field.parse(field)
    return parsed.module == module and type_name in {None, parsed.type}


def retry(keys: Keys, instances: Instances, one: Aside, commit_id: str) -> Steps[tuple[bool, bool]]:
    """Take one machine out of quarantine: what has an outcome runs it again, what waits for nothing is armed anew.

    Returns:
        Whether it was quarantined, and whether to send a hint.
    """
    if one.field is None or one.raw is None:
        return (yield from _again(keys, one.op, one.entry))
    op, field, raw, record = one.op, one.field, one.raw, digest(one.op, one.field)
    guard = keys.machine(record)
    for attempt in range(MAX_ATTEMPTS):
        look = Look()
        quarantined: Command = ("HGET", keys.quarantine, record)
        won: Command = ("HEXISTS", keys.race(record), "won")
        yield from look.fetch([guard, keys.race(record)], [TIME, ("GET", guard), quarantined, won])
        if look.known[quarantined] is None:
            return False, False
        try:
            machine = Machine.parse(look.known["GET", guard])
            _, placed = instances.load(op, field, Active.parse(raw).version)
        except (ValueError, TypeError, SmqueueError):
            return (yield from _again(keys, op, _noted(look.known[quarantined], record)[1]))
        deadline = deadline_ms(machine.armed)
        if look.known[won] == 1 or (deadline is not None and deadline <= look.now_us // 1000):
            code = [f"{machine.entry}:{name}" for name, wait in machine.armed.items() if isinstance(wait, list)]
            return (yield from _again(keys, op, machine.entry, code))
        handlers = instances.handlers(placed)
        armed: Armed = {name: wait_of(h, placed.state, look.now_us) for name, h in handlers.items()}
        inboxes = list(inbox_keys(keys, instances, placed).values())
        yield from look.fetch(inboxes, [*map(head, inboxes)])
        active = Active.parse(raw)
        items = yield from buffered(keys, instances, placed, active.machine, look)
        fresh = Machine(commit_id, commit_id, op, field, armed, placed.type.on_cancel is not None, machine.trace)
        plan = arm(keys, fresh, active, look.now_us, items.get)
        gone = [c for c in leave(keys, machine) if c[0] != "HDEL"]
        more: list[Command] = [("HDEL", keys.quarantine, record)]
        more.append(("ZADD", keys.schedule, "XX", look.now_us // 1000, entry_of(op)))  # should it be being cancelled
        replies = yield from commit([*gone, *plan.commands, *more, hint(keys, None)])
        if replies is not None:
            return True, plan.due and replies[-1] is not None
        yield from back_off(attempt)
    raise CommitFailed(MAX_ATTEMPTS, "conflict")


def _again(keys: Keys, op: str, entry: str, code: Sequence[str] = ()) -> Steps[tuple[bool, bool]]:
    names = (keys.quarantine, keys.schedule, keys.hint, keys.hosted, keys.roused, keys.wake)
    args = (keys.race_prefix, entry, HINT_MS, WATCH_MS, entry_of(op), *code)
    return (yield from call("retry", names, args, lambda r: (bool(r[0]), bool(r[1]))))

"""Pausing, resuming, cancelling and retrying."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, NamedTuple

from smqueue.chain import Chain
from smqueue.errors import CommitFailed, SmqueueError
from smqueue.instances import Instances
from smqueue.keys import Keys, digest
from smqueue.protocols.arming import (
    CANCELLED,
    arm,
    counted_all,
    deadline_ms,
    first_entry,
    hint,
    leave,
    note,
    ring,
    sealed,
    settle,
    step_entry,
    wait_of,
)  # fmt: skip
from smqueue.protocols.bounds import HINT_MS, LEASE_MS, WATCH_MS
from smqueue.protocols.decide import Look
from smqueue.protocols.spawn import buffered
from smqueue.records import Active, Armed, Machine, compact
from smqueue.roundtrip import Command, LostReply, Steps, back_off, call, commit, read
from smqueue.standing import TIME, begun, head, inbox_keys, parse_inactive, watchers

BATCH = 100
MAX_ATTEMPTS = 100
RESUME_BATCH = 1_000


def pause(control: str) -> Steps[None]:
    """Set a control: once this has returned, nothing that it covers commits; 1 round trip.

    Every transition watches its controls, so one that is under way fails. Triggers and deadlines run on; what falls
    due fires at the resume.
    """
    yield from commit(
        [("SET", control, "paused", "NX")]
    )  # one that is being cancelled stays so: nothing commits either


def resume(keys: Keys, control: str, lift: bool = True) -> Steps[tuple[bool, bool]]:
    """Lift a control and make due what it has held; a round trip for each 1,000.

    Args:
        keys: Of the shard.
        control: The control's key.
        lift: ``False``: only go on where another who lifted it has ended.

    Returns:
        Whether it was set, and whether to send a hint.
    """
    names = (control, keys.held(control), keys.schedule, keys.hint)
    was = due = False
    while True:
        args = (RESUME_BATCH, HINT_MS, LEASE_MS, "1" if lift else "")
        found: tuple[int, int, int] = yield from call(
            "resume", names, args, lambda r: (int(r[0]), int(r[1]), int(r[2]))
        )
        was, due = was or bool(found[0]), due or bool(found[2])
        if not found[1]:
            return was, due


# --- cancel ----------------------------------------------------------------------------------------------------------


class Leaving(NamedTuple):
    """An active record as it is about to end."""

    raw: bytes
    """Its field in the active hash, as it is stored."""
    active: Active

    @property
    def field(self) -> str:
        """The field as text; of one that is none, as much as can be told."""
        return self.raw.decode(errors="replace")


def begin_cancel(keys: Keys, op: str, reason: str, children: bool) -> Steps[None]:
    """From here on no transition of the operation commits, and a worker finishes the cancelling if its caller dies."""
    (time,) = yield from read([], TIME)
    entry: Command = ("ZADD", keys.schedule, int(time[0]) * 1000 + 4_000, f"~cancel:{op}")
    yield from commit([("SET", keys.control(op), f"cancelling {int(children)} {reason}"), entry])


def children_to_cancel(keys: Keys, op: str) -> Steps[tuple[list[str], str]]:
    """The operations to be cancelled with this one, and the reason; no more of them come, as nothing commits here."""
    raw, members = yield from read([], ("GET", keys.control(op)), ("SMEMBERS", keys.children(op)))
    children, reason = _how(raw)
    return [member.decode() for member in members] if children else [], reason


def _how(raw: bytes | None) -> tuple[bool, str]:
    """Whether children are cancelled too, and the reason, as ``begin_cancel`` has noted them."""
    parts = (raw or b"").decode().split(" ", 2)
    return parts[1:2] == ["1"], parts[2] if len(parts) > 2 else ""


def cancel(keys: Keys, op: str, commit_id: str, keep: timedelta | None, chain: Chain | None = None) -> Steps[int]:
    """End every active machine of an operation, marked cancelled; 2 round trips for each 100, and one to finish.

    Args:
        keys: Of the operation's shard.
        op: The operation; ``begin_cancel`` has been run.
        commit_id: Of this run.
        keep: When its end may be forgotten; ``None``: never.
        chain: What seals the steps of histories, if they are sealed.

    Returns:
        How many machines have been ended.
    """
    ended = attempt = 0
    while attempt < MAX_ATTEMPTS:
        try:
            batch = yield from _page(keys, op)
            if not batch:
                control = keys.control(op)
                commands = [("DEL", control, keys.held(control)), ("ZREM", keys.schedule, f"~cancel:{op}")]
                if (yield from commit(commands)) is not None:  # else one has come meanwhile, and may be held already
                    return ended
                attempt += 1
                continue
            look, reason = Look(), ""
            guards = [keys.machine(digest(op, one.field)) for one in batch]
            past: list[Command] = [("HGET", keys.inactive(op), one.field) for one in batch]
            looks = [TIME, ("GET", keys.control(op)), begun(keys, op), watchers(keys, op)]
            looks += [("HGET", keys.active(op), one.raw) for one in batch]
            looks += [("GET", guard) for guard in guards]
            watch = [*guards, keys.watchers(op), keys.history(op), keys.active(op), keys.control(op)]
            yield from look.fetch(watch, [*looks, *past])
            if (noted := look.known["GET", keys.control(op)]) is None:
                return ended  # another has finished the cancelling: what is active now has come after it
            _, reason = _how(noted)
            commands = _end_all(keys, op, batch, look, commit_id, reason, keep, chain)
            if commands and (yield from commit(commands)) is not None:
                ended, attempt = ended + len(batch), 0
                continue
        except LostReply:
            attempt += 1
            continue
        attempt += 1
        yield from back_off(attempt)
    raise CommitFailed(MAX_ATTEMPTS, "conflict")


def _page(keys: Keys, op: str) -> Steps[list[Leaving]]:
    cursor: Any = 0
    while True:
        ((cursor, flat),) = yield from read([keys.active(op)], ("HSCAN", keys.active(op), cursor, "COUNT", BATCH))
        pairs = list(zip(flat[::2], flat[1::2], strict=True))[:BATCH]
        if pairs or int(cursor) == 0:
            return [_leaving(field, raw) for field, raw in pairs]


def _leaving(field: bytes, raw: bytes) -> Leaving:
    try:
        return Leaving(field, Active.parse(raw))
    except ValueError:  # garbage ends too
        return Leaving(field, Active("", 0, 0, 0, "", lone=False))


def _end_all(
    keys: Keys, op: str, batch: list[Leaving], look: Look, commit_id: str, reason: str, keep: timedelta | None,
    chain: Chain | None,
) -> list[Command]:  # fmt: skip
    commands: list[Command] = []
    entries: list[dict[str, Any]] = []
    now_us = look.now_us
    for one in batch:
        if look.known["HGET", keys.active(op), one.raw] is None:
            return []  # it has moved since
        record = digest(op, one.field)
        raw = look.known["GET", keys.machine(record)]
        try:
            commands += leave(keys, Machine.parse(raw))
        except (ValueError, TypeError):
            commands += [("HDEL", keys.active(op), one.raw), ("DEL", keys.machine(record), keys.race(record))]
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
        ended = one.active._replace(step=one.active.step + 1)
        entry = step_entry(ended, one.field, now_us, commit_id, terminal=True, cancelled=reason)
        entries.append(sealed(chain, op, one.active.seal, ended, entry)[1])
    commands += note(keys, op, *entries, told=entries[0]["commit"] != commit_id)
    if rung := ring(keys, look.known[watchers(keys, op)], now_us):
        commands += [*rung, hint(keys, None)]
    gone = [(one.field, "") for one in batch if one.active.machine]  # garbage was never counted
    return [*commands, *counted_all(keys, gone, CANCELLED), *settle(keys, op, now_us, keep, certain=False)]


# --- retry -----------------------------------------------------------------------------------------------------------


def retry(
    keys: Keys, instances: Instances, op: str, field: str, raw: bytes, commit_id: str
) -> Steps[tuple[bool, bool]]:
    """Take one machine out of quarantine: what has an outcome runs it again, what waits for nothing is armed anew.

    Returns:
        Whether it was quarantined, and whether to send a hint.
    """
    record = digest(op, field)
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
            return (yield from _again(keys, json.loads(look.known[quarantined])["entry"]))
        deadline = deadline_ms(machine.armed)
        if look.known[won] == 1 or (deadline is not None and deadline <= look.now_us // 1000):
            code = [f"{machine.entry}:{name}" for name, wait in machine.armed.items() if isinstance(wait, list)]
            return (yield from _again(keys, machine.entry, code))
        handlers = instances.handlers(placed)
        armed: Armed = {name: wait_of(h, placed.state, look.now_us) for name, h in handlers.items()}
        inboxes = list(inbox_keys(keys, instances, placed).values())
        yield from look.fetch(inboxes, [*map(head, inboxes)])
        active = Active.parse(raw)
        items = yield from buffered(keys, instances, placed, active.machine, look)
        fresh = Machine(commit_id, commit_id, op, field, armed)
        plan = arm(keys, fresh, active, look.now_us, items.get)
        gone = [c for c in leave(keys, machine) if c[0] != "HDEL"]
        replies = yield from commit([*gone, *plan.commands, ("HDEL", keys.quarantine, record), hint(keys, None)])
        if replies is not None:
            return True, plan.due and replies[-1] is not None
        yield from back_off(attempt)
    raise CommitFailed(MAX_ATTEMPTS, "conflict")


def _again(keys: Keys, entry: str, code: Sequence[str] = ()) -> Steps[tuple[bool, bool]]:
    names = (keys.quarantine, keys.schedule, keys.hint, keys.hosted, keys.roused, keys.wake)
    args = (keys.race_prefix, entry, HINT_MS, WATCH_MS, *code)
    return (yield from call("retry", names, args, lambda r: (bool(r[0]), bool(r[1]))))

"""Checks of machines: an active record, its machine key, its race, its entries, its place in quarantine."""

from __future__ import annotations

import json
from collections.abc import Iterator

from smqueue.keys import Keys, decode, digest, schedule_of
from smqueue.protocols.arming import leave
from smqueue.protocols.auditing.looking import Check, Sight
from smqueue.protocols.auditing.problems import Kind, Problem
from smqueue.protocols.bounds import PARK_MS
from smqueue.records import Active, Field, Item, Machine, deadline_ms, kind_of
from smqueue.roundtrip import Command
from smqueue.standing import begun

SLACK_MS = 60_000
FURTHEST_MS = PARK_MS + PARK_MS // 5
"""Nothing undecided is looked at later than this from now: an hour, spread, and a little for a busy server."""
PAGE = 200
KNOWABLE = 1_000
"""Fields of one hash that are searched for a record of which only the id is known."""


def label(op: str, field: str) -> str:
    """A record in words, without the content of its state: secrets stand in it."""
    try:
        module, type_name, _ = Field.parse(field)
    except ValueError:
        return f"a record of operation {op}"
    return f"{module}.{type_name} of operation {op}"


def check_active(keys: Keys, op: str, raw_field: bytes) -> Check:
    """An active record has what makes it move."""
    field = raw_field.decode(errors="replace")
    record = digest(op, field)
    what = label(op, field)

    def check(see: Sight) -> Iterator[Problem]:
        value, raw = see.all([("HGET", keys.active(op), raw_field), ("GET", keys.machine(record))])
        if value is None:
            return
        try:
            active = Active.parse(value)
            Field.parse(field)
        except ValueError as problem:
            yield Problem(
                Kind.UNREADABLE_RECORD, op, record, f"{what}: its active record cannot be read: {problem}",
                f"not mended: what it was is not known; smqueue cancel {op} ends it",
            )  # fmt: skip
            return
        if raw is None:
            yield Problem(
                Kind.NO_MACHINE_KEY, op, record, f"{what} is active, but its machine key is missing: nothing moves it",
                f"not mended: what it waited for is lost with the key; smqueue cancel {op} ends it",
            )  # fmt: skip
            return
        try:
            machine = Machine.parse(raw)
        except ValueError as problem:
            yield _unreadable(op, record, f"{what}: its machine key cannot be read: {problem}")
            return
        if (machine.op, machine.field) != (op, field):
            other = label(machine.op, machine.field)
            yield Problem(
                Kind.WRONG_MACHINE, op, record, f"{what}: its machine key is that of {other}",
                f"not mended: which of them is right is not known; smqueue cancel {op} ends it",
            )  # fmt: skip
            return
        yield from _armed(see, keys, machine, active, what)

    return check


def _unreadable(op: str, record: str, words: str) -> Problem:
    way = f"smqueue cancel {op} ends it" if op else "smqueue list --quarantined shows whose it is, once it was claimed"
    return Problem(Kind.UNREADABLE_MACHINE, op, record, words, f"not mended: what it waited for is not known; {way}")


def _armed(see: Sight, keys: Keys, machine: Machine, active: Active, what: str) -> Iterator[Problem]:
    """A live machine: its entries, and what has come for it."""
    op, record, entry = machine.op, machine.record, machine.entry
    module = decode(machine.field.partition(" ")[0])
    coded = {n: kind_of(w) for n, w in machine.armed.items() if isinstance(w, list) and w[0] != "now"}
    signals = {name: wait for name, wait in machine.armed.items() if isinstance(wait, str)}
    looks: list[Command] = [("ZSCORE", keys.schedule, entry), ("HMGET", keys.race(record), "won", "value", "at")]
    looks += [("HEXISTS", keys.quarantine, record)]
    looks += [("ZSCORE", schedule_of(keys, kind), f"{entry}:{name}") for name, kind in coded.items()]
    looks += [("ZSCORE", keys.waiting(op, module, w), f"{entry}:{n}") for n, w in signals.items()]
    looks += [("LLEN", keys.inbox(op, module, w)) for w in signals.values()]
    _, score, race, aside, *rest = see.all([("TIME",), *looks])
    now_ms = see.now_ms
    if score is None:
        yield Problem(
            Kind.NOT_SCHEDULED, op, record, f"{what} has no entry in the schedule: neither its deadlines nor its "
            "outcome would be noticed", "added, due now", (("ZADD", keys.schedule, "NX", now_ms, entry),),
        )  # fmt: skip
    won, value, at = race
    if won is not None:
        if won.decode(errors="replace") not in machine.armed or value is None or at is None:
            yield Problem(
                Kind.UNREADABLE_RACE, op, record, f"{what}: the outcome recorded for it is incomplete, or of a trigger "
                "that is not armed", f"not mended: what the outcome was is not known; smqueue cancel {op} ends it",
            )  # fmt: skip
        return
    deadline = deadline_ms(machine.armed)
    if deadline is not None and deadline <= now_ms:
        return  # decided: signals and code have lost
    latest = now_ms + FURTHEST_MS if deadline is None else min(deadline, now_ms + FURTHEST_MS)
    if score is not None and not aside and float(score) > latest + SLACK_MS:
        due = now_ms if deadline is None else min(deadline, now_ms + PARK_MS)
        yield Problem(
            Kind.SCHEDULED_LATE, op, record, f"{what} is looked at only {_ahead(float(score), now_ms)}, after its time",
            "its entry is due in time", (("ZADD", keys.schedule, "XX", "LT", due, entry),),
        )  # fmt: skip
    n, m = len(coded), len(signals)
    scores, places, lengths = rest[:n], rest[n : n + m], rest[n + m :]
    for (name, kind), found in zip(coded.items(), scores, strict=True):
        if found is None:
            yield Problem(
                Kind.TRIGGER_NOT_SCHEDULED, op, record, f"{what}: its trigger {name} ({kind}) has no entry: its code "
                "would never run again", "added, due now",
                (("ZADD", schedule_of(keys, kind), "NX", now_ms, f"{entry}:{name}"),),
            )  # fmt: skip
    lone = None in places and active.lone and see(*begun(keys, op)) == 1  # it registers nowhere
    for place, ((name, signal), found) in enumerate(zip(signals.items(), places, strict=True)):
        if found is None and not lone:
            add: Command = ("ZADD", keys.waiting(op, module, signal), "NX", active.at_us + place, f"{entry}:{name}")
            yield Problem(
                Kind.NOT_WAITING, op, record, f"{what} waits for signal {signal}, but is not among those that do: the "
                "signal would be kept, not given to it", "added to those that wait", (add,),
            )  # fmt: skip
    for (name, signal), length in zip(signals.items(), lengths, strict=True):
        item = _for_it(see, keys.inbox(op, module, signal), length, active.machine)
        if item is not None:
            yield _lost(keys, machine, name, signal, item, now_ms, what)
            return


def _ahead(score: float, now_ms: int) -> str:
    hours = (score - now_ms) / 3_600_000
    return f"in {hours:,.1f} h" if hours < 1e6 else "never"


def _for_it(see: Sight, inbox: str, length: int, machine: str) -> Item | None:
    """The oldest early signal that this machine may take; page by page."""
    for at in range(0, length, PAGE):
        for raw in see("LRANGE", inbox, at, at + PAGE - 1):
            try:
                item = Item.parse(raw)
            except (ValueError, KeyError, TypeError):
                continue  # the check of the inbox names it
            if item.machine in {None, machine}:
                return item
    return None


def _lost(keys: Keys, machine: Machine, name: str, signal: str, item: Item, now_ms: int, what: str) -> Problem:
    module = decode(machine.field.partition(" ")[0])
    give: tuple[Command, ...] = (
        ("LREM", keys.inbox(machine.op, module, signal), 1, item.raw),
        ("HSET", keys.race(machine.record), "won", name, "value", item.payload, "at", now_ms),
        ("ZREM", keys.waiting(machine.op, module, signal), f"{machine.entry}:{name}"),
        ("ZADD", keys.schedule, now_ms, machine.entry),
    )
    return Problem(
        Kind.LOST_SIGNAL, machine.op, machine.record, f"{what} waits for signal {signal}, which is kept for it already",
        "the oldest one is given to it", give,
    )  # fmt: skip


def check_machine(keys: Keys, record: str) -> Check:
    """A machine key belongs to an active record whose digest is its name."""

    def check(see: Sight) -> Iterator[Problem]:
        raw = see("GET", keys.machine(record))
        if raw is None:
            return
        try:
            machine = Machine.parse(raw)
        except ValueError as problem:
            yield _unreadable("", record, f"machine key {record} cannot be read: {problem}")
            return
        what = label(machine.op, machine.field)
        if machine.record != record:
            yield Problem(
                Kind.WRONG_MACHINE, machine.op, record, f"machine key {record} is that of {what}, whose id is "
                f"{machine.record}", "not mended: how it came there is not known; DEL the key if it is a copy",
            )  # fmt: skip
        elif see("HGET", keys.active(machine.op), machine.field) is None:
            gone = [c for c in leave(keys, machine) if c[0] != "HDEL" or c[1] == keys.quarantine]
            yield Problem(
                Kind.ORPHAN_MACHINE, machine.op, record, f"{what} has a machine key, but is not active",
                "the key and its entries are removed", tuple(gone),
            )  # fmt: skip

    return check


def check_race(keys: Keys, record: str) -> Check:
    """What a race has brought is a machine's."""

    def check(see: Sight) -> Iterator[Problem]:
        machine, race = see.all([("EXISTS", keys.machine(record)), ("EXISTS", keys.race(record))])
        if race and not machine:
            yield Problem(
                Kind.ORPHAN_RACE, "", record, f"what a race has brought is kept for {record}, which has no machine key",
                "removed", (("DEL", keys.race(record)),),
            )  # fmt: skip

    return check


def check_quarantined(keys: Keys, record: str) -> Check:
    """What is set aside is there; and it is no half-done commit."""

    def check(see: Sight) -> Iterator[Problem]:
        raw, machine = see.all([("HGET", keys.quarantine, record), ("EXISTS", keys.machine(record))])
        if raw is None:
            return
        try:
            why = json.loads(raw)
            op, error = str(why["op"]), str(why["error"])
        except (ValueError, KeyError, TypeError):
            yield Problem(
                Kind.UNREADABLE_QUARANTINE, "", record, f"why {record} was set aside cannot be read",
                "not mended: HDEL it from the quarantine, and its machine is claimed again",
            )  # fmt: skip
            return
        if not machine and not _is_active(see, keys, op, record):
            yield Problem(
                Kind.ORPHAN_QUARANTINE, op, record, f"{record} of operation {op} is in quarantine, but not active",
                "removed", (("HDEL", keys.quarantine, record),),
            )  # fmt: skip
        elif "a command failed inside EXEC" in error:
            yield Problem(
                Kind.TORN_COMMIT, op, record, f"{record} of operation {op} has moved, but a write of that commit has "
                f"failed: {error}", "not mended: make up for that write by hand, then smqueue retry, or cancel",
            )  # fmt: skip

    return check


def _is_active(see: Sight, keys: Keys, op: str, record: str) -> bool:
    """Whether an active record has this id; taken for granted where there are too many to look."""
    if not op:
        return False
    cursor, flat = see("HSCAN", keys.active(op), 0, "COUNT", KNOWABLE)
    return bool(int(cursor)) or any(digest(op, raw.decode(errors="replace")) == record for raw in flat[::2])

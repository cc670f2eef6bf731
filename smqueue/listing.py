"""Active machines as they are listed: which of them are wanted, and what is told of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from smqueue.instances import Instances
from smqueue.keys import Keys, digest, encode
from smqueue.pauses import controls_of
from smqueue.queries import moment
from smqueue.records import Active, Field, Machine, label_of, loads
from smqueue.redacted import shown_state
from smqueue.roundtrip import Command, Steps, read, time_us

SCANNED = 100
"""How many machines of one operation are read in one go, or little more; of one with few, to Redis some hundred, all
are."""


class Wanted(NamedTuple):
    """What is asked for; ``None`` is everything.

    Attributes:
        operation: An operation, or with an asterisk at its end all whose ids begin so.
        module: A module instance.
        state: The name of a state.
        quarantined: Only machines that were set aside.
        older_s: Only machines that have been in their state for so long, in seconds.
        newest: Operations in the order in which they have become active, the last first; else the first first.
    """

    operation: str | None = None
    module: str | None = None
    state: str | None = None
    quarantined: bool = False
    older_s: float | None = None
    newest: bool = False

    @property
    def some(self) -> bool:
        """Whether not all machines are wanted, or all that are quarantined."""
        return any(one is not None for one in (self.operation, self.module, self.state, self.older_s))

    def takes(self, operation: str) -> bool:
        """Whether an operation is wanted."""
        if self.operation is None or not self.operation.endswith("*"):
            return self.operation in {None, operation}
        return operation.startswith(self.operation[:-1])


class Listed(NamedTuple):
    """One active machine."""

    operation_id: str
    module: str
    type: str
    state: Any
    machine_id: str
    step: int
    since: str | None
    status: str
    last_error: str | None


class Record(NamedTuple):
    """An active record as it is stored; ``field`` is ``None`` where only a note in the quarantine is left of it."""

    op: str
    field: str | None
    value: bytes
    note: bytes | None = None
    noted: str = ""
    """The id that the note is about."""

    @property
    def id(self) -> str:
        """Of the record."""
        return self.noted or digest(self.op, self.field or "")


class Fits:
    """Whether a record is in the module and state that are asked for, and old enough."""

    def __init__(self, wanted: Wanted, now_us: int) -> None:
        self._names = [None if name is None else encode(name) for name in (wanted.module, wanted.state)]
        self._bound_us = None if wanted.older_s is None else now_us - wanted.older_s * 1_000_000

    def __call__(self, one: Record) -> bool:
        """Of this record."""
        parts = [*(one.field or "").split(" ", 2), ""]
        if not all(name in {None, part} for name, part in zip(self._names, parts, strict=False)):
            return False
        return self._bound_us is None or _since_us(one.value) <= self._bound_us


def _since_us(value: bytes) -> int:
    try:
        return Active.parse(value).at_us
    except ValueError:  # garbage is as old as you like
        return 0


def scanned(keys: Keys, places: Sequence[tuple[str, int]], wanted: Wanted) -> Steps[list[tuple[int, list[Record]]]]:
    """Of each operation a part of its wanted records, from a cursor on: the next cursor and the records."""
    looks: list[Command] = [("HSCAN", keys.active(op), scan, "COUNT", SCANNED) for op, scan in places]
    time, *replies = yield from read([], ("TIME",), *looks)
    fits = Fits(wanted, time_us(time))
    found: list[tuple[int, list[Record]]] = []
    for (op, _), reply in zip(places, replies, strict=True):
        if isinstance(reply, Exception):  # a key of another type: smqueue verify tells of it
            found.append((0, []))
            continue
        pairs = zip(reply[1][::2], reply[1][1::2], strict=True)
        records = [Record(op, raw.decode(errors="replace"), value) for raw, value in pairs]
        found.append((int(reply[0]), [one for one in records if fits(one)]))
    return found


def noted(record: str, note: bytes, stored: Any) -> Record:
    """Which record a note is about; where that cannot be read, at least of which operation."""
    with suppress(ValueError, TypeError):
        machine = Machine.parse(stored)
        return Record(machine.op, machine.field, b"", note, record)
    return Record(_text_of(note, "op"), None, b"", note, record)


def _text_of(note: bytes, name: str) -> str:
    """A text of a note; nothing of garbage."""
    with suppress(ValueError):
        data = loads(note)
        return str(data.get(name, "")) if isinstance(data, dict) else ""
    return ""


def listed(keys: Keys, records: Sequence[Record], instances: Instances, *, quarantined: bool) -> Steps[list[Listed]]:
    """What is told of records; 1 or 2 round trips.

    Args:
        keys: Of their shard.
        records: At least one.
        instances: The modules that are known; there may be none.
        quarantined: Only of those that were set aside.
    """
    if quarantined and records[0].note is None:  # of one operation, whose machines are looked through
        names = [one.id for one in records]
        (notes,) = yield from read([], ("HMGET", keys.quarantine, *names))
        if isinstance(notes, Exception):
            return []
        records = [one._replace(note=note) for one, note in zip(records, notes, strict=True) if note is not None]
    looks = dict.fromkeys(look for one in records for look in _looks(keys, one))
    known = dict(zip(looks, (yield from read([], *looks)), strict=True)) if looks else {}
    return [_told(keys, one, known, instances) for one in records]


def _looks(keys: Keys, one: Record) -> Iterator[Command]:
    if one.field is None:
        return
    if one.note is None:
        yield "HGET", keys.quarantine, one.id
    yield "HMGET", keys.race(one.id), "won", "error"
    for control in controls_of(keys, one.op, one.field):
        yield "GET", control


def _told(keys: Keys, one: Record, known: dict[Command, Any], instances: Instances) -> Listed:
    if one.field is None:
        error = _text_of(one.note or b"", "error")
        return Listed(one.op, "", label_of(""), None, "", 0, None, "quarantined", error or "unreadable")
    note = known.get(("HGET", keys.quarantine, one.id), one.note)
    aside, race = isinstance(note, bytes), known["HMGET", keys.race(one.id), "won", "error"]
    won, error = race if isinstance(race, list) else (None, None)
    text: str | None = error.decode(errors="replace") if error else None
    if aside:
        text = _text_of(note, "error") or "the note on why it is quarantined is garbage"
    try:
        module, type_name, _ = Field.parse(one.field)
    except ValueError:
        return Listed(one.op, "", label_of(one.field), None, "", 0, None, "unreadable", text or "it names no state")
    try:
        active = Active.parse(one.value)
        since = moment(active.at_us).isoformat()
        state = shown_state(instances, one.op, one.field, active.version)
    except (ValueError, OverflowError, OSError) as problem:
        return Listed(one.op, module, type_name, None, "", 0, None, "unreadable", text or f"unreadable: {problem}")
    status = "quarantined" if aside else "decided" if won else "waiting"
    held = [known["GET", key] for key in controls_of(keys, one.op, one.field)]
    words = [raw.decode(errors="replace").partition(" ")[0] for raw in held if isinstance(raw, bytes)]
    if status != "quarantined" and words:
        status = "cancelling" if "cancelling" in words else "paused"
    return Listed(one.op, module, type_name, state, active.machine, active.step, since, status, text)

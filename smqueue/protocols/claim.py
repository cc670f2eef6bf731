"""Claiming what is due: entries are leased, not removed, and what they need to run comes back in the same script."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from msgspec import Struct

from smqueue.errors import SmqueueError, UndecodableRecord
from smqueue.instances import Instances
from smqueue.keys import Keys
from smqueue.protocols.bounds import HINT_MS, LEASE_MS, PARK_MS, RESEND_MS, WATCH_MS
from smqueue.records import Active, Machine, Placed, deadline_ms, kind_of, label_of
from smqueue.roundtrip import Steps, call, text


class Claimed(Struct, gc=False):
    """A machine whose race is decided, leased to this worker."""

    entry: str
    machine: Machine
    active: Active
    placed: Placed
    race: dict[str, str]
    won: str
    """Name of the trigger that won."""
    value: str
    """Its outcome, JSON."""
    at_ms: int
    """When it completed; a deadline at its time, not when it was noticed."""
    raw: bytes = b""
    """The machine as it is stored."""

    @property
    def claims(self) -> int:
        """How often it was claimed since its last commit or failure, this time included."""
        return int(self.race.get("claims", 1))

    @property
    def attempts(self) -> int:
        """How often its handler has failed on this outcome."""
        return int(self.race.get("attempts", 0))


class Armed(NamedTuple):
    """A trigger with code to run."""

    entry: str
    machine: Machine
    active: Active
    placed: Placed
    race: dict[str, str]
    trigger: str

    @property
    def kind(self) -> str:
        """The trigger's kind."""
        return kind_of(self.machine.armed[self.trigger])

    @property
    def tries(self) -> int:
        """How often it has run without an outcome."""
        return int(self.race.get(f"tries:{self.trigger}", 0))

    @property
    def leased(self) -> str:
        """The score that its claim gave it: its entry has another one when somebody else has claimed it since."""
        return self.race.get("leased", "")


class Unreadable(NamedTuple):
    """An entry whose record this worker cannot run, and why."""

    entry: str
    record: str
    op: str
    error: SmqueueError


class Doubtful(NamedTuple):
    """A machine whose last claim ended in nothing: not decoded yet, for even that may kill a worker."""

    entry: str
    guard: str
    op: str
    row: Sequence[Any]


class Due(NamedTuple):
    """What one claim brought."""

    now_us: int
    found: int
    """How many entries were due."""
    more: bool
    """Whether the claim was filled: there may be more."""
    watched: bool
    machines: list[Claimed]
    doubtful: list[Doubtful]
    triggers: list[Armed]
    unreadable: list[Unreadable]
    other: list[str]
    """Entries that are no machine's: ``~requests``, ``~cancel:<op>``."""
    read_s: float
    """When its reply was read, by the clock for short times, s."""


def claim(keys: Keys, instances: Instances, count: int, schedule: str | None = None, token: str = "") -> Steps[Due]:
    """Lease up to ``count`` due entries of a schedule, and read their records; 1 round trip.

    Timers need no step of their own: whether a deadline has passed is read from the record. Entries of triggers are
    re-scored to when their task is to be sent again. A drain for which nothing is due is over: the same script clears
    the flag that says a hint is under way.
    """
    chosen = schedule or keys.schedule

    def parse(reply: Any) -> Due:
        return _due(instances, reply, count)

    prefixes = (keys.machine_prefix, keys.race_prefix, keys.active_prefix)
    args = (*prefixes, count, LEASE_MS, PARK_MS, RESEND_MS, token)
    names = (chosen, keys.quarantine, keys.watched, *([keys.hint] if schedule is None else []))
    return (yield from call("claim", names, args, parse))


class Watch(NamedTuple):
    """What a pump has been told."""

    wait_ms: int
    """When to look again: when the next entry is due, or the watch may be free."""
    hint: bool
    """It is to send a transition hint."""
    hosted: bool
    """A hosted entry is due."""
    mine: bool
    """It is on watch: to be woken by those who arm something that falls due before it would look."""


def pump(keys: Keys, hosted: bool, caller: str = "", hint_ms: int = HINT_MS) -> Steps[Watch]:
    """Look when something is next due, if no other caller does so now; 1 round trip.

    ``hint_ms`` is after how long another hint may be sent. Callers vary it: whoever takes messages that are not for
    him, such as another application's worker on the same queue, and waits a second each time, as Celery's workers do,
    would otherwise be the first in line for each of them.
    """
    names = (keys.hint, keys.schedule, keys.watch, keys.roused, *([keys.hosted] if hosted else []))

    def parse(reply: Any) -> Watch:
        return Watch(int(reply[0]), bool(reply[1]), bool(reply[2]), bool(reply[3]))

    return (yield from call("pump", names, (hint_ms, caller, WATCH_MS), parse))


def _due(instances: Instances, reply: Any, count: int) -> Due:
    found = int(reply[1])
    due = Due(int(reply[0]), found, found >= count, bool(reply[2]), [], [], [], [], [], time.perf_counter())
    for row in reply[3]:
        if isinstance(row, bytes):  # one string
            entry, machine, active, race = row.split(b"\0", 3)
            row = (entry, machine, race, active)
        elif len(row) == 1:
            due.other.append(text(row[0]))
            continue
        if (doubtful := _doubtful(row)) is not None:
            due.doubtful.append(doubtful)
            continue
        try:
            read = parse_row(instances, row, due.now_us)
        except (SmqueueError, ValueError) as error:
            problem = error if isinstance(error, SmqueueError) else UndecodableRecord(str(error))
            due.unreadable.append(Unreadable(text(row[0]), text(row[0]).partition(":")[0], _op(row), problem))
            continue
        if isinstance(read, Claimed):
            due.machines.append(read)
        else:
            due.triggers.append(read)
    return due


def _doubtful(row: Sequence[Any]) -> Doubtful | None:
    race = row[2]
    *_, name, claims = race.rsplit(b"\0", 2) if isinstance(race, bytes) else race or (None, None)
    if name != b"claims" or claims == b"1" or text(row[0]).count(":") > 1:  # the script puts it last
        return None
    try:
        machine = Machine.parse(row[1])
    except (ValueError, TypeError):
        return None
    return Doubtful(text(row[0]), machine.guard, machine.op, row)


def parse_row(instances: Instances, row: Sequence[Any], now_us: int) -> Claimed | Armed:
    """One leased entry: entry, machine, race (its parts, or one string with a NUL between them), active value.

    Raises:
        SmqueueError: It cannot be run here, and why.
        ValueError: It is garbage.
    """
    entry, raw_machine, raw_race, raw_active = row
    if not isinstance(raw_machine, bytes):
        raise UndecodableRecord(f"its machine key is unreadable: {type(raw_machine).__name__}")
    machine = Machine.parse(raw_machine)
    if not isinstance(raw_active, bytes):
        raise UndecodableRecord(f"no active record for {label_of(machine.field)} in operation {machine.op}")
    active = Active.parse(raw_active)
    if isinstance(raw_race, bytes):
        parts = iter(raw_race.decode().split("\0"))
    elif isinstance(raw_race, list):
        parts = map(bytes.decode, raw_race)
    else:
        raise UndecodableRecord(f"its race is unreadable: {type(raw_race).__name__}")
    race = dict(zip(parts, parts, strict=True))
    _, placed = instances.load(machine.op, machine.field, active.version)
    name = text(entry)
    trigger = name.partition(":")[2].partition(":")[2]
    if trigger:
        if trigger not in machine.armed:
            raise UndecodableRecord(f"trigger {trigger} is not armed")
        return Armed(name, machine, active, placed, race, trigger)
    if "won" in race:
        won, value, at_ms = race["won"], race["value"], int(race["at"])
        return Claimed(name, machine, active, placed, race, won, value, at_ms, raw_machine)
    deadline = deadline_ms(machine.armed)
    if deadline is None or deadline > now_us // 1000:
        raise UndecodableRecord("claimed without an outcome")
    won = next(trigger for trigger, wait in machine.armed.items() if wait == deadline)
    return Claimed(name, machine, active, placed, race, won, "null", deadline, raw_machine)


def _op(row: Sequence[Any]) -> str:
    try:
        return Machine.parse(row[1]).op
    except (ValueError, TypeError):
        return ""

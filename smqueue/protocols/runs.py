"""A trigger's code: starting, renewing, its outcome, running again; what did not move: deferred, set aside, held."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from smqueue.errors import SmqueueError, WorkerKilled, error_text
from smqueue.instances import Instances
from smqueue.keys import Keys, schedule_of
from smqueue.protocols.bounds import HINT_MS, LEASE_MS, PARK_MS, RESENDS, WATCH_MS
from smqueue.protocols.claim import Armed, parse_row
from smqueue.records import Machine, compact
from smqueue.roundtrip import Steps, call, read, repeat, text

MAX_DIED = 4
"""How many attempts of a trigger's code in a row may not come back: process dead, or lease outlived."""

KEPT_END_MS = 1_000
"""When the end of a user's task that could not be recorded is looked at again."""


class Started(NamedTuple):
    """A trigger whose code this task is to run."""

    armed: Armed
    watched: bool


def start(keys: Keys, instances: Instances, entry: str, token: str, kind: str) -> Steps[Started | str]:
    """Claim a trigger for the task ``token``; 1 round trip.

    Returns:
        What to run; or why not: ``STALE`` (another arming), ``LOST`` (its race is decided), ``RUNNING`` (elsewhere),
        ``QUARANTINED`` (so many before it have not come back that its machine is now set aside).
    """

    def parse(reply: Any) -> Started | str:
        if len(reply) == 1:
            return text(reply[0])
        armed = parse_row(instances, reply[3:7], int(reply[1]))
        assert isinstance(armed, Armed)
        return Started(armed, bool(reply[2]))

    prefixes = (keys.machine_prefix, keys.race_prefix, keys.active_prefix)
    args = (*prefixes, entry, token, LEASE_MS, MAX_DIED, error_text(WorkerKilled(MAX_DIED + 1)))
    names = (schedule_of(keys, kind), keys.watched, keys.quarantine)
    return (yield from repeat("start", names, args, parse, RESENDS))


def renew(keys: Keys, schedule: str, held: Sequence[tuple[str, str]]) -> Steps[list[str]]:
    """Prolong the leases of (entry, token) pairs; 1 round trip. Returns the entries that are no longer held."""
    flat = [part for pair in held for part in pair]
    return (
        yield from call(
            "renew",
            (schedule,),
            (keys.machine_prefix, keys.race_prefix, LEASE_MS, *flat),
            lambda r: [text(e) for e in r],
        )
    )


def outcome(keys: Keys, entry: str, kind: str, value: str, token: str = "", trace: str = "") -> Steps[tuple[str, bool]]:
    """Record the outcome of a trigger; the first of a race stands; 1 round trip.

    Returns:
        ``RECORDED``, ``LOST``, ``LATE`` or ``STALE``, and whether to send a hint. Repeating it after a lost reply says
        STALE or LOST to the one who won; nothing depends on that.
    """
    names = (keys.schedule, schedule_of(keys, kind), keys.hint)
    args = (keys.machine_prefix, keys.race_prefix, entry, value, HINT_MS, token, *((trace,) if trace else ()))
    return (yield from repeat("outcome", names, args, lambda r: (text(r[0]), bool(r[1])), RESENDS))


def keep_end(keys: Keys, entry: str, end: str) -> Steps[bool]:
    """Keep how a user's task has ended, for its trigger's next run to record; 1 round trip."""
    args = (keys.race_prefix, entry, end, KEPT_END_MS)
    return (yield from call("keep_end", (keys.schedule,), args, bool))


def again(keys: Keys, entry: str, kind: str, token: str, delay_ms: int, tries: int, error: str) -> Steps[bool]:
    """Run the trigger's code again later; 1 round trip."""
    names = (schedule_of(keys, kind), keys.roused, keys.wake)
    args = (keys.race_prefix, entry, token, delay_ms, tries, error, WATCH_MS)
    return (yield from repeat("again", names, args, lambda r: text(r) == "AGAIN", RESENDS))


def defer(
    keys: Keys, entry: str, guard: str, delay_ms: int, *, failed: bool, error: str = "", op: str = "",
    quarantine: SmqueueError | Exception | None = None,
) -> Steps[bool]:  # fmt: skip
    """A claimed machine did not move: look again later, or set it aside with its error; 1 round trip.

    Returns:
        Whether it was still the claimed one.
    """
    why = ""
    if quarantine is not None:
        why = compact({"error": error, "op": op, "entry": entry})[:-1]
        delay_ms = PARK_MS
    args = (keys.machine_prefix, keys.race_prefix, entry, guard, delay_ms, int(failed), error, why, WATCH_MS)
    names = (keys.schedule, keys.quarantine, keys.roused, keys.wake)
    return (yield from call("defer", names, args, lambda r: text(r) == "DEFERRED"))


def suspect(keys: Keys, entry: str, how: str = "alone") -> Steps[int]:
    """Note that a machine runs alone; 1 round trip. Returns how often it has not come back from that, plus one.

    ``how`` is the field of its race where that is counted: its cancel handler's runs are counted apart.
    """
    return (yield from call("suspect", (keys.schedule,), (keys.race_prefix, entry, how), int))


def look_again(keys: Keys, armed: Armed, delay_ms: int) -> Steps[None]:
    """Nothing to see yet in another operation: look again later; 1 round trip.

    At once if it has rung meanwhile; and if another has claimed it since, what that one does counts.
    """
    args = (keys.race_prefix, armed.entry, armed.trigger, delay_ms, armed.leased)
    return (yield from call("look_again", (keys.schedule,), args, lambda _: None))


def hold(keys: Keys, entry: str, control: str) -> Steps[None]:
    """The machine is paused or being cancelled: it waits for the resume; 1 round trip."""
    args = (keys.race_prefix, entry, PARK_MS)
    return (yield from call("hold", (keys.schedule, control, keys.held(control)), args, lambda _: None))


def peek(keys: Keys, instances: Instances, entry: str) -> Steps[Armed | None]:
    """What a trigger is armed with, without claiming it; ``None`` when its arming is over; 2 round trips."""
    record, arming, _ = entry.split(":", 2)
    raw, race = yield from read([], ("GET", keys.machine(record)), ("HGETALL", keys.race(record)))
    machine = Machine.parse(raw) if raw is not None else None
    if machine is None or machine.arming != arming:
        return None
    (active,) = yield from read([], ("HGET", keys.active(machine.op), machine.field))
    armed = parse_row(instances, (entry, raw, race, active), 0)
    return armed if isinstance(armed, Armed) else None

"""Checks of entries: each belongs to a live arming, or to work that is under way."""

from __future__ import annotations

from collections.abc import Iterator

from smqueue.keys import Keys, decode, schedule_of
from smqueue.protocols.auditing.looking import Check, Sight
from smqueue.protocols.auditing.problems import Kind, Problem
from smqueue.records import Machine, Wait, kind_of
from smqueue.roundtrip import Command


def check_scheduled(keys: Keys, schedule: str, raw: bytes) -> Check:
    """An entry of a schedule belongs to a live arming; else a claim removes it once it is due."""
    entry = raw.decode(errors="replace")

    def check(see: Sight) -> Iterator[Problem]:
        if see("ZSCORE", schedule, raw) is None or (entry.startswith("~") and not _is_over(see, keys, entry)):
            return
        if not entry.startswith("~") and _is_live(see, keys, entry, schedule):
            return
        yield Problem(
            Kind.STALE_ENTRY, "", entry, f"entry {entry} belongs to nothing that is under way",
            "removed; a claim would do it, too, once it is due", (("ZREM", schedule, raw),),
        )  # fmt: skip

    return check


def _is_over(see: Sight, keys: Keys, entry: str) -> bool:
    """Whether what an entry that is no machine's stands for has been done; of an unknown one nothing is said."""
    kind, _, what = entry[1:].partition(":")
    match kind:
        case "cancel":
            return see("GET", keys.control(what)) is None
        case "resume":
            return not see("EXISTS", _held(keys, what))
        case _:
            return False


def _held(keys: Keys, control: str) -> str:
    return keys.held(control) if control.startswith(keys.prefix) else control


def armed_by(see: Sight, keys: Keys, entry: str) -> tuple[Machine, Wait | None] | None:
    """The live machine that an entry belongs to, and what its trigger waits for (of a race: ``None``)."""
    record, _, rest = entry.partition(":")
    arming, _, trigger = rest.partition(":")
    raw = see("GET", keys.machine(record)) if record and arming else None
    if raw is None:
        return None
    machine = Machine.parse(raw)
    if machine.arming != arming or (trigger and trigger not in machine.armed):
        return None
    return machine, machine.armed[trigger] if trigger else None


def _is_live(see: Sight, keys: Keys, entry: str, schedule: str) -> bool:
    try:
        found = armed_by(see, keys, entry)
    except ValueError:
        return True  # the check of the machine key names it
    if found is None:
        return False
    wait = found[1]
    return schedule == (keys.schedule if wait is None else schedule_of(keys, kind_of(wait)))


def check_waiting(keys: Keys, op: str, module: str, signal: str, raw: bytes) -> Check:
    """What waits for a signal is a live trigger for it."""
    entry, key = raw.decode(errors="replace"), keys.waiting(op, module, signal)

    def check(see: Sight) -> Iterator[Problem]:
        try:
            found = armed_by(see, keys, entry)
        except ValueError:
            return
        if see("ZSCORE", key, raw) is not None and (found is None or found[1] != signal):
            yield Problem(
                Kind.STALE_WAITING, op, entry, f"{entry} is among those that wait for signal {module}.{signal} of "
                f"operation {op}, but its arming is over", "removed", (("ZREM", key, raw),),
            )  # fmt: skip

    return check


def check_watcher(keys: Keys, op: str, raw: bytes) -> Check:
    """What watches an operation is a live trigger that does."""
    entry, key = raw.decode(errors="replace"), keys.watchers(op)

    def check(see: Sight) -> Iterator[Problem]:
        try:
            found = armed_by(see, keys, entry)
        except ValueError:
            return
        wait = found[1] if found is not None else None
        live = isinstance(wait, list) and wait[0] in {"reached", "finished"} and wait[1:2] == [op]
        if not live and see("SISMEMBER", key, raw):
            yield Problem(
                Kind.STALE_WATCHER, op, entry, f"{entry} watches operation {op}, but its arming is over", "removed",
                (("SREM", key, raw),),
            )  # fmt: skip

    return check


def check_held_entry(keys: Keys, control: str, raw: bytes) -> Check:
    """What a control holds is a live machine; one that was cancelled meanwhile may be left, and does no harm."""
    entry, key = raw.decode(errors="replace"), keys.held(control)

    def check(see: Sight) -> Iterator[Problem]:
        try:
            found = armed_by(see, keys, entry)
        except ValueError:
            return
        if found is None and see("SISMEMBER", key, raw):
            yield Problem(
                Kind.STALE_HELD, "", entry, f"{entry} is held by {control}, but its arming is over", "removed",
                (("SREM", key, raw),),
            )  # fmt: skip

    return check


def check_held(keys: Keys, control: str) -> Check:
    """What a control holds is held by it, or a resume is under way."""
    rest = f"~resume:{control}"

    def check(see: Sight) -> Iterator[Problem]:
        held, noted, under_way, _ = see.all(
            [("SCARD", keys.held(control)), ("GET", control), ("ZSCORE", keys.schedule, rest), ("TIME",)]
        )
        if held and noted is None and under_way is None:
            add: Command = ("ZADD", keys.schedule, "NX", see.now_ms, rest)
            yield Problem(
                Kind.HELD_WITHOUT_CONTROL, "", control, f"{held} entries are held by {control}, which is not set",
                "the resume goes on, now", (add,),
            )  # fmt: skip

    return check


def check_control(keys: Keys, control: str) -> Check:
    """A control pauses, or it cancels and a worker will finish that."""

    def check(see: Sight) -> Iterator[Problem]:
        raw = see("GET", control)
        text = "" if raw is None else raw.decode(errors="replace")
        about = keys.controlled(control)
        if raw is not None and text.partition(" ")[0] == "paused":
            listed, _ = see.all([("ZSCORE", keys.controls, about), ("TIME",)])
            if listed is None:
                add: Command = ("ZADD", keys.controls, "NX", see.now_ms, about)
                yield Problem(
                    Kind.PAUSE_NOT_LISTED, "", control, f"{control} is set, but is not among the controls that are",
                    "added to them", (add,),
                )  # fmt: skip
            return
        op = decode(about)
        if raw is None:
            return
        if not text.startswith("cancelling "):
            yield Problem(
                Kind.UNREADABLE_CONTROL, "", control, f"{control} says neither paused nor cancelling: what it covers "
                "is stopped for good", "not mended: what was meant is not known; SET it to paused, then resume",
            )  # fmt: skip
            return
        entry = f"~cancel:{op}"
        score, _ = see.all([("ZSCORE", keys.schedule, entry), ("TIME",)])
        if score is None:
            add: Command = ("ZADD", keys.schedule, "NX", see.now_ms, entry)
            yield Problem(
                Kind.CANCEL_NOT_SCHEDULED, op, op, f"operation {op} is being cancelled, but nobody is to finish that",
                "a worker finishes it, now", (add,),
            )  # fmt: skip

    return check

"""What Redis holds of one active machine at one moment: its record, its race, its entries, and what holds it back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from smqueue.keys import Keys, digest, schedule_of
from smqueue.pauses import Paused, controls_of, paused_by
from smqueue.records import Field, Machine, kind_of, set_aside
from smqueue.roundtrip import Command, Steps, read

LOOKS = 5
"""How often a machine that moves meanwhile is looked at again."""


@dataclass(frozen=True)
class Evidence:
    """What was found out of a machine."""

    field: str
    """Its record as stored."""
    value: Any
    """That record's value, which may be garbage."""
    machine: Machine | None
    """``None``: it cannot be read."""
    scores: Sequence[float | None]
    """Of its entries: that of the race, then those of its triggers; ``None``: it is not there."""
    race: Mapping[str, str]
    aside: str | None
    """Why it was set aside."""
    held: Sequence[tuple[str, str, Paused | None]]
    """What holds it: its name, ``paused`` or ``cancelling``, and the pause."""
    now_s: int
    steady: bool
    """All of this belongs together; else it kept moving."""

    def number(self, name: str) -> int:
        """A number of the race; 0 when there is none, or garbage."""
        text = self.race.get(name, "")
        return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else 0


def evidence_of(keys: Keys, op: str, field: bytes) -> Steps[Evidence | None]:
    """Look at one machine: 2 round trips, and one more each time that it moves meanwhile.

    The second look asks once more for what the first has seen: only if that is the same do all belong together. Within
    it the order counts: an entry is taken away together with what is asked for after it.

    Returns:
        What is known of it; ``None`` when it has gone on.
    """
    stored = field.decode(errors="replace")
    record = digest(op, stored)
    controls = controls_of(keys, op, stored)
    itself: list[Command] = [("HGET", keys.active(op), field), ("GET", keys.machine(record))]
    rest: list[Command] = [("HGETALL", keys.race(record)), ("HGET", keys.quarantine, record)]
    looks: list[Command] = [*rest, *[("GET", key) for key in controls], ("TIME",)]
    value, raw = yield from read([], *itself)
    for look in range(LOOKS):
        machine = _armed(raw)
        entries = _entries(keys, machine) if machine is not None else []
        replies = yield from read([], *[("ZSCORE", *entry) for entry in entries], *looks, *itself)
        before, (value, raw) = (value, raw), replies[-2:]
        if value is None:
            return None
        if (value, raw) == before or look == LOOKS - 1:
            scores = [float(one) if isinstance(one, bytes) else None for one in replies[: len(entries)]]
            flat, note, *held, time = replies[len(entries) : -2]
            return Evidence(
                field=stored,
                value=value,
                machine=machine,
                scores=scores,
                race=_race(flat),
                aside=set_aside(note),
                held=_held(keys, op, stored, held),
                now_s=int(time[0]),
                steady=(value, raw) == before,
            )
    return None


def _armed(raw: Any) -> Machine | None:
    try:
        machine = Machine.parse(raw)
        _ = [kind_of(wait) for wait in machine.armed.values()]
    except (ValueError, TypeError, LookupError):
        return None
    return machine


def _entries(keys: Keys, machine: Machine) -> list[tuple[str, str]]:
    """Where a machine has, or may have, an entry: schedule and member."""
    own = [(schedule_of(keys, kind_of(wait)), f"{machine.entry}:{name}") for name, wait in machine.armed.items()]
    return [(keys.schedule, machine.entry), *own]


def _race(flat: Any) -> dict[str, str]:
    texts = [part.decode(errors="replace") for part in flat] if isinstance(flat, list) else []
    return dict(zip(texts[::2], texts[1::2], strict=True))


def _held(keys: Keys, op: str, stored: str, replies: Sequence[Any]) -> list[tuple[str, str, Paused | None]]:
    if not replies:
        return []
    module, type_name, _ = Field.parse(stored)
    names = (f"operation {op}", f"module {module}", f"state {module}.{type_name}")
    looked = zip(names, controls_of(keys, op, stored), replies, strict=True)
    return [
        (name, raw.decode(errors="replace").partition(" ")[0], paused_by(keys, control, raw))
        for name, control, raw in looked
        if isinstance(raw, bytes)
    ]

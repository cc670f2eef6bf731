"""The history of one operation, a window at a time, however long it is; and its transitions, counted.

A window is one LRANGE of a bounded number of steps, one HMGET of what their machines have left, and a bounded look back
for the steps before: in an operation of many machines they may be far away.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import msgspec

from smqueue.deployment import Deployment
from smqueue.following import history
from smqueue.instances import Instances
from smqueue.keys import Keys
from smqueue.queries import is_moment, moment
from smqueue.records import Field
from smqueue.redacted import shown_state
from smqueue.roundtrip import Steps, read
from smqueue.standing import parse_inactive
from smqueue.words import span

WINDOW = 50
"""Steps on a page."""
COUNTED = 2_000
"""Of an operation's transitions, the last so many steps are counted."""
CHUNK = 500
BACK = 5_000
"""So many steps are looked back for where machines came from; beyond that it is not told."""


class Entry(msgspec.Struct):
    """A step as it is stored."""

    machine: str
    step: int
    to: str
    at: int
    commit: str | None = None
    version: int = 0
    terminal: bool = False
    won: str | None = None
    merged: str | None = None
    cancelled: str | None = None


class Step(NamedTuple):
    """One step of a timeline.

    Attributes:
        sequence: Its place in the history.
        at: When.
        machine_id: Whose.
        step: Of that machine.
        module: The module instance; empty of garbage.
        source: The state that it left; ``None`` when it was added, or when that is too long ago to be known here.
        target: The state that it entered; of a cancelled machine the one that it was in.
        state: Its values in JSON, secrets hidden.
        won: The trigger that won.
        losers: What the others were doing; ``None`` where it is not kept: of each state of an operation only what was
            so when it was left last.
        ending: ``terminal``, ``cancelled`` with its reason, ``merged into`` another; ``None``: it goes on.
    """

    sequence: int
    at: datetime
    machine_id: str
    step: int
    module: str
    source: str | None
    target: str
    state: Any
    won: str | None
    losers: tuple[str, ...] | None
    ending: str | None

    @property
    def said(self) -> str:
        """In one sentence, for who does not see it."""
        how = f", {self.won} has won" if self.won else "" if self.ending else ", added"
        return f"{self.target}{how}{f', {self.ending}' if self.ending else ''}"


class Window(NamedTuple):
    """Some steps, the newest first.

    Attributes:
        steps: They.
        total: How many there are in all.
        before: Where older ones begin; ``None``: there are none.
    """

    steps: list[Step]
    total: int
    before: int | None


def window(
    deployment: Deployment, instances: Instances, op: str, before: int | None = None, after: int | None = None
) -> Window:
    """Read a window of a history.

    Args:
        deployment: Where.
        instances: The modules that are known, whose secrets are hidden; there may be none.
        op: The operation.
        before: Only steps before this sequence.
        after: Only steps behind this sequence.
    """
    total, start, entries, sources, left = deployment.driver.run(_window(deployment.keys(op), op, before, after))
    steps = [_step(instances, op, at, entry, sources, left) for at, entry in entries]
    return Window(steps[::-1], total, start if start and after is None else None)


def transitions(deployment: Deployment, op: str) -> Mapping[str, Counter[tuple[str, str, str]]]:
    """How often source, target and trigger have made a transition, by module, in the last 2,000 steps."""
    entries, sources = deployment.driver.run(_counted(deployment.keys(op), op))
    found: dict[str, Counter[tuple[str, str, str]]] = {}
    for entry in entries:
        source = sources.get((entry.machine, entry.step - 1))
        if source is not None and entry.won and entry.cancelled is None:
            module, state = _name(entry.to)
            found.setdefault(module, Counter())[_name(source)[1], state, entry.won] += 1
    return found


# --- how -------------------------------------------------------------------------------------------------------------

Sources = dict[tuple[str, int], str]
"""Machine and step → the stored field that it has entered."""
Left = Mapping[str, Mapping[str, Any]]
"""Stored field → its inactive record."""
Placed = list[tuple[int, Entry]]
"""Steps with their sequence; without those that are garbage."""


def _window(
    keys: Keys, op: str, before: int | None, after: int | None
) -> Steps[tuple[int, int, Placed, Sources, Left]]:
    """Length, first sequence, the window's steps, where they came from, and what was left."""
    (length,) = yield from read([], ("LLEN", keys.history(op)))
    if isinstance(length, Exception):  # a key of another type: smqueue verify tells of it
        return 0, 0, [], {}, {}
    if not length:  # not begun: a lone machine
        length, lines = yield from history(keys, op, 0)
        start, stop = _bounds(length, before, after)
        return length, start, [one for one in _placed(0, lines) if start <= one[0] < stop], {}, {}
    start, stop = _bounds(length, before, after)
    entries = yield from _between(keys, op, start, stop)
    sources = yield from _sources(keys, op, start, [entry for _, entry in entries])
    fields = list(dict.fromkeys(filter(None, (sources.get((one.machine, one.step - 1)) for _, one in entries))))
    values = (yield from read([], ("HMGET", keys.inactive(op), *fields)))[0] if fields else []
    left = {} if isinstance(values, Exception) else dict(_records(fields, values))
    return length, start, entries, sources, left


def _bounds(length: int, before: int | None, after: int | None) -> tuple[int, int]:
    stop = length if before is None else min(before, length)
    return max(0, stop - WINDOW, -1 if after is None else after + 1), stop


def _counted(keys: Keys, op: str) -> Steps[tuple[list[Entry], Sources]]:
    """The last steps, and where they came from."""
    (length,) = yield from read([], ("LLEN", keys.history(op)))
    if isinstance(length, Exception):
        return [], {}
    first, entries = max(0, length - COUNTED), list[Entry]()
    for start in range(first, length, CHUNK):
        entries += [entry for _, entry in (yield from _between(keys, op, start, min(start + CHUNK, length)))]
    return entries, (yield from _sources(keys, op, first, entries))


def _between(keys: Keys, op: str, start: int, stop: int) -> Steps[Placed]:
    if start >= stop:
        return []
    (lines,) = yield from read([], ("LRANGE", keys.history(op), start, stop - 1))
    return _placed(start, lines)


def _sources(keys: Keys, op: str, start: int, entries: Sequence[Entry]) -> Steps[Sources]:
    """What steps have entered, for those that follow them among ``entries``; looked for before ``start``, too."""
    found: Sources = {(entry.machine, entry.step): entry.to for entry in entries}
    missing = {(entry.machine, entry.step - 1) for entry in entries if entry.step > 1} - {*found}
    last = max(0, start - BACK)
    while missing and start > last:
        stop, start = start, max(last, start - CHUNK)
        for _, entry in (yield from _between(keys, op, start, stop)):
            if (entry.machine, entry.step) in missing:
                found[entry.machine, entry.step] = entry.to
        missing -= {*found}
    return found


def _records(fields: Iterable[str], values: Iterable[bytes | None]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for field, value in zip(fields, values, strict=True):
        with suppress(ValueError):
            if value is not None:
                yield field, parse_inactive(value)


_entry = msgspec.json.Decoder(Entry).decode


def _placed(start: int, lines: Iterable[bytes]) -> Placed:
    """Garbage is shown nowhere; ``smqueue verify`` tells of it."""
    found: Placed = []
    for at, line in enumerate(lines, start):
        with suppress(ValueError, OverflowError, OSError, RecursionError):
            entry = _entry(line)
            if is_moment(entry.at):
                found.append((at, entry))
    return found


def _step(instances: Instances, op: str, at: int, entry: Entry, sources: Sources, left: Left) -> Step:
    module, state = _name(entry.to)
    source = sources.get((entry.machine, entry.step - 1)) if entry.cancelled is None else None
    record = left.get(source or "")
    kept = record is not None and record.get("by") == entry.commit and isinstance(record.get("losers"), dict | None)
    return Step(
        sequence=at,
        at=moment(entry.at),
        machine_id=entry.machine,
        step=entry.step,
        module=module,
        source=None if source is None else _name(source)[1],
        target=state,
        state=_values(instances, op, entry),
        won=entry.won,
        losers=tuple(_doing(record.get("losers") or {})) if kept and record is not None else None,
        ending=_ending(entry),
    )


def _values(instances: Instances, op: str, entry: Entry) -> Any:
    with suppress(ValueError):
        return shown_state(instances, op, entry.to, entry.version)
    return None


def _name(field: str) -> tuple[str, str]:
    try:
        parsed = Field.parse(field)
    except ValueError:
        return "", "a record that is none"
    return parsed.module, parsed.type


def _ending(entry: Entry) -> str | None:
    if entry.cancelled is not None:
        return f"cancelled: {entry.cancelled}" if entry.cancelled else "cancelled"
    if entry.merged is not None:
        return f"merged into machine {entry.merged}"
    return "terminal" if entry.terminal else None


def _doing(losers: Mapping[str, Any]) -> Iterator[str]:
    for name, one in losers.items():
        if not isinstance(one, Mapping):
            continue
        text = f"{name} ({one.get('kind', '?')})"
        if isinstance(ms := one.get("left_ms"), int):
            text += f" had {span(timedelta(milliseconds=ms))} left" if ms >= 0 else " had run out"
        elif one.get("tries"):
            text += f" had tried {one['tries']} times"
        else:
            text += " still waited"
        yield text


def dumped(steps: Iterable[Step]) -> list[dict[str, Any]]:
    """Steps in JSON."""
    return [json.loads(json.dumps({**one._asdict(), "at": one.at.isoformat()})) for one in steps]

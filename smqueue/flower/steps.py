"""The history of one operation, a window at a time, however long it is; and its transitions, counted.

A window is one LRANGE of a bounded number of steps, and one HMGET of what their machines have left.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from smqueue.deployment import Deployment
from smqueue.following import history
from smqueue.instances import Instances
from smqueue.keys import Keys
from smqueue.queries import moment
from smqueue.records import Field, loads
from smqueue.roundtrip import Steps, read
from smqueue.search import shown_state
from smqueue.standing import parse_inactive
from smqueue.words import span

WINDOW = 50
"""Steps on a page."""
COUNTED = 2_000
"""Of an operation's transitions, the last so many steps are counted."""
CHUNK = 500


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
        losers: What the others were doing; ``None`` when the state was left again later, and only that is kept.
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
    total, first, raw, left = deployment.driver.run(_window(deployment.keys(op), op, before, after))
    entries = [(first + at, entry) for at, entry in enumerate(map(_parsed, raw)) if entry is not None]
    stop = total if before is None else min(before, total)
    start = max(0, stop - WINDOW, -1 if after is None else after + 1)
    sources = {(entry["machine"], entry["step"]): entry["to"] for _, entry in entries}
    steps = [_step(instances, op, at, entry, sources, left) for at, entry in entries if start <= at < stop]
    return Window(steps[::-1], total, start if start and after is None else None)


def transitions(deployment: Deployment, op: str) -> Mapping[str, Counter[tuple[str, str, str]]]:
    """How often source, target and trigger have made a transition, by module, in the last 2,000 steps."""
    keys = deployment.keys(op)
    ((length, *_),) = [deployment.driver.run(read([], ("LLEN", keys.history(op))))]
    found: dict[str, Counter[tuple[str, str, str]]] = {}
    at: dict[str, str] = {}
    for start in range(max(0, length - COUNTED), length, CHUNK):
        (raw,) = deployment.driver.run(read([], ("LRANGE", keys.history(op), start, start + CHUNK - 1)))
        for entry in filter(None, map(_parsed, raw)):
            module, state = _name(entry["to"])
            source = at.get(entry["machine"])
            if source is not None and entry.get("won") and entry.get("cancelled") is None:
                found.setdefault(module, Counter())[source, state, entry["won"]] += 1
            at[entry["machine"]] = state
    return found


# --- how -------------------------------------------------------------------------------------------------------------

Left = Mapping[str, Mapping[str, Any]]
"""Stored field → its inactive record."""


def _window(keys: Keys, op: str, before: int | None, after: int | None) -> Steps[tuple[int, int, list[bytes], Left]]:
    """Length, first sequence, entries, and what was left: twice as many entries as shown, so that sources are known."""
    (length,) = yield from read([], ("LLEN", keys.history(op)))
    if not length:  # not begun: a lone machine
        length, lines = yield from history(keys, op, 0)
        return length, 0, lines, {}
    stop = length if before is None else min(before, length)
    start = max(0, stop - 2 * WINDOW, -1 if after is None else after + 1 - WINDOW)
    (raw,) = yield from read([], ("LRANGE", keys.history(op), start, stop - 1))
    fields = list(dict.fromkeys(entry["to"] for entry in map(_parsed, raw) if entry is not None))
    if not fields:
        return length, start, raw, {}
    (values,) = yield from read([], ("HMGET", keys.inactive(op), *fields))
    return length, start, raw, dict(_records(fields, values))


def _records(fields: Iterable[str], values: Iterable[bytes | None]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for field, value in zip(fields, values, strict=True):
        with suppress(ValueError):
            if value is not None:
                yield field, parse_inactive(value)


def _parsed(raw: bytes) -> dict[str, Any] | None:
    """An entry; ``None`` of garbage, which is shown nowhere, and ``smqueue verify`` tells of."""
    with suppress(ValueError, KeyError, TypeError):
        entry: dict[str, Any] = loads(raw)
        _ = entry["machine"], entry["step"] + 0, entry["to"] + "", entry["at"] + 0
        return entry
    return None


def _step(
    instances: Instances, op: str, at: int, entry: Mapping[str, Any], sources: Mapping[Any, str], left: Left
) -> Step:
    module, state = _name(entry["to"])
    source = sources.get((entry["machine"], entry["step"] - 1))
    if entry.get("cancelled") is not None:
        source = None
    record = left.get(source or "", {})
    mine = record.get("by") == entry.get("commit")
    return Step(
        sequence=at,
        at=moment(entry["at"]),
        machine_id=entry["machine"],
        step=entry["step"],
        module=module,
        source=None if source is None else _name(source)[1],
        target=state,
        state=_values(instances, op, entry),
        won=entry.get("won"),
        losers=tuple(_doing(record.get("losers") or {})) if mine else None,
        ending=_ending(entry),
    )


def _values(instances: Instances, op: str, entry: Mapping[str, Any]) -> Any:
    with suppress(ValueError):
        return shown_state(instances, op, entry["to"], int(entry.get("version", 0)))
    return None


def _name(field: str) -> tuple[str, str]:
    try:
        parsed = Field.parse(field)
    except ValueError:
        return "", "a record that is none"
    return parsed.module, parsed.type


def _ending(entry: Mapping[str, Any]) -> str | None:
    if (why := entry.get("cancelled")) is not None:
        return f"cancelled: {why}" if why else "cancelled"
    if (other := entry.get("merged")) is not None:
        return f"merged into machine {other}"
    return "terminal" if entry.get("terminal") else None


def _doing(losers: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for name, one in losers.items():
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

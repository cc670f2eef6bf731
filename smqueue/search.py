"""Active machines as they are stored, found a page at a time: readable without the code of any module.

A page takes a bounded time, whatever is looked for among however many: where that ran out the next page goes on.
"""

from __future__ import annotations

import json
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from smqueue.deployment import Deployment
from smqueue.errors import InvalidInput, SmqueueError
from smqueue.explain import control_keys
from smqueue.instances import Instances
from smqueue.keys import Keys, digest, encode
from smqueue.queries import moment
from smqueue.records import Active, Field
from smqueue.roundtrip import Command, Steps, read, time_us
from smqueue.schemas.sealed import shown
from smqueue.states import check_operation_id

PAGE = 200
"""How many operations are read in one go."""
NAMES = 5_000
"""How many names of operations are, where only some are looked at."""
BUDGET_S = 0.3


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

    def takes(self, operation: str) -> bool:
        """Whether an operation is wanted."""
        if self.operation is None or not self.operation.endswith("*"):
            return self.operation in {None, operation}
        return operation.startswith(self.operation[:-1])


class Found(NamedTuple):
    """A page of machines.

    Attributes:
        machines: At least as many as were asked for, unless time or the operations ran out; of an operation all.
        cursor: Where the next page begins; ``None`` after the last.
        looked_at: How many operations were looked at for this page.
    """

    machines: list[Listed]
    cursor: str | None
    looked_at: int


class _Place(NamedTuple):
    """Where to go on: behind an operation, or, among quarantined machines, at a cursor of HSCAN."""

    shard: int = 0
    operation: str = ""
    score: float = 0.0
    scan: int = 0

    def dump(self) -> str:
        return urlsafe_b64encode(json.dumps(self, separators=(",", ":")).encode()).decode()

    @classmethod
    def parse(cls, cursor: str | None) -> _Place:
        if cursor is None:
            return cls()
        try:
            shard, operation, score, scan = json.loads(urlsafe_b64decode(cursor.encode()))
            return cls(int(shard), str(operation), float(score), int(scan))
        except (ValueError, TypeError):
            raise InvalidInput("cursor", "not one that a page has ended with") from None


def search(
    deployment: Deployment, instances: Instances, wanted: Wanted, cursor: str | None = None, limit: int = 50,
    budget_s: float = BUDGET_S,
) -> Found:  # fmt: skip
    """Find a page of active machines; paused and quarantined ones are active.

    Args:
        deployment: Where.
        instances: The modules that are known, whose secrets are hidden; there may be none.
        wanted: Which.
        cursor: Where an earlier page has ended.
        limit: How many are enough.
        budget_s: After how long, in seconds, a page ends with fewer.

    Raises:
        InvalidInput: An operation id or cursor that is none.
    """
    until, found, looked = time.monotonic() + budget_s, list[Listed](), 0
    if wanted.operation is not None and not wanted.operation.endswith("*"):
        keys = deployment.keys(check_operation_id(wanted.operation))
        return Found(deployment.driver.run(_machines(keys, [wanted.operation], instances, wanted)), None, 1)
    place = _Place.parse(cursor)
    while place.shard < len(deployment.all_keys()):
        keys = deployment.all_keys()[place.shard]
        step = deployment.driver.run(_step(keys, wanted, place))
        looked += step.passed
        for at in range(0, len(step.operations), PAGE):
            some = step.operations[at : at + PAGE]
            by_op = dict[str, list[Listed]]()
            for one in deployment.driver.run(_machines(keys, [name for name, _ in some], instances, wanted)):
                by_op.setdefault(one.operation_id, []).append(one)
            for name, score in some:
                found += by_op.get(name, [])
                if len(found) >= limit and not wanted.quarantined:
                    return Found(found, _Place(place.shard, name, score).dump(), looked)
        place = step.then if step.then is not None else _Place(place.shard + 1)
        if len(found) >= limit or time.monotonic() > until:
            break
    return Found(found, place.dump() if place.shard < len(deployment.all_keys()) else None, looked)


def active_machines(deployment: Deployment, instances: Instances, wanted: Wanted) -> Iterator[Listed]:
    """All of them, streamed, each once."""
    seen: set[tuple[str, str]] = set()
    cursor: str | None = None
    while True:
        page = search(deployment, instances, wanted, cursor)
        for one in page.machines:
            if (one.operation_id, one.machine_id or one.type) not in seen:
                seen.add((one.operation_id, one.machine_id or one.type))
                yield one
        if (cursor := page.cursor) is None:
            return


def shown_state(instances: Instances, op: str, field: str, version: int) -> Any:
    """A record's state as JSON: its secrets hidden where its module is known or they are encrypted, else as stored."""
    with suppress(SmqueueError):
        _, placed = instances.load(op, field, version)
        return placed.type.codec.redact(placed.type.codec.dump(placed.state))
    return shown(json.loads(Field.parse(field).state))


# --- which operations ------------------------------------------------------------------------------------------------


class _Step(NamedTuple):
    operations: list[tuple[str, float]]
    """Those to be looked at, and since when they are active, ms."""
    passed: int
    then: _Place | None
    """Where to go on; ``None``: in the next shard."""


def _step(keys: Keys, wanted: Wanted, place: _Place) -> Steps[_Step]:
    if wanted.quarantined:
        return (yield from _quarantined(keys, wanted, place))
    start = (yield from _behind(keys, place, wanted.newest)) if place.operation else 0
    size = NAMES if wanted.operation is not None else PAGE
    order = ("REV",) if wanted.newest else ()
    time, flat = yield from read(
        [], ("TIME",), ("ZRANGE", keys.operations, start, start + size - 1, *order, "WITHSCORES")
    )
    page = [(raw.decode(), float(score)) for raw, score in zip(flat[::2], flat[1::2], strict=True)]
    ended = len(page) < size
    bound_ms = time_us(time) / 1000 - (wanted.older_s or 0) * 1000
    recent = [one for one in page if one[1] > bound_ms]  # what began later has no machine that is old enough
    if recent and not wanted.newest:
        ended = True
    chosen = [one for one in page if one[1] <= bound_ms and wanted.takes(one[0])]
    return _Step(chosen, len(page), None if ended else _Place(place.shard, *page[-1]))


def _behind(keys: Keys, place: _Place, newest: bool) -> Steps[int]:
    """The rank behind an operation; of one that has ended meanwhile, that of the first that is as old."""
    rank, span = ("ZREVRANK", (f"({place.score:.0f}", "+inf")) if newest else ("ZRANK", ("-inf", f"({place.score:.0f}"))
    at, before = yield from read([], (rank, keys.operations, place.operation), ("ZCOUNT", keys.operations, *span))
    return int(at) + 1 if at is not None else int(before)


def _quarantined(keys: Keys, wanted: Wanted, place: _Place) -> Steps[_Step]:
    """Operations of quarantined machines."""
    ((cursor, flat),) = yield from read([], ("HSCAN", keys.quarantine, place.scan, "COUNT", PAGE))
    names: dict[str, None] = {}
    for raw in flat[1::2]:
        with suppress(ValueError):
            if (op := json.loads(raw).get("op")) and wanted.takes(op):
                names[op] = None
    then = _Place(place.shard, scan=int(cursor)) if int(cursor) else None
    return _Step([(name, 0.0) for name in names], len(names), then)


# --- their machines --------------------------------------------------------------------------------------------------


def _machines(keys: Keys, operations: Sequence[str], instances: Instances, wanted: Wanted) -> Steps[list[Listed]]:
    records = yield from _records(keys, operations, wanted)
    looks: list[Command] = []
    for op, field, _ in records:
        record = digest(op, field)
        looks += [("HGET", keys.quarantine, record), ("HMGET", keys.race(record), "won", "error")]
        with suppress(ValueError):
            looks += [
                ("GET", key) for key in control_keys(keys, op, Field.parse(field).module, Field.parse(field).type)
            ]
    unique = list(dict.fromkeys(looks))
    known = dict(zip(unique, (yield from read([], *unique)), strict=True)) if unique else {}
    found = [_listed(keys, op, field, value, known, instances) for op, field, value in records]
    return [one for one in found if one.status == "quarantined" or not wanted.quarantined]


def _records(keys: Keys, operations: Sequence[str], wanted: Wanted) -> Steps[list[tuple[str, str, bytes]]]:
    """The wanted records of operations: field and value of each."""
    names = [None if name is None else encode(name) for name in (wanted.module, wanted.state)]
    records: dict[tuple[str, str], bytes] = {}  # a scan may bring one twice
    rest, now_us = dict.fromkeys(operations, 0), 0
    while rest:
        looks: list[Command] = [("HSCAN", keys.active(op), cursor, "COUNT", 1_000) for op, cursor in rest.items()]
        time, *replies = yield from read([], ("TIME",), *looks)
        now_us = time_us(time)
        pages = list(zip(rest, replies, strict=True))
        rest.clear()
        for op, reply in pages:
            if isinstance(reply, Exception):  # a key of another type: smqueue verify tells of it
                continue
            cursor, flat = reply
            if int(cursor):
                rest[op] = int(cursor)
            for raw, value in zip(flat[::2], flat[1::2], strict=True):
                field = raw.decode(errors="replace")
                parts = [*field.split(" ", 2), ""]
                if all(name in {None, part} for name, part in zip(names, parts, strict=False)):
                    records[op, field] = value
    bound_us = now_us - (wanted.older_s or 0) * 1_000_000
    old = wanted.older_s is None
    return [(op, field, value) for (op, field), value in records.items() if old or _since_us(value) <= bound_us]


def _since_us(value: bytes) -> int:
    try:
        return Active.parse(value).at_us
    except ValueError:  # garbage is as old as you like
        return 0


def _listed(keys: Keys, op: str, field: str, value: bytes, known: dict[Command, Any], instances: Instances) -> Listed:
    record = digest(op, field)
    aside, race = known["HGET", keys.quarantine, record], known["HMGET", keys.race(record), "won", "error"]
    won, error = race if isinstance(race, list) else (None, None)
    text = json.loads(aside)["error"] if aside else error.decode(errors="replace") if error else None
    try:
        module, type_name, _ = Field.parse(field)
        active = Active.parse(value)
        state = shown_state(instances, op, field, active.version)
    except ValueError as problem:
        return Listed(op, "", field, None, "", 0, None, "unreadable", text or f"unreadable: {problem}")
    status = "quarantined" if aside else "decided" if won else "waiting"
    held = [known["GET", key] for key in control_keys(keys, op, module, type_name)]
    words = [one.decode().partition(" ")[0] for one in held if isinstance(one, bytes)]
    if status != "quarantined" and words:
        status = "cancelling" if "cancelling" in words else "paused"
    at = moment(active.at_us).isoformat()
    return Listed(op, module, type_name, state, active.machine, active.step, at, status, text)

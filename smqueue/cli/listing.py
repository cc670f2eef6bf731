"""Active machines as they are stored: streamed, and readable without the code of any module."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Any, NamedTuple

from smqueue.errors import SmqueueError
from smqueue.executor import Executor
from smqueue.explain import control_keys
from smqueue.instances import Instances
from smqueue.keys import Keys, digest
from smqueue.queries import moment
from smqueue.records import Active, Field
from smqueue.roundtrip import Command, Steps, read
from smqueue.schemas.sealed import shown

OPERATIONS = 100
"""How many operations are read in one go."""


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
    """What is asked for; ``None`` is everything."""

    operation: str | None = None
    module: str | None = None
    state: str | None = None
    quarantined: bool = False

    def fits(self, one: Listed) -> bool:
        """Whether a machine is wanted."""
        named = self.module in {None, one.module} and self.state in {None, one.type}
        return named and (one.status == "quarantined" or not self.quarantined)


def active_machines(executor: Executor, wanted: Wanted) -> Iterator[Listed]:
    """Active machines, in no order; 2 round trips for each 100 operations."""
    deployment = executor.deployment
    for keys in deployment.all_keys():
        if wanted.operation is not None:
            if keys.shard != deployment.keys(wanted.operation).shard:
                continue
            operations: Iterable[str] = [wanted.operation]
        elif wanted.quarantined:
            operations = _quarantined(executor, keys)
        else:
            operations = _scanned(executor, keys)
        rest = iter(operations)
        while page := list(islice(rest, OPERATIONS)):
            for one in deployment.driver.run(_page(keys, page, executor.instances)):
                if wanted.fits(one):
                    yield one


def shown_state(instances: Instances, op: str, field: str, version: int) -> Any:
    """A record's state as JSON: its secrets hidden where its module is known or they are encrypted, else as stored."""
    with suppress(SmqueueError):
        _, placed = instances.load(op, field, version)
        return placed.type.codec.redact(placed.type.codec.dump(placed.state))
    return shown(json.loads(Field.parse(field).state))


def _scanned(executor: Executor, keys: Keys) -> Iterator[str]:
    seen: set[bytes] = set()
    cursor: Any = b"0"
    while True:
        cursor, page = executor.deployment.driver.command("ZSCAN", keys.operations, cursor, "COUNT", 500)
        fresh = [raw for raw in page[::2] if raw not in seen]
        seen.update(fresh)
        yield from (raw.decode() for raw in fresh)
        if int(cursor) == 0:
            return


def _quarantined(executor: Executor, keys: Keys) -> Iterator[str]:
    """Operations of quarantined machines, each once."""
    seen: set[str] = set()
    cursor: Any = b"0"
    while True:
        cursor, page = executor.deployment.driver.command("HSCAN", keys.quarantine, cursor, "COUNT", 500)
        for raw in page[1::2]:
            op = json.loads(raw).get("op")
            if op and op not in seen:
                seen.add(op)
                yield op
        if int(cursor) == 0:
            return


def _page(keys: Keys, operations: list[str], instances: Instances) -> Steps[list[Listed]]:
    replies = yield from read([], *[("HGETALL", keys.active(op)) for op in operations])
    records = [
        (op, field.decode(errors="replace"), value)
        for op, flat in zip(operations, replies, strict=True)
        if isinstance(flat, list)
        for field, value in zip(flat[::2], flat[1::2], strict=True)
    ]
    looks: list[Command] = []
    for op, field, _ in records:
        record = digest(op, field)
        looks += [("HGET", keys.quarantine, record), ("HMGET", keys.race(record), "won", "error")]
        with suppress(ValueError):
            looks += [
                ("GET", key) for key in control_keys(keys, op, Field.parse(field).module, Field.parse(field).type)
            ]
    unique = list(dict.fromkeys(looks))
    found = dict(zip(unique, (yield from read([], *unique)), strict=True)) if unique else {}
    return [_listed(keys, op, field, value, found, instances) for op, field, value in records]


def _listed(keys: Keys, op: str, field: str, value: bytes, found: dict[Command, Any], instances: Instances) -> Listed:
    record = digest(op, field)
    aside, race = found["HGET", keys.quarantine, record], found["HMGET", keys.race(record), "won", "error"]
    won, error = race if isinstance(race, list) else (None, None)
    text = json.loads(aside)["error"] if aside else error.decode(errors="replace") if error else None
    try:
        module, type_name, _ = Field.parse(field)
        active = Active.parse(value)
        state = shown_state(instances, op, field, active.version)
    except ValueError as problem:
        return Listed(op, "", field, None, "", 0, None, "unreadable", text or f"unreadable: {problem}")
    status = "quarantined" if aside else "decided" if won else "waiting"
    held = [found["GET", key] for key in control_keys(keys, op, module, type_name)]
    words = [one.decode().partition(" ")[0] for one in held if isinstance(one, bytes)]
    if status != "quarantined" and words:
        status = "cancelling" if "cancelling" in words else "paused"
    at = moment(active.at_us).isoformat()
    return Listed(op, module, type_name, state, active.machine, active.step, at, status, text)

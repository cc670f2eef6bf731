"""Looking at records: streamed, in no order unless one is named, working before any worker runs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NewType, TypeVar

from smqueue.deployment import Deployment
from smqueue.drivers.driver import Driver
from smqueue.errors import SmqueueError
from smqueue.instances import Instances
from smqueue.keys import Keys, decode, encode
from smqueue.records import Active, Placed, loads
from smqueue.roundtrip import Command, Steps, read
from smqueue.standing import Standing, parse_inactive, standing, standing_looks, version_of
from smqueue.states import StateMachine, check_machine, check_operation_id

MachineId = NewType("MachineId", str)
T = TypeVar("T")
PAGE = 500
FIRST_US, LAST_US = -62_000_000_000_000_000, 253_000_000_000_000_000
"""What calendars reach to, years 5 and 9987: of a stored time beyond them the nearer one is shown."""
log = logging.getLogger("smqueue.queries")


@dataclass(frozen=True)
class ActiveState:
    """A state that a machine is in.

    Attributes:
        created_at: When it was entered, UTC.
        machine_id: The machine.
        step: Of that machine; 1 is the state that it was added in.
    """

    created_at: datetime
    machine_id: MachineId
    step: int


@dataclass(frozen=True)
class InactiveState:
    """A state that a machine has passed through, or has finished in.

    Attributes:
        created_at: When it was first entered, UTC.
        exited_at: When it was last left; of a terminal state the same as ``created_at``.
        machine_id: The machine that was in it last.
        step: Of that machine.
        visits: How often it was left, or, when terminal, entered.
        terminal: Whether a machine has finished in it.
        won: The trigger that won the race in it; ``None`` when terminal or cancelled.
        won_at: When that trigger completed, to the ms; a deadline at its time.
        cancelled: Why it was cancelled; ``None`` when it was not.
        merged_into: The machine that went on in this one's place, when both reached one active state.
        losers: What the other triggers were doing: ``kind``, ``left_ms`` until a deadline, ``tries`` of a poll or call.
        version: Of its module, when it was stored.
    """

    created_at: datetime
    exited_at: datetime
    machine_id: MachineId
    step: int
    visits: int = 1
    terminal: bool = False
    won: str | None = None
    won_at: datetime | None = None
    cancelled: str | None = None
    merged_into: MachineId | None = None
    losers: dict[str, dict[str, Any]] | None = None
    version: int = 0


def moment(at_us: float) -> datetime:
    """Microseconds since the epoch as a datetime in UTC; of any number, for what is stored may be garbage."""
    at_us = int(min(max(at_us, FIRST_US), LAST_US))
    return datetime.fromtimestamp(at_us // 1_000_000, UTC).replace(microsecond=at_us % 1_000_000)


def is_moment(at_us: object) -> bool:
    """Whether this is an instant, in microseconds since the epoch, that a datetime can tell."""
    return type(at_us) is int and FIRST_US <= at_us <= LAST_US


def active_state(active: Active) -> ActiveState:
    """The public form of an active record's value."""
    return ActiveState(moment(active.at_us), MachineId(active.machine), active.step)


def inactive_state(data: dict[str, Any]) -> InactiveState:
    """The public form of an inactive record's value."""
    merged = data.get("merged")
    return InactiveState(
        created_at=moment(data["at"]),
        exited_at=moment(data["exited"]),
        machine_id=MachineId(data["machine"]),
        step=data["step"],
        visits=data["visits"],
        terminal=bool(data.get("terminal")),
        won=data.get("won"),
        won_at=moment(data["won_at"] * 1000) if "won_at" in data else None,
        cancelled=data.get("cancelled"),
        merged_into=MachineId(merged) if merged else None,
        losers=data.get("losers"),
        version=int(data.get("version", 0)),
    )


class Queries:
    """Reads of one deployment."""

    def __init__(self, deployment: Deployment, instances: Instances) -> None:
        self._deployment, self._instances = deployment, instances

    def active(self, operation_id: str | None, module: str | None) -> Iterator[tuple[StateMachine, ActiveState]]:
        """Active records, streamed."""
        for op in self.operations() if operation_id is None else [check_operation_id(operation_id)]:
            key = self._deployment.keys(op).active(op)
            yield from self._records(key, op, module, lambda value: active_state(Active.parse(value)))

    def inactive(self, operation_id: str | None, module: str | None) -> Iterator[tuple[StateMachine, InactiveState]]:
        """Inactive records, streamed."""
        for op in self._past_operations() if operation_id is None else [check_operation_id(operation_id)]:
            key = self._deployment.keys(op).inactive(op)
            yield from self._records(key, op, module, lambda value: inactive_state(parse_inactive(value)))

    def operations(self) -> Iterator[str]:
        """Operations with active machines; each once."""
        for keys in self._deployment.all_keys():
            seen: set[bytes] = set()
            for page in self._pages(("ZSCAN", keys.operations)):
                fresh = [raw for raw in page[::2] if raw not in seen]
                seen.update(fresh)
                yield from (raw.decode() for raw in fresh)

    def has_active(self, operation_id: str) -> bool:
        """Whether any machine of the operation is active."""
        key = self._deployment.keys(check_operation_id(operation_id)).active(operation_id)
        return bool(self._deployment.driver.command("EXISTS", key))

    def stands(self, machine: StateMachine) -> tuple[Placed, Standing] | None:
        """Where a machine's state stands; ``None`` when its module is not registered."""
        check_machine(machine)
        if machine.module is not None and machine.module not in self._instances:
            return None
        placed = self._instances.place(machine)
        keys = self._deployment.keys(placed.op)
        return placed, self._deployment.driver.run(standing_of(keys, self._instances, placed))

    def _records(
        self, key: str, op: str, module: str | None, parse: Callable[[bytes], T]
    ) -> Iterator[tuple[StateMachine, T]]:
        prefix = None if module is None else f"{encode(module)} "
        seen: set[bytes] = set()
        for page in self._pages(("HSCAN", key)):
            for raw, value in zip(page[::2], page[1::2], strict=True):
                field = raw.decode(errors="replace")
                if raw in seen or (prefix is not None and not field.startswith(prefix)):
                    continue
                seen.add(raw)
                try:
                    _, placed = self._instances.load(op, field, version_of(value))
                    found = StateMachine(op, placed.state, placed.module), parse(value)
                except (SmqueueError, ValueError, KeyError, TypeError) as error:
                    log.warning("a record of operation %s is left out: %s", op, error)
                    continue
                yield found

    def _past_operations(self) -> Iterator[str]:
        for keys in self._deployment.all_keys():
            prefix, cursor, seen = keys.inactive(""), b"0", set[bytes]()
            pattern = "".join(f"\\{c}" if c in "*?[]\\" else c for c in prefix) + "*"
            while True:
                cursor, page = self._deployment.driver.command("SCAN", cursor, "MATCH", pattern, "COUNT", PAGE)
                fresh = [raw for raw in page if raw not in seen]
                seen.update(fresh)
                yield from (decode(raw.decode()[len(prefix) :]) for raw in fresh)
                if int(cursor) == 0:
                    break

    def _pages(self, command: Command) -> Iterator[list[Any]]:
        cursor: Any = b"0"
        while True:
            cursor, page = self._deployment.driver.command(*command, cursor, "COUNT", PAGE)
            yield page
            if int(cursor) == 0:
                return


def standing_of(keys: Keys, instances: Instances, placed: Placed) -> Steps[Standing]:
    """Where a state stands; 1 round trip."""
    looks = standing_looks(keys, placed)
    replies = yield from read([], *looks.commands)
    return standing(keys, instances, placed, dict(zip(looks.commands, replies, strict=True)))


def past_of(driver: Driver, keys: Keys, op: str) -> list[tuple[str, InactiveState]]:
    """Inactive records as they are stored, oldest first; garbage is left out."""
    found: dict[str, InactiveState] = {}
    cursor: Any = b"0"
    while True:
        cursor, flat = driver.command("HSCAN", keys.inactive(op), cursor, "COUNT", PAGE)
        for raw, value in zip(flat[::2], flat[1::2], strict=True):
            if (state := _inactive(value)) is not None:
                found[raw.decode(errors="replace")] = state
        if int(cursor) == 0:
            return sorted(found.items(), key=lambda pair: pair[1].created_at)


def lately_of(keys: Keys, op: str, steps: int) -> Steps[list[tuple[str, InactiveState]]]:
    """The same of those that the last steps have entered, oldest first."""
    if steps <= 0:
        return []
    (lines,) = yield from read([], ("LRANGE", keys.history(op), -steps, -1))
    fields: dict[str, None] = {}
    for line in lines if isinstance(lines, list) else ():
        with suppress(ValueError, KeyError, TypeError):
            fields[str(loads(line)["to"])] = None
    values = (yield from read([], ("HMGET", keys.inactive(op), *fields)))[0] if fields else []
    pairs = zip(fields, values, strict=True)
    found = [(field, state) for field, value in pairs if (state := _inactive(value)) is not None]
    return sorted(found, key=lambda pair: pair[1].created_at)


def _inactive(value: Any) -> InactiveState | None:
    """An inactive record; ``None`` when there is none, or garbage."""
    try:
        return None if value is None else inactive_state(parse_inactive(value))
    except (ValueError, TypeError, KeyError):
        return None

"""Why an operation is where it is: read from Redis, which is the truth; Flower is a view."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from dataclasses import field as dataclass_field
from datetime import datetime
from typing import Any

from smqueue.deployment import Deployment
from smqueue.drivers.driver import Driver
from smqueue.early import EarlySignals, early_signals
from smqueue.errors import SmqueueError
from smqueue.instances import Instances
from smqueue.keys import Keys, decode, digest, schedule_of
from smqueue.pauses import Paused, paused_by
from smqueue.queries import InactiveState, inactive_state, moment
from smqueue.records import Active, Field, Item, Machine, Placed, kind_of, label_of, loads
from smqueue.roundtrip import Command, Steps, read
from smqueue.standing import parse_inactive
from smqueue.states import StateMachine, check_operation_id

ELSEWHERE = 3


@dataclass(frozen=True)
class ArmedTrigger:
    """One racing trigger of a machine.

    Attributes:
        name: Module, state and handler: ``orders.Awaiting/paid``.
        kind: ``signal``, ``deadline``, ``poll`` …
        waits_for: In a few words.
        since: When it was armed.
        deadline: Of a deadline.
        next_run: Of a trigger with code: when it runs, or is looked at, next.
        running: Whether its code runs now, or, for a channel, is subscribed.
        attempts: How often its code has run without an outcome.
        last_error: Of its code, or of its handler: ``Type: message``.
        signal: The name of the signal that it waits for.
        elsewhere: Of a signal: those of its name that were sent to other operations, where nobody waits for them.
    """

    name: str
    kind: str
    waits_for: str
    since: datetime
    deadline: datetime | None = None
    next_run: datetime | None = None
    running: bool = False
    attempts: int = 0
    last_error: str | None = None
    signal: str | None = None
    elsewhere: tuple[EarlySignals, ...] = ()


@dataclass(frozen=True)
class MachineExplanation:
    """One active machine.

    Attributes:
        machine: Operation, module and state; ``None`` when the record cannot be decoded here.
        field: The record as stored.
        machine_id: Its id.
        step: Of the machine.
        since: When the state was entered.
        status: ``waiting``, ``decided`` (an outcome is recorded, a worker is to apply it), ``paused``, ``cancelling``,
            ``quarantined``, ``unreadable``, or ``unscheduled``: what would look at it is gone from the schedule.
        won: The trigger whose outcome is recorded.
        attempts: How often the handler has failed on it.
        last_error: Why it failed last, or was set aside.
        triggers: What is armed.
        pauses: What is paused, since when and why.
        held_by: What is paused or being cancelled: ``operation o-17``, ``module orders``, ``state orders.Awaiting``.
    """

    machine: StateMachine | None
    field: str = dataclass_field(repr=False)  # secrets stand in it
    machine_id: str
    step: int
    since: datetime | None
    status: str
    won: str | None = None
    attempts: int = 0
    last_error: str | None = None
    triggers: tuple[ArmedTrigger, ...] = ()
    held_by: tuple[str, ...] = ()
    pauses: tuple[Paused, ...] = ()


@dataclass(frozen=True)
class BufferedSignals:
    """Signals that nobody waits for yet.

    Attributes:
        module: The module instance.
        signal: Their name.
        count: How many.
        oldest: When the first was accepted; ``None`` when it cannot be read.
    """

    module: str
    signal: str
    count: int
    oldest: datetime | None


@dataclass(frozen=True)
class Explanation:
    """All that is known of an operation now.

    Attributes:
        operation_id: Its id.
        active: Its active machines.
        buffered: Early signals.
        past: Its inactive states, in the order in which they were first entered; who won, and by how much.
        stored: The same as they are stored (``module type state``), with those that cannot be decoded here.
    """

    operation_id: str
    active: tuple[MachineExplanation, ...]
    buffered: tuple[BufferedSignals, ...] = ()
    past: tuple[tuple[StateMachine, InactiveState], ...] = ()
    stored: tuple[tuple[str, InactiveState], ...] = dataclass_field(default=(), repr=False)


def explain(
    deployment: Deployment, instances: Instances, operation_id: str, *, past: int | None = None,
    active: int | None = None,
) -> Explanation:  # fmt: skip
    """Look at one operation. Without any module, records are shown as they are stored.

    Args:
        deployment: Where.
        instances: The modules that are known; there may be none.
        operation_id: Which.
        past: Only the states that its last so many steps have entered, so that a long history takes no time; and
            nothing is looked for by a scan.
        active: About so many of its active machines are enough.
    """
    op = check_operation_id(operation_id)
    keys, driver = deployment.keys(op), deployment.driver
    machines: list[MachineExplanation] = []
    cursor: Any = b"0"
    while True:
        cursor, flat = driver.command("HSCAN", keys.active(op), cursor, "COUNT", min(active or 200, 200))
        for raw_field, value in zip(flat[::2], flat[1::2], strict=True):
            machines.append(driver.run(_machine(keys, instances, op, raw_field.decode(errors="replace"), value)))
        if int(cursor) == 0 or (active is not None and len(machines) >= active):
            break
    machines = _with_early(deployment, machines, op)
    stored, decoded = list[tuple[str, InactiveState]](), list[tuple[StateMachine, InactiveState]]()
    for text, data in _past(driver, keys, op) if past is None else driver.run(_lately(keys, op, past)):
        stored.append((text, inactive_state(data)))
        if (state := instances.decode(op, text, int(data.get("version", 0)))) is not None:
            decoded.append((StateMachine(op, state, Field.parse(text).module), stored[-1][1]))
    if instances.ids():
        names = _signals(instances)
    else:
        names = _inboxes(driver, keys, op) if past is None else driver.run(_noted(keys, op))
    buffered = driver.run(_buffered(keys, names, op))
    return Explanation(op, tuple(machines), tuple(buffered), tuple(decoded), tuple(stored))


def _with_early(deployment: Deployment, machines: list[MachineExplanation], op: str) -> list[MachineExplanation]:
    """Beside the signals that are waited for those of the same name that other operations were sent in vain."""
    if not any(trigger.signal for one in machines for trigger in one.triggers):
        return machines
    early = [one for keys in deployment.all_keys() for one in deployment.driver.run(early_signals(keys))]
    early = sorted((one for one in early if one.operation_id != op), key=lambda one: one.latest, reverse=True)

    def beside(trigger: ArmedTrigger, module: str) -> ArmedTrigger:
        mine = [one for one in early if (one.module, one.signal) == (module, trigger.signal)]
        return replace(trigger, elsewhere=tuple(mine[:ELSEWHERE]))

    return [
        replace(one, triggers=tuple(beside(trigger, Field.parse(one.field).module) for trigger in one.triggers))
        if one.triggers
        else one
        for one in machines
    ]


def _past(driver: Driver, keys: Keys, op: str) -> list[tuple[str, dict[str, Any]]]:
    """Inactive records, oldest first; garbage is left out."""
    found: dict[str, dict[str, Any]] = {}
    cursor: Any = b"0"
    while True:
        cursor, flat = driver.command("HSCAN", keys.inactive(op), cursor, "COUNT", 200)
        for raw, value in zip(flat[::2], flat[1::2], strict=True):
            with suppress(ValueError):
                found[raw.decode(errors="replace")] = parse_inactive(value)
        if int(cursor) == 0:
            return sorted(found.items(), key=lambda pair: pair[1]["at"])


def _lately(keys: Keys, op: str, steps: int) -> Steps[list[tuple[str, dict[str, Any]]]]:
    """Inactive records that the last steps have entered, oldest first."""
    if steps <= 0:
        return []
    (lines,) = yield from read([], ("LRANGE", keys.history(op), -steps, -1))
    fields: dict[str, None] = {}
    for line in lines:
        with suppress(ValueError, KeyError, TypeError):
            fields[str(loads(line)["to"])] = None
    values = (yield from read([], ("HMGET", keys.inactive(op), *fields)))[0] if fields else []
    found: list[tuple[str, dict[str, Any]]] = []
    for field, value in zip(fields, values, strict=True):
        with suppress(ValueError):
            if value is not None:
                found.append((field, parse_inactive(value)))
    return sorted(found, key=lambda pair: pair[1]["at"])


def _noted(keys: Keys, op: str) -> Steps[list[tuple[str, str]]]:
    """Who has early signals, of the last 1,000 that came for any operation."""
    (names,) = yield from read([], ("ZRANGE", keys.early, 0, -1))
    parts = [raw.decode().split(" ") for raw in names]
    return [(decode(module), decode(signal)) for name, module, signal in parts if decode(name) == op]


def _signals(instances: Instances) -> list[tuple[str, str]]:
    return [(module, signal) for module in instances.ids() for signal in instances.get(module).module.signals]


def _inboxes(driver: Driver, keys: Keys, op: str) -> list[tuple[str, str]]:
    """Who has early signals, found by their keys: a scan of the whole database, for lack of modules that name them."""
    prefix = keys.inbox(op, "", "")[:-1]
    pattern = "".join(f"\\{c}" if c in "*?[]\\" else c for c in prefix) + "*"
    found: set[str] = set()
    cursor: Any = b"0"
    while True:
        cursor, page = driver.command("SCAN", cursor, "MATCH", pattern, "COUNT", 1_000)
        found.update(raw.decode() for raw in page)
        if int(cursor) == 0:
            break
    pairs = [key.removeprefix(prefix).partition(":") for key in sorted(found)]
    return [(decode(module), decode(signal)) for module, _, signal in pairs]


def _machine(keys: Keys, instances: Instances, op: str, stored: str, value: bytes) -> Steps[MachineExplanation]:
    record = digest(op, stored)
    raw, flat, aside = yield from read(
        [], ("GET", keys.machine(record)), ("HGETALL", keys.race(record)), ("HGET", keys.quarantine, record)
    )
    race: dict[str, str] = {}
    if isinstance(flat, list):
        texts = [part.decode(errors="replace") for part in flat]
        race = dict(zip(texts[::2], texts[1::2], strict=True))
    error = json.loads(aside)["error"] if aside else race.get("error")
    try:
        active, machine = Active.parse(value), Machine.parse(raw)
    except (ValueError, TypeError) as problem:
        return MachineExplanation(None, stored, "", 0, None, "unreadable", last_error=error or f"unreadable: {problem}")
    placed: Placed | None = None
    try:
        _, placed = instances.load(op, stored, active.version)
    except SmqueueError as problem:
        if instances.ids():
            error = error or f"{type(problem).__name__}: {problem}"
    status = "quarantined" if aside else "decided" if "won" in race else "waiting"
    held_by: tuple[str, ...] = ()
    pauses: tuple[Paused, ...] = ()
    with suppress(ValueError):
        module, type_name, _ = Field.parse(stored)
        held = yield from read([], *[("GET", key) for key in control_keys(keys, op, module, type_name)])
        texts = [str(one.decode()).partition(" ")[0] for one in held if isinstance(one, bytes)]
        if not (aside and "cancelling" in texts):  # set aside by its cancel handler, which keeps failing
            status = "cancelling" if "cancelling" in texts else "paused" if texts else status
        names = (f"operation {op}", f"module {module}", f"state {module}.{type_name}")
        held_by = tuple(name for name, one in zip(names, held, strict=True) if isinstance(one, bytes))
        found = map(paused_by, [keys] * 3, control_keys(keys, op, module, type_name), held)
        pauses = tuple(one for one in found if one is not None)
    triggers = yield from _triggers(keys, instances, machine, active, placed, race)
    if status in {"waiting", "decided"} and (yield from _lost(keys, machine, triggers)):
        status = "unscheduled"
    return MachineExplanation(
        machine=None if placed is None else StateMachine(op, placed.state, placed.module),
        field=stored,
        machine_id=active.machine,
        step=active.step,
        since=moment(active.at_us),
        status=status,
        won=race.get("won"),
        attempts=int(race.get("attempts", 0)),
        last_error=error,
        triggers=triggers,
        held_by=held_by,
        pauses=pauses,
    )


def _lost(keys: Keys, machine: Machine, triggers: Sequence[ArmedTrigger]) -> Steps[bool]:
    """Whether an entry of the race is missing from its schedule, and the machine is the same still."""
    looks: list[Command] = [("ZSCORE", keys.schedule, machine.entry)]
    score, raw = yield from read([], *looks, ("GET", keys.machine(machine.record)))  # in this order
    coded = [one for one in triggers if one.kind not in {"signal", "deadline", "now"} and one.next_run is None]
    if score is not None and not coded:
        return False
    with suppress(ValueError, TypeError):
        return Machine.parse(raw).guard == machine.guard
    return False


def _triggers(
    keys: Keys, instances: Instances, machine: Machine, active: Active, placed: Placed | None, race: dict[str, str]
) -> Steps[tuple[ArmedTrigger, ...]]:
    names = list(machine.armed)
    kinds = {name: kind_of(wait) for name, wait in machine.armed.items()}
    looks = [("ZSCORE", schedule_of(keys, kinds[name]), f"{machine.entry}:{name}") for name in names]
    *scores, time = yield from read([], *looks, ("TIME",))
    handlers = instances.handlers(placed) if placed is not None else {}
    label = label_of(machine.field)
    found: list[ArmedTrigger] = []
    for name, score in zip(names, scores, strict=True):
        wait = machine.armed[name]
        known = handlers.get(name)
        words = known.trigger.text if known is not None else f"{kinds[name]} {wait if isinstance(wait, str) else ''}"
        found.append(
            ArmedTrigger(
                name=f"{label}/{name}",
                kind=kinds[name],
                waits_for=words.strip(),
                since=moment(active.at_us),
                deadline=moment(wait * 1000) if isinstance(wait, int) else None,
                next_run=moment(int(float(score)) * 1000) if score is not None else None,
                running=int(race.get(f"until:{name}", 0)) > int(time[0]) * 1000,
                attempts=int(race.get(f"tries:{name}", 0)),
                last_error=race.get(f"error:{name}") or (race.get("error") if race.get("won") == name else None),
                signal=wait if isinstance(wait, str) else None,
            )
        )
    return tuple(found)


def control_keys(keys: Keys, op: str, module: str, type_name: str) -> tuple[str, str, str]:
    """The keys that can hold a machine back: of its operation, its module, its state type."""
    return keys.control(op), keys.control_module(module), keys.control_module(module, type_name)


def _accepted(raw: bytes) -> datetime | None:
    try:
        return moment(Item.parse(raw).at_us)
    except ValueError:
        return None


def _buffered(keys: Keys, names: Sequence[tuple[str, str]], op: str) -> Steps[list[BufferedSignals]]:
    looks = [("LLEN", keys.inbox(op, *name)) for name in names] + [("LINDEX", keys.inbox(op, *n), 0) for n in names]
    replies = (yield from read([], *looks)) if looks else []
    lengths, heads = replies[: len(names)], replies[len(names) :]
    return [
        BufferedSignals(module, signal, length, _accepted(oldest))
        for (module, signal), length, oldest in zip(names, lengths, heads, strict=True)
        if length
    ]

"""Why an operation is where it is: read from Redis, which is the truth; Flower is a view."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from dataclasses import field as dataclass_field
from datetime import datetime
from typing import Any

from smqueue.definitions import Handler
from smqueue.deployment import Deployment
from smqueue.drivers.driver import Driver
from smqueue.drivers.group import group
from smqueue.drivers.together import result_of
from smqueue.early import EarlySignals, early_signals, noted_name
from smqueue.errors import error_text
from smqueue.evidence import Evidence, evidence_of
from smqueue.instances import Instances
from smqueue.keys import Keys
from smqueue.pauses import Paused, paused_by
from smqueue.queries import InactiveState, lately_of, moment, past_of
from smqueue.records import Active, Field, Item, Machine, Placed, kind_of, label_of
from smqueue.roundtrip import Steps, read
from smqueue.states import StateMachine, check_operation_id

ELSEWHERE = 3
PAGE = 200
"""How many machines are looked at in one go."""


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
        attempts: How often the handler has failed on it; of one that is being cancelled, its cancel handler.
        last_error: Why it failed last, or was set aside.
        triggers: What is armed.
        pauses: What is paused, since when and why.
        held_by: What is paused or being cancelled: ``operation o-17``, ``module orders``, ``state orders.Awaiting``.
        version: Of its module, when it was stored.
        problem: Why this process cannot decode it, though it has modules: ``Type: message``.
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
    version: int = 0
    problem: str | None = None


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
        paused: Since when and why the operation itself is paused, which it may be before it begins.
        more: How many more machines are active than were looked at.
        more_past: The same of inactive states.
    """

    operation_id: str
    active: tuple[MachineExplanation, ...]
    buffered: tuple[BufferedSignals, ...] = ()
    past: tuple[tuple[StateMachine, InactiveState], ...] = ()
    stored: tuple[tuple[str, InactiveState], ...] = dataclass_field(default=(), repr=False)
    paused: Paused | None = None
    more: int = 0
    more_past: int = 0

    @property
    def known(self) -> bool:
        """Whether anything is known of the operation."""
        return bool(self.active or self.stored or self.buffered or self.paused or self.more or self.more_past)


def explain(
    deployment: Deployment, instances: Instances, operation_id: str, *, past: int | None = None,
    active: int | None = None,
) -> Explanation:  # fmt: skip
    """Look at one operation. Without any module, records are shown as they are stored.

    A look at a few machines, and the last steps, takes about ten round trips; each 200 machines more take three.

    Args:
        deployment: Where.
        instances: The modules that are known; there may be none.
        operation_id: Which.
        past: Only the states that its last so many steps have entered, so that a long history takes no time.
        active: So many of its active machines are enough.
    """
    op = check_operation_id(operation_id)
    keys, driver = deployment.keys(op), deployment.driver
    there, passed, control = driver.run(_counts(keys, op))
    machines = _with_early(deployment, _active(driver, keys, instances, op, active), op)
    stored, decoded = list[tuple[str, InactiveState]](), list[tuple[StateMachine, InactiveState]]()
    for text, state in past_of(driver, keys, op) if past is None else driver.run(lately_of(keys, op, past)):
        stored.append((text, state))
        if (known := _decoded(instances, op, text, state.version)) is not None:
            decoded.append((StateMachine(op, known.state, known.module), state))
    names, all_named = _signals(instances)
    if not all_named:
        names = list(dict.fromkeys([*names, *driver.run(_noted(keys, op))]))
    return Explanation(
        op,
        tuple(machines),
        tuple(driver.run(_buffered(keys, names, op))),
        tuple(decoded),
        tuple(stored),
        paused=paused_by(keys, keys.control(op), control),
        more=max(0, there - len(machines)) if active is not None else 0,
        more_past=max(0, passed - len(stored)) if past is not None else 0,
    )


def _counts(keys: Keys, op: str) -> Steps[tuple[int, int, bytes | None]]:
    """How many records there are, active and inactive, and the operation's control."""
    replies = yield from read([], ("HLEN", keys.active(op)), ("HLEN", keys.inactive(op)), ("GET", keys.control(op)))
    for reply in replies:
        if isinstance(reply, Exception):  # we may not look, or a key has another type, which verify tells of
            raise reply
    return replies[0], replies[1], replies[2]


def _active(driver: Driver, keys: Keys, instances: Instances, op: str, most: int | None) -> list[MachineExplanation]:
    """Active machines, at most so many: those of a page are looked at together."""
    found: list[MachineExplanation] = []
    seen: set[bytes] = set()
    cursor: Any = b"0"
    while most is None or len(found) < most:
        cursor, flat = driver.command("HSCAN", keys.active(op), cursor, "COUNT", min(most or PAGE, PAGE))
        fresh = [raw for raw in dict.fromkeys(flat[::2]) if raw not in seen]  # a scan may bring one twice
        seen.update(fresh)
        fresh = fresh if most is None else fresh[: most - len(found)]
        for at in range(0, len(fresh), PAGE):
            looks = [_machine(keys, instances, op, raw) for raw in fresh[at : at + PAGE]]
            ended = [result_of(run, driver.url) for run in driver.run(group(looks))]
            found += [one for one in ended if one is not None]
        if int(cursor) == 0:
            break
    return found


def _decoded(instances: Instances, op: str, field: str, version: int) -> Placed | None:
    with suppress(Exception):  # also that a module cannot be imported
        return instances.load(op, field, version)[1]
    return None


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


def _noted(keys: Keys, op: str) -> Steps[list[tuple[str, str]]]:
    """Who has early signals, of the last 1,000 that came for any operation."""
    (members,) = yield from read([], ("ZRANGE", keys.early, 0, -1))
    names = map(noted_name, members if isinstance(members, list) else ())
    return [name[1:] for name in names if name is not None and name[0] == op]


def _signals(instances: Instances) -> tuple[list[tuple[str, str]], bool]:
    """The signals of all modules, and whether they are all: some may not be known, or not be importable here."""
    found: list[tuple[str, str]] = []
    complete = bool(instances.ids())
    for module in instances.ids():
        try:
            found += [(module, signal) for signal in instances.get(module).module.signals]
        except Exception:  # the import is the user's code
            complete = False
    return found, complete


def _buffered(keys: Keys, names: Sequence[tuple[str, str]], op: str) -> Steps[list[BufferedSignals]]:
    looks = [("LLEN", keys.inbox(op, *name)) for name in names] + [("LINDEX", keys.inbox(op, *n), 0) for n in names]
    replies = (yield from read([], *looks)) if looks else []
    lengths, heads = replies[: len(names)], replies[len(names) :]
    return [
        BufferedSignals(module, signal, length, _accepted(oldest))
        for (module, signal), length, oldest in zip(names, lengths, heads, strict=True)
        if isinstance(length, int) and length
    ]


def _accepted(raw: Any) -> datetime | None:
    try:
        return moment(Item.parse(raw).at_us)
    except (ValueError, TypeError):
        return None


# --- one machine -----------------------------------------------------------------------------------------------------


def _machine(keys: Keys, instances: Instances, op: str, field: bytes) -> Steps[MachineExplanation | None]:
    """Look at one machine; ``None`` when it has gone on."""
    found = yield from evidence_of(keys, op, field)
    return None if found is None else _explained(instances, op, found)


def _explained(instances: Instances, op: str, found: Evidence) -> MachineExplanation:
    """What is to be said of a machine."""
    stored, machine, race = found.field, found.machine, found.race
    error = found.aside if found.aside is not None else race.get("error")
    try:
        active = Active.parse(found.value)
    except (ValueError, TypeError) as garbage:
        return _unreadable(stored, error or f"unreadable: {garbage}")
    if machine is None:
        return _unreadable(stored, error or "unreadable: not the value of a machine")
    placed, problem = _placed(instances, op, stored, active.version)
    triggers = tuple(_triggers(instances, machine, active, placed, found))
    status = _status(found)
    if found.steady and status in {"waiting", "decided"} and _lost(found, triggers):
        status = "unscheduled"
    return MachineExplanation(
        machine=None if placed is None else StateMachine(op, placed.state, placed.module),
        field=stored,
        machine_id=active.machine,
        step=active.step,
        since=moment(active.at_us),
        status=status,
        won=race.get("won"),
        attempts=found.number("attempts"),
        last_error=error or problem,
        triggers=triggers,
        held_by=tuple(name for name, _, _ in found.held),
        pauses=tuple(pause for _, _, pause in found.held if pause is not None),
        version=active.version,
        problem=problem,
    )


def _unreadable(stored: str, error: str) -> MachineExplanation:
    return MachineExplanation(None, stored, "", 0, None, "unreadable", last_error=error)


def _placed(instances: Instances, op: str, stored: str, version: int) -> tuple[Placed | None, str | None]:
    """The decoded record, or why it cannot be decoded here; that there are no modules is no reason to be told."""
    try:
        return instances.load(op, stored, version)[1], None
    except Exception as error:  # a module that is imported now is the user's code
        return None, error_text(error) if instances.ids() else None


def _status(found: Evidence) -> str:
    words = {word for _, word, _ in found.held}
    if words and not (found.aside is not None and "cancelling" in words):  # its cancel handler fails
        return "cancelling" if "cancelling" in words else "paused"
    return "quarantined" if found.aside is not None else "decided" if "won" in found.race else "waiting"


def _lost(found: Evidence, triggers: Sequence[ArmedTrigger]) -> bool:
    """Whether an entry that a machine should have is missing from its schedule.

    Those of its triggers' code count only while its race is open: an outcome takes that trigger's entry away, and a
    state that was entered with something ready has armed none.
    """
    coded = [one for one in triggers if one.kind not in {"signal", "deadline", "now"} and one.next_run is None]
    return found.scores[0] is None or (bool(coded) and "won" not in found.race)


def _triggers(
    instances: Instances, machine: Machine, active: Active, placed: Placed | None, found: Evidence
) -> Iterator[ArmedTrigger]:
    handlers: Mapping[str, Handler] = {}
    if placed is not None:
        with suppress(Exception):  # dynamic transitions are the user's code
            handlers = instances.handlers(placed)
    label, race = label_of(machine.field), found.race
    for (name, wait), score in zip(machine.armed.items(), found.scores[1:], strict=True):
        kind, known = kind_of(wait), handlers.get(name)
        words = known.trigger.text if known is not None else f"{kind} {wait if isinstance(wait, str) else ''}"
        yield ArmedTrigger(
            name=f"{label}/{name}",
            kind=kind,
            waits_for=words.strip(),
            since=moment(active.at_us),
            deadline=moment(wait * 1000) if isinstance(wait, int) else None,
            next_run=moment(score * 1000) if score is not None else None,
            running=found.number(f"until:{name}") > found.now_s * 1000,
            attempts=found.number(f"tries:{name}"),
            last_error=race.get(f"error:{name}") or (race.get("error") if race.get("won") == name else None),
            signal=wait if isinstance(wait, str) else None,
        )

"""Which triggers wait, and finding the one that a test means."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Any

from smqueue.deployment import Deployment
from smqueue.errors import AmbiguousTrigger, NotArmed
from smqueue.handlers import Handler
from smqueue.instances import Instances
from smqueue.keys import Keys, digest
from smqueue.protocols.claim import Armed
from smqueue.queries import MachineId
from smqueue.records import Active, Machine, kind_of
from smqueue.roundtrip import text
from smqueue.states import StateMachine
from smqueue.trigger_types import Trigger


@dataclass(frozen=True)
class Waiting:
    """One armed trigger of a machine.

    Attributes:
        name: Module, state and handler: ``orders.Awaiting/paid``.
        kind: ``signal``, ``poll`` …
        machine: Its operation, module and state.
        machine_id: Its id.
    """

    name: str
    kind: str
    machine: StateMachine
    machine_id: MachineId
    handler: Handler = dataclass_field(repr=False)
    armed: Armed = dataclass_field(repr=False)
    keys: Keys = dataclass_field(repr=False)

    def __str__(self) -> str:
        return f"{self.name} of operation {self.machine.operation_id}"

    def is_meant(self, trigger: str | Trigger[Any, Any] | Callable[..., Any]) -> bool:
        """Whether this is what a name, a handler or a trigger means."""
        if isinstance(trigger, str):
            return trigger in {self.name, self.handler.name}
        return self.handler.trigger is trigger or self.handler.fn is trigger


def waiting(deployment: Deployment, instances: Instances, operation_id: str | None) -> list[Waiting]:
    """The armed triggers of an operation, or of all, whose races are not decided."""
    driver, found = deployment.driver, list[Waiting]()
    every = deployment.all_keys() if operation_id is None else [deployment.keys(operation_id)]
    for keys in every:
        ops = [operation_id]
        if operation_id is None:
            ops = [text(raw) for raw in driver.command("ZRANGE", keys.operations, 0, -1)]
        for op in ops:
            flat = driver.command("HGETALL", keys.active(str(op)))
            for raw, value in zip(flat[::2], flat[1::2], strict=True):
                found += _of_machine(deployment, instances, keys, str(op), text(raw), value)
    return found


def _of_machine(
    deployment: Deployment, instances: Instances, keys: Keys, op: str, field: str, value: bytes
) -> list[Waiting]:
    record = digest(op, field)
    raw: Any = deployment.driver.command("GET", keys.machine(record))
    if raw is None or deployment.driver.command("HEXISTS", keys.race(record), "won"):
        return []
    machine, active = Machine.parse(raw), Active.parse(value)
    _, placed = instances.load(op, field, active.version)
    handlers = instances.handlers(placed)
    return [
        Waiting(
            handlers[name].label(placed.module, placed.type.name),
            kind_of(wait),
            StateMachine(op, placed.state, placed.module),
            MachineId(active.machine),
            handlers[name],
            Armed(f"{machine.entry}:{name}", machine, active, placed, {}, name),
            keys,
        )
        for name, wait in machine.armed.items()
        if name in handlers
    ]


def single(
    found: Sequence[Waiting],
    trigger: str | Trigger[Any, Any] | Callable[..., Any],
    operation_id: str | None,
    machine: str | None,
) -> Waiting:
    """The one armed trigger that is meant.

    Raises:
        NotArmed, AmbiguousTrigger: None, or several are.
    """
    meant = [one for one in found if one.is_meant(trigger) and machine in {None, one.machine_id}]
    if len(meant) == 1:
        return meant[0]
    shown = trigger if isinstance(trigger, str) else str(getattr(trigger, "__name__", None) or _text(trigger))
    if meant:
        raise AmbiguousTrigger(shown, ", ".join(map(str, meant[:5])))
    where = f" in operation {operation_id}" if operation_id is not None else ""
    raise NotArmed(shown, where, named(found[:10]) or "nothing")


def named(found: Sequence[Waiting]) -> str:
    """Armed triggers in a line."""
    return ", ".join(f"{one} ({one.handler.trigger.text})" for one in found)


def _text(trigger: Any) -> str:
    return trigger.text if isinstance(trigger, Trigger) else repr(trigger)

"""Waiting for typed machines, as turns."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from smqueue.deployment import Deployment
from smqueue.errors import UnknownModule
from smqueue.instances import Instances
from smqueue.protocols import others
from smqueue.queries import ActiveState, InactiveState, active_state, inactive_state, standing_of
from smqueue.roundtrip import Steps, over
from smqueue.standing import Standing
from smqueue.states import StateMachine, check_machine, check_operation_id
from smqueue.turns import Timeout, Turns, await_look, seconds_of

T = TypeVar("T")


def operation_end(deployment: Deployment, operation_id: str, timeout: Timeout) -> Turns[None]:
    """Wait until an operation has had states and none is active; raises AwaitTimeout."""
    keys = deployment.keys(check_operation_id(operation_id))

    def look() -> Steps[bool | None]:
        return (yield from over(lambda: others.has_finished(keys, operation_id))) or None

    what = f"operation {operation_id} to finish"
    yield from await_look(keys.shard, keys.bell(operation_id), look, seconds_of(timeout), what)


def active(deployment: Deployment, instances: Instances, machine: StateMachine, timeout: Timeout) -> Turns[ActiveState]:
    """Wait until a machine is, or has ever been, active in this state; raises AwaitTimeout."""

    def seen(stands: Standing) -> ActiveState | None:
        if stands.active is not None:
            return active_state(stands.active[1])
        if stands.inactive is not None:
            past = inactive_state(stands.inactive[1])
            return ActiveState(past.created_at, past.machine_id, past.step)
        return None

    return _standing(deployment, instances, machine, seen, timeout)


def inactive(
    deployment: Deployment, instances: Instances, machine: StateMachine, timeout: Timeout
) -> Turns[InactiveState]:
    """Wait until a machine has left, or finished in, this state; raises AwaitTimeout."""

    def seen(stands: Standing) -> InactiveState | None:
        return inactive_state(stands.inactive[1]) if stands.inactive else None

    return _standing(deployment, instances, machine, seen, timeout)


def _standing(
    deployment: Deployment,
    instances: Instances,
    machine: StateMachine,
    seen: Callable[[Standing], T | None],
    timeout: Timeout,
) -> Turns[T]:
    check_machine(machine)
    if machine.module is not None and machine.module not in instances:
        raise UnknownModule(machine.module, ", ".join(instances.ids()) or "none")
    placed = instances.place(machine)
    keys = deployment.keys(placed.op)

    def look() -> Steps[T | None]:
        return seen((yield from over(lambda: standing_of(keys, instances, placed))))

    what = f"{placed} in operation {placed.op}"
    return (yield from await_look(keys.shard, keys.bell(placed.op), look, seconds_of(timeout), what))

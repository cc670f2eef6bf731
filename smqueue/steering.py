"""Steering what runs: cancelling, pausing, resuming, and taking out of quarantine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from smqueue.cancelling import Cancelling, cancel_all
from smqueue.checks import check_name
from smqueue.deployment import Deployment
from smqueue.drivers.group import group
from smqueue.drivers.together import result_of
from smqueue.errors import AmbiguousModule, InvalidInput
from smqueue.instances import Instances
from smqueue.keys import Keys, new_id
from smqueue.outbound import Outbound
from smqueue.pauses import Paused, paused
from smqueue.protocols import control
from smqueue.relay import Relay
from smqueue.states import State, check_operation_id

REASON_BYTES = 2_000
RETRIED = 100
"""Machines that leave the quarantine in one group."""
LONG_AGO = datetime.min.replace(tzinfo=UTC)

StateType = type[State] | str | None


class Steering:
    """What an executor's methods of these names do; see there."""

    def __init__(self, deployment: Deployment, instances: Callable[[], Instances], outbound: Outbound) -> None:
        self._deployment, self._instances_of, self._outbound = deployment, instances, outbound

    def cancel(self, operation_id: str, reason: str | None, *, children: bool, force: bool) -> int:
        """See ``Executor.cancel``."""
        keys, why = self._deployment.keys(check_operation_id(operation_id)), _checked(reason)
        run = Cancelling(self._deployment.driver, self._instances_of(), self._outbound, self._own)
        return cancel_all(run, keys, operation_id, why, children=children, force=force)

    def pause(self, operation_id: str | None, module: str | None, state: StateType, reason: str | None) -> None:
        """See ``Executor.pause``."""
        why = _checked(reason)
        for keys, name in self._controls(operation_id, module, state):
            self._deployment.driver.run(control.pause(keys, name, why))

    def resume(self, operation_id: str | None, module: str | None, state: StateType) -> None:
        """See ``Executor.resume``."""
        for keys, name in self._controls(operation_id, module, state):
            if self._deployment.driver.run(control.resume(keys, name)):
                self._outbound.hint(keys.namespace, keys.shard)

    def paused(self, limit: int) -> list[Paused]:
        """See ``Executor.paused``."""
        found: dict[object, Paused] = {}
        for keys in self._deployment.all_keys():
            for one in self._deployment.driver.run(paused(keys, limit)):
                found.setdefault((one.operation_id, one.module, one.state), one)  # a module is paused in every shard
        return sorted(found.values(), key=lambda one: one.since or LONG_AGO)[:limit]

    def retry(self, operation_id: str | None, module: str | None, state: StateType) -> int:
        """See ``Executor.retry``."""
        if operation_id is not None:
            if module is not None or state is not None:
                raise InvalidInput("operation_id", "give an operation, or a module (and state), not both")
            keys = self._deployment.keys(check_operation_id(operation_id))
            return self._retry_all(keys, lambda cursor: control.aside_in(keys, operation_id, cursor))
        wanted = None if module is None and state is None else self._type(module, state)
        count = 0
        for keys in self._deployment.all_keys():
            count += self._retry_all(keys, lambda cursor, keys=keys: control.aside(keys, cursor, wanted))
        return count

    # --- inside --------------------------------------------------------------------------------------------------

    def _own(self, keys: Keys, requests: Iterable[bytes]) -> None:
        Relay(self._deployment.driver, keys, self._instances_of(), self._outbound).own(requests)

    def _retry_all(self, keys: Keys, page: Callable[[Any], control.Page]) -> int:
        count, cursor = 0, b"0"
        while True:
            cursor, found = self._deployment.driver.run(page(cursor))
            for at in range(0, len(found), RETRIED):
                count += self._retry(keys, found[at : at + RETRIED])
            if int(cursor) == 0:
                return count

    def _retry(self, keys: Keys, found: Sequence[control.Aside]) -> int:
        count, hint = 0, False
        steps = [control.retry(keys, self._instances_of(), one, new_id()) for one in found]
        for run in self._deployment.driver.run(group(steps)):
            was, due = result_of(run, self._deployment.driver.url)
            count, hint = count + was, hint or due
        if hint:
            self._outbound.hint(keys.namespace, keys.shard)
        return count

    def _controls(self, operation_id: str | None, module: str | None, state: StateType) -> Sequence[tuple[Keys, str]]:
        if operation_id is not None and (module is not None or state is not None):
            raise InvalidInput("operation_id", "give an operation, or a module (and state), not both")
        if operation_id is not None:
            keys = self._deployment.keys(check_operation_id(operation_id))
            return [(keys, keys.control(operation_id))]
        if module is not None and not isinstance(state, type) and not self._instances_of().ids():
            # Without any code, as in a command: a control needs no more than names.
            owner, name = check_name("module", module), None if state is None else check_name("state", state)
        else:
            owner, name = self._type(module, state)
        return [(keys, keys.control_module(owner, name)) for keys in self._deployment.all_keys()]

    def _type(self, module: str | None, state: StateType) -> tuple[str, str | None]:
        """A module, and the stored name of a state type of it, if one is given."""
        instances = self._instances_of()
        if module is None:
            owners = [m for m in instances.ids() if state is not None and self._name(m, state) is not None]
            if not owners:
                raise InvalidInput("operation_id", "give an operation, a module, or a state type of a module")
            if len(owners) > 1:
                raise AmbiguousModule(str(state), ", ".join(owners))
            module = owners[0]
        instances.get(module)
        name = None if state is None else self._name(module, state)
        if state is not None and name is None:
            raise InvalidInput("state", f"module {module} has no such state")
        return module, name

    def _name(self, module: str, state: type[State] | str) -> str | None:
        types = self._instances_of().get(module).module.types
        return next((name for name, known in types.items() if state in {name, known.cls}), None)


def _checked(reason: str | None) -> str:
    """Why somebody cancels or pauses."""
    return check_name("reason", reason, REASON_BYTES) if reason else ""

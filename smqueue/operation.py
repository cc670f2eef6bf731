"""One operation: the executor's methods, bound to its id."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, overload

from smqueue.explain import Explanation
from smqueue.notifier import Updates
from smqueue.protocols.signal import Delivery
from smqueue.queries import ActiveState, InactiveState, MachineId
from smqueue.states import State, StateMachine

if TYPE_CHECKING:
    from smqueue.executor import Executor
    from smqueue.trigger_types import Signal

P = TypeVar("P")


class Operation:
    """One operation of an executor.

    Attributes:
        id: Its id.
    """

    def __init__(self, executor: Executor, operation_id: str) -> None:
        self._executor, self.id = executor, operation_id

    def add(self, *states: State, module: str | None = None, exist_ok: bool = False) -> list[MachineId]:
        """Start machines in these states; see ``Executor.add_state_machines``."""
        machines = [StateMachine(self.id, state, module) for state in states]
        return self._executor.add_state_machines(machines, exist_ok)

    @overload
    def signal(self, signal: Signal[None], payload: None = None, **options: Any) -> Delivery: ...
    @overload
    def signal(self, signal: Signal[P], payload: P, **options: Any) -> Delivery: ...
    @overload
    def signal(self, signal: str, payload: object = None, **options: Any) -> Delivery: ...
    def signal(self, signal: Any, payload: Any = None, **options: Any) -> Delivery:
        """See ``Executor.signal``."""
        return self._executor.signal(self.id, signal, payload, **options)

    def states(self) -> Iterator[tuple[StateMachine, ActiveState | InactiveState]]:
        """All its states, active ones first."""
        return self._executor.get_operation_states(self.id)

    def has_active_states(self) -> bool:
        """See ``Executor.has_active_states``."""
        return self._executor.has_active_states(self.id)

    def wait(self, timeout: timedelta | float | None = None) -> None:
        """Wait until it has had states and none is active; see ``Executor.await_operation``."""
        self._executor.await_operation(self.id, timeout)

    def subscribe(self, after: int | None = None, *, timeout: timedelta | float | None = None) -> Updates:
        """Follow it; see ``Notifier.subscribe``."""
        return self._executor.notifier.subscribe(self.id, after=after, timeout=timeout)

    def cancel(self, reason: str | None = None, children: bool = False, *, force: bool = False) -> int:
        """See ``Executor.cancel``."""
        return self._executor.cancel(self.id, reason, children, force=force)

    def pause(self, reason: str | None = None) -> None:
        """See ``Executor.pause``."""
        self._executor.pause(self.id, reason=reason)

    def resume(self) -> None:
        """See ``Executor.resume``."""
        self._executor.resume(self.id)

    def retry(self) -> int:
        """See ``Executor.retry``."""
        return self._executor.retry(self.id)

    def explain(self) -> Explanation:
        """See ``Executor.explain``."""
        return self._executor.explain(self.id)

"""The executor: adding, signalling, looking, waiting, steering. It starts nothing: machines run in Celery workers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

from smqueue import awaiting, tracing
from smqueue.async_client import TypedAsyncClient
from smqueue.deployment import Deployment
from smqueue.diagnosis import Diagnosis, diagnose
from smqueue.drivers.blocking import Blocking
from smqueue.drivers.switchboard import Board, Switchboard
from smqueue.drivers.waiter import run
from smqueue.errors import SmqueueError
from smqueue.explain import Explanation, explain
from smqueue.instances import Instances
from smqueue.keys import new_id
from smqueue.notifier import Notifier
from smqueue.outbound import Outbound
from smqueue.overview import Overview, overview
from smqueue.pauses import Paused
from smqueue.producer import Producer, SignalFor
from smqueue.protocols.autocommit import autocommit
from smqueue.protocols.signal import Delivery
from smqueue.queries import ActiveState, InactiveState, MachineId, Queries
from smqueue.states import State, StateMachine, check_operation_id
from smqueue.steering import Steering
from smqueue.transaction import Transaction
from smqueue.turns import Timeout, Turns

if TYPE_CHECKING:
    from smqueue.operation import Operation
    from smqueue.trigger_types import Signal

T = TypeVar("T")
P = TypeVar("P")


class Executor:
    """What a user's program holds; made by ``ExecutorBuilder.build``. Safe to share between threads, and after a fork.

    Nothing connects before the first call. Every call raises StoreUnavailable or StoreRefused when Redis does not
    answer or refuses.
    """

    def __init__(self, deployment: Deployment, instances: Callable[[], Instances], outbound: Outbound) -> None:
        self._deployment, self._instances_of, self._outbound = deployment, instances, outbound
        self._producer = Producer(deployment, instances, outbound)
        self._steering = Steering(deployment, instances, outbound)

    @property
    def deployment(self) -> Deployment:
        """Where the namespace lives."""
        return self._deployment

    @property
    def instances(self) -> Instances:
        """The registered modules."""
        return self._instances_of()

    @property
    def outbound(self) -> Outbound:
        """The way to the broker."""
        return self._outbound

    @property
    def notifier(self) -> Notifier:
        """Subscriptions to state changes."""
        return Notifier(self._deployment, self.instances.decode)

    # --- writing -------------------------------------------------------------------------------------------------

    def add_state_machines(self, machines: Iterable[StateMachine], exist_ok: bool = False) -> list[MachineId]:
        """Start machines, all or none.

        Args:
            machines: Their operations and states. Batches of 10,000 are fine.
            exist_ok: Leave out those that exist already, instead of an error.

        Returns:
            The ids of the machines, in the order given.

        Raises:
            UnknownModule, AmbiguousModule, NotRegistered: For the first machine with no, or no single, module.
            StateAlreadyExists: For the first whose state is or was in its operation, or stands twice in the batch.
            StateAlreadyTerminal: For the first whose state is terminal.
            InvalidState, TooLarge: For the first whose state does not fit its schema.
            CrossShard: The batch spans shards.
            TooManyActive: ``smqueue_max_active`` is set, and there is no room for them all.
            CommitFailed: After 100 conflicts.

        Redis: 2 round trips.
        """
        asked = self._producer.adding(machines, exist_ok)
        if asked is None:
            return []
        _, steps, then = asked
        return then(self._deployment.driver.run(steps))

    def autocommit(
        self,
        fn: Callable[[Transaction], T],
        *,
        operation_id: str | None = None,
        module: str | None = None,
        max_attempts: int = 100,
    ) -> T:
        """Run ``fn`` in a transaction, again on conflict.

        Args:
            fn: Reads and writes through the transaction only, for it may run several times.
            operation_id: Whose shard is the transaction's home; with one shard, the default, it does not matter.
            module: The module instance that its keys are relative to; the only one there is, unless given.
            max_attempts: How often to run it on conflict.

        Returns:
            What ``fn`` returned.

        Raises:
            TooManyActive: As ``add_state_machines``, for what ``fn`` adds.
            CommitFailed: After ``max_attempts`` conflicts, with their number and the last error.
            Exception: What ``fn`` raised, at once; nothing was written.
        """
        keys = self._deployment.one_shard([] if operation_id is None else [operation_id])
        home = module if module is not None else self._only_module()
        if home is not None:
            self.instances.get(home)
        commit_id = new_id()
        most, trace = self.instances.max_active, tracing.current()
        steps = autocommit(keys, self.instances, home, fn, commit_id, max_attempts, most, trace=trace)
        done = self._deployment.driver.run(steps)
        self._producer.after(keys, done, commit_id)
        return done.value

    @overload
    def signal(
        self, operation_id: str, signal: Signal[None], payload: None = None, *, module: str | None = None,
        machine: str | None = None, id: str | None = None,
    ) -> Delivery: ...  # fmt: skip
    @overload
    def signal(
        self, operation_id: str, signal: Signal[P], payload: P, *, module: str | None = None,
        machine: str | None = None, id: str | None = None,
    ) -> Delivery: ...  # fmt: skip
    @overload
    def signal(
        self, operation_id: str, signal: str, payload: object = None, *, module: str | None = None,
        machine: str | None = None, id: str | None = None,
    ) -> Delivery: ...  # fmt: skip
    def signal(
        self, operation_id: str, signal: Any, payload: Any = None, *, module: str | None = None,
        machine: str | None = None, id: str | None = None,
    ) -> Delivery:  # fmt: skip
        """Send a signal to the machine of an operation that has waited longest for it, or keep it for one.

        Args:
            operation_id: May not have been started yet.
            signal: A ``Signal``, or its name.
            payload: The signal's type, or, with a name, a JSON-ready value.
            module: The module instance; needed when several declare the name.
            machine: Only for the machine of this id.
            id: A second signal of the same id is a duplicate, within the last 1,000 of an operation and 7 days.

        Returns:
            ``DELIVERED``, ``BUFFERED`` or ``DUPLICATE``.

        Raises:
            UnknownModule, UnknownSignal, AmbiguousModule: No, or no single, module declares it.
            InvalidPayload, TooLarge: The payload does not fit; nothing was sent.
            OperationFinished: The operation has had states and none is active.
            InboxFull: 1,000 early ones of that name are kept already.

        Redis: 1 round trip.
        """
        _, steps, then = self._producer.signalling((operation_id, signal, payload, module, machine, id))
        return then(self._deployment.driver.run(steps))

    def signal_many(self, signals: Iterable[SignalFor]) -> list[Delivery | SmqueueError]:
        """Send many signals, each as ``signal`` does; they need not be of one operation or shard.

        Args:
            signals: All of them are checked before the first is sent. Batches of 10,000 are fine.

        Returns:
            What has become of each, in the order given; of one that was not accepted its error: OperationFinished or
            InboxFull, or StoreUnavailable of those whose answer was lost, which may be sent again under their ``id``.

        Raises:
            UnknownModule, UnknownSignal, AmbiguousModule, InvalidPayload, TooLarge: For the first that does not fit;
                nothing was sent.

        Redis: 1 round trip for each 500 of a shard.
        """
        return self._producer.signal_many(signals)

    def async_client(self) -> TypedAsyncClient:
        """Adding, signalling, waiting and following from event loops. Make one, and share it between all tasks.

        What many tasks ask for at the same time travels together.
        """
        return TypedAsyncClient(self._deployment, self._producer, self._instances_of, self._board())

    def _board(self) -> Board:
        deployment = self._deployment
        return Switchboard(lambda: cast("Blocking", deployment.driver))

    # --- looking -------------------------------------------------------------------------------------------------

    def get_active_states(
        self, operation_id: str | None = None, module: str | None = None
    ) -> Iterator[tuple[StateMachine, ActiveState]]:
        """All active machines, streamed, in no order; narrowed to an operation or a module instance."""
        return self._queries.active(operation_id, module)

    def get_inactive_states(
        self, operation_id: str | None = None, module: str | None = None
    ) -> Iterator[tuple[StateMachine, InactiveState]]:
        """All states that machines have left or finished in, streamed, in no order."""
        return self._queries.inactive(operation_id, module)

    def get_active_operations(self) -> Iterator[str]:
        """The ids of all operations with active machines, streamed, each once."""
        return self._queries.operations()

    def get_operation_states(self, operation_id: str) -> Iterator[tuple[StateMachine, ActiveState | InactiveState]]:
        """All states of one operation, active ones first."""
        yield from self._queries.active(operation_id, None)
        yield from self._queries.inactive(operation_id, None)

    def has_active_states(self, operation_id: str) -> bool:
        """Whether any machine of the operation is active; a paused or quarantined one is."""
        return self._queries.has_active(operation_id)

    def contains_active_state(self, machine: StateMachine) -> bool:
        """Whether a machine is in exactly this state; ``False`` for a module id that is not registered."""
        stands = self._queries.stands(machine)
        return stands is not None and stands[1].active is not None

    def contains_inactive_state(self, machine: StateMachine) -> bool:
        """Whether a machine was, or has finished, in exactly this state; ``False`` for an unregistered module id."""
        stands = self._queries.stands(machine)
        return stands is not None and stands[1].inactive is not None

    def explain(self, operation_id: str) -> Explanation:
        """Why an operation is where it is: armed triggers, attempts, errors, buffered signals, past races."""
        return explain(self._deployment, self.instances, operation_id)

    def diagnose(self, operation_id: str) -> Diagnosis:
        """Why an operation does not move, and what to do about it; what ``smqueue why`` says."""
        return diagnose(self._deployment, self.instances, operation_id)

    def overview(self) -> Overview:
        """What the namespace is doing: machines by state, transitions, what lags, who works, and what is wrong."""
        return overview(self._deployment)

    def operation(self, operation_id: str) -> Operation:
        """The methods of one operation, bound to its id."""
        from smqueue.operation import Operation

        return Operation(self, check_operation_id(operation_id))

    # --- waiting -------------------------------------------------------------------------------------------------

    def await_active_state(self, machine: StateMachine, timeout: Timeout = None) -> ActiveState:
        """Wait until a machine is, or has ever been, active in this state.

        Raises:
            AwaitTimeout: Not within ``timeout``.
        """
        return self._wait(awaiting.active(self._deployment, self.instances, machine, timeout))

    def await_inactive_state(self, machine: StateMachine, timeout: Timeout = None) -> InactiveState:
        """Wait until a machine has left, or finished in, this state.

        Raises:
            AwaitTimeout: Not within ``timeout``.
        """
        return self._wait(awaiting.inactive(self._deployment, self.instances, machine, timeout))

    def await_operation(self, operation_id: str, timeout: Timeout = None) -> None:
        """Wait until an operation has had states and none is active.

        Raises:
            AwaitTimeout: Not within ``timeout``.
        """
        self._wait(awaiting.operation_end(self._deployment, operation_id, timeout))

    def _wait(self, turns: Turns[T]) -> T:
        return run(lambda: self._deployment.driver, turns)

    # --- steering ------------------------------------------------------------------------------------------------

    def cancel(
        self, operation_id: str, reason: str | None = None, children: bool = False, *, force: bool = False
    ) -> int:
        """End every active machine of an operation: inactive, and marked cancelled.

        What a module has declared with ``on_cancel`` runs here, or, where this process lacks its code, in a worker. Two
        that cancel one operation at the same time get what either has asked for. A pause stands until its ``resume``.

        Args:
            operation_id: The operation.
            reason: Kept in the records, and given to cancel handlers; at most 2,000 bytes.
            children: Cancel the operations that its transitions have started, too.
            force: End all of them without their cancel handlers.

        Returns:
            How many machines were ended.

        Raises:
            CancelUnfinished: The cancel handler of some has failed, or cannot be run here: workers go on with those.
                Nothing of the operation commits until they have ended, too.
        """
        return self._steering.cancel(operation_id, reason, children=children, force=force)

    def pause(
        self,
        operation_id: str | None = None,
        *,
        module: str | None = None,
        state: type[State] | str | None = None,
        reason: str | None = None,
    ) -> None:
        """Stop the transitions of an operation, a module, or one state type of a module.

        Once this has returned, nothing of it commits until ``resume``. Triggers and deadlines run on: what falls due
        meanwhile fires at the resume. What is paused already stays as it is. An operation that is being cancelled ends
        nevertheless, and what is added to it later waits.

        Args:
            operation_id: An operation; it need not have begun.
            module: A module, instead.
            state: One state type of a module.
            reason: For ``paused``, ``explain`` and whoever looks; at most 2,000 bytes.

        Raises:
            InvalidInput: Neither or both of an operation and a module are given.

        Redis: 1 round trip for each shard concerned.
        """
        self._steering.pause(operation_id, module, state, reason)

    def resume(
        self, operation_id: str | None = None, *, module: str | None = None, state: type[State] | str | None = None
    ) -> None:
        """Let go on what ``pause`` with the same arguments has stopped."""
        self._steering.resume(operation_id, module, state)

    def paused(self, limit: int = 1_000) -> list[Paused]:
        """What is paused: operations, modules and state types, since when and why; the longest first.

        Args:
            limit: At most so many.

        Redis: 2 round trips for each shard: what is paused is kept in a list, and not searched for.
        """
        return self._steering.paused(limit)

    def retry(
        self, operation_id: str | None = None, *, module: str | None = None, state: type[State] | str | None = None
    ) -> int:
        """Take machines out of quarantine: those with an outcome run it again, others are armed anew.

        What was set aside because its cancel handler kept failing is cancelled again.

        Args:
            operation_id: Those of this operation only.
            module: Those of this module only.
            state: Those of one state type of a module only. With none of these, all of the namespace.

        Returns:
            How many were quarantined.

        Raises:
            InvalidInput: Both an operation and a module are given.

        Redis: some 5 round trips for each 100.
        """
        return self._steering.retry(operation_id, module, state)

    # --- inside --------------------------------------------------------------------------------------------------

    @property
    def _queries(self) -> Queries:
        return Queries(self._deployment, self.instances)

    def _only_module(self) -> str | None:
        ids = self.instances.ids()
        return ids[0] if len(ids) == 1 else None

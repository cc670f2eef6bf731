"""Producing from event loops: the calls of ``Client``, and of an executor's producing half, as coroutines.

The calls themselves are not here: both clients take the turns of ``smqueue.asking``, ``smqueue.awaiting`` and
``smqueue.following``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar, cast, overload

from smqueue import awaiting
from smqueue.asking import ANSWER_S, Asking
from smqueue.deployment import DEFAULT_NAMESPACE, Deployment, Settings
from smqueue.drivers.blocking import Blocking
from smqueue.drivers.switchboard import Board, Switchboard
from smqueue.following import FollowingAll, FollowingOne
from smqueue.instances import Instances
from smqueue.notifier import AsyncUpdates
from smqueue.producer import Producer
from smqueue.protocols.signal import Delivery
from smqueue.queries import ActiveState, InactiveState, MachineId
from smqueue.secrets import SecretCodec
from smqueue.states import StateMachine
from smqueue.trigger_types import Signal
from smqueue.turns import Timeout, Turns

P = TypeVar("P")
T = TypeVar("T")
Json = Any


class _OnLoops:
    """What both have: who takes the turns, and the end."""

    def __init__(self, board: Board) -> None:
        self._board = board

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Finish what was asked for, and end its threads. Who still waits gets ClientClosed, and so do later calls."""
        await self._board.aclose()

    async def _run(self, turns: Turns[T]) -> T:
        caller = self._board.caller()
        try:
            return await caller.run(turns)
        finally:
            caller.close()


class AsyncClient(_OnLoops):
    """``Client`` for event loops: the same calls as coroutines, and the same errors.

    Share one between all tasks, also those of several loops, and keep it open: what they ask for at the same time
    travels together, over a few connections and threads of the client's own, however many wait. Nothing connects
    before the first call, and no call holds up a loop.

    A ``timeout`` holds also with a server that hangs; but a look is waited for a second, however short it is.

    A task that is cancelled leaves nothing behind but what it has asked for already: as after a lost answer it is not
    known whether a worker will do that, and with ``id`` a signal may be sent again.

    Args:
        url: As for ``Client``, and so are the others.
        namespace: As the workers' executor has it.
        shards: As the workers' executor has it.
        secrets: As the workers' executor has it.
    """

    def __init__(
        self, url: str, namespace: str = DEFAULT_NAMESPACE, *, shards: int = 1, secrets: SecretCodec | None = None
    ) -> None:
        self._deployment = deployment = Deployment(lambda: Settings(url, namespace, shards))
        super().__init__(Switchboard(lambda: cast("Blocking", deployment.driver)))  # its threads must not keep self
        self._asking = Asking(deployment, secrets)

    async def aclose(self) -> None:
        """Finish what was asked for, end its threads and close its connections.

        Who still waits gets ClientClosed, and so do later calls.
        """
        try:
            await super().aclose()
        finally:
            self._deployment.close()

    async def add(
        self, machines: Iterable[Mapping[str, Json]], exist_ok: bool = False, *, timeout: Timeout = ANSWER_S
    ) -> list[MachineId]:
        """Start machines, all or none; see ``Client.add``."""
        return await self._run(self._asking.add(machines, exist_ok, timeout))

    async def signal(
        self, operation_id: str, signal: str, payload: Json = None, *, module: str | None = None,
        machine: str | None = None, id: str | None = None, timeout: Timeout = ANSWER_S,
    ) -> Delivery:  # fmt: skip
        """Send a signal; see ``Client.signal``."""
        return await self._run(self._asking.signal(operation_id, signal, payload, module, machine, id, timeout))

    async def await_operation(self, operation_id: str, timeout: Timeout = None) -> None:
        """Wait until an operation has had states and none is active; raises AwaitTimeout."""
        await self._run(self._asking.operation(operation_id, timeout))

    async def await_active_state(self, machine: Mapping[str, Json], timeout: Timeout = None) -> ActiveState:
        """Wait until a machine is, or has ever been, in this state, given in full; raises AwaitTimeout."""
        return await self._run(self._asking.active(machine, timeout))

    async def await_inactive_state(self, machine: Mapping[str, Json], timeout: Timeout = None) -> InactiveState:
        """Wait until a machine has left, or finished in, this state, given in full; raises AwaitTimeout."""
        return await self._run(self._asking.inactive(machine, timeout))

    def subscribe(
        self, operation_id: str, module: str | None = None, after: int | None = None, *, timeout: Timeout = None
    ) -> AsyncUpdates:
        """Follow one operation; see ``Client.subscribe``. An asynchronous iterator, and a context manager."""
        return AsyncUpdates(self._asking.one(operation_id, module, after, timeout), self._board)

    def subscribe_all(self, module: str | None = None, *, timeout: Timeout = None) -> AsyncUpdates:
        """Follow all operations, from where it is entered, or else first awaited; see ``Client.subscribe_all``."""
        return AsyncUpdates(self._asking.all(module, timeout), self._board)


class TypedAsyncClient(_OnLoops):
    """An executor's producing half for event loops: takes typed machines and signals, and needs no worker to answer.

    Share one between all tasks, also those of several loops, and keep it open: what they ask for at the same time
    travels together, over a few threads of its own and the executor's connections. No call holds up a loop.

    Args:
        deployment: The executor's.
        producer: The executor's.
        instances: The executor's.
        board: What it calls through.
    """

    def __init__(
        self, deployment: Deployment, producer: Producer, instances: Callable[[], Instances], board: Board
    ) -> None:
        super().__init__(board)
        self._deployment, self._producer, self._instances_of = deployment, producer, instances

    async def add(self, machines: Iterable[StateMachine], exist_ok: bool = False) -> list[MachineId]:
        """Start machines, all or none; see ``Executor.add_state_machines``."""
        asked = self._producer.adding(machines, exist_ok)
        if asked is None:
            return []
        keys, steps, then = asked
        return await self._board.run("add", keys.shard, steps, then)

    @overload
    async def signal(
        self, operation_id: str, signal: Signal[None], payload: None = None, *, module: str | None = None,
        machine: str | None = None, id: str | None = None,
    ) -> Delivery: ...  # fmt: skip
    @overload
    async def signal(
        self, operation_id: str, signal: Signal[P], payload: P, *, module: str | None = None,
        machine: str | None = None, id: str | None = None,
    ) -> Delivery: ...  # fmt: skip
    @overload
    async def signal(
        self, operation_id: str, signal: str, payload: object = None, *, module: str | None = None,
        machine: str | None = None, id: str | None = None,
    ) -> Delivery: ...  # fmt: skip
    async def signal(
        self, operation_id: str, signal: Any, payload: Any = None, *, module: str | None = None,
        machine: str | None = None, id: str | None = None,
    ) -> Delivery:  # fmt: skip
        """Send a signal; see ``Executor.signal``."""
        keys, steps, then = self._producer.signalling((operation_id, signal, payload, module, machine, id))
        return await self._board.run("signal", keys.shard, steps, then)

    async def await_operation(self, operation_id: str, timeout: Timeout = None) -> None:
        """Wait until an operation has had states and none is active; raises AwaitTimeout."""
        await self._run(awaiting.operation_end(self._deployment, operation_id, timeout))

    async def await_active_state(self, machine: StateMachine, timeout: Timeout = None) -> ActiveState:
        """Wait until a machine is, or has ever been, active in this state; raises AwaitTimeout."""
        return await self._run(awaiting.active(self._deployment, self._instances_of(), machine, timeout))

    async def await_inactive_state(self, machine: StateMachine, timeout: Timeout = None) -> InactiveState:
        """Wait until a machine has left, or finished in, this state; raises AwaitTimeout."""
        return await self._run(awaiting.inactive(self._deployment, self._instances_of(), machine, timeout))

    def subscribe(
        self, operation_id: str, module: str | None = None, after: int | None = None, *, timeout: Timeout = None
    ) -> AsyncUpdates:
        """Follow one operation; see ``Notifier.subscribe``. An asynchronous iterator, and a context manager."""
        decode = self._instances_of().decode
        return AsyncUpdates(FollowingOne(self._deployment, decode, operation_id, module, after, timeout), self._board)

    def subscribe_all(self, module: str | None = None, *, timeout: Timeout = None) -> AsyncUpdates:
        """Follow all operations, from where it is entered, or else first awaited; see ``Notifier.subscribe_all``."""
        decode = self._instances_of().decode
        return AsyncUpdates(FollowingAll(self._deployment, decode, module, timeout), self._board)

"""The producer's half: adding, signalling, waiting and following, with no machine code and no Celery application.

States and payloads are JSON-ready. A worker validates, commits and answers, so that errors come back typed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

from smqueue.asking import ANSWER_S, Asking
from smqueue.deployment import DEFAULT_NAMESPACE, Deployment, Settings
from smqueue.drivers.waiter import run
from smqueue.notifier import Updates
from smqueue.protocols.signal import Delivery
from smqueue.queries import ActiveState, InactiveState, MachineId
from smqueue.secrets import SecretCodec
from smqueue.turns import Timeout, Turns

T = TypeVar("T")
Json = Any


class Client:
    """Talks to the workers of a namespace through Redis alone. Safe to share between threads, and after a fork.

    ``AsyncClient`` is the same for event loops. Nothing connects before the first call. Every call raises
    StoreUnavailable or StoreRefused when Redis does not answer or refuses.

    A ``timeout`` is how long is waited for what was asked for. A request to Redis that is under way then is waited for
    all the same: with a server that hangs a call may take longer, by the socket's timeouts of 5 s for connecting and
    5 s for an answer, which the URL may set (``?socket_timeout=3``).

    Args:
        url: Of the Redis or Valkey that holds the state.
        namespace: As the workers' executor has it.
        shards: As the workers' executor has it.
        secrets: As the workers' executor has it: states and payloads are encrypted on their way to a worker, wholly,
            since a client has no schema that says what of them is secret. Without it they wait for a worker in plain
            text. A state with secrets cannot be waited for by a client, which cannot know its stored form.
    """

    def __init__(
        self, url: str, namespace: str = DEFAULT_NAMESPACE, *, shards: int = 1, secrets: SecretCodec | None = None
    ) -> None:
        self._deployment = Deployment(lambda: Settings(url, namespace, shards))
        self._asking = Asking(self._deployment, secrets)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections; a client that is used again connects again."""
        self._deployment.close()

    def add(
        self, machines: Iterable[Mapping[str, Json]], exist_ok: bool = False, *, timeout: Timeout = ANSWER_S
    ) -> list[MachineId]:
        """Start machines, all or none.

        Args:
            machines: Each ``{"operation_id": …, "module": …, "type": …, "state": {…}}``; ``module`` may be left out
                when only one has such a type.
            exist_ok: Leave out those that exist already, instead of an error.
            timeout: How long to wait for a worker's answer.

        Raises:
            AwaitTimeout: No worker has answered; whether it will is not known, and adding again says so.
            OutboxFull: 10,000 requests wait for a worker already; nothing was sent.
            SmqueueError: As ``Executor.add_state_machines``; nothing was written.
        """
        return self._run(self._asking.add(machines, exist_ok, timeout))

    def signal(
        self, operation_id: str, signal: str, payload: Json = None, *, module: str | None = None,
        machine: str | None = None, id: str | None = None, timeout: Timeout = ANSWER_S,
    ) -> Delivery:  # fmt: skip
        """Send a signal; see ``Executor.signal``.

        Raises:
            AwaitTimeout: No worker has answered; whether it will is not known. With ``id``, sending again is safe.
            OutboxFull: As ``add``.
            SmqueueError: As ``Executor.signal``; nothing was sent.
        """
        return self._run(self._asking.signal(operation_id, signal, payload, module, machine, id, timeout))

    # --- waiting -------------------------------------------------------------------------------------------------

    def await_operation(self, operation_id: str, timeout: Timeout = None) -> None:
        """Wait until an operation has had states and none is active; raises AwaitTimeout."""
        self._run(self._asking.operation(operation_id, timeout))

    def await_active_state(self, machine: Mapping[str, Json], timeout: Timeout = None) -> ActiveState:
        """Wait until a machine is, or has ever been, in this state, given in full; raises AwaitTimeout."""
        return self._run(self._asking.active(machine, timeout))

    def await_inactive_state(self, machine: Mapping[str, Json], timeout: Timeout = None) -> InactiveState:
        """Wait until a machine has left, or finished in, this state, given in full; raises AwaitTimeout."""
        return self._run(self._asking.inactive(machine, timeout))

    # --- following -----------------------------------------------------------------------------------------------

    def subscribe(
        self, operation_id: str, module: str | None = None, after: int | None = None, *, timeout: Timeout = None
    ) -> Updates:
        """Follow one operation; see ``Notifier.subscribe``. Each update's state is ``{"type": …, "state": {…}}``."""
        return Updates(self._asking.one(operation_id, module, after, timeout), self._deployment)

    def subscribe_all(self, module: str | None = None, *, timeout: Timeout = None) -> Updates:
        """Follow all operations; see ``Notifier.subscribe_all``."""
        return Updates(self._asking.all(module, timeout), self._deployment)

    def _run(self, turns: Turns[T]) -> T:
        return run(lambda: self._deployment.driver, turns)

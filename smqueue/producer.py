"""Adding and signalling: the protocols and what follows them, for a call, a batch or an event loop to run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, cast

from smqueue.deployment import Deployment
from smqueue.drivers.group import group
from smqueue.drivers.together import result_of
from smqueue.errors import SmqueueError
from smqueue.instances import Instances
from smqueue.keys import Keys, new_id
from smqueue.outbound import Outbound
from smqueue.protocols.add import add
from smqueue.protocols.autocommit import Done
from smqueue.protocols.signal import Delivered, Delivery, signal
from smqueue.queries import MachineId
from smqueue.relay import Relay
from smqueue.roundtrip import Run, Steps
from smqueue.spans import add_span, added, signal_span, signalled, signals_span
from smqueue.states import StateMachine, check_machine
from smqueue.tracing import header_of, spanning

TOGETHER = 500
"""Signals in one write."""


class SignalFor(NamedTuple):
    """One signal of a batch.

    Attributes:
        operation_id: May not have been started yet.
        signal: A ``Signal``, or its name.
        payload: The signal's type, or, with a name, a JSON-ready value.
        module: The module instance; needed when several declare the name.
        machine: Only for the machine of this id.
        id: A second signal of the same id is a duplicate.
    """

    operation_id: str
    signal: Any
    payload: Any = None
    module: str | None = None
    machine: str | None = None
    id: str | None = None


Asked = tuple[str, Any, Any, str | None, str | None, str | None]
"""A ``SignalFor``, or just what it holds."""


class Producer:
    """Makes protocols of what is to be added or signalled, all of it checked before the first of them runs."""

    def __init__(self, deployment: Deployment, instances: Callable[[], Instances], outbound: Outbound) -> None:
        self._deployment, self._instances_of, self._outbound = deployment, instances, outbound

    def adding(
        self, machines: Iterable[StateMachine], exist_ok: bool
    ) -> tuple[Keys, Steps[Done[list[str]]], Callable[[Done[list[str]]], list[MachineId]]] | None:
        """Start machines, all or none; ``None`` when there are none.

        Returns:
            The keys of their shard, the protocol, and what follows it.

        Raises:
            InvalidInput, CrossShard: What the protocol cannot begin with.
        """
        batch = list(machines)
        operations: list[str] = []
        for machine in batch:
            check_machine(machine)
            operations.append(machine.operation_id)
        if not batch:
            return None
        keys, instances, commit_id = self._deployment.one_shard(operations), self._instances_of(), new_id()

        def then(done: Done[list[str]]) -> list[MachineId]:
            self.after(keys, done, commit_id)
            return cast("list[MachineId]", done.value)

        span = add_span(operations)
        steps = add(keys, instances, batch, commit_id, exist_ok, instances.max_active, header_of(span))
        return keys, spanning(span, steps, added), then

    def signalling(
        self, asked: Asked, trace: str | None = None
    ) -> tuple[Keys, Steps[Delivered | None], Callable[[Delivered | None], Delivery]]:
        """Send a signal; returns as ``adding``.

        Args:
            asked: The signal.
            trace: The header of the span that it is sent in; unless given it has one of its own.

        Raises:
            UnknownModule, UnknownSignal, AmbiguousModule, InvalidPayload, TooLarge: See ``Executor.signal``.
        """
        op, given, payload, module, machine, id = asked
        instances = self._instances_of()
        told = instances.signal(op, given, payload, module)
        keys = self._deployment.keys(op)

        def then(done: Delivered | None) -> Delivery:
            assert done is not None
            delivery, hint = done
            if hint:
                self._outbound.hint(keys.namespace, keys.shard)
            return delivery

        span = signal_span(told.operation_id, told.signal, told.module) if trace is None else None
        steps = signal(
            keys, told, new_id(), machine=machine or "", signal_id=id or "", limit=instances.inbox_limit,
            push=instances.push(keys), trace=header_of(span) if trace is None else trace,
        )  # fmt: skip
        return keys, spanning(span, steps, signalled), then

    def signal_many(self, signals: Iterable[SignalFor]) -> list[Delivery | SmqueueError]:
        """See ``Executor.signal_many``."""
        some = list(signals)
        span = signals_span([one.operation_id for one in some])
        asked = [self.signalling(one, header_of(span)) for one in some]
        try:
            return self._signal_all(asked)
        finally:
            if span is not None:
                span.end()

    def _signal_all(
        self, asked: Sequence[tuple[Keys, Steps[Delivered | None], Callable[[Delivered | None], Delivery]]]
    ) -> list[Delivery | SmqueueError]:
        shards: dict[int, list[int]] = {}
        for place, (keys, _, _) in enumerate(asked):
            shards.setdefault(keys.shard, []).append(place)
        ended: dict[int, Delivery | SmqueueError] = {}
        for places in shards.values():
            for at in range(0, len(places), TOGETHER):
                part = places[at : at + TOGETHER]
                runs = self._deployment.driver.run(group([asked[place][1] for place in part]))
                for place, run in zip(part, runs, strict=True):
                    ended[place] = self._ended(asked[place][2], run)
        return [ended[place] for place in range(len(asked))]

    def _ended(
        self, then: Callable[[Delivered | None], Delivery], run: Run[Delivered | None]
    ) -> Delivery | SmqueueError:
        try:
            return then(result_of(run, self._deployment.driver.url))
        except SmqueueError as error:
            return error

    def after(self, keys: Keys, done: Done[Any], commit_id: str) -> None:
        """What follows a commit: the hint, what Flower is told, what it has left to be done."""
        if done.hint:
            self._outbound.hint(keys.namespace, keys.shard)
        if done.watched:
            for placed, active in done.machines:
                self._outbound.armed(placed, active, commit_id)
        if done.requests:
            Relay(self._deployment.driver, keys, self._instances_of(), self._outbound).own(done.requests)

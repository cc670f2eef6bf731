"""Adding and signalling from an event loop: what many tasks ask for at the same time travels together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar, overload

from smqueue.deployment import Deployment
from smqueue.drivers.together import Together
from smqueue.producer import Producer, SignalFor
from smqueue.protocols.signal import Delivery
from smqueue.queries import MachineId
from smqueue.states import StateMachine
from smqueue.trigger_types import Signal

P = TypeVar("P")


class AsyncClient:
    """An executor's producing half for asyncio, safe to share between the tasks of any number of loops.

    What tasks ask for while an earlier request is under way is one request: fifty that add cost little more than one.
    It runs on two threads of its own, which never hold up a loop.
    """

    def __init__(self, deployment: Deployment, producer: Producer) -> None:
        self._deployment, self._producer = deployment, producer
        self._lines: dict[tuple[str, int], Together] = {}

    async def add(self, machines: Iterable[StateMachine], exist_ok: bool = False) -> list[MachineId]:
        """Start machines, all or none; see ``Executor.add_state_machines``."""
        asked = self._producer.adding(machines, exist_ok)
        if asked is None:
            return []
        keys, steps, then = asked
        return await self._line("add", keys.shard).run(steps, then)

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
        keys, steps, then = self._producer.signalling(SignalFor(operation_id, signal, payload, module, machine, id))
        return await self._line("signal", keys.shard).run(steps, then)

    def _line(self, kind: str, shard: int) -> Together:
        """Commits and scripts do not wait for each other, nor one shard for another."""
        if (line := self._lines.get((kind, shard))) is None:
            line = self._lines.setdefault((kind, shard), Together(self._deployment.driver))
        return line

"""Machines driven by a loop in the test's own process: the engine as a worker has it, without worker and broker.

Nothing moves by itself: a test calls ``run`` (or ``until``), so that it says when transitions happen. Where a test
needs something to happen between two round trips of a protocol, it gives the driver a hook."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import redis
from celery import Celery

from smqueue import Executor, Module
from smqueue.deployment import Deployment, Settings
from smqueue.drain import Drain
from smqueue.drivers.blocking import Blocking
from smqueue.instances import Instance, Instances
from smqueue.keys import Keys
from smqueue.protocols.claim import Armed
from smqueue.records import Active, Machine, Placed
from smqueue.roundtrip import Commit, RoundTrip
from smqueue.states import State, StateMachine
from smqueue.worker.code import run_trigger
from smqueue.worker.engine import Engine
from tests.waiting import wait_until

T = TypeVar("T")


class Sent:
    """An ``Outbound`` that keeps what it is given; a trigger's task is run by the loop."""

    def __init__(self) -> None:
        self.triggers: list[Armed] = []
        self.tasks: list[tuple[str, Sequence[Any], str]] = []
        self.hints = 0

    def hint(self, namespace: str, shard: int) -> None:
        self.hints += 1

    def trigger(self, armed: Armed) -> None:
        self.triggers.append(armed)

    def send_task(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], task_id: str, options: Mapping[str, Any]
    ) -> None:
        self.tasks.append((name, args, task_id))

    def tell(self, *told: object) -> None: ...

    def armed(self, placed: Placed, active: Active, arming: str) -> None: ...

    def ended(self, placed: Placed, active: Active, arming: str, armed: Mapping[str, Any], won: str | None) -> None: ...


class Hooked(Blocking):
    """A driver that lets a test act right before a request goes out: once, unless the hook is set again."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.before: tuple[Callable[[RoundTrip], bool], Callable[[], object]] | None = None
        self.acted = 0

    def before_commit(self, act: Callable[[], object]) -> None:
        """Act right before the next MULTI/EXEC that writes to a machine."""
        self.before = (lambda request: isinstance(request, Commit) and len(request.commands) > 2, act)

    def _trip(self, connection: Any, request: RoundTrip) -> Any:
        if self.before is not None and self.before[0](request):
            act, self.before = self.before[1], None
            self.acted += 1
            act()
        return super()._trip(connection, request)


class Loop:
    """One process's worth of engine for one namespace.

    Args:
        url: Of the server.
        namespace: A test's own.
        modules: Instance id → module.
        contexts: Instance id → context.
        shards: Of the namespace.
    """

    def __init__(
        self, url: str, namespace: str, modules: Mapping[str, Module[Any]], *,
        contexts: Mapping[str, Any] | None = None, shards: int = 1,
    ) -> None:  # fmt: skip
        self.settings = Settings(url, namespace, shards)
        self.instances = Instances(None, shards)
        for id, module in modules.items():
            self.instances.register(Instance(id, module, (contexts or {}).get(id), "the test"))
        self.deployment = Deployment(lambda: self.settings)
        self.sent = Sent()
        self.executor = Executor(self.deployment, lambda: self.instances, self.sent)
        self.engine = Engine(Celery("driven", set_as_current=False), self.executor, self.sent)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        self.driver = Hooked(url)
        self.keys = Keys(namespace)
        self.redis: Any = redis.Redis.from_url(url, socket_timeout=10)
        self._drain = Drain(self.driver, self.keys, self.engine.instances, self.engine.leases, self.sent)

    # --- moving --------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Work off what is due now, one attempt of triggers with code included; returns how many machines moved."""
        moved = self._drain.run()
        while self.sent.triggers:
            armed = self.sent.triggers.pop(0)
            run_trigger(self.engine, self.keys, armed.entry, armed.kind)
            moved += self._drain.run()
        return moved

    def until(self, predicate: Callable[[], T], description: str, timeout_s: float = 20) -> T:
        """Run again and again until ``predicate`` returns something true, and return that."""

        def again() -> T:
            self.run()
            return predicate()

        return wait_until(again, description, timeout_s)

    def settle(self, op: str) -> None:
        """Run until the operation has finished."""
        self.until(lambda: not self.executor.has_active_states(op), f"operation {op} to finish")

    # --- looking -------------------------------------------------------------------------------------------------

    def add(self, op: str, *states: State, module: str | None = None) -> list[str]:
        """Start machines; returns their ids."""
        return [str(m) for m in self.executor.add_state_machines([StateMachine(op, s, module) for s in states])]

    def active(self, op: str) -> list[State]:
        """The active states of an operation."""
        return [machine.state for machine, _ in self.executor.get_active_states(op)]

    def history(self, op: str) -> list[Any]:
        """What a new subscriber is told."""
        with self.executor.notifier.subscribe(op, timeout=0) as updates:
            return list(updates)

    def explained(self, op: str) -> Any:
        """The one active machine of an operation, explained."""
        (machine,) = self.executor.explain(op).active
        return machine

    def placed(self, op: str, state: State, module: str | None = None) -> Placed:
        """The record of a state."""
        return self.instances.place(StateMachine(op, state, module))

    def stored(self, op: str, state: State, module: str | None = None) -> Machine:
        """What a record is armed with."""
        return Machine.parse(self.redis.get(self.keys.machine(self.placed(op, state, module).record)))

    def now_ms(self) -> int:
        """Redis's clock."""
        seconds, micros = self.redis.time()
        return seconds * 1000 + micros // 1000

    def wait_past(self, at_ms: int) -> None:
        """Until Redis's clock has passed an instant."""
        wait_until(lambda: self.now_ms() > at_ms, f"the clock to pass {at_ms}")

    def make_due(self, entry: str) -> None:
        """What is scheduled for later is due now, as if that time had come."""
        assert self.redis.zscore(self.keys.schedule, entry) is not None
        self.redis.zadd(self.keys.schedule, {entry: 1}, xx=True)

"""An executor and its worker in the test's own process: no Celery worker, no broker, each step when the test says so.

Nothing moves by itself: what a worker's pump and pool do is done by ``run`` and ``until``; what would be sent to the
broker is kept in ``sent``. Crashes, conflicts and lost replies are played by hooks around the driver's round trips.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
from celery import Celery

from smqueue import Executor, Module, State, StateMachine
from smqueue.deployment import Deployment, Settings
from smqueue.drivers.blocking import Blocking
from smqueue.embedded import EmbeddedServer
from smqueue.instances import Instance, Instances
from smqueue.keys import Keys
from smqueue.protocols.claim import Armed
from smqueue.records import Active, Machine, Placed
from smqueue.roundtrip import Commit, LostReply, RoundTrip, commits
from smqueue.tallies import Tallies
from smqueue.worker.code import run_trigger
from smqueue.worker.engine import Engine
from smqueue.worker.install import install
from tests.deployments import client_of
from tests.waiting import wait_until

T = TypeVar("T")


class Crash(BaseException):
    """The process is killed here: nothing of the code under test may catch it."""


@dataclass
class Sent:
    """What the engine has sent; a broker that is ``down`` takes no task."""

    hints: int = 0
    triggers: list[Armed] = field(default_factory=list)
    tasks: list[tuple[str, list[Any], dict[str, Any], str, dict[str, Any]]] = field(default_factory=list)
    down: bool = False

    def hint(self, namespace: str, shard: int) -> None:
        self.hints += 1

    def send_triggers(self, armed: Sequence[Armed]) -> None:
        self.triggers += armed

    def send_task(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], task_id: str, options: Mapping[str, Any]
    ) -> None:
        if self.down:
            raise ConnectionError("the broker is down")
        self.tasks.append((name, list(args), dict(kwargs), task_id, dict(options)))

    def armed(self, placed: Placed, active: Active, arming: str) -> None:
        pass

    def ended(self, placed: Placed, active: Active, arming: str, armed: Mapping[str, Any], won: str | None) -> None:
        pass

    def tell(self, *told: object) -> None:
        pass


class Local:
    """One process of a namespace: producer and worker.

    Args:
        url: Of the state's server.
        namespace: Several may share one, as processes do.
        modules: Module instances by id.
        shards: Of the namespace.
        global_context: As for ``build``.
        contexts: Of module instances, by id.
        durability: As for ``build``.
    """

    def __init__(
        self, url: str, namespace: str, modules: Mapping[str, Module[Any]], *, shards: int = 1,
        global_context: Callable[[str, str], Any] | None = None, contexts: Mapping[str, Any] | None = None,
        durability: str | None = None,
    ) -> None:  # fmt: skip
        self.namespace, self.modules, self.sent = namespace, modules, Sent()
        self.settings = Settings(url, namespace, shards, durability)
        instances = Instances(global_context, shards)
        for id, module in modules.items():
            instances.register(Instance(id, module, (contexts or {}).get(id), "here"))
        self.executor = Executor(Deployment(lambda: self.settings), lambda: instances, self.sent)
        self.app = Celery(f"inprocess-{namespace}", broker="memory://", set_as_current=False)
        outbound: Any = self.sent
        self.engine = Engine(self.app, self.executor, outbound)
        self.engine._tallies = Tallies()  # for nobody: what a test injects is not to hit a thread's request
        install(self.app, self.engine)
        self.instances = self.engine.instances
        self.redis: Any = client_of(url)

    def another(self) -> Local:
        """A second process of the namespace, with the same modules."""
        settings = self.settings
        return Local(settings.url, self.namespace, self.modules, shards=settings.shards, durability=settings.durability)

    @property
    def driver(self) -> Blocking:
        """What all of this process goes through."""
        return self.engine.driver

    # --- the worker ----------------------------------------------------------------------------------------------

    def drain(self, shard: int = 0) -> int:
        """What one ``smqueue.transition`` task does; returns how many machines moved."""
        return self.engine.drain(shard)

    def attempt(self, armed: Armed) -> str:
        """What one ``smqueue.trigger`` task does."""
        return run_trigger(self.engine, self.keys(armed.machine.op), armed.entry, armed.kind)

    def run(self) -> int:
        """Work off what is due now, an attempt of each trigger with code included; returns how many machines moved."""
        moved = self._drain_all()
        while self.sent.triggers:
            self.attempt(self.sent.triggers.pop(0))
            moved += self._drain_all()
        return moved

    def _drain_all(self) -> int:
        return sum(self.drain(keys.shard) for keys in self.executor.deployment.all_keys())

    def until(
        self, predicate: Callable[[], T], description: str = "the machines have moved", timeout_s: float = 20
    ) -> T:
        """Run again and again until ``predicate`` returns something true, and return that."""

        def again() -> T:
            self.run()
            return predicate()

        return wait_until(again, description, timeout_s)

    def settle(self, *operation_ids: str) -> None:
        """Run until these operations have finished."""
        for op in operation_ids:
            self.until(lambda op=op: not self.executor.has_active_states(op), f"operation {op} to finish")

    # --- time ----------------------------------------------------------------------------------------------------

    def now_ms(self) -> int:
        """Redis's clock."""
        seconds, micros = self.redis.time()
        return seconds * 1000 + micros // 1000

    def wait_past(self, at_ms: int) -> None:
        """Until Redis's clock has passed an instant."""
        wait_until(lambda: self.now_ms() > at_ms, f"the clock to pass {at_ms}")

    def make_due(self, entry: str) -> None:
        """What is scheduled for later is due now, as if that time had come."""
        assert self.redis.zscore(self.keys().schedule, entry) is not None
        self.redis.zadd(self.keys().schedule, {entry: 1}, xx=True)

    def due_in_order(self, *machines: StateMachine) -> None:
        """Make the races of these machines due, so that one drain claims them in this order."""
        for n, machine in enumerate(machines):
            entry = self.stored(machine.operation_id, machine.state, machine.module).entry
            self.redis.zadd(self.keys(machine.operation_id).schedule, {entry: n})

    def expire_leases(self) -> None:
        """As if the leases of dead workers had run out: all that was claimed or sent is due at once."""
        for keys in self.executor.deployment.all_keys():
            for entry in self.redis.zrange(keys.schedule, 0, -1):
                self.redis.zadd(keys.schedule, {entry: 0}, xx=True)
            for race in self.redis.scan_iter(keys.race("*"), _type="hash"):
                for name in self.redis.hkeys(race):
                    if name.startswith(b"until:"):
                        self.redis.hset(race, name, 0)

    def requests_due(self) -> None:
        """As if the makers of all requests had had their time: anyone may do them now."""
        for keys in self.executor.deployment.all_keys():
            for raw in self.redis.lrange(keys.requests, 0, -1):
                self.redis.lrem(keys.requests, 1, raw)
                self.redis.rpush(keys.requests, json.dumps({**json.loads(raw), "due": 0}))
                self.redis.zadd(keys.schedule, {"~requests": 0})

    # --- looking -------------------------------------------------------------------------------------------------

    def keys(self, operation_id: str = "") -> Keys:
        """The keys of an operation's shard."""
        return self.executor.deployment.keys(operation_id)

    def add(self, operation_id: str, *states: State, module: str | None = None) -> list[str]:
        """Start machines; returns their ids."""
        return [str(id) for id in self.executor.add_state_machines(machines(operation_id, *states, module=module))]

    def active(self, operation_id: str) -> list[State]:
        """The active states of an operation."""
        return [machine.state for machine, _ in self.executor.get_active_states(operation_id)]

    def inactive(self, operation_id: str) -> list[State]:
        """The inactive states of an operation, as entered."""
        found = list(self.executor.get_inactive_states(operation_id))
        return [m.state for m, past in sorted(found, key=lambda pair: (pair[1].created_at, pair[1].step))]

    def history(self, operation_id: str) -> list[Any]:
        """What a new subscriber is told."""
        with self.executor.notifier.subscribe(operation_id, timeout=0) as updates:
            return list(updates)

    def explained(self, operation_id: str) -> Any:
        """The one active machine of an operation, explained."""
        (machine,) = self.executor.explain(operation_id).active
        return machine

    def placed(self, operation_id: str, state: State, module: str | None = None) -> Placed:
        """The record of a state."""
        return self.instances.place(StateMachine(operation_id, state, module))

    def stored(self, operation_id: str, state: State, module: str | None = None) -> Machine:
        """What a record is armed with."""
        record = self.placed(operation_id, state, module).record
        return Machine.parse(self.redis.get(self.keys(operation_id).machine(record)))

    def data(self, module: str, key: str) -> bytes | None:
        """A string that handlers have written."""
        return self.redis.get(self.keys().data(module, key))

    def listed(self, module: str, key: str) -> list[bytes]:
        """A list that handlers have written."""
        return self.redis.lrange(self.keys().data(module, key), 0, -1)

    def everything(self) -> dict[bytes, bytes]:
        """All keys of the namespace with their content, for "nothing was written"; short-lived flags left out."""
        keys = self.keys()
        passing = {name.encode() for name in (keys.hint, keys.meta, keys.watch, keys.roused, keys.workers)}
        found = self.redis.scan_iter(match=f"{{{self.namespace}.*", count=1000)
        return {key: self.redis.dump(key) for key in sorted(found) if key not in passing}

    # --- trouble -------------------------------------------------------------------------------------------------

    @contextmanager
    def before_commits(self, meddle: Callable[[RoundTrip], object]) -> Generator[None]:
        """Call ``meddle`` before each EXEC of this process that writes something: between look and commit."""

        def hook(request: RoundTrip) -> None:
            if commits(request):
                meddle(request)

        with self.around_trips(before=hook):
            yield

    @contextmanager
    def before_moves(self, act: Callable[[], object], times: int = 1) -> Generator[None]:
        """Act right before each of the next commits that write to a machine; ``times`` of them have to come."""
        acted = 0

        def hook(request: RoundTrip) -> None:
            nonlocal acted
            if acted < times and commits(request) and not (isinstance(request, Commit) and len(request.commands) <= 2):
                acted += 1
                act()

        with self.around_trips(before=hook):
            yield
        assert acted == times

    @contextmanager
    def around_trips(
        self,
        before: Callable[[RoundTrip], object] = lambda _: None,
        after: Callable[[RoundTrip], object] = lambda _: None,
    ) -> Generator[None]:
        """Call hooks before a request is sent, and after it was answered; they may raise ``Crash`` or ``LostReply``."""
        driver: Any = self.driver
        trip = driver._trip

        def hooked(connection: Any, request: RoundTrip) -> Any:
            try:
                before(request)
                reply = trip(connection, request)
                after(request)
            except LostReply as lost:
                connection.disconnect()
                return lost
            return reply

        driver._trip = hooked
        try:
            yield
        finally:
            driver._trip = trip


Play = Callable[..., Local]


@pytest.fixture
def play(server: EmbeddedServer, namespace: str) -> Play:
    """Make a process of this test's namespace: ``play(m=module, n=another)``; call it again for a second process."""

    def make(
        *, shards: int = 1, global_context: Any = None, contexts: Any = None, url: str | None = None,
        durability: str | None = None, **modules: Any,
    ) -> Local:  # fmt: skip
        return Local(
            url or server.url, namespace, modules, shards=shards, global_context=global_context, contexts=contexts,
            durability=durability,
        )  # fmt: skip

    return make


def machines(operation_id: str, *states: State, module: str | None = None) -> list[StateMachine]:
    """Machines of one operation."""
    return [StateMachine(operation_id, state, module) for state in states]

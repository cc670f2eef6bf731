"""An executor and its worker in the test's own process: no Celery worker, no broker, each step when the test says so.

What a worker's pump and pool do is done by ``drive``; what would be sent to the broker is kept in ``sent``. Crashes,
conflicts and lost replies are played by hooks around the driver's round trips.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import redis
from celery import Celery

from smqueue import Executor, Module, State, StateMachine
from smqueue.deployment import Deployment, Settings
from smqueue.embedded import EmbeddedServer
from smqueue.instances import Instance, Instances
from smqueue.keys import Keys
from smqueue.protocols.claim import Armed
from smqueue.records import Active, Machine, Placed
from smqueue.roundtrip import Commit, LostReply, RoundTrip
from smqueue.worker.code import run_trigger
from smqueue.worker.engine import Engine
from smqueue.worker.install import install
from tests.waiting import wait_until


class Crash(BaseException):
    """The process is killed here: nothing of the code under test may catch it."""


@dataclass
class Sent:
    """What the engine has sent; a broker that is ``down`` takes no task."""

    hints: list[tuple[str, int]] = field(default_factory=list)
    triggers: list[Armed] = field(default_factory=list)
    tasks: list[tuple[str, list[Any], dict[str, Any], str, dict[str, Any]]] = field(default_factory=list)
    down: bool = False

    def hint(self, namespace: str, shard: int) -> None:
        self.hints.append((namespace, shard))

    def trigger(self, armed: Armed) -> None:
        self.triggers.append(armed)

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
    """

    def __init__(
        self, url: str, namespace: str, modules: Mapping[str, Module[Any]], *, shards: int = 1,
        global_context: Callable[[str, str], Any] | None = None, contexts: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.namespace, self.sent = namespace, Sent()
        instances = Instances(global_context, shards)
        for id, module in modules.items():
            instances.register(Instance(id, module, (contexts or {}).get(id), "here"))
        deployment = Deployment(lambda: Settings(url, namespace, shards))
        self.executor = Executor(deployment, lambda: instances, self.sent)
        self.app = Celery(f"inprocess-{namespace}", broker="memory://", set_as_current=False)
        self.engine = Engine(self.app, self.executor, cast("Any", self.sent))
        install(self.app, self.engine)
        self.instances = self.engine.instances
        self.redis: redis.Redis = redis.Redis.from_url(url, socket_timeout=10)

    # --- the worker ----------------------------------------------------------------------------------------------

    def drain(self, shard: int = 0) -> int:
        """What one ``smqueue.transition`` task does; returns how many machines moved."""
        return self.engine.drain(shard)

    def run(self, armed: Armed) -> str:
        """What one ``smqueue.trigger`` task does."""
        return run_trigger(self.engine, self.keys(armed.machine.op), armed.entry, armed.kind)

    def step(self) -> None:
        """Drain each shard, then run what code was sent."""
        for keys in self.executor.deployment.all_keys():
            self.drain(keys.shard)
        while self.sent.triggers:
            self.run(self.sent.triggers.pop(0))

    def drive(
        self,
        until: Callable[[], Any] | None = None,
        description: str = "the machines have moved",
        timeout_s: float = 20,
    ) -> None:
        """Work until ``until`` says something true; without it, until nothing is due now."""

        def done() -> Any:
            self.step()
            return not self.due() if until is None else until()

        wait_until(done, description, timeout_s)

    def due(self) -> list[str]:
        """Entries of all schedules that are due now."""
        found: list[str] = []
        for keys in self.executor.deployment.all_keys():
            seconds, us = cast("tuple[int, int]", self.redis.time())
            raw = cast("list[bytes]", self.redis.zrangebyscore(keys.schedule, "-inf", seconds * 1000 + us // 1000))
            found += [entry.decode() for entry in raw]
        return found

    def due_in_order(self, *machines: StateMachine) -> None:
        """Make the races of these machines due, so that one drain claims them in this order."""
        for n, machine in enumerate(machines):
            keys, record = self.keys(machine.operation_id), self.instances.place(machine).record
            found = Machine.parse(cast("bytes", self.redis.get(keys.machine(record))))
            self.redis.zadd(keys.schedule, {found.entry: n})

    def expire_leases(self) -> None:
        """As if the leases of dead workers had run out: all that was claimed or sent is due at once."""
        for keys in self.executor.deployment.all_keys():
            for entry in cast("list[bytes]", self.redis.zrange(keys.schedule, 0, -1)):
                self.redis.zadd(keys.schedule, {entry: 0}, xx=True)

    def requests_due(self) -> None:
        """As if the makers of all requests had had their time: anyone may do them now."""
        for keys in self.executor.deployment.all_keys():
            for raw in cast("list[bytes]", self.redis.lrange(keys.requests, 0, -1)):
                self.redis.lrem(keys.requests, 1, cast("str", raw))
                self.redis.rpush(keys.requests, json.dumps({**json.loads(raw), "due": 0}))
                self.redis.zadd(keys.schedule, {"~requests": 0})

    # --- looking -------------------------------------------------------------------------------------------------

    def keys(self, operation_id: str = "") -> Keys:
        """The keys of an operation's shard."""
        return self.executor.deployment.keys(operation_id)

    def active(self, operation_id: str) -> list[State]:
        """The active states of an operation."""
        return [machine.state for machine, _ in self.executor.get_active_states(operation_id)]

    def inactive(self, operation_id: str) -> list[State]:
        """The inactive states of an operation, as entered."""
        found = list(self.executor.get_inactive_states(operation_id))
        return [m.state for m, past in sorted(found, key=lambda pair: (pair[1].created_at, pair[1].step))]

    def data(self, module: str, key: str) -> bytes | None:
        """A string that handlers have written."""
        return cast("bytes | None", self.redis.get(self.keys().data(module, key)))

    def everything(self) -> dict[bytes, bytes]:
        """All keys of the namespace with their content, for "nothing was written"; short-lived flags left out."""
        passing = {self.keys().hint.encode(), self.keys().meta.encode()}
        found = cast("Iterator[bytes]", self.redis.scan_iter(match=f"{{{self.namespace}.*", count=1000))
        return {key: cast("bytes", self.redis.dump(key)) for key in sorted(found) if key not in passing}

    # --- trouble -------------------------------------------------------------------------------------------------

    @contextmanager
    def before_commits(self, meddle: Callable[[Commit], object]) -> Generator[None]:
        """Call ``meddle`` before each EXEC of this process that writes something: between look and commit."""

        def hook(request: RoundTrip) -> None:
            if isinstance(request, Commit) and request.commands:
                meddle(request)

        with self.around_trips(before=hook):
            yield

    @contextmanager
    def around_trips(
        self,
        before: Callable[[RoundTrip], object] = lambda _: None,
        after: Callable[[RoundTrip], object] = lambda _: None,
    ) -> Generator[None]:
        """Call hooks before a request is sent, and after it was answered; they may raise ``Crash`` or ``LostReply``."""
        driver: Any = self.executor.deployment.driver
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
        *, shards: int = 1, global_context: Any = None, contexts: Any = None, url: str | None = None, **modules: Any
    ) -> Local:
        return Local(
            url or server.url, namespace, modules, shards=shards, global_context=global_context, contexts=contexts
        )

    return make


def machines(operation_id: str, *states: State, module: str | None = None) -> list[StateMachine]:
    """Machines of one operation."""
    return [StateMachine(operation_id, state, module) for state in states]

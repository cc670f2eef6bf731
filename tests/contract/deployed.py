"""The deployments that the contract is tested on: each a server for the state, a broker, and one real worker."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from celery import Celery

from smqueue import Client, Executor, State, StateMachine
from smqueue.embedded import EmbeddedServer
from smqueue.testing import LocalExecutor
from tests.apps.wiring import environment
from tests.brokers import RABBIT_SCRIPTS, rabbit_server, redis_server
from tests.contract.app import CONTEXTS, INSTANCES, built, shared
from tests.contract.machines import go, ping
from tests.deployments import ValkeyCluster
from tests.waiting import wait_until
from tests.workers import Worker, running

T = TypeVar("T")
WAIT_S = 30
"""How long a test waits for what has to come, in seconds."""


@dataclass
class Deployed:
    """One deployment with its worker, as a producer sees it.

    Attributes:
        backend: Its name.
        executor: With all modules of tests/contract/machines.py.
        namespace: All tests of a run share it.
        url: Of the state; ``None`` in memory.
        app: The producer's Celery application; ``None`` in memory.
    """

    backend: str
    executor: Executor
    namespace: str
    url: str | None = None
    app: Celery | None = None

    def add(self, operation_id: str, *states: State, module: str | None = None) -> list[str]:
        """Start machines; returns their ids."""
        return [*self.executor.add_state_machines([StateMachine(operation_id, one, module) for one in states])]

    def enters(self, operation_id: str, state: State, module: str | None = None) -> None:
        """Wait until a machine has entered this state."""
        self.executor.await_active_state(StateMachine(operation_id, state, module), WAIT_S)

    def ends(self, operation_id: str) -> list[State]:
        """Wait until an operation has finished; returns its terminal states."""
        self.executor.await_operation(operation_id, WAIT_S)
        past = self.executor.get_inactive_states(operation_id)
        return sorted((machine.state for machine, found in past if found.terminal), key=repr)

    def active(self, operation_id: str) -> list[State]:
        """Its active states."""
        return sorted((machine.state for machine, _ in self.executor.get_active_states(operation_id)), key=repr)

    def status(self, operation_id: str) -> str:
        """Of its only active machine."""
        (machine,) = self.executor.explain(operation_id).active
        return machine.status

    def until(self, predicate: Callable[[], T], description: str) -> T:
        """Wait until something is true that nothing else waits for."""
        return wait_until(predicate, description, WAIT_S)

    def read(self, module: str, key: str) -> str | None:
        """What a handler has written."""
        return self.executor.autocommit(lambda tx: tx.get(key), module=module)

    def pass_time(self) -> None:
        """What comes from here on is later than what was; where time does not pass by itself, let it."""

    def client(self) -> Client:
        """A client of the namespace."""
        assert self.url is not None
        return Client(self.url, self.namespace)


class InMemory(Deployed):
    """``LocalExecutor``: its machines run while somebody waits, in virtual time."""

    def __init__(self) -> None:
        self.local = LocalExecutor(INSTANCES, contexts=CONTEXTS, global_context=shared)
        self._told = 0
        super().__init__("memory", self.local, "smqueue")

    def ends(self, operation_id: str) -> list[State]:
        """Wait until an operation has finished; before that, do what a worker does with the tasks of handlers."""
        self.local.run_until_idle()
        sent = self.local.sent_tasks
        for one in sent[self._told :]:
            if one.name == ping.name:
                self.executor.signal(str(one.args[0]), go, "end pinged")
        self._told = len(sent)
        return super().ends(operation_id)

    def pass_time(self) -> None:
        """By a millisecond."""
        self.local.advance(milliseconds=1)

    def until(self, predicate: Callable[[], T], description: str) -> T:
        """Let time pass until something is true."""
        for _ in range(1_000):
            if answer := predicate():
                return answer
            self.local.advance(milliseconds=30)
        raise AssertionError(f"in vain: {description}")


@contextmanager
def _valkey(directory: Path) -> Generator[tuple[str, str]]:
    with EmbeddedServer() as server:
        yield server.url, server.broker_url


@contextmanager
def _redis(directory: Path) -> Generator[tuple[str, str]]:
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("there is no redis-server on the PATH")
    with redis_server(binary, directory) as url:
        yield f"{url}/0", f"{url}/1"


@contextmanager
def _cluster(directory: Path) -> Generator[tuple[str, str]]:
    with ValkeyCluster() as cluster, EmbeddedServer() as messages:  # kombu knows no clusters
        yield cluster.url, messages.broker_url


@contextmanager
def _rabbitmq(directory: Path) -> Generator[tuple[str, str]]:
    if not (RABBIT_SCRIPTS / "rabbitmq-server").exists():
        pytest.skip(f"there is no RabbitMQ in {RABBIT_SCRIPTS}: on Debian, apt-get install rabbitmq-server")
    with EmbeddedServer() as server, rabbit_server(directory) as broker:
        yield server.url, broker


SERVERS: dict[str, Callable[[Path], AbstractContextManager[tuple[str, str]]]] = {
    "valkey": _valkey,
    "redis": _redis,
    "cluster": _cluster,
    "rabbitmq": _rabbitmq,
}
"""By backend: what starts it, and yields the URLs of the state and of the broker."""
BACKENDS = (*SERVERS, "memory")


def _told(backend: str, url: str, broker: str, namespace: str) -> Deployed:
    app: Any = Celery(f"producer-{namespace}", broker=broker, set_as_current=False)
    app.conf.update(task_default_queue=namespace, task_ignore_result=True)
    return Deployed(backend, built(app, url, namespace), namespace, url, app)


@contextmanager
def _locked(path: Path, kind: int) -> Generator[None]:
    with path.open("ab") as file:
        fcntl.flock(file, kind)
        yield


class Deployments:
    """The deployments of one run, which may have several processes: whoever needs one first starts it for all.

    Args:
        directory: One for all processes of the run.
    """

    def __init__(self, directory: Path) -> None:
        self._directory, self._open = directory, ExitStack()

    def get(self, backend: str) -> Deployed:
        """Start a deployment and its worker (one process, four threads), or find it."""
        if backend == "memory":
            return InMemory()
        told = self._directory / f"{backend}.json"
        with _locked(self._directory / f"{backend}.lock", fcntl.LOCK_EX):
            if not told.exists():
                self._start(backend, told)
            found = json.loads(told.read_text())
            self._open.enter_context(_locked(self._users(found["namespace"]), fcntl.LOCK_SH))
        return _told(backend, **found)

    def close(self) -> None:
        """Give back all that this process uses; what it has started ends when the others have given it back, too."""
        self._open.close()

    def _start(self, backend: str, told: Path) -> None:
        namespace = f"contract-{os.urandom(4).hex()}"
        directory = self._directory / namespace
        directory.mkdir()
        url, broker = self._open.enter_context(SERVERS[backend](directory))
        worker = Worker("tests.contract.app", environment(url, broker, namespace), ["--pool", "threads", "-c", "4"])
        self._open.enter_context(running(worker))
        worker.wait_ready()
        self._open.callback(self._wait_unused, namespace)
        self._open.callback(told.unlink)
        told.write_text(json.dumps({"url": url, "broker": broker, "namespace": namespace}))

    def _wait_unused(self, namespace: str) -> None:
        with _locked(self._users(namespace), fcntl.LOCK_EX):
            pass

    def _users(self, namespace: str) -> Path:
        return self._directory / f"{namespace}.users"

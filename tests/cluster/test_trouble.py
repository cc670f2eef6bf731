"""Clusters in trouble: a worker killed, the broker restarted empty, all workers replaced, two releases side by side.

State is in a Redis of its own, beside the broker's. The machines run laps all the while; at the end each must have
finished, with every lap run once.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import redis
from pytest_celery import (
    CeleryTestSetup,
    CeleryTestWorker,
    CeleryWorkerCluster,
    CeleryWorkerContainer,
    RedisTestBackend,
    RedisTestBroker,
)

from smqueue import Executor
from smqueue.keys import Keys
from tests.cluster import laps
from tests.cluster.conftest import NAMESPACE, worker_container
from tests.waiting import wait_until

MACHINES = 12
SLOW_S = 60  # a limit for what usually takes a second or two


@pytest.fixture
def default_worker_app_module() -> ModuleType:
    """The workers run tests/cluster/laps.py."""
    return laps


@pytest.fixture
def default_worker_env(default_worker_env: dict[str, str], celery_redis_backend: RedisTestBackend) -> dict[str, str]:
    """State goes to a server of its own."""
    return default_worker_env | {"SMQUEUE_URL": celery_redis_backend.config()["url"]}


@pytest.fixture
def state_url(celery_redis_backend: RedisTestBackend) -> str:
    url: str = celery_redis_backend.config()["host_url"]
    return url


@pytest.fixture
def executor(celery_setup: CeleryTestSetup, state_url: str) -> Executor:
    """The test's end, of the first release, beside workers that are ready."""
    return laps.build(celery_setup.app, laps.FIRST, state_url, NAMESPACE)


@pytest.fixture
def workers(celery_setup: CeleryTestSetup) -> list[CeleryTestWorker]:
    """The two workers."""
    cluster = celery_setup.worker_cluster
    assert cluster is not None
    found = [node for node in cluster if isinstance(node, CeleryTestWorker)]
    assert len(found) == 2
    return found


def start(executor: Executor, release: laps.Release, prefix: str, group: str) -> list[str]:
    """Start machines, each in an operation of its own; returns the operations."""
    ops = [f"{prefix}{n}" for n in range(MACHINES)]
    executor.add_state_machines(release.machine(op, group) for op in ops)
    return ops


def steps(executor: Executor, ops: list[str]) -> list[int]:
    """How many steps each operation's machine has made; none for one that has ended."""
    return [sum(active.step for _, active in executor.get_active_states(op)) for op in ops]


def all_go_on(executor: Executor, ops: list[str]) -> None:
    """Wait until each of these machines has moved on from where it is now."""
    before = steps(executor, ops)

    def moved() -> bool:
        return all(now > then for now, then in zip(steps(executor, ops), before, strict=True))

    wait_until(moved, "each machine to go on", timeout_s=SLOW_S)


def worked(executor: Executor) -> dict[str, int]:
    """How many laps each worker has run, by its name."""
    return {
        name: int(n) for name, n in executor.autocommit(lambda tx: tx.hgetall("worked"), module=laps.MODULE).items()
    }


def works_again(executor: Executor, worker: CeleryTestWorker) -> None:
    """Wait until this worker runs laps, after what it has run so far."""
    name, before = worker.hostname(), worked(executor).get(worker.hostname(), 0)
    wait_until(lambda: worked(executor).get(name, 0) > before, f"{name} to work", timeout_s=SLOW_S)


def stop(executor: Executor, ops: list[str], group: str) -> int:
    """Let machines finish; returns how many laps they have run, as they have counted themselves."""
    executor.autocommit(lambda tx: tx.set(f"stop {group}", "1"), module=laps.MODULE)
    run = 0
    for op in ops:
        executor.await_operation(op, timeout=SLOW_S)
        states = [machine.state for machine, found in executor.get_inactive_states(op) if found.terminal]
        (done,) = states
        run += done.lap  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
        at = [(update.step, update.machine_id) for update in history(executor, op)]
        assert at == [(n + 1, at[0][1]) for n in range(len(at))], "one machine, step by step"
    return run


def history(executor: Executor, op: str) -> list[Any]:
    with executor.notifier.subscribe(op, timeout=0) as updates:
        return list(updates)


def counted(executor: Executor) -> int:
    """How many laps were run, as their transitions have counted them."""
    return int(executor.autocommit(lambda tx: tx.get("laps"), module=laps.MODULE) or 0)


def set_aside(state_url: str) -> int:
    with redis.Redis.from_url(state_url) as client:
        return int(client.hlen(Keys(NAMESPACE).quarantine))  # type: ignore[arg-type]


def ended(worker: CeleryTestWorker) -> bool:
    worker.container.reload()
    return bool(worker.container.status == "exited")


# --- the tests -------------------------------------------------------------------------------------------------------


def test_a_worker_is_killed_under_load(executor: Executor, workers: list[CeleryTestWorker], state_url: str) -> None:
    """One of two workers is killed: what it held goes on with the other, every lap is run once, and when it is back it
    takes its share. (semantics 5)"""
    first, second = workers
    ops = start(executor, laps.FIRST, "op", "load")
    for worker in workers:
        works_again(executor, worker)
    first.kill()
    all_go_on(executor, ops)
    works_again(executor, second)
    first.restart()
    works_again(executor, first)
    assert stop(executor, ops, "load") == counted(executor)
    assert set_aside(state_url) == 0


def test_the_broker_restarts_empty(
    executor: Executor, workers: list[CeleryTestWorker], celery_broker: RedisTestBroker, state_url: str
) -> None:
    """The broker is killed and comes back without any of its messages: every machine goes on, every lap is run once,
    and no worker has ended. (semantics 5)"""
    ops = start(executor, laps.FIRST, "op", "load")
    for worker in workers:
        works_again(executor, worker)
    celery_broker.kill()
    celery_broker.restart()
    all_go_on(executor, ops)
    for worker in workers:
        works_again(executor, worker)
        assert not ended(worker)
    assert stop(executor, ops, "load") == counted(executor)
    assert set_aside(state_url) == 0


def test_all_workers_are_replaced_under_load(
    executor: Executor, workers: list[CeleryTestWorker], request: pytest.FixtureRequest, state_url: str
) -> None:
    """A rolling restart: a third worker comes, then one by one each ends in order and comes back, while every machine
    goes on; every lap is run once. (semantics 5)"""
    ops = start(executor, laps.FIRST, "op", "load")
    third: CeleryTestWorker = request.getfixturevalue("third_worker")
    for worker in (*workers, third):
        works_again(executor, worker)
    for worker in (*workers, third):
        worker.kill("SIGTERM")
        wait_until(lambda worker=worker: ended(worker), f"{worker.hostname()} to end", timeout_s=SLOW_S)
        all_go_on(executor, ops)
        worker.restart()
        works_again(executor, worker)
    assert stop(executor, ops, "load") == counted(executor)
    assert set_aside(state_url) == 0


# --- two releases ----------------------------------------------------------------------------------------------------


@pytest.fixture
def new_worker_env(default_worker_env: dict[str, str]) -> dict[str, str]:
    return default_worker_env | {"LAPS_RELEASE": "2"}


new_worker_container = worker_container("new_worker_env")


class TestTwoReleases:
    """A worker of the previous version beside a new one."""

    @pytest.fixture
    def celery_worker_cluster(self, celery_worker: CeleryTestWorker) -> Any:
        """One worker, of the first release."""
        cluster = CeleryWorkerCluster(celery_worker)
        yield cluster
        cluster.teardown()

    def test_of_a_module(
        self,
        celery_setup: CeleryTestSetup,
        celery_worker: CeleryTestWorker,
        executor: Executor,
        state_url: str,
        request: pytest.FixtureRequest,
    ) -> None:
        """Machines of the first release run on its worker; those of the second, whose states it does not know, are left
        due, and not set aside. A worker of the second takes both, also those that the first has begun; when the first
        has gone all of them finish, every lap run once. (semantics 32)"""
        newer = laps.build(celery_setup.app, laps.SECOND, state_url, NAMESPACE)
        early = start(executor, laps.FIRST, "early", "early")
        old = start(executor, laps.FIRST, "old", "load")
        new = start(newer, laps.SECOND, "new", "load")
        all_go_on(executor, old)
        run = stop(executor, early, "early")
        wait_until(lambda: "left for another worker" in celery_worker.logs(), "the old one to say so", timeout_s=SLOW_S)
        assert steps(newer, new) == [1] * MACHINES
        assert set(worked(executor)) == {celery_worker.hostname()}

        container: CeleryWorkerContainer = request.getfixturevalue("new_worker_container")
        new_worker = CeleryTestWorker(container, app=celery_setup.app)
        works_again(newer, new_worker)
        all_go_on(newer, new)
        all_go_on(newer, old)
        assert set(worked(newer)) == {celery_worker.hostname(), new_worker.hostname()}
        celery_worker.kill("SIGTERM")
        wait_until(lambda: ended(celery_worker), "the old one to end", timeout_s=SLOW_S)
        all_go_on(newer, [*old, *new])
        run += stop(newer, [*old, *new], "load")
        assert run == counted(newer)
        assert set_aside(state_url) == 0

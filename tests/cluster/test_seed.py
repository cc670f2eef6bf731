"""The seed's own test, the path that it leaves untested, and a worker that joins: on real workers in a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType

import pytest
import redis
from pytest_celery import CeleryTestSetup, CeleryTestWorker

from smqueue import Executor, State, StateMachine
from smqueue.errors import StateAlreadyExists, UnknownModule
from tests.cluster import machines
from tests.cluster.conftest import NAMESPACE
from tests.waiting import wait_until

UNREGISTERED = "21"
JOIN_S = 5


@pytest.fixture
def default_worker_app_module() -> ModuleType:
    """The workers run tests/cluster/machines.py."""
    return machines


@pytest.fixture
def executor(celery_setup: CeleryTestSetup, redis_url: str) -> Executor:
    """The test's end, beside two workers that are ready."""
    assert celery_setup.worker_cluster is not None
    assert len(celery_setup.worker_cluster) == 2
    return machines.build(celery_setup.app, redis_url, NAMESPACE)


@pytest.fixture
def redis_client(redis_url: str) -> Iterator[redis.Redis]:
    """A client of the test's own Redis."""
    with redis.Redis.from_url(redis_url, socket_timeout=10) as client:
        yield client


@dataclass(frozen=True)
class Seed:
    """One way of building the seed's machine.

    Attributes:
        module: The id of its instance.
        start, received, final: Its states.
        heard: What reaches the handler of ``ReceivedNonNull`` when 3 and 5 are sent.
        send: Broadcasts a number to an operation's machine, which waits for it.
    """

    module: str
    start: State
    received: Callable[[int], State]
    final: State
    heard: set[str]
    send: Callable[[Executor, redis.Redis, str, int], None]

    def machine(self, operation_id: str, state: State) -> StateMachine:
        return StateMachine(operation_id, state, self.module)


def signal(executor: Executor, client: redis.Redis, operation_id: str, value: int) -> None:
    executor.signal(operation_id, machines.broadcast, value)


def publish(executor: Executor, client: redis.Redis, operation_id: str, value: int) -> None:
    """Publish once a worker listens for the machine: an earlier message is missed, as with any pub/sub."""
    wait_until(lambda: all_listen(executor, operation_id), "all triggers are subscribed")
    client.publish(machines.CHANNEL, value)


def all_listen(executor: Executor, operation_id: str) -> bool:
    active = executor.explain(operation_id).active
    return bool(active) and all(trigger.running for machine in active for trigger in machine.triggers)


SEEDS = [
    Seed(machines.BY_SIGNAL, machines.Start(), machines.ReceivedNonNull, machines.Final(), {"3", "5"}, signal),
    Seed(machines.BY_CHANNEL, machines.Listening(), machines.HeardNonNull, machines.Silent(), {"5"}, publish),
]


@pytest.mark.parametrize("seed", SEEDS, ids=["signal", "channel"])
def test_the_seeds_own_test_and_its_untested_path(executor: Executor, redis_client: redis.Redis, seed: Seed) -> None:
    """A second add is an error, instances are separate, 0 ends it; and 5, then 3, which does nothing, then 5."""
    executor.add_state_machines([seed.machine("own", seed.start)])
    with pytest.raises(StateAlreadyExists):
        executor.add_state_machines([seed.machine("own", seed.start)])
    assert executor.contains_active_state(seed.machine("own", seed.start))
    other = StateMachine("own", seed.start, UNREGISTERED)
    assert not executor.contains_active_state(other)
    with pytest.raises(UnknownModule):
        executor.add_state_machines([other])
    seed.send(executor, redis_client, "own", 0)
    executor.await_inactive_state(seed.machine("own", seed.final), timeout=20)
    assert executor.contains_inactive_state(seed.machine("own", seed.final))
    assert path(executor, "own") == [seed.start, seed.final]

    executor.add_state_machines([seed.machine("untested", seed.start)])
    seed.send(executor, redis_client, "untested", 5)
    executor.await_active_state(seed.machine("untested", seed.received(5)), timeout=20)
    # One connection, in order: if 5 has arrived, so has 3 before it.
    seed.send(executor, redis_client, "untested", 3)
    seed.send(executor, redis_client, "untested", 5)
    executor.await_inactive_state(seed.machine("untested", seed.final), timeout=20)
    assert path(executor, "untested") == [seed.start, seed.received(5), seed.final]
    assert executor.autocommit(lambda tx: tx.smembers("heard"), module=seed.module) == seed.heard


def path(executor: Executor, operation_id: str) -> list[State | None]:
    """The states of a finished operation, in order, as a subscriber is told."""
    states: list[State | None] = []
    with executor.notifier.subscribe(operation_id, timeout=20) as updates:
        for update in updates:
            states.append(update.state)
            if update.terminal:
                break
    return states


def test_a_third_worker_takes_work_within_5_s(
    executor: Executor, redis_client: redis.Redis, request: pytest.FixtureRequest
) -> None:
    """While two workers are loaded, a third starts, and applies a transition within 5 s of being ready."""
    executor.add_state_machines(StateMachine("load", machines.Busy(number), machines.LOAD) for number in range(40))
    wait_until(lambda: len(worked(executor)) == 2, "both workers work")
    before = machines.seconds(redis_client)

    third: CeleryTestWorker = request.getfixturevalue("third_worker")
    name = third.hostname()
    wait_until(lambda: name in worked(executor), "the third works")
    joined = machines.seconds(redis_client)
    ready = float(redis_client.hget(machines.READY, name) or 0)
    assert before < ready
    assert joined - ready < JOIN_S

    executor.autocommit(lambda tx: tx.set("stop", "1"), module=machines.LOAD)
    executor.await_operation("load", timeout=30)


def worked(executor: Executor) -> dict[str, str]:
    """How many transitions each worker has applied, by its name."""
    return executor.autocommit(lambda tx: tx.hgetall("worked"), module=machines.LOAD)

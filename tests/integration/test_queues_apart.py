"""A queue of transitions alone: consumed by a plain worker, and without acknowledgements."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis
from celery import Celery

from smqueue import ExecutorBuilder, StateMachine
from smqueue.embedded import EmbeddedServer
from tests.contract.machines import Here, go, walk
from tests.monitor import monitoring
from tests.workers import Worker, running

QUEUE = "transitions"


@pytest.fixture
def server() -> Iterator[EmbeddedServer]:
    with EmbeddedServer() as server:
        yield server


def test_hints_to_transitions_alone_are_not_acknowledged(server: EmbeddedServer) -> None:
    """With SMQUEUE_TRANSITION_QUEUE set a plain worker of the default application consumes that queue too, and nothing
    is noted as unacknowledged before a handler runs: two round trips less. What it was about is in the schedule."""
    env = {"SMQUEUE_URL": server.url, "SMQUEUE_TRANSITION_QUEUE": QUEUE, "SMQUEUE_NAMESPACE": "apart"}
    env |= {"SMQUEUE_MODULES": "walk=tests.contract.machines:walk", "CELERY_BROKER_URL": server.broker_url}
    app = Celery("apart", broker=server.broker_url, set_as_current=False)
    app.conf.smqueue_transition_queue = QUEUE
    executor = ExecutorBuilder().with_module("walk", walk).build(app, url=server.url, namespace="apart")
    worker = Worker("workers", env, ["--pool", "solo", "--without-heartbeat"])
    with running(worker), redis.Redis.from_url(server.url) as client:
        worker.wait_ready()
        with monitoring(client) as monitor:
            for n in range(3):
                executor.add_state_machines([StateMachine(f"op{n}", Here(str(n)))])
                executor.signal(f"op{n}", go, "end x")
                executor.await_operation(f"op{n}", 30)
            asked: list[tuple[Any, ...]] = [one.args for one in monitor.asked]
    assert any(args[0].upper() == b"BRPOP" and QUEUE.encode() in args for args in asked)
    assert not [args for args in asked if b"unacked" in b" ".join(args) and args[0].upper() in {b"HSET", b"ZADD"}]

"""What is in the broker's queues: hints for what is due now, and nothing that waits there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
import redis
from celery import Celery
from kombu.messaging import Producer

from smqueue import ExecutorBuilder, StateMachine
from smqueue.embedded import EmbeddedServer
from smqueue.protocols.claim import claim
from tests.apps import parked, shop
from tests.monitor import monitoring
from tests.shopping import Shop
from tests.waiting import wait_until
from tests.workers import running

PARKED = 10_000
SECONDS = 3.0


@pytest.fixture
def own_server() -> Iterator[EmbeddedServer]:
    """A server of this test alone: all that is asked of it, and all keys of its broker, are the test's."""
    with EmbeddedServer() as server:
        yield server


@pytest.fixture
def world(own_server: EmbeddedServer, tmp_path: Path) -> Shop:
    return Shop(own_server.url, own_server.broker_url, "messages", tmp_path)


@pytest.fixture
def broker(own_server: EmbeddedServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(own_server.url.replace("db=0", "db=1")) as client:
        yield client


def queued(broker: redis.Redis) -> list[bytes]:
    """The keys of the broker that hold messages: queues, and what is taken and not acknowledged."""
    return [key for key in cast("list[bytes]", broker.keys()) if not key.startswith(b"_kombu.binding")]


def waits(message: dict[str, Any]) -> bool:
    """Whether a worker would have to keep the message until some time."""
    headers = message["headers"]
    return headers["eta"] is not None or "countdown" in headers or "x-delay" in headers


def test_parked_machines_have_no_messages(world: Shop, broker: redis.Redis) -> None:
    """With 10,000 machines parked on ``signal``, ``after`` and ``at`` every queue is empty, and none of the messages
    that were ever put into one has been about them."""
    app = Celery("parking", broker=world.broker, set_as_current=False)
    app.conf.update(task_default_queue=world.namespace)
    builder = ExecutorBuilder().with_module("parked", parked.parked)
    executor = builder.build(app, url=world.url, namespace=world.namespace)
    with running(worker := world.worker("-c", "2", app="tests.apps.parked")), monitoring(world.redis) as monitor:
        executor.add_state_machines([StateMachine(f"op{n}", parked.Parked(n)) for n in range(PARKED // 2)])
        assert queued(broker) == [], "before there is a worker"
        worker.wait_ready()
        executor.add_state_machines([StateMachine(f"op{n}", parked.Parked(n)) for n in range(PARKED // 2, PARKED)])
        assert not monitor.messages
        soon = datetime.now(UTC) + timedelta(milliseconds=500)
        executor.add_state_machines(
            [StateMachine("told", parked.Parked(0)), StateMachine("soon", parked.Parked(0, until=soon))]
        )
        executor.signal("told", parked.leave)
        for op in ("told", "soon"):
            executor.await_operation(op, 30)
        wait_until(lambda: queued(broker) == [], "what the two needed is done")
        assert sum(1 for _ in executor.get_active_operations()) == PARKED
        assert {message["headers"]["task"] for message in monitor.messages} == {"smqueue.transition"}
        assert len(monitor.messages) < 10
        assert not any(map(waits, monitor.messages))


def test_queued_messages_are_for_now(world: Shop, broker: redis.Redis) -> None:
    """All messages that are queued for all kinds of trigger, read while no worker takes them: none has an ``eta``, and
    they hold ids alone."""
    states = (
        shop.Polling(3), shop.Calling(2), shop.Tasking(4), shop.Hosting(100), shop.Listening("room"), shop.Instant(3),
        shop.Watching("Polling"), shop.Joining("Calling"), shop.Awaiting("secret", 3), shop.Breaking("secret"),
    )  # fmt: skip
    for state in states:
        world.add(type(state).__name__, state)
    (engine,) = cast("Any", world.app).smqueue_engines
    engine.drain(0)  # what a worker would do with the hint; what it sends for triggers is not taken by anyone
    messages = [json.loads(raw) for raw in cast("list[bytes]", broker.lrange(world.namespace, 0, -1))]
    assert queued(broker) == [world.namespace.encode()]
    assert not any(map(waits, messages))
    shown = {(m["headers"]["task"], m["headers"]["shadow"], m["headers"]["argsrepr"].split("'")[1]) for m in messages}
    assert shown == {
        ("smqueue.transition", None, world.namespace),
        ("smqueue.trigger", "kinds.Polling/polled", "Polling"),
        ("smqueue.trigger", "kinds.Calling/called", "Calling"),
        ("smqueue.trigger", "kinds.Tasking/added_up", "Tasking"),
        ("shop.note", None, "secret"),  # the one that the handler has asked to send
    }
    ours = [m for m in messages if m["headers"]["task"].startswith("smqueue.")]
    assert b"secret" not in json.dumps(ours).encode()


def test_no_message_of_a_run_has_an_eta(world: Shop, broker: redis.Redis) -> None:
    """Of the messages of a whole run, with polls, retries and deadlines in it, none has an ``eta`` or a countdown; at
    its end the queues are empty."""
    with running(worker := world.worker("-c", "2")), monitoring(world.redis) as monitor:
        worker.wait_ready()
        world.run_every_kind()
        wait_until(lambda: queued(broker) == [], "all messages are done with")
        tasks = [message["headers"]["task"] for message in monitor.messages]
        assert set(tasks) == {"smqueue.transition", "smqueue.trigger", "smqueue.ended", "shop.add_up"}
        assert tasks.count("smqueue.trigger") >= 3 + 3 + 3 + 2, "polls, calls that fail, tasks"
        assert not any(map(waits, monitor.messages))


@pytest.mark.skipif(not hasattr(Producer, "batch"), reason="kombu before 5.7 sends messages one by one")
def test_triggers_of_one_look_travel_together(world: Shop, broker: redis.Redis) -> None:
    """All triggers that a drain finds due are one round trip to a Redis broker, however many they are."""
    world.executor.add_state_machines([StateMachine(f"op{n}", shop.Calling(n)) for n in range(8)])
    engine: Any = world.executor
    due = engine.deployment.driver.run(claim(world.keys, engine.instances, 64))
    assert len(due.triggers) == 8
    engine.outbound.send_triggers(due.triggers[:2])  # connects
    before = broker.info("stats")["total_reads_processed"]
    engine.outbound.send_triggers(due.triggers[2:])
    read = broker.info("stats")["total_reads_processed"] - before
    assert read == 2, "all of them, and this look"
    assert broker.llen(world.namespace) == 9, "one of them is the hint of their adding"

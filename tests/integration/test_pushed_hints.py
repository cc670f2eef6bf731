"""Hints that the script or EXEC pushes which makes work due, where broker and state are one Redis."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, cast

import pytest
import redis
from celery import Celery

from smqueue import Delivery, Executor, ExecutorBuilder, SignalFor, StateMachine
from smqueue.embedded import EmbeddedServer
from smqueue.worker.pushing import one_redis
from tests.contract.machines import Here, Instant, go, kinds, walk

QUEUE = "hints"
DIFFER = ("id", "root_id", "correlation_id", "delivery_tag", "expires")


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    with EmbeddedServer() as server:
        yield server


@pytest.fixture
def app(server: EmbeddedServer) -> Celery:
    made = Celery("pushed", broker=server.broker_url, set_as_current=False)
    made.conf.smqueue_transition_queue = QUEUE
    return made


@pytest.fixture
def broker(server: EmbeddedServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url.replace("db=0", "db=1")) as client:
        yield client
        client.flushdb()


def built(app: Celery, server: EmbeddedServer, request: pytest.FixtureRequest) -> Executor:
    builder = ExecutorBuilder().with_module("walk", walk).with_module("kinds", kinds)
    return builder.build(app, url=server.url, namespace=request.node.name)


@pytest.fixture
def executor(app: Celery, server: EmbeddedServer, request: pytest.FixtureRequest) -> Executor:
    return built(app, server, request)


@pytest.fixture
def silent(executor: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is sent by Celery."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a hint was sent")

    monkeypatch.setattr(executor.outbound, "_send", refuse)


def messages(broker: redis.Redis) -> list[dict[str, Any]]:
    """What is in the queue."""
    return [json.loads(raw) for raw in cast("list[bytes]", broker.lrange(QUEUE, 0, -1))]


def plain(message: dict[str, Any]) -> dict[str, Any]:
    """A message without what is another each time."""
    headers, properties = message["headers"], message["properties"]
    for part in (headers, properties):
        for name in DIFFER:
            part.pop(name, None)
    return message


def test_it_is_the_message_that_celery_sends(executor: Executor, broker: redis.Redis) -> None:
    """Field by field what ``send_task`` puts into the queue, but for the ids and the second in which it expires."""
    executor.add_state_machines([StateMachine("op", Here("x"))])
    executor.signal("op", go, "end y")
    executor.outbound.hint(executor.deployment.settings.namespace, 0)
    sent, pushed = messages(broker)
    ids = [{message["headers"]["id"], message["properties"]["correlation_id"]} for message in (sent, pushed)]
    assert [len(one) for one in ids] == [1, 1]
    assert ids[0] != ids[1]
    assert pushed["headers"]["expires"][:13] <= sent["headers"]["expires"][:13]
    assert plain(sent) == plain(pushed)


@pytest.mark.usefixtures("silent")
def test_a_signal_pushes_it(executor: Executor, broker: redis.Redis) -> None:
    """The script that records an outcome pushes the hint, one for all that come while it is under way; a signal that
    is only kept pushes none."""
    assert executor.signal("early", go, "end y") is Delivery.BUFFERED
    assert messages(broker) == []
    executor.add_state_machines([StateMachine(f"op{n}", Here("x")) for n in range(3)])
    assert executor.signal("op0", go, "end y") is Delivery.DELIVERED
    many = [SignalFor("op1", go, "end y"), SignalFor("op2", go, "end y")]
    assert executor.signal_many(many) == [Delivery.DELIVERED] * 2
    assert len(messages(broker)) == 1


@pytest.mark.usefixtures("silent")
def test_a_commit_pushes_it(executor: Executor, broker: redis.Redis) -> None:
    """So does the EXEC that adds a machine which is ready at once; each message has an id of its own."""
    for n in range(2):
        executor.add_state_machines([StateMachine(f"op{n}", Instant(0))])
        broker.delete("hint")
        redis.Redis.from_url(executor.deployment.settings.url).delete(executor.deployment.all_keys()[0].hint)
    first, second = messages(broker)
    assert first["headers"]["id"] != second["headers"]["id"]


def test_one_that_cannot_be_pushed_is_sent(
    executor: Executor, broker: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A queue that takes no push is no reason to refuse the signal or the machine; the caller sends the hint then."""
    sent: list[str] = []
    monkeypatch.setattr(executor.outbound, "hint", lambda namespace, shard: sent.append(namespace))
    broker.set(QUEUE, "no list")
    executor.add_state_machines([StateMachine("op", Here("x"))])
    assert executor.signal("op", go, "end y") is Delivery.DELIVERED
    redis.Redis.from_url(executor.deployment.settings.url).delete(executor.deployment.all_keys()[0].hint)
    executor.add_state_machines([StateMachine("now", Instant(0))])
    assert len(sent) == 2


@pytest.mark.parametrize("setting", [{"smqueue_push_hints": False}, {"task_send_sent_event": True}], ids=str)
def test_it_can_be_left_to_celery(
    app: Celery, server: EmbeddedServer, request: pytest.FixtureRequest, broker: redis.Redis, setting: dict[str, bool]
) -> None:
    """``smqueue_push_hints`` turns it off; so does a wish for events of sent messages, which only Celery can send."""
    app.conf.update(setting)
    executor = built(app, server, request)
    executor.add_state_machines([StateMachine("op", Here("x"))])
    sent: list[str] = []
    executor.outbound.hint = lambda namespace, shard: sent.append(namespace)  # type: ignore[method-assign]
    executor.signal("op", go, "end y")
    assert (len(sent), messages(broker)) == (1, [])


@pytest.mark.parametrize(
    ("state", "broker", "one"),
    [
        ("redis://h:1/0", "redis://h:1/3", True),
        ("redis://h/0", "redis://h:6379", True),
        ("unix:///a/s.sock?db=0", "redis+socket:///a/s.sock?virtual_host=1", True),
        ("redis://u:p@h/0", "redis://u:p@h/0", True),
        ("redis://u:p@h/0", "redis://v:p@h/0", False),
        ("redis://h:1/0", "redis://h:2/0", False),
        ("redis://h/0", "redis://localhost/0", False),
        ("redis://h/0", "amqp://h//", False),
        ("redis://h/0", "redis://h/0;redis://i/0", False),
        ("redis+cluster://h:1", "redis://h:1/0", False),
        ("redis+sentinel://h:1/s", "sentinel://h:1", False),
        ("redis://h:x/0", "redis://h:x/0", False),
    ],
)
def test_when_it_is_one_redis(state: str, broker: str, one: bool) -> None:
    """Only where both are certainly one server and one user: a push elsewhere would be lost, one refused would cost."""
    assert one_redis(state, broker) is one

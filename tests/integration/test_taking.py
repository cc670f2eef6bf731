"""What a worker takes from a Redis broker: hints are noted in its process alone, others in the broker, too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import pytest
import redis
from kombu import Connection, Consumer, Producer, Queue

from smqueue.embedded import EmbeddedServer
from smqueue.worker.incoming import HINTS, take_hints_lightly

HINT, OTHER_HINT = sorted(HINTS)


class Taking(NamedTuple):
    """A consumer that has room for one message, and what it has taken."""

    consumer: Any
    taken: list[Any]
    drain: Callable[[], None]


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    with EmbeddedServer() as server:
        yield server


@pytest.fixture
def broker(server: EmbeddedServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url.replace("db=0", "db=1"), decode_responses=True) as client:
        yield client
        client.flushdb()


@pytest.fixture
def taking(broker: redis.Redis, server: EmbeddedServer) -> Iterator[Taking]:
    with Connection(server.broker_url) as connection:
        channel: Any = connection.default_channel
        take_hints_lightly(channel)
        taken: list[Any] = []
        with Consumer(
            channel, [Queue("taking", routing_key="taking")], on_message=taken.append, prefetch_count=1
        ) as one:
            yield Taking(one, taken, lambda: _drain(connection))


def _drain(connection: Connection) -> None:
    """Until nothing comes any more."""
    for _ in range(2):
        try:
            connection.drain_events(timeout=0.1)
        except TimeoutError:
            return


def send(taking: Taking, *tasks: str) -> None:
    producer = Producer(taking.consumer.channel, routing_key="taking")
    for task in tasks:
        producer.publish("[]", headers={"task": task})


def noted(broker: redis.Redis) -> int:
    """How many messages are taken and not acknowledged, as the broker has it."""
    count = cast("int", broker.hlen("unacked"))
    assert broker.zcard("unacked_index") == count
    return count


def test_a_hint_is_noted_in_its_process_alone(taking: Taking, broker: redis.Redis) -> None:
    """A hint costs no round trip before it is looked at, and none when it is acknowledged; it takes the room of one
    message all the same, until it is acknowledged."""
    send(taking, HINT, OTHER_HINT)
    taking.drain()
    assert (len(taking.taken), noted(broker), broker.llen("taking")) == (1, 0, 1)
    taking.taken[0].ack()
    taking.drain()
    assert (len(taking.taken), noted(broker), broker.llen("taking")) == (2, 0, 0)
    assert len(taking.consumer.channel.qos._delivered) == 1  # nothing is left of the first


def test_any_other_message_is_kept_until_it_is_acknowledged(taking: Taking, broker: redis.Redis) -> None:
    """A task of the user's survives the death of its worker, as ever. (semantics 5)"""
    send(taking, "a task")
    taking.drain()
    assert (len(taking.taken), noted(broker)) == (1, 1)
    taking.taken[0].ack()
    assert noted(broker) == 0


@pytest.mark.parametrize("task", [*sorted(HINTS), "a task"])
def test_what_was_not_begun_is_put_back(taking: Taking, broker: redis.Redis, task: str) -> None:
    """Who ends in order, and who gives a message back, leaves it where others find it; of a hint, too."""
    send(taking, task)
    taking.drain()
    taking.taken[0].requeue()
    assert (broker.llen("taking"), noted(broker)) == (1, 0)
    taking.drain()
    assert (broker.llen("taking"), len(taking.taken)) == (0, 2)
    taking.consumer.channel.close()
    assert (broker.llen("taking"), noted(broker)) == (1, 0)


@pytest.mark.parametrize("headers", [{}, {"task": 1}, {"task": [HINT]}])
def test_what_is_no_message_of_celery_is_no_hint(taking: Taking, broker: redis.Redis, headers: dict[str, Any]) -> None:
    """Whatever somebody has put into the queue is taken as kombu takes it."""
    Producer(taking.consumer.channel, routing_key="taking").publish("[]", headers=headers)
    taking.drain()
    assert (len(taking.taken), noted(broker)) == (1, 1)


def test_without_acknowledgements_nothing_is_changed(server: EmbeddedServer) -> None:
    """A transport that is told to keep none has nothing that could be left out."""
    with Connection(server.broker_url, transport_options={"ack_emulation": False}) as connection:
        channel: Any = connection.default_channel
        before = channel.qos.append
        take_hints_lightly(channel)
        assert channel.qos.append == before


def test_another_kombu_notes_hints_as_others(server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no public part of kombu may be gone in its next version: that ends no worker."""
    with Connection(server.broker_url) as connection:
        channel: Any = connection.default_channel
        monkeypatch.delattr(type(channel), "_do_restore_message")
        before = channel.qos.append
        take_hints_lightly(channel)
        assert channel.qos.append == before

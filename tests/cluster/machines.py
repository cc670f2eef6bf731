"""The workers' application in tests/cluster, mounted there as ``app.py``: the seed's own test machine, and a load.

The seed's broadcast is built twice: as a signal, which one machine consumes, and as a plain pub/sub channel, where two
triggers race as in the seed.
"""

from __future__ import annotations

import os
import threading
from typing import Any

import redis
from celery import Celery
from celery.signals import celeryd_init, worker_ready

from smqueue import Executor, ExecutorBuilder, Module, State, Transaction, channel, now

BY_SIGNAL, BY_CHANNEL, LOAD = "42", "42-by-channel", "load"
CHANNEL = "broadcast"
READY = "ready"
HANDLER_S = 0.02

# --- the broadcast as a signal ---

by_signal = Module("seed", version=1)
broadcast = by_signal.signal("broadcast", int)


@by_signal.state
class Start(State):
    pass


@by_signal.state
class ReceivedNonNull(State):
    value: int


@by_signal.state(terminal=True)
class Final(State):
    pass


@by_signal.on(Start, broadcast)
def first(tx: Transaction, state: Start, received: int) -> Final | ReceivedNonNull:
    return Final() if received == 0 else ReceivedNonNull(received)


@by_signal.on(ReceivedNonNull, broadcast)
def second(tx: Transaction, state: ReceivedNonNull, received: int) -> Final | None:
    tx.sadd("heard", received)
    return Final() if received == state.value else None


# --- the broadcast as a channel ---

by_channel = Module("seed-by-channel", version=1)


@by_channel.state(name="Start")
class Listening(State):
    pass


@by_channel.state(name="ReceivedNonNull")
class HeardNonNull(State):
    value: int


@by_channel.state(name="Final", terminal=True)
class Silent(State):
    pass


@by_channel.on(Listening, channel(CHANNEL, lambda message, _: message == 0, int))
def null(tx: Transaction, state: Listening, received: int) -> Silent:
    return Silent()


@by_channel.on(Listening, channel(CHANNEL, lambda message, _: message != 0, int))
def non_null(tx: Transaction, state: Listening, received: int) -> HeardNonNull:
    return HeardNonNull(received)


@by_channel.on(HeardNonNull, channel(CHANNEL, lambda message, state: message == state.value, int))
def same(tx: Transaction, state: HeardNonNull, received: int) -> Silent:
    tx.sadd("heard", received)
    return Silent()


# --- a load that goes on until it is told to stop ---

load = Module("load", version=1)


@load.state
class Busy(State):
    number: int


@load.state(terminal=True)
class Rested(State):
    number: int


@load.on(Busy, now())
def work(tx: Transaction, state: Busy, _: None) -> Busy | Rested:
    if tx.exists("stop"):
        return Rested(state.number)
    threading.Event().wait(HANDLER_S)
    tx.hincrby("worked", worker_name)
    return state


# --- the application ---


def build(app: Celery, url: str | None = None, namespace: str | None = None) -> Executor:
    """Make the executor; a worker leaves URL and namespace to its environment."""
    return (
        ExecutorBuilder()
        .with_module(BY_SIGNAL, by_signal)
        .with_module(BY_CHANNEL, by_channel)
        .with_module(LOAD, load)
        .build(app, url=url, namespace=namespace)
    )


app = Celery("cluster", set_as_current=False)  # tests import this file too, and have an application already
executor = build(app)
worker_name = ""


@celeryd_init.connect
def note_name(sender: str, **_: Any) -> None:
    global worker_name
    worker_name = sender


@worker_ready.connect
def note_ready(sender: Any, **_: Any) -> None:
    """Note when this worker was ready, in seconds of Redis's clock, which the test shares."""
    with redis.Redis.from_url(os.environ["SMQUEUE_URL"]) as client:
        client.hset(READY, sender.hostname, seconds(client))


def seconds(client: redis.Redis) -> float:
    """The time by Redis's clock."""
    whole, millionths = client.time()
    return whole + millionths / 1_000_000

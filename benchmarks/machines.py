"""The machines that are measured: one module, one state for each question."""

# ruff: noqa: ARG001 - handlers take what the contract passes

from __future__ import annotations

import os
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import redis

from smqueue import Context, Module, State, StateMachine, Transaction, after, at, channel, finished, now, poll

FINISHED = "finished"
"""A counter that handlers increment with their commit, and a channel that they publish on with it."""
POLLED = "bench:polled"
"""A plain key: how many polls have run."""
NEWS = "bench:news"
LENGTH = 10
"""States of a chain that is passed at once."""

bench = Module[Any]("bench", version=1)
payment = bench.signal("payment", int)


@bench.state
class Awaiting(State):
    """Waits for a payment or half an hour: the cycle's."""

    total: int


@bench.state(terminal=True)
class Done(State):
    """The end of all."""

    number: int


@bench.on(Awaiting, payment)
def paid(tx: Transaction, state: Awaiting, amount: int) -> Done:
    """The one step of a cycle."""
    tx.incrby(FINISHED, 1)
    return Done(amount)


@bench.on(Awaiting, after(minutes=30))
def expired(tx: Transaction, state: Awaiting, _: None) -> Done:
    """Nobody paid."""
    return Done(0)


@bench.state
class Watched(State):
    """As ``Awaiting``, and its commit tells the time: whoever subscribed hears of it at once."""

    total: int


@bench.on(Watched, payment)
def watched_paid(tx: Transaction, state: Watched, amount: int, context: Context[Any]) -> Done:
    """Published by the EXEC that commits."""
    tx.publish(FINISHED, context.operation_id)
    return Done(amount)


@bench.on(Watched, after(minutes=30))
def watched_expired(tx: Transaction, state: Watched, _: None) -> Done:
    """Nobody paid."""
    return Done(0)


@bench.state
class Timed(State):
    """Due at an instant, µs since the epoch; published when it is over."""

    due_us: int


@bench.on(Timed, at(lambda state: datetime.fromtimestamp(state.due_us / 1e6, UTC)))
def rang(tx: Transaction, state: Timed, _: None, context: Context[Any]) -> Done:
    """The time has come."""
    tx.publish(FINISHED, context.operation_id)
    return Done(0)


@bench.state
class Working(State):
    """Due at an instant, with a handler that may take a while; counted when it is over."""

    due_us: int
    ms: int


@bench.on(Working, at(lambda state: datetime.fromtimestamp(state.due_us / 1e6, UTC)))
def worked(tx: Transaction, state: Working, _: None) -> Done:
    """As if it computed, or asked somebody."""
    if state.ms:
        time.sleep(state.ms / 1000)
    tx.incrby(FINISHED, 1)
    return Done(0)


def ask(state: Polling, context: Context[redis.Redis]) -> None:
    """A short piece of I/O, whose answer is always "not yet"."""
    context.module.incr(POLLED)


@bench.state
class Polling(State):
    """Asks again and again."""

    every_ms: int


@bench.on(Polling, poll(ask, every=lambda state: timedelta(milliseconds=state.every_ms)))
def answered(tx: Transaction, state: Polling, _: None) -> Done:
    """Never."""
    return Done(0)


@bench.state
class Fanning(State):
    """Starts many at once, all in the operation ``family``, so that its end is theirs."""

    family: str
    children: int


@bench.state
class Joining(State):
    """Waits for all of them."""

    family: str


@bench.on(Fanning, now())
def fanned(tx: Transaction, state: Fanning, _: None) -> Joining:
    """Each has one step left."""
    tx.add_state_machines(StateMachine(state.family, Step(LENGTH - 1, number)) for number in range(state.children))
    return Joining(state.family)


@bench.on(Joining, finished(lambda state: state.family))
def joined(tx: Transaction, state: Joining, _: None, context: Context[Any]) -> Done:
    """The last has ended."""
    tx.publish(FINISHED, context.operation_id)
    return Done(0)


@bench.state
class Step(State):
    """One of a chain of states that are ready at once."""

    at: int
    number: int


@bench.on(Step, now())
def stepped(tx: Transaction, state: Step, _: None) -> Step | Done:
    """On to the next."""
    if state.at + 1 < LENGTH:
        return Step(state.at + 1, state.number)
    tx.incrby(FINISHED, 1)
    return Done(state.number)


@bench.state
class Lap(State):
    """One of many states of one machine, whose history grows."""

    number: int
    laps: int


@bench.on(Lap, now())
def lapped(tx: Transaction, state: Lap, _: None) -> Lap | Done:
    """Round and round."""
    return Lap(state.number + 1, state.laps) if state.number < state.laps else Done(state.number)


@bench.state
class Listening(State):
    """Hears one message on a channel."""

    number: int


@bench.on(Listening, channel(NEWS, payload_type=int))
def heard(tx: Transaction, state: Listening, message: int) -> Done:
    """It came."""
    tx.incrby(FINISHED, 1)
    return Done(message)


def connect() -> redis.Redis:
    """What polls ask: the server of the state, made at first use in each process."""
    return redis.Redis.from_url(os.environ["BENCH_POLLED_URL"])

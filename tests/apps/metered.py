"""An application with something to measure: races, deadlines, polls that fail, handlers that raise or are disturbed."""

from __future__ import annotations

import os
from datetime import timedelta

import redis

from smqueue import Context, Module, State, Transaction, after, now, poll
from tests.apps.wiring import application, executor_on

app = application("metered")

meters = Module("meters", version=1)


@meters.state
class Counting(State):
    left: int


@meters.state
class Racing(State):
    n: int
    patience: timedelta = timedelta(hours=1)


@meters.state
class Asking(State):
    n: int


@meters.state
class Raising(State):
    n: int


@meters.state
class Disturbed(State):
    n: int


@meters.state(terminal=True)
class Over(State):
    how: str


go = meters.signal("go")


@meters.on(Counting, now())
def counted(tx: Transaction, state: Counting, _: None) -> Counting | Over:
    tx.incrby("counted", 1)
    return Counting(state.left - 1) if state.left else Over("counted")


@meters.on(Racing, go)
def went(tx: Transaction, state: Racing, _: None) -> Over:
    return Over("went")


@meters.on(Racing, after(lambda state: state.patience))
def tired(tx: Transaction, state: Racing, _: None) -> Over:
    return Over("tired")


def ask(state: Asking, context: Context) -> int | None:
    if state.n:
        raise ConnectionRefusedError("nobody there")
    return 1


@meters.on(Asking, poll(ask, every=timedelta(milliseconds=50)))
def answered(tx: Transaction, state: Asking, found: int) -> Over:
    return Over("answered")


@meters.on(Raising, now())
def raised(tx: Transaction, state: Raising, _: None) -> Over:
    raise LookupError("on purpose")


@meters.on(Disturbed, now())
def disturbed(tx: Transaction, state: Disturbed, _: None) -> Over:
    if (seen := tx.get("seen")) is None:  # another writes what was read: the commit fails, and is repeated
        with redis.Redis.from_url(os.environ["TEST_STATE_URL"]) as other:
            other.set(executor.deployment.keys("any").data("meters", "seen"), "1")
    return Over(f"seen {seen}")


executor = executor_on(app, meters=meters)

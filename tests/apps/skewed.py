"""An application whose machines wait in every way that has to do with time; each worker notes what it has done."""

from __future__ import annotations

import os
import threading
import time
from datetime import datetime, timedelta

from smqueue import Context, Failed, Module, Retry, State, Transaction, after, at, call, now, poll
from tests.apps.wiring import application, executor_on

RETRY = Retry(max_attempts=4, base=timedelta(milliseconds=100))
LONG_S = 6.0
"""Longer than a lease."""

clocks = Module("clocks", version=1, retry=RETRY)


@clocks.state
class Waiting(State):
    n: int
    patience: timedelta


@clocks.state
class Until(State):
    when: datetime


@clocks.state
class Polling(State):
    n: int


@clocks.state
class Calling(State):
    n: int


@clocks.state
class Failing(State):
    n: int


@clocks.state
class Slow(State):
    n: int


@clocks.state
class Busy(State):
    n: int


@clocks.state(terminal=True)
class Over(State):
    what: str


ping = clocks.signal("ping", str)


def attempts(context: Context, what: str) -> int:
    """How often this has been called for this operation so far, in any process."""
    path = f"{os.environ['TEST_DIR']}/{what}-{context.operation_id}-{context.machine_id}"
    with open(path, "ab") as file:
        file.write(b".")
        return file.tell()


def note(tx: Transaction) -> None:
    """Which worker has committed this, by how far its clock is off; and that it is."""
    tx.hincrby("worked", os.environ["TEST_SKEW_S"])
    tx.hset("clocks", os.environ["TEST_SKEW_S"], str(int(time.time())))


@clocks.on(Waiting, ping)
def pinged(tx: Transaction, state: Waiting, what: str) -> Over:
    note(tx)
    return Over(what)


@clocks.on(Waiting, after(lambda state: state.patience))
def waited(tx: Transaction, state: Waiting, _: None) -> Over:
    note(tx)
    return Over("waited")


@clocks.on(Until, at(lambda state: state.when))
def came(tx: Transaction, state: Until, _: None) -> Over:
    note(tx)
    return Over("came")


def look(state: Polling, context: Context) -> int | None:
    return 3 if attempts(context, "polls") >= 3 else None


@clocks.on(Polling, poll(look, every=timedelta(milliseconds=100)))
def polled(tx: Transaction, state: Polling, found: int) -> Over:
    note(tx)
    return Over(f"polled {found}")


def ring(state: Calling, context: Context) -> int:
    if (tries := attempts(context, "calls")) < 3:
        raise ConnectionError(str(tries))
    return tries


@clocks.on(Calling, call(ring, retry=RETRY))
def called(tx: Transaction, state: Calling, got: int | Failed) -> Over:
    note(tx)
    return Over(f"called {got}")


@clocks.on(Failing, now())
def failed(tx: Transaction, state: Failing, _: None, context: Context) -> Over:
    if attempts(context, "failures") < 3:
        raise ConnectionError("not yet")
    note(tx)
    return Over("failed twice")


@clocks.on(Slow, now())
def took_long(tx: Transaction, state: Slow, _: None, context: Context) -> Over:
    with open(f"{os.environ['TEST_DIR']}/slow-{state.n}", "a") as file:
        file.write(f"{os.getpid()}\n")
    threading.Event().wait(LONG_S)
    note(tx)
    return Over(f"slow {state.n}")


@clocks.on(Busy, now())
def worked(tx: Transaction, state: Busy, _: None) -> Busy | Over:
    note(tx)
    if tx.exists("stop"):
        return Over(f"stopped {state.n}")
    threading.Event().wait(0.02)
    return state


app = application("skewed")
executor = executor_on(app, clocks=clocks)

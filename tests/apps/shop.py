"""An application under test: every kind of trigger, wired by the environment alone."""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

from smqueue import (
    Context,
    Failed,
    Module,
    Retry,
    State,
    Transaction,
    after,
    call,
    channel,
    finished,
    now,
    poll,
    reached,
    task,
    wait,
)  # fmt: skip
from tests.apps.wiring import application, executor_on

app = application("shop")

orders = Module("orders", version=1)


@orders.state
class Awaiting(State):
    order_id: str
    total: int
    patience: timedelta = timedelta(minutes=30)


@orders.state
class Packing(State):
    order_id: str


@orders.state(terminal=True)
class Shipped(State):
    order_id: str


@orders.state(terminal=True)
class Cancelled(State):
    order_id: str
    why: str


@dataclass(frozen=True)
class Payment:
    amount: int


payment = orders.signal("payment", Payment)
packed = orders.signal("packed")


@orders.on(Awaiting, payment)
def paid(tx: Transaction, state: Awaiting, received: Payment) -> Packing | None:
    if received.amount < state.total:
        return None
    tx.incrby("revenue", received.amount)
    return Packing(state.order_id)


@orders.on(Awaiting, after(lambda state: state.patience))
def expired(tx: Transaction, state: Awaiting, _: None) -> Cancelled:
    return Cancelled(state.order_id, "unpaid")


@orders.on(Packing, packed)
def handed_over(tx: Transaction, state: Packing, _: None) -> Shipped:
    return Shipped(state.order_id)


kinds = Module("kinds", version=1)


@kinds.state
class Polling(State):
    n: int


@kinds.state
class Calling(State):
    fails: int


@kinds.state
class Hosting(State):
    seconds_ms: int


@kinds.state
class Listening(State):
    room: str


@kinds.state
class Tasking(State):
    n: int


@kinds.state
class Watching(State):
    other: str


@kinds.state
class Joining(State):
    other: str


@kinds.state
class Instant(State):
    n: int


@kinds.state
class Breaking(State):
    how: str


@kinds.state(terminal=True)
class Done(State):
    what: str


def look(state: Polling, context: Context) -> int | None:
    # Anything outside would do; a file whose size counts the looks keeps the test's world in one place.
    path = f"{os.environ['TEST_DIR']}/polls-{context.operation_id}"
    with open(path, "ab") as file:
        file.write(b".")
        return file.tell() if file.tell() >= state.n else None


@kinds.on(Polling, poll(look, every=timedelta(milliseconds=50)))
def polled(tx: Transaction, state: Polling, found: int) -> Done:
    return Done(f"polled {found}")


async def one_more(path: str) -> int:
    with open(path, "ab") as file:
        file.write(b".")
        return file.tell()


async def ring(state: Calling, context: Context) -> str:
    path = f"{os.environ['TEST_DIR']}/calls-{context.operation_id}"
    if (tries := await asyncio.create_task(one_more(path))) <= state.fails:
        raise ConnectionError(f"attempt {tries}")
    return f"attempt {tries}"


@kinds.on(Calling, call(ring, retry=Retry(max_attempts=3, base=timedelta(milliseconds=20))))
def called(tx: Transaction, state: Calling, got: str | Failed) -> Done:
    return Done(f"failed {got.error} {got.attempts}" if isinstance(got, Failed) else f"called {got}")


async def linger(state: Hosting, context: Context) -> str:
    with suppress(TimeoutError):
        async with asyncio.timeout(state.seconds_ms / 1000):
            await asyncio.Event().wait()
    return context.operation_id


@kinds.on(Hosting, wait(linger))
def lingered(tx: Transaction, state: Hosting, got: str | Failed) -> Done:
    return Done(f"waited {got}")


@kinds.on(Listening, channel(lambda state: state.room, where=lambda message, state: message != "no"))
def heard(tx: Transaction, state: Listening, message: str) -> Done:
    return Done(f"heard {message}")


@app.task(name="shop.add_up")
def add_up(a: int, b: int) -> int:
    if b < 0:
        raise ValueError("negative")
    return a + b


@kinds.on(Tasking, task(lambda state: add_up.s(1, state.n)))
def added_up(tx: Transaction, state: Tasking, got: int | Failed) -> Done:
    return Done(f"failed {got.error}" if isinstance(got, Failed) else f"sum {got}")


@kinds.on(Watching, reached(lambda state: state.other, Done))
def saw(tx: Transaction, state: Watching, other: Done) -> Done:
    return Done(f"saw {other.what}")


@kinds.on(Joining, finished(lambda state: state.other))
def joined(tx: Transaction, state: Joining, _: None) -> Done:
    return Done("joined")


@kinds.on(Instant, now())
def at_once(tx: Transaction, state: Instant, _: None) -> Instant | Done:
    return Instant(state.n - 1) if state.n else Done("instant")


@kinds.on(Breaking, now())
def broke(tx: Transaction, state: Breaking, _: None) -> Done:
    match state.how:
        case "raise":
            raise ValueError("broken on purpose")
        case "kill":
            os.kill(os.getpid(), 9)
        case "hang":
            threading.Event().wait(3600)
        case "undeclared":
            return Calling(0)  # type: ignore[return-value]  # pyright: ignore[reportReturnType]
        case _:
            tx.send_task("shop.note", args=[state.how])
    return Done(state.how)


executor = executor_on(app, orders=orders, kinds=kinds)

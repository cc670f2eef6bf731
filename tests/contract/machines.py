"""The machines that the contract is tested with. Their operation ids tell the tests apart, for all share one worker.

The functions of triggers count their runs in ``ran``: one process runs them all, the worker's.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from smqueue import (
    Context,
    Failed,
    Module,
    Retry,
    Secret,
    State,
    StateMachine,
    Transaction,
    Transition,
    after,
    at,
    call,
    channel,
    finished,
    now,
    poll,
    reached,
    task,
    wait,
)  # fmt: skip
from tests.apps.wiring import application

app: Any = application("contract")
ran: Counter[str] = Counter()
SOON = timedelta(milliseconds=20)
AT_ONCE = Retry(max_attempts=2, base=timedelta(milliseconds=1))


def count(operation_id: str) -> int:
    """Which run of this operation's function this is, from 1."""
    ran[operation_id] += 1
    return ran[operation_id]


# --- orders: the example of the contract ---

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
    card: Annotated[str, Secret] = ""


payment = orders.signal("payment", Payment)
packed = orders.signal("packed")


@orders.on(Awaiting, payment)
def paid(tx: Transaction, state: Awaiting, received: Payment) -> Packing | None:
    tx.incrby(f"received:{state.order_id}", received.amount)
    if received.amount < state.total:
        return None
    tx.incrby(f"revenue:{state.order_id}", received.amount)
    return Packing(state.order_id)


@orders.on(Awaiting, after(lambda state: state.patience))
def expired(tx: Transaction, state: Awaiting, _: None) -> Cancelled:
    return Cancelled(state.order_id, "unpaid")


@orders.on(Packing, packed)
def handed_over(tx: Transaction, state: Packing, _: None) -> Shipped:
    return Shipped(state.order_id)


# --- walk: goes where it is told ---

walk = Module("walk", version=1, retry=AT_ONCE)


@walk.state
class Here(State):
    name: str


@walk.state
class There(State):
    name: str


@walk.state
class Held(State):
    """As There; only tests that pause all of its type use it."""

    name: str


@walk.state
class Spent(State):
    """Has nothing left to wait for once its handler stays."""

    name: str


@walk.state(terminal=True)
class End(State):
    name: str


go = walk.signal("go", str)


@walk.on((Here, There, Held), go)
def gone(tx: Transaction, state: Here | There | Held, to: str, context: Context) -> Here | There | Spent | End | None:
    op = context.operation_id
    kind, _, name = to.partition(" ")
    tx.rpush(f"log:{op}", to)
    match kind:
        case "here":
            return Here(name)
        case "there":
            return There(name)
        case "spent":
            return Spent(name)
        case "end":
            return End(name)
        case "child":  # of an operation of its own, named after this one
            tx.add_state_machines([StateMachine(f"{op}/{name}", Here(name))])
        case "sibling":
            tx.add_state_machines([StateMachine(op, Here(name))])
        case "twin":  # spawns what it is in
            tx.add_state_machines([StateMachine(op, state)])
            return End(name)
        case "tell":
            tx.signal(name, go, "end told")
        case "ping":
            tx.send_task("contract.ping", args=[name])
        case "raise" if not tx.exists(f"mended:{op}"):
            raise ValueError("on purpose")
        case "undeclared":
            return Awaiting(name, 1)  # type: ignore[return-value]  # pyright: ignore[reportReturnType]
        case "clash":
            tx.set(f"text:{op}", "no number")
            tx.incrby(f"text:{op}")
        case _:
            pass
    return End(name) if kind == "raise" else None


@walk.on((Here, There, Held), after(minutes=30))
def late(tx: Transaction, state: Here | There | Held, _: None) -> End:
    return End("late")


@walk.on(Spent, now())
def stays(tx: Transaction, state: Spent, _: None) -> End | None:
    return None


@app.task(name="contract.ping")
def ping(operation_id: str) -> None:
    from tests.contract.app import executor

    executor.signal(operation_id, go, "end pinged")


# --- kinds: each kind of trigger ---

kinds = Module("kinds", version=1)


@kinds.state
class Polling(State):
    n: int


@kinds.state
class Calling(State):
    fails: int


@kinds.state
class Hosting(State):
    fails: bool = False


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
class Appointed(State):
    when: datetime


@kinds.state
class Brief(State):
    """Its deadline races a signal that it is sent, and a call that is still under way."""

    ms: int


@kinds.state(terminal=True)
class Done(State):
    what: str


async def look(state: Polling, context: Context) -> int | None:
    runs = count(context.operation_id)
    return runs if runs >= state.n else None


@kinds.on(Polling, poll(look, every=SOON, timeout=30))
def polled(tx: Transaction, state: Polling, found: int) -> Done:
    return Done(f"polled {found}")


def ring(state: Calling, context: Context) -> str:
    if (runs := count(context.operation_id)) <= state.fails:
        raise ConnectionError(f"attempt {runs}")
    return f"attempt {runs}"


@kinds.on(Calling, call(ring, timeout=30, retry=Retry(max_attempts=3, base=SOON)))
def called(tx: Transaction, state: Calling, got: str | Failed) -> Done:
    return Done(f"failed {got.error} {got.attempts}" if isinstance(got, Failed) else f"called {got}")


async def linger(state: Hosting, context: Context) -> str:
    await asyncio.sleep(0.01)
    if state.fails:
        raise ConnectionError("gone")
    return context.operation_id


@kinds.on(Hosting, wait(linger, retry=AT_ONCE))
def lingered(tx: Transaction, state: Hosting, got: str | Failed) -> Done:
    return Done(f"failed {got.error} {got.attempts}" if isinstance(got, Failed) else f"waited {got}")


@kinds.on(Listening, channel(lambda state: state.room, where=lambda message, state: message != "no"))
def heard(tx: Transaction, state: Listening, message: str) -> Done:
    return Done(f"heard {message}")


@app.task(name="contract.add_up")
def add_up(a: int, b: int) -> int:
    if b < 0:
        raise ValueError("negative")
    return a + b


@kinds.on(Tasking, task(lambda state: add_up.s(1, state.n)))
def added_up(tx: Transaction, state: Tasking, got: int | Failed) -> Done:
    return Done(f"failed {got.error}" if isinstance(got, Failed) else f"sum {got}")


@kinds.on(Watching, reached(lambda state: state.other, Packing, Shipped))
def saw(tx: Transaction, state: Watching, other: Packing | Shipped) -> Done:
    return Done(f"saw {type(other).__name__} {other.order_id}")


@kinds.on(Joining, finished(lambda state: state.other))
def joined(tx: Transaction, state: Joining, _: None) -> Done:
    return Done("joined")


@kinds.on(Instant, now())
def at_once(tx: Transaction, state: Instant, _: None) -> Instant | Done:
    return Instant(state.n - 1) if state.n else Done("instant")


@kinds.on(Appointed, at(lambda state: state.when))
def kept(tx: Transaction, state: Appointed, _: None) -> Done:
    return Done("kept")


knock = kinds.signal("knock")


@kinds.on(Brief, knock)
def knocked(tx: Transaction, state: Brief, _: None) -> Done:
    return Done("knocked")


@kinds.on(Brief, poll(lambda state, context: None, every=timedelta(hours=1)))
def peeked(tx: Transaction, state: Brief, found: None) -> Done:
    return Done("peeked")


@kinds.on(Brief, after(lambda state: timedelta(milliseconds=state.ms)))
def over(tx: Transaction, state: Brief, _: None) -> Done:
    return Done("over")


# --- ordered: the state decides what it waits for, in which order ---

ordered = Module("ordered", version=1)
early = ordered.signal("early", int)
other = ordered.signal("other", int)


@ordered.state(terminal=True)
class First(State):
    by: str


def by_early(tx: Transaction, state: State, got: int) -> First:
    return First(f"early {got}")


def by_other(tx: Transaction, state: State, got: int) -> First:
    return First(f"other {got}")


def by_deadline(tx: Transaction, state: State, _: None) -> First:
    return First("deadline")


def by_now(tx: Transaction, state: State, _: None) -> First:
    return First("now")


@ordered.state
class Ordered(State):
    """Its triggers in the order that its field says, by their first letters."""

    order: str

    def transitions(self, context: Any, global_context: Any) -> Sequence[Transition[Any, Any]]:
        known = {
            "e": Transition(early, by_early),
            "o": Transition(other, by_other),
            "d": Transition(at(datetime(2020, 1, 1, tzinfo=UTC)), by_deadline),
            "n": Transition(now(), by_now),
        }
        return [known[letter] for letter in self.order]


# --- twins: one module under two ids ---


@dataclass(frozen=True)
class Side:
    """The context of an instance."""

    name: str


twins: Module[Side] = Module("twins", version=1)
hail = twins.signal("hail", str)


@twins.state
class Idle(State):
    name: str


@twins.state(terminal=True)
class Told(State):
    side: str
    shared: str
    word: str


@twins.on(Idle, hail)
def hailed(tx: Transaction, state: Idle, word: str, context: Context[Side, str]) -> Told:
    tx.set(f"word:{context.operation_id}", word)
    return Told(context.module.name, context.global_context, word)


# --- fleeting: forgotten once it has ended ---

fleeting = Module("fleeting", version=1, keep=timedelta(milliseconds=50))


@fleeting.state
class Mayfly(State):
    n: int


@fleeting.state(terminal=True)
class Gone(State):
    n: int


@fleeting.on(Mayfly, now())
def passes(tx: Transaction, state: Mayfly, _: None) -> Gone:
    return Gone(state.n)


# --- renewed: a module whose states have changed since version 1 ---

renewed = Module("renewed", version=2)
release = renewed.signal("release")


@renewed.state
class Parcel(State):
    grams: int


@renewed.state(terminal=True)
class Sent(State):
    grams: int


@renewed.migrate(Parcel, since=2)
def grams(old: dict[str, Any]) -> dict[str, Any]:
    return {"grams": old["kilos"] * 1000}


@renewed.on(Parcel, release)
def released(tx: Transaction, state: Parcel, _: None) -> Sent:
    return Sent(state.grams)

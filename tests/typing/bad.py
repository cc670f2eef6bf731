# pyright: strict
"""Mistakes: a type checker must reject each line that says E: why, and no other."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from good import (
    Collected,
    Depot,
    Expected,
    Returned,
    Scan,
    Shelved,
    arrival,
    count,
    depot,
    fetch,
    find,
    find_slowly,
    give_up,
    recall,
    send_back,
    weights,
)

from smqueue import (
    Context,
    Failed,
    Module,
    Retry,
    State,
    StateMachine,
    Transition,
    after,
    at,
    call,
    channel,
    finished,
    poll,
    reached,
    wait,
)

if TYPE_CHECKING:
    from smqueue.transaction import Transaction


# --- handlers that do not fit their trigger


@depot.on(Expected, arrival)  # E: the payload is a Scan
def wrong_payload(tx: Transaction, state: Expected, scan: str) -> Shelved:
    return Shelved(state.parcel, 1)


@depot.on_cancel(Expected)  # E: a cancel handler returns nothing
def comes_back(tx: Transaction, state: Expected, reason: str | None) -> Shelved:
    return Shelved(state.parcel, 1)


@depot.on_cancel(Expected)  # E: there may be no reason
def reasonable(tx: Transaction, state: Expected, reason: str) -> None:
    tx.set("why", reason)


@depot.on_cancel(Expected)  # E: of another state
def of_another(tx: Transaction, state: Shelved, reason: str | None) -> None:
    tx.set("why", state.parcel)


@depot.on(Expected, recall)  # E: there is no payload
def unexpected_payload(tx: Transaction, state: Expected, scan: Scan) -> Shelved:
    return Shelved(state.parcel, 1)


@depot.on(Shelved, weights)  # E: a list of int, not of str
def wrong_item(tx: Transaction, state: Shelved, grams: list[str]) -> Shelved:
    return state


@depot.on(Expected, arrival)  # E: registered for another state
def wrong_state(tx: Transaction, state: Shelved, scan: Scan) -> Shelved:
    return state


@depot.on((Expected, Shelved), recall)  # E: takes only one of the two states
def one_of_two(tx: Transaction, state: Expected, _: None) -> Returned:
    return Returned(parcel=state.parcel)


@depot.on(Expected, after(hours=1))  # E: the outcome of a deadline is None
def wrong_deadline(tx: Transaction, state: Expected, scan: Scan) -> Shelved:
    return Shelved(state.parcel, 1)


@depot.on(Shelved, poll(find, every=timedelta(seconds=1)))  # E: a poll brings a Scan
def wrong_answer(tx: Transaction, state: Shelved, scan: int) -> Collected:
    return Collected(state.parcel)


@depot.on(Shelved, poll(find_slowly, every=timedelta(seconds=1)))  # E: an async one too
def wrong_async_answer(tx: Transaction, state: Shelved, scan: int) -> Collected:
    return Collected(state.parcel)


@depot.on(Shelved, call(count))  # E: may be Failed
def forgot_failed(tx: Transaction, state: Shelved, got: int) -> Collected:
    return Collected(state.parcel)


@depot.on(Shelved, call(fetch))  # E: may be Failed, async too
def forgot_async_failed(tx: Transaction, state: Shelved, got: int) -> Collected:
    return Collected(state.parcel)


@depot.on(Shelved, wait(fetch))  # E: may be Failed
def forgot_waiting_failed(tx: Transaction, state: Shelved, got: int) -> Collected:
    return Collected(state.parcel)


@depot.on(Shelved, call(count))  # E: an int, not a str
def wrong_result(tx: Transaction, state: Shelved, got: str | Failed) -> Collected:
    return Collected(state.parcel)


@depot.on(Shelved, channel("gates", payload_type=Scan))  # E: messages are Scans
def wrong_message(tx: Transaction, state: Shelved, scan: int) -> Collected:
    return Collected(state.parcel)


@depot.on(Expected, reached("truck", Collected, Returned))  # E: may be Returned
def one_of_reached(tx: Transaction, state: Expected, other: Collected) -> Collected:
    return other


@depot.on(Expected, finished("truck"))  # E: brings None
def wrong_finished(tx: Transaction, state: Expected, other: Collected) -> Collected:
    return other


# --- handlers of the wrong shape


@depot.on(Expected, arrival)  # E: returns no state
def returns_text(tx: Transaction, state: Expected, scan: Scan) -> str:
    return state.parcel


@depot.on(Expected, arrival)  # E: async
async def is_async(tx: Transaction, state: Expected, scan: Scan) -> Shelved:
    return Shelved(state.parcel, 1)


@depot.on(Expected, arrival)  # E: takes no outcome
def too_few(tx: Transaction, state: Expected) -> Shelved:
    return Shelved(state.parcel, 1)


@depot.on(Expected, arrival)  # E: the context of this module is a Depot
def wrong_context(tx: Transaction, state: Expected, scan: Scan, context: Context[int]) -> Shelved:
    return Shelved(state.parcel, context.module)


@depot.on(Expected, arrival)
def undeclared(tx: Transaction, state: Expected, scan: Scan) -> Shelved | None:
    return Collected(state.parcel)  # E: not among the declared states


# --- triggers


depot.on(Expected, poll(find, every=timedelta(seconds=1)))  # E: find is for Shelved
depot.on(Expected, after(lambda state: state.shelf))  # E: Expected has no shelf
depot.on(Expected, after(lambda state: 3))  # E: no duration
depot.on(Expected, at(lambda state: state.patience))  # E: no instant
depot.on(int, arrival)  # E: no state
depot.on(Expected, "arrival")  # E: no trigger
after(30)  # E: which unit?
after(timedelta(1), seconds=3)  # E: one or the other
at(timedelta(days=1))  # E: a duration
poll(find, every=5)  # E: which unit?
poll(find)  # E: how often?
wait(count)  # E: not async
channel(7)  # E: no name
reached("truck")  # E: which states?
reached("truck", int)  # E: no state
finished(3)  # E: no operation
call(count, retry=3)  # E: a Retry
Retry(base=1)  # E: which unit?
Retry(on=OSError)  # E: a tuple


# --- states, machines, modules


Expected("p", 1234)  # E: pin is text
Expected("p")  # E: pin is missing
Returned("p")  # E: by keyword only
StateMachine("parcel-1", "Expected")  # E: no state
StateMachine(7, Shelved("p", 1))  # E: an operation id is text
Transition(arrival, give_up)  # E: give_up takes None
Transition(recall, send_back)  # E: one parameter too many
Module(3)  # E: a name is text
Module("m", keep=30)  # E: which unit?
Module("m", version="2")  # E: a number
depot.signal("s", 3)  # E: no type
depot.migrate(Expected)  # E: since when?
depot.migrate(Depot, since=2)  # E: no state
depot.state(Depot)  # E: no state


@depot.migrate(Expected, since=2)  # E: maps dict to dict
def no_dict(old: str) -> str:
    return old


def change(state: Shelved) -> State:
    state.shelf = 3  # E: frozen
    return state

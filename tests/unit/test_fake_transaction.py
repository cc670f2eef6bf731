"""``FakeTransaction``: handlers called as functions read and write as they would in a worker."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import pytest

from smqueue import (
    InvalidInput,
    InvalidPayload,
    Module,
    ReadAfterWrite,
    State,
    StateAlreadyExists,
    StateAlreadyTerminal,
    StateMachine,
    Transaction,
    UnknownSignal,
    WrongKind,
    now,
)
from smqueue.testing import FakeTransaction, SentSignal, SentTask

orders = Module("orders")


@orders.state
class Awaiting(State):
    order_id: str
    total: int


@orders.state(terminal=True)
class Shipped(State):
    order_id: str


@dataclass(frozen=True)
class Payment:
    amount: int


payment = orders.signal("payment", Payment)


@orders.on(Awaiting, payment)
def paid(tx: Transaction, state: Awaiting, received: Payment) -> Shipped | None:
    if received.amount < state.total:
        return None
    tx.incrby("revenue", received.amount)
    return Shipped(state.order_id)


parcels = Module("parcels")


@parcels.state
class Packed(State):
    order_id: str


@parcels.state(terminal=True)
class Sent(State):
    order_id: str


@parcels.on(Packed, now())
def sent(tx: Transaction, state: Packed, _: None) -> Sent:
    return Sent(state.order_id)


def test_a_handler_is_a_function() -> None:
    """What the contract promises: a handler is called, and its answer and its writes are looked at."""
    tx = FakeTransaction()
    assert paid(tx, Awaiting("o", 3), Payment(2)) is None
    assert tx.untouched
    assert paid(tx, Awaiting("o", 3), Payment(3)) == Shipped("o")
    assert tx.data("revenue") == "3"
    assert not tx.untouched


def test_what_is_stored_is_read() -> None:
    """Each type of key that a test gives is read by its own reads, and comes back with the writes applied."""
    tx = FakeTransaction(
        {"text": "a", "number": 3, "map": {"x": 1, "y": "z"}, "members": {"m"}, "list": ["1"], "none": {}},
        shared={"stock": 5},
    )
    assert (tx.get("text"), tx.get("number"), tx.hgetall("map")) == ("a", "3", {"x": "1", "y": "z"})
    assert (tx.smembers("members"), tx.exists("none"), tx.exists("text")) == ({"m"}, False, True)
    assert tx.shared.get("stock") == "5"
    tx.hincrby("map", "x", 2)
    tx.sadd("members", "n")
    tx.rpush("list", "2")
    tx.zadd("ranks", {"first": 1})
    tx.delete("text")
    tx.shared.incrby("stock", -1)
    assert (tx.data("map"), tx.data("members"), tx.data("list")) == ({"x": "3", "y": "z"}, {"m", "n"}, ["1", "2"])
    assert (tx.data("ranks"), tx.data("text"), tx.shared_data("stock")) == ({"first": 1.0}, None, "4")


def test_reads_see_own_writes_or_refuse() -> None:
    """A read sees what this transaction has written; where that is known at the commit only, it is refused."""
    tx = FakeTransaction({"b": 1})
    tx.set("a", "1")
    assert tx.get("a") == "1"
    tx.incrby("b")
    with pytest.raises(ReadAfterWrite):
        tx.get("b")
    tx.commit()
    assert (tx.get("b"), tx.untouched) == ("2", True)


def test_a_write_of_the_wrong_kind_is_refused() -> None:
    """A read of another type raises at once; a write does when the commit would fail, and then nothing is written."""
    tx = FakeTransaction({"map": {"x": 1}})
    with pytest.raises(WrongKind):
        FakeTransaction({"map": {"x": 1}}).get("map")
    tx.set("other", "1")
    tx.incrby("map")
    with pytest.raises(WrongKind):
        tx.data("other")
    with pytest.raises(WrongKind):
        tx.commit()
    assert tx._store.do("EXISTS", tx._name("other")) == 0


def test_machines_signals_and_tasks_are_seen() -> None:
    """What goes out with the commit can be compared as it was given."""
    tx = FakeTransaction(now=datetime(2030, 1, 1, tzinfo=UTC), module=orders)
    tx.add_state_machines([StateMachine("o", Packed("o")), StateMachine("o", Awaiting("o", 1), "shop")])
    tx.signal("o", payment, Payment(3))
    tx.signal("o", "payment", {"amount": 4})
    tx.send_task("labels.print", args=["o"], queue="slow")
    tx.publish("news", "paid")
    assert tx.spawned == [StateMachine("o", Packed("o"), "parcels"), StateMachine("o", Awaiting("o", 1), "shop")]
    assert tx.states == [Packed("o"), Awaiting("o", 1)]
    assert tx.signals == [SentSignal("o", "payment", Payment(amount), "orders") for amount in (3, 4)]
    assert tx.tasks == [SentTask("labels.print", ("o",), options={"queue": "slow"})]
    assert tx.published == [("news", "paid")]
    assert tx.now() == datetime(2030, 1, 1, tzinfo=UTC)


def test_what_a_worker_refuses_is_refused() -> None:
    """Duplicates, terminal states, payloads, unknown signals, arguments that are not JSON: the same typed errors."""
    tx = FakeTransaction()
    with pytest.raises(StateAlreadyTerminal):
        tx.add_state_machines([StateMachine("o", Shipped("o"))])
    with pytest.raises(StateAlreadyExists):
        tx.add_state_machines([StateMachine("o", Packed("o"))] * 2)
    with pytest.raises(InvalidPayload):
        tx.signal("o", payment, Payment("three"))  # type: ignore[arg-type]
    with pytest.raises(UnknownSignal):
        tx.signal("o", "refund")
    with pytest.raises(InvalidInput):
        tx.send_task("labels.print", args=[object()])
    assert tx.untouched

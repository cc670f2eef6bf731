"""The demo's machines, its plan, and the machine that replays event logs, called as plain functions."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from smqueue import Context, Failed, Module
from smqueue.demo.machines import (
    AtCounter,
    Awaiting,
    Cancelled,
    Delivered,
    OnTheRoad,
    Packed,
    Payment,
    Refunded,
    RefundFailed,
    Refunding,
    Shipped,
    Transfer,
    between_looks,
    expired,
    handed_over,
    look_at_bank,
    orders,
    paid,
    paid_back,
    parcels,
    pay_back,
    refunds,
    settled,
)
from smqueue.demo.plan import KINDS, PATIENT, PlannedOrder, expected, make_plan
from smqueue.demo.replay import Closed, Happened, Misplaced, Ticket, machine_of, moved, replay, signals_of, trace_of
from smqueue.demo.xes import Case, Event
from smqueue.testing import FakeTransaction, SentTask

CONTEXT: Context[Any, Any] = Context(None, None, "order-1", "machine-1")


@pytest.mark.parametrize("module", [orders, parcels, refunds, replay], ids=lambda module: module.name)
def test_machines_are_sound(module: Module[Any]) -> None:
    """Every state of the demo can be reached and left; every annotation resolves."""
    assert module.check() == []


@pytest.fixture
def tx() -> FakeTransaction:
    """The transaction of the handlers of one test."""
    return FakeTransaction()


# --- orders ----------------------------------------------------------------------------------------------------------


def test_payments_add_up(tx: FakeTransaction) -> None:
    """A part keeps the order waiting and is counted; the rest ships it, with its parcel and nothing else."""
    order = Awaiting("order-1", 100, PATIENT, label=True)
    assert paid(tx, order, Payment(60), CONTEXT) is None
    assert tx.data("paid:order-1") == "60"
    tx.commit()
    assert paid(tx, order, Payment(40), CONTEXT) == Shipped("order-1")
    assert (tx.states, tx.tasks) == ([Packed("order-1", pickup=False)], [SentTask("labels.print", ("order-1",))])
    assert (tx.data("paid:order-1"), tx.data("revenue")) == (None, "100")


def test_too_much_goes_back(tx: FakeTransaction) -> None:
    """Of an order that is overpaid the parcel and the refund start in one transition."""
    assert paid(tx, Awaiting("order-1", 100, PATIENT, pickup=True), Payment(130), CONTEXT) == Shipped("order-1")
    assert tx.states == [Packed("order-1", pickup=True), Refunding("order-1", 30)]
    assert not tx.tasks


def test_too_little_goes_back(tx: FakeTransaction) -> None:
    """An order that expires gives back what it received; one that received nothing starts no refund."""
    order = Awaiting("order-1", 100, PATIENT)
    assert expired(tx, order, None, CONTEXT) == Cancelled("order-1", "unpaid")
    assert tx.states == []
    paid(tx, order, Payment(60), CONTEXT)
    tx.commit()
    assert expired(tx, order, None, CONTEXT) == Cancelled("order-1", "unpaid")
    assert (tx.states, tx.data("paid:order-1")) == ([Refunding("order-1", 60)], None)


def test_the_bank_books_at_its_look(tx: FakeTransaction) -> None:
    """A transfer counts at the look that the order says; an order without one is never settled."""
    order = Awaiting("order-1", 100, PATIENT, bank_polls=3)
    transfer = look_at_bank(order, CONTEXT)
    assert transfer == Transfer(100)
    for came in (None, None, Shipped("order-1")):
        assert settled(tx, order, transfer, CONTEXT) == came
        tx.commit()
    assert tx.data("revenue") == "100"
    without = Awaiting("order-1", 100, PATIENT)
    assert look_at_bank(without, CONTEXT) is None
    assert between_looks(without) > between_looks(order)


def test_parcels_go_their_way(tx: FakeTransaction) -> None:
    """A parcel leaves for the road or for the counter."""
    assert handed_over(tx, Packed("order-1", pickup=True), None) == AtCounter("order-1")
    assert handed_over(tx, Packed("order-1", pickup=False), None) == OnTheRoad("order-1")
    assert {edge.target for edge in parcels.graph().edges if edge.source == "OnTheRoad"} == {Delivered.__name__}


def test_refunds_end(tx: FakeTransaction) -> None:
    """A refund counts what it paid back; one that the bank did not take says why and counts nothing."""
    refund = Refunding("order-1", 30)
    assert paid_back(tx, refund, Failed("ConnectionError: bank", 5)) == RefundFailed("order-1", "ConnectionError: bank")
    assert tx.untouched
    assert paid_back(tx, refund, pay_back(refund, CONTEXT)) == Refunded("order-1", "order-1/30")
    assert tx.data("refunded") == "30"


# --- the plan --------------------------------------------------------------------------------------------------------


def test_a_plan_is_made_by_its_seed() -> None:
    """The same seed gives the same plan, another one another; eight orders have every kind; ids are unique."""
    assert make_plan(50, 1) == make_plan(50, 1) != make_plan(50, 2)
    assert {order.kind for order in make_plan(len(KINDS), 7)} == set(KINDS)
    assert [len(make_plan(count, 1)) for count in (0, 1, 9)] == [0, 1, 9]
    assert len({order.operation_id for order in make_plan(500, 1)}) == 500


def test_no_race_of_the_plan_is_left_to_luck() -> None:
    """What is to be paid has ten minutes; what is to expire has seconds, and gets all it gets before it is added."""
    for order in make_plan(500, 3):
        if expected(order).finals["orders"] == "Shipped":
            assert order.state.patience == PATIENT
        else:
            assert order.state.patience < timedelta(seconds=10)
            assert all(signal.early for signal in order.signals)


@pytest.mark.parametrize("order", make_plan(60, 5), ids=lambda order: f"{order.kind}-{order.operation_id}")
def test_the_model_agrees_with_the_handlers(tx: FakeTransaction, order: PlannedOrder) -> None:
    """Called one after the other, the handlers end each order, its revenue and its refund as the model says."""
    context: Context[Any, Any] = Context(None, None, order.operation_id, "machine-1")
    ended, seen, started = None, set[str](), list[Any]()

    def committed(state: Any) -> Any:
        started.extend(tx.states)
        tx.commit()
        return state

    for signal in order.signals:
        if signal.name == "payment" and signal.id not in seen:
            assert ended is None, "a payment that no machine would take"
            assert signal.payload is not None
            ended = committed(paid(tx, order.state, Payment(**signal.payload), context))
        seen.add(signal.id)
    while ended is None and (transfer := look_at_bank(order.state, context)) is not None:
        ended = committed(settled(tx, order.state, transfer, context))
    ended = ended or committed(expired(tx, order.state, None, context))

    finals: dict[str, Any] = {"orders": ended}
    for state in started:
        if isinstance(state, Packed):
            assert state.pickup == ("collected" in seen)
            finals["parcels"] = Delivered(state.order_id)
        else:
            finals["refunds"] = paid_back(tx, state, pay_back(state, context))
    wanted = expected(order)
    assert wanted.fits(finals), (finals, wanted)
    assert [int(tx.data(key) or 0) for key in ("revenue", "refunded")] == [wanted.revenue, wanted.refunded]


def test_an_expectation_refuses_what_differs() -> None:
    """Another state, a missing or additional machine, or another receipt does not fit."""
    order = next(order for order in make_plan(8, 1) if order.kind == "overpaid")
    wanted, id = expected(order), order.operation_id
    right: dict[str, Any] = {
        "orders": Shipped(id), "parcels": Delivered(id), "refunds": Refunded(id, f"{id}/{wanted.refunded}"),
    }  # fmt: skip
    assert wanted.fits(right)
    assert not wanted.fits({**right, "orders": Cancelled(id, "unpaid")})
    assert not wanted.fits({**right, "refunds": Refunded(id, f"{id}/1000000")})
    assert not wanted.fits({**right, "other": Shipped(id)})
    assert not wanted.fits({name: state for name, state in right.items() if name != "refunds"})


# --- replaying -------------------------------------------------------------------------------------------------------


def test_a_case_is_replayed(tx: FakeTransaction) -> None:
    """The path of a case records its trace, an activity that is repeated too; the last event closes it."""
    case = Case("c", [Event(activity, None) for activity in ("open", "wait", "wait", "close")])
    path: list[Any] = [machine_of(case).state]
    for happened in signals_of(case):
        path.append(moved(tx, path[-1], happened))
    assert path[-1] == Closed("c", 4, "close")
    assert trace_of(path) == ["open", "wait", "wait", "close"]
    assert len(set(path)) == 5


@pytest.mark.parametrize("index", [0, 2])
def test_an_event_out_of_order_shows(tx: Any, index: int) -> None:
    """An event that comes twice, or where another was due, ends the case in a state that says so."""
    ticket = Ticket("c", 3, seen=1, last="open")
    assert moved(tx, ticket, Happened("wait", index)) == Misplaced("c", due=1, came=index)

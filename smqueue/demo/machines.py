"""The machines of ``smqueue demo``: orders that are paid, settled, refunded or left; their parcels; their refunds.

Each order is one operation. Its parcel and its refund are machines of the same operation, spawned by the transition
that calls for them. What an order ends in follows from its fields and from the signals sent to it, never from which of
two things happened to be faster: that is what makes a run checkable (``plan.py``).

Keys written, relative to module ``orders``:
    revenue             counter: all that was received, in cents
    paid:<order id>     counter: what an order that still waits has received, in cents
    polls:<order id>    counter: how often the bank was asked about an order that still waits
and to module ``refunds``:
    refunded            counter: all that was paid back, in cents
"""

# ruff: noqa: ARG001 - handlers take what the contract passes

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from smqueue.modules import Module
from smqueue.retry import Retry
from smqueue.states import Context, State, StateMachine
from smqueue.transaction import Transaction
from smqueue.triggers import Failed, after, call, now, poll

orders = Module("orders")
parcels = Module("parcels")
refunds = Module("refunds")

# --- orders ----------------------------------------------------------------------------------------------------------


@orders.state
class Awaiting(State):
    """An order waits for its money.

    Attributes:
        order_id: Unique; also the id of the operation.
        total: What it costs, in cents.
        patience: How long it waits.
        bank_polls: At which look the bank shows a transfer of the total; 0: there never is one.
        pickup: Whether the customer fetches the parcel, instead of having it brought.
        label: Whether the Celery task ``labels.print`` is sent when it ships.
    """

    order_id: str
    total: int
    patience: timedelta
    bank_polls: int = 0
    pickup: bool = False
    label: bool = False


@orders.state(terminal=True)
class Shipped(State):
    """It is paid, and its parcel is on its way."""

    order_id: str


@orders.state(terminal=True)
class Cancelled(State):
    """Its patience has ended."""

    order_id: str
    why: str


@dataclass(frozen=True)
class Payment:
    """Some money for an order, in cents."""

    amount: int


@dataclass(frozen=True)
class Transfer:
    """What the bank shows of an order: an announced transfer, in cents."""

    amount: int


payment = orders.signal("payment", Payment)


def look_at_bank(state: Awaiting, _: Context) -> Transfer | None:
    """Ask the simulated bank, which announces a transfer at once and books it some looks later."""
    return Transfer(state.total) if state.bank_polls else None


def between_looks(state: Awaiting) -> timedelta:
    """Look often where a transfer was announced, rarely elsewhere."""
    return timedelta(milliseconds=500) if state.bank_polls else timedelta(minutes=5)


@orders.on(Awaiting, payment)
def paid(tx: Transaction, state: Awaiting, received: Payment, context: Context) -> Shipped | None:
    """Payments add up; once they reach the total it ships."""
    so_far = received_until_now(tx, state) + received.amount
    tx.incrby("revenue", received.amount)
    if so_far < state.total:
        tx.set(f"paid:{state.order_id}", so_far)
        return None  # consumed; the deadline stays where it was
    return ship(tx, state, so_far, context.operation_id)


@orders.on(Awaiting, poll(look_at_bank, every=between_looks))
def settled(tx: Transaction, state: Awaiting, transfer: Transfer, context: Context) -> Shipped | None:
    """The bank books a transfer some looks after it was announced."""
    looks = int(tx.get(f"polls:{state.order_id}") or 0) + 1
    if looks < state.bank_polls:
        tx.set(f"polls:{state.order_id}", looks)
        return None  # poll on
    tx.delete(f"polls:{state.order_id}")
    tx.incrby("revenue", transfer.amount)
    return ship(tx, state, received_until_now(tx, state) + transfer.amount, context.operation_id)


@orders.on(Awaiting, after(lambda state: state.patience))
def expired(tx: Transaction, state: Awaiting, _: None, context: Context) -> Cancelled:
    """Nobody waits for ever; what was received goes back."""
    settle(tx, state, received_until_now(tx, state), context.operation_id)
    return Cancelled(state.order_id, "unpaid")


def received_until_now(tx: Transaction, state: Awaiting) -> int:
    """What the order has received so far, in cents."""
    return int(tx.get(f"paid:{state.order_id}") or 0)


def ship(tx: Transaction, state: Awaiting, received: int, operation_id: str) -> Shipped:
    """Pack the parcel, and pay back what was too much."""
    tx.add_state_machines([StateMachine(operation_id, Packed(state.order_id, state.pickup))])
    settle(tx, state, received - state.total, operation_id)
    if state.label:
        tx.send_task("labels.print", args=[state.order_id])
    return Shipped(state.order_id)


def settle(tx: Transaction, state: Awaiting, owed: int, operation_id: str) -> None:
    """Close the books of an order, and pay back what is owed, if anything."""
    tx.delete(f"paid:{state.order_id}")
    if owed > 0:
        tx.add_state_machines([StateMachine(operation_id, Refunding(state.order_id, owed))])


# --- parcels ---------------------------------------------------------------------------------------------------------


@parcels.state
class Packed(State):
    """A parcel stands in the warehouse."""

    order_id: str
    pickup: bool


@parcels.state
class OnTheRoad(State):
    """It is being brought."""

    order_id: str


@parcels.state
class AtCounter(State):
    """It waits for the customer."""

    order_id: str


@parcels.state(terminal=True)
class Delivered(State):
    """The customer has it."""

    order_id: str


@parcels.state(terminal=True)
class Returned(State):
    """The customer did not come."""

    order_id: str


collected = parcels.signal("collected")


@parcels.on(Packed, now())
def handed_over(tx: Transaction, state: Packed, _: None) -> OnTheRoad | AtCounter:
    """It leaves the warehouse at once."""
    return AtCounter(state.order_id) if state.pickup else OnTheRoad(state.order_id)


@parcels.on(OnTheRoad, after(milliseconds=500))
def brought(tx: Transaction, state: OnTheRoad, _: None) -> Delivered:
    """The road takes its time."""
    return Delivered(state.order_id)


@parcels.on(AtCounter, collected)
def fetched(tx: Transaction, state: AtCounter, _: None) -> Delivered:
    """The customer came; perhaps before the parcel did, and then the signal was kept."""
    return Delivered(state.order_id)


@parcels.on(AtCounter, after(minutes=10))
def forgotten(tx: Transaction, state: AtCounter, _: None) -> Returned:
    """The customer did not come."""
    return Returned(state.order_id)


# --- refunds ---------------------------------------------------------------------------------------------------------


@refunds.state
class Refunding(State):
    """Money is on its way back.

    Attributes:
        order_id: Whose.
        amount: In cents.
    """

    order_id: str
    amount: int


@refunds.state(terminal=True)
class Refunded(State):
    """The customer has it back; ``receipt`` is the bank's."""

    order_id: str
    receipt: str


@refunds.state(terminal=True)
class RefundFailed(State):
    """The bank did not take it."""

    order_id: str
    why: str


def pay_back(state: Refunding, _: Context) -> str:
    """Pay through the simulated bank; asked twice it pays once, and gives the same receipt."""
    return receipt_for(state.order_id, state.amount)


def receipt_for(order_id: str, amount: int) -> str:
    """The bank's receipt for a refund of ``amount`` cents."""
    return f"{order_id}/{amount}"


@refunds.on(Refunding, call(pay_back, retry=Retry(max_attempts=5, base=timedelta(seconds=1))))
def paid_back(tx: Transaction, state: Refunding, receipt: str | Failed) -> Refunded | RefundFailed:
    """The bank has answered, or was given up."""
    if isinstance(receipt, Failed):
        return RefundFailed(state.order_id, receipt.error)
    tx.incrby("refunded", state.amount)
    return Refunded(state.order_id, receipt)

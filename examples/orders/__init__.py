"""An order waits for its payment, but not for ever; once it is paid, its parcel sets out by itself.

A worker, and then ten orders:

    export CELERY_BROKER_URL=redis://localhost:6379/0 SMQUEUE_URL=redis://localhost:6379/0
    celery -A examples.orders.app worker
    python -m examples.orders.produce --count 10
"""

from __future__ import annotations

from dataclasses import dataclass

from celery import shared_task

from smqueue import Context, Module, State, StateMachine, Transaction, after, now

orders = Module("orders")
parcels = Module("parcels")

# --- orders ----------------------------------------------------------------------------------------------------------


@orders.state
class Awaiting(State):
    order_id: str
    total: int


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


@orders.on(Awaiting, payment)
def paid(tx: Transaction, state: Awaiting, received: Payment, context: Context) -> Shipped | None:
    if received.amount < state.total:
        return None  # consumed; keep waiting. The deadline stays where it was
    tx.incrby("revenue", received.amount)  # commits with the transition or not at all
    tx.send_task("labels.print", args=[state.order_id])  # sent only if the transition commits
    tx.add_state_machines([StateMachine(context.operation_id, Packed(state.order_id))])  # and so does the parcel
    return Shipped(state.order_id)


@orders.on(Awaiting, after(minutes=30))
def expired(tx: Transaction, state: Awaiting, _: None) -> Cancelled:
    return Cancelled(state.order_id, "unpaid")


# --- parcels ---------------------------------------------------------------------------------------------------------


@parcels.state
class Packed(State):
    order_id: str


@parcels.state
class OnTheRoad(State):
    order_id: str


@parcels.state(terminal=True)
class Delivered(State):
    order_id: str
    receipt: str


@parcels.state(terminal=True)
class Lost(State):
    order_id: str


delivery = parcels.signal("delivery", str)


@parcels.on(Packed, now())
def handed_over(tx: Transaction, state: Packed, _: None) -> OnTheRoad:
    return OnTheRoad(state.order_id)


@parcels.on(OnTheRoad, delivery)
def delivered(tx: Transaction, state: OnTheRoad, receipt: str) -> Delivered:
    return Delivered(state.order_id, receipt)


@parcels.on(OnTheRoad, after(days=14))
def missed(tx: Transaction, state: OnTheRoad, _: None) -> Lost:
    return Lost(state.order_id)


# --- what an order sends ---------------------------------------------------------------------------------------------


@shared_task(name="labels.print", ignore_result=True)
def print_label(order_id: str) -> None:
    """An ordinary Celery task, sent only once the order's transition has committed."""
    print(f"label for {order_id}")

"""The examples, run and explored in memory: as those who write machines of their own may test them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from examples import helpdesk, orders
from examples.lightning import receive, refund, send, signatures, spend
from examples.lightning.peers import Federation, Gateway, payment_hash
from smqueue import State, StateMachine
from smqueue.testing import LocalExecutor, SentTask, World, explore

EXPIRY = datetime(2026, 1, 2, tzinfo=UTC)

# --- orders ----------------------------------------------------------------------------------------------------------


def test_an_order_and_its_parcel() -> None:
    """Paid in time an order ships, its label is printed, and its parcel is delivered."""
    executor = LocalExecutor(orders.orders, orders.parcels)
    executor.add_state_machines([StateMachine("o", orders.Awaiting("o", 3))])
    executor.advance(minutes=29)
    executor.signal("o", orders.payment, orders.Payment(3))
    executor.run_until_idle()
    assert executor.sent_tasks == [SentTask("labels.print", ("o",))]
    executor.advance(days=13)
    executor.signal("o", orders.delivery, "signed by the neighbour")
    executor.await_operation("o", timeout=1)
    assert executor.states("o") == [orders.Shipped("o"), orders.Delivered("o", "signed by the neighbour")]


def test_no_order_is_lost_or_paid_for_nothing() -> None:
    """In every order of payments, deadlines and crashes: revenue is counted once, for what has shipped alone."""

    def scenario(world: World) -> None:
        world.add("o", orders.Awaiting("o", 3))
        world.signal("o", orders.payment, orders.Payment(1))
        world.signal("o", orders.payment, orders.Payment(3))

        def counted_once(w: World) -> None:
            shipped = orders.Shipped("o") in w.states("o")
            assert w.executor.data("revenue", "orders") == ("3" if shipped else None)
            assert len(w.executor.sent_tasks) == shipped
            assert not w.executor.has_active_states("o")

        world.after_all(counted_once)

    explored = explore([orders.orders, orders.parcels], scenario, duplicates=0)
    assert explored.complete
    assert set(explored.ends) == {("Cancelled",), ("Lost", "Shipped")}


# --- the help desk ---------------------------------------------------------------------------------------------------


def test_a_ticket_closes_whatever_the_order() -> None:
    """Each event moves the ticket once, whichever comes first and whoever dies."""

    def scenario(world: World) -> None:
        world.add("t", helpdesk.Ticket("t", 2))
        for activity in ("open", "close"):
            world.signal("t", helpdesk.event, helpdesk.Event(activity))

        def each_once(w: World) -> None:
            assert w.executor.data("activities") == {"open": "1", "close": "1"}
            assert [type(state) for state in w.states("t")] == [helpdesk.Closed]

        world.after_all(each_once)

    explored = explore(helpdesk.helpdesk, scenario)
    assert explored.complete


# --- lightning -------------------------------------------------------------------------------------------------------


def wallet(gateway: Gateway | None = None, **federation: Any) -> LocalExecutor:
    """The wallet's machines, against a federation that answers a long poll after ten minutes."""
    return LocalExecutor(
        {"mint": signatures.mint, "refunds": refund.refunds, "spends": spend.spends, "sends": send.sends},
        receives=receive.receives,
        context=Federation(round_s=600, **federation),
        contexts={"sends": gateway or Gateway()},
    )


@pytest.mark.parametrize(
    ("state", "ends"),
    [
        (signatures.Collecting("i", ["note"], 2), {signatures.Issued("i", 2)}),
        (signatures.Collecting("i", ["spent"], 2), {signatures.Rejected("i", "a note was spent before")}),
        (refund.Submitted("t", ["note"], 1), {refund.Accepted("t")}),
        (refund.Submitted("t", ["note"], 0), {refund.Rejected("t", "the fee is too low"), refund.Refunded("t")}),
        (spend.HandedOut("s", ["note"], EXPIRY), {spend.TakenBack("s", "the deadline"), refund.Refunded("s")}),
        (
            receive.Offered("k", "secret", 3, EXPIRY),
            {receive.Claimed("k", "secret"), signatures.Issued("k", 3)},
        ),
        (receive.Offered("unfunded", "secret", 3, EXPIRY), {receive.Expired("unfunded", "nobody has paid")}),
        (send.Funded("k", payment_hash("known"), 10, ["note"], EXPIRY), {send.Paid("k", "known")}),
        (
            send.Funded("k", payment_hash("known"), 10**9, ["note"], EXPIRY),
            {send.Refused("k", "the amount is too large"), refund.Refunded("k")},
        ),
    ],
    ids=lambda given: type(given).__name__ if isinstance(given, State) else "",
)
def test_a_machine_of_the_wallet(state: State, ends: set[State]) -> None:
    """Each machine comes to its ends, those it spawns included, within two days that take no time."""
    gateway = Gateway(knows=frozenset({"known"}))
    executor = wallet(gateway, spent=frozenset({"spent"}), unfunded=frozenset({"unfunded"}), offline=frozenset({3}))
    executor.add_state_machines([StateMachine("o", state)])
    executor.await_operation("o", timeout=timedelta(days=2))
    assert set(executor.states("o")) == ends


def test_a_preimage_seen_elsewhere_pays() -> None:
    """A gateway that never answers is paid nothing: our own receiver shows the preimage first."""
    executor = wallet(Gateway(offline=True))
    invoice = payment_hash("secret")
    executor.add_state_machines([StateMachine("s", send.Funded("k", invoice, 3, ["note"], EXPIRY))])
    operation = receive.receiving(invoice)
    executor.add_state_machines([StateMachine(operation, receive.Offered("r", "secret", 3, EXPIRY))])
    executor.await_operation("s", timeout=timedelta(hours=1))
    assert executor.states("s") == [send.Paid("k", "secret")]


def test_notes_are_taken_back_once() -> None:
    """Cancelled by the user, or by the deadline, or both at once: one refund, and each note is taken once."""

    def scenario(world: World) -> None:
        world.add("s", spend.HandedOut("s", ["a", "b"], EXPIRY))
        world.signal("s", spend.cancel)

        def once(w: World) -> None:
            taken, refunded = w.states("s")
            assert isinstance(taken, spend.TakenBack)
            assert refunded == refund.Refunded("s")
            assert w.executor.data("taken", "spends") == {"a": "s", "b": "s"}

        world.after_all(once)

    explored = explore([spend.spends, refund.refunds], scenario, context=Federation)
    assert explored.complete

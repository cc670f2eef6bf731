"""The handlers of the examples, called as the plain functions that they are, and the peers they talk to."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from examples import helpdesk, orders
from examples.lightning import receive, refund, send, signatures, spend
from examples.lightning.peers import Answer, Federation, Gateway, NotesSpent, Share, Verdict, payment_hash
from smqueue import Context, Failed, Module, StateMachine
from smqueue.testing import FakeTransaction, SentTask

MODULES = [
    orders.orders,
    orders.parcels,
    helpdesk.helpdesk,
    signatures.mint,
    refund.refunds,
    spend.spends,
    send.sends,
    receive.receives,
]
EXPIRY = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_machines_are_sound(module: Module[Any]) -> None:
    """Every state of the examples can be reached and left; every annotation resolves."""
    assert module.check() == []


@pytest.fixture
def tx() -> FakeTransaction:
    """The transaction of the handlers of one test."""
    return FakeTransaction()


def context(module: object = None) -> Context[Any, Any]:
    return Context(module, None, "op-1", "machine-1")


# --- orders and the help desk ----------------------------------------------------------------------------------------


def test_an_order_ships_once_it_is_paid(tx: FakeTransaction) -> None:
    """Too little keeps it waiting and writes nothing; enough ships it, with parcel, label and revenue."""
    order = orders.Awaiting("o", 3)
    assert orders.paid(tx, order, orders.Payment(2), context()) is None
    assert tx.untouched
    assert orders.paid(tx, order, orders.Payment(3), context()) == orders.Shipped("o")
    assert tx.spawned == [StateMachine("op-1", orders.Packed("o"), "parcels")]
    assert (tx.data("revenue"), tx.tasks) == ("3", [SentTask("labels.print", ("o",))])
    assert orders.expired(tx, order, None) == orders.Cancelled("o", "unpaid")


def test_a_ticket_moves_with_each_event(tx: FakeTransaction) -> None:
    """An activity that comes twice gives two states; the last event closes the ticket."""
    first = helpdesk.moved(tx, helpdesk.Ticket("c", 3), helpdesk.Event("wait"))
    assert first == helpdesk.Ticket("c", 3, 1, "wait")
    second = helpdesk.moved(tx, first, helpdesk.Event("wait"))
    assert second != first
    assert isinstance(second, helpdesk.Ticket)
    assert helpdesk.moved(tx, second, helpdesk.Event("close")) == helpdesk.Closed("c", 3, "close")
    assert tx.data("activities") == {"wait": "2", "close": "1"}


# --- lightning -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("offline", "forging"), [({0}, set[int]()), (set[int](), {2}), (set[int](), set[int]())])
def test_a_threshold_of_peers_issues_notes(tx: FakeTransaction, offline: set[int], forging: set[int]) -> None:
    """Three of four are enough, whichever one is silent or forges; the notes are the same and all are stored."""
    federation = Federation(offline=frozenset(offline), forging=frozenset(forging))
    state = signatures.Collecting("i", ["note"], 2)
    shares = asyncio.run(signatures.collect(state, context(federation)))
    assert len({share.peer for share in shares} - offline - forging) == 3
    assert signatures.collected(tx, state, shares, context(federation)) == signatures.Issued("i", 2)
    notes = Federation().combine(shares, "i", 2)
    assert tx.data("notes") == {"i:0": notes[0], "i:1": notes[1]}


def test_too_few_signatures_issue_nothing(tx: FakeTransaction) -> None:
    """Where too many forge, collecting fails, and once it is given up the issuance is rejected."""
    federation = Federation(forging=frozenset({0, 1}))
    state = signatures.Collecting("i", ["note"], 2)
    with pytest.raises(ConnectionError, match="only 2 of 3"):
        asyncio.run(signatures.collect(state, context(federation)))
    with pytest.raises(ValueError, match="0 peers"):
        federation.combine([Share(0, "forged"), Share(0, "forged")], "i", 1)
    failed = Failed("ConnectionError: …", 10)
    assert signatures.collected(tx, state, failed, context(federation)) == signatures.Rejected("i", failed.error)
    assert tx.untouched


def test_a_rejection_is_seen(tx: FakeTransaction) -> None:
    """The federation says why it will not sign; until then nothing is said."""
    federation = Federation(spent=frozenset({"spent"}))
    assert signatures.rejection(signatures.Collecting("i", ["note"], 2), context(federation)) is None
    state = signatures.Collecting("i", ["spent"], 2)
    why = signatures.rejection(state, context(federation))
    assert why is not None
    assert signatures.rejected(tx, state, why) == signatures.Rejected("i", "a note was spent before")


def test_a_rejected_transaction_starts_its_refund(tx: FakeTransaction) -> None:
    """An accepted one ends; a rejected one spawns, in the same operation, what gets its notes back."""
    federation = Federation(least_fee=5)
    cheap, dear = refund.Submitted("t", ["note"], 1), refund.Submitted("t", ["note"], 5)
    said = refund.verdict(dear, context(federation))
    assert said == Verdict(True)
    assert refund.judged(tx, dear, said, context(federation)) == refund.Accepted("t")
    assert not tx.spawned
    said = refund.verdict(cheap, context(federation))
    assert said is not None
    assert refund.judged(tx, cheap, said, context(federation)) == refund.Rejected("t", "the fee is too low")
    assert tx.spawned == [StateMachine("op-1", refund.Refunding("t", ["note"]), "refunds")]


def test_a_refund_exchanges_or_fails(tx: FakeTransaction) -> None:
    """Fresh notes are stored for old ones, the same each time; notes that were spent are not refunded."""
    federation = Federation(spent=frozenset({"spent"}))
    state = refund.Refunding("t", ["a", "b"])
    fresh = refund.reissue(state, context(federation))
    assert fresh == refund.reissue(state, context(federation))
    assert refund.refunded(tx, state, fresh) == refund.Refunded("t")
    assert tx.data("notes") == dict(zip("ab", fresh, strict=True))
    with pytest.raises(NotesSpent):
        refund.reissue(refund.Refunding("t", ["spent"]), context(federation))
    assert refund.refunded(tx, state, Failed("NotesSpent: …", 1)) == refund.RefundFailed("t", "NotesSpent: …")


@pytest.mark.parametrize(("handler", "by"), [(spend.cancelled, "the user"), (spend.timed_out, "the deadline")])
def test_notes_are_taken_back(tx: FakeTransaction, handler: Any, by: str) -> None:
    """The user's cancel and the deadline do the same: claim the notes and start their refund."""
    state = spend.HandedOut("s", ["a", "b"], EXPIRY)
    assert handler(tx, state, None, context()) == spend.TakenBack("s", by)
    assert tx.data("taken") == {"a": "s", "b": "s"}
    assert tx.states == [refund.Refunding("s", ["a", "b"])]


def funded(preimage: str, amount: int = 10) -> send.Funded:
    return send.Funded("k", payment_hash(preimage), amount, ["note"], EXPIRY)


def test_only_the_gateway_is_believed(tx: FakeTransaction) -> None:
    """Silence and a forged answer are no answer; the genuine one brings the preimage, which is kept."""
    gateway = Gateway(knows=frozenset({"secret"}))
    answers = [send.ask_gateway(funded("secret"), context(gateway)) for _ in range(3)]
    assert answers[:2] == [None, None]
    assert answers[2] is not None
    assert send.answered(tx, funded("secret"), answers[2], context(gateway)) == send.Paid("k", "secret")
    assert (tx.data("receipts"), tx.spawned) == ({"k": "secret"}, [])


@pytest.mark.parametrize("preimage", [None, "wrong"])
def test_a_forged_answer_is_none(preimage: str | None) -> None:
    """An answer that somebody else has signed, or a preimage of another invoice, is not genuine or not believed."""
    gateway = Gateway()
    assert not gateway.genuine(Answer("k", preimage, "", "0" * 64))

    class Lying(Gateway):
        def answer(self, contract: str, invoice: str, amount: int) -> Answer | None:
            return self._signed("gateway", contract, "wrong", "")

    assert send.ask_gateway(funded("secret"), context(Lying())) is None


def test_a_refusal_starts_the_refund(tx: FakeTransaction) -> None:
    """A gateway that will not pay, and a contract that expires, give the notes back."""
    gateway = Gateway(most=5)
    answers = [send.ask_gateway(funded("secret"), context(gateway)) for _ in range(3)]
    assert answers[2] is not None
    refused = send.answered(tx, funded("secret"), answers[2], context(gateway))
    assert refused == send.Refused("k", "the amount is too large")
    assert tx.states == [refund.Refunding("k", ["note"])]
    tx.commit()
    assert isinstance(send.expired(tx, funded("secret"), None, context(gateway)), send.Refused)
    assert all(send.ask_gateway(funded("secret"), context(Gateway(offline=True))) is None for _ in range(3))


def test_a_preimage_seen_elsewhere_pays(tx: FakeTransaction) -> None:
    """Only the one that fits the invoice."""
    assert send.seen_elsewhere(tx, funded("secret"), receive.Claimed("r", "secret")) == send.Paid("k", "secret")
    assert send.seen_elsewhere(tx, funded("secret"), receive.Claimed("r", "wrong")) is None


def test_a_funded_contract_is_claimed(tx: FakeTransaction) -> None:
    """The long poll ends with the funding; the claim and the issuance of its notes are one transition."""
    federation = Federation(round_s=0.001)
    state = receive.Offered("r", "secret", 3, EXPIRY)
    amount = asyncio.run(receive.funding(state, context(federation)))
    assert receive.funded(tx, state, amount, context(federation)) == receive.Claimed("r", "secret")
    assert tx.data("claimed") == {"r": "3"}
    assert tx.states == [signatures.Collecting("r", ["r"], 3)]
    failed = Failed("ConnectionError: …", 100)
    assert receive.funded(tx, state, failed, context(federation)) == receive.Expired("r", failed.error)
    assert receive.expired(tx, state, None) == receive.Expired("r", "nobody has paid")


def test_an_unfunded_contract_keeps_us_waiting() -> None:
    """Nothing but the deadline ends the poll of a contract into which nobody pays."""
    federation = Federation(round_s=0.001, unfunded=frozenset({"r"}))

    async def waited() -> int:
        return await asyncio.wait_for(receive.funding(receive.Offered("r", "s", 3, EXPIRY), context(federation)), 0.05)

    with pytest.raises(TimeoutError):
        asyncio.run(waited())

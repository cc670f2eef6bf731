"""A gateway is paid once it can show the preimage of an invoice. Whoever shows it first, the payment is done.

    Funded ── answered (poll) ─────────▶ Paid, or Refused, which spawns a refund
       ├───── seen_elsewhere (reached) ▶ Paid
       └───── expired (at) ────────────▶ Refused, which spawns a refund

Keys written, relative to the module:
    receipts    hash: ``<contract>`` → the preimage, which proves the payment
"""

from __future__ import annotations

from datetime import datetime, timedelta

from examples.lightning.peers import Answer, Gateway, payment_hash
from examples.lightning.receive import Claimed, receiving
from examples.lightning.refund import Refunding
from smqueue import Context, Module, State, StateMachine, Transaction, at, poll, reached

sends = Module[Gateway]("sends")


@sends.state
class Funded(State):
    """A contract that pays ``notes`` to whoever has the preimage of ``invoice``, until ``expiry``."""

    contract: str
    invoice: str
    amount: int
    notes: list[str]
    expiry: datetime


@sends.state(terminal=True)
class Paid(State):
    contract: str
    preimage: str


@sends.state(terminal=True)
class Refused(State):
    contract: str
    why: str


def ask_gateway(state: Funded, context: Context[Gateway]) -> Answer | None:
    """The gateway's answer, once there is one that it has signed and that holds."""
    answer = context.module.answer(state.contract, state.invoice, state.amount)
    if answer is None or not context.module.genuine(answer):
        return None
    if answer.preimage is not None and payment_hash(answer.preimage) != state.invoice:
        return None
    return answer


@sends.on(Funded, poll(ask_gateway, every=timedelta(seconds=1)))
def answered(tx: Transaction, state: Funded, answer: Answer, context: Context[Gateway]) -> Paid | Refused:
    if answer.preimage is None:
        return refuse(tx, state, answer.why, context)
    return pay(tx, state, answer.preimage)


# The invoice may be one of our own federation's: then its receiver claims with the preimage, and we see that.
@sends.on(Funded, reached(lambda state: receiving(state.invoice), Claimed))
def seen_elsewhere(tx: Transaction, state: Funded, claimed: Claimed) -> Paid | None:
    if payment_hash(claimed.preimage) != state.invoice:
        return None
    return pay(tx, state, claimed.preimage)


@sends.on(Funded, at(lambda state: state.expiry))
def expired(tx: Transaction, state: Funded, _: None, context: Context[Gateway]) -> Refused:
    return refuse(tx, state, "the contract has expired", context)


def pay(tx: Transaction, state: Funded, preimage: str) -> Paid:
    """Keep the preimage as a receipt."""
    tx.hset("receipts", state.contract, preimage)
    return Paid(state.contract, preimage)


def refuse(tx: Transaction, state: Funded, why: str, context: Context[Gateway]) -> Refused:
    """Start to get the notes back."""
    tx.add_state_machines([StateMachine(context.operation_id, Refunding(state.contract, state.notes))])
    return Refused(state.contract, why)

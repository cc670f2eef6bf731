"""A contract is watched until somebody has funded it, or it has expired; funded, it is claimed in the transition.

    Offered ── funded (wait) ──▶ Claimed, and spawns the issuance of its notes
       └────── expired (at) ───▶ Expired

Keys written, relative to the module:
    claimed     hash: ``<contract>`` → its amount
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated

from examples.lightning.peers import Federation
from examples.lightning.signatures import Collecting
from smqueue import Context, Failed, Module, Retry, Secret, State, StateMachine, Transaction, at, wait

receives = Module[Federation]("receives")


@receives.state
class Offered(State):
    """The preimage is a secret until the contract is funded: whoever has it can claim."""

    contract: str
    preimage: Annotated[str, Secret]
    amount: int
    expiry: datetime


@receives.state(terminal=True)
class Claimed(State):
    contract: str
    preimage: str


@receives.state(terminal=True)
class Expired(State):
    contract: str
    why: str


def receiving(invoice: str) -> str:
    """Return the id of the operation that receives what is paid for an invoice."""
    return f"receive-{invoice}"


async def funding(state: Offered, context: Context[Federation]) -> int:
    """Poll, each time for as long as the federation keeps us waiting; a deadline ends it."""
    while not await context.module.await_funding(state.contract):
        pass
    return state.amount


@receives.on(Offered, wait(funding, retry=Retry(max_attempts=100, cap=timedelta(minutes=1))))
def funded(tx: Transaction, state: Offered, amount: int | Failed, context: Context[Federation]) -> Claimed | Expired:
    if isinstance(amount, Failed):
        return Expired(state.contract, amount.error)
    tx.hset("claimed", state.contract, amount)
    issuance = Collecting(state.contract, spends=[state.contract], count=amount)
    tx.add_state_machines([StateMachine(context.operation_id, issuance)])
    return Claimed(state.contract, state.preimage)


@receives.on(Offered, at(lambda state: state.expiry))
def expired(tx: Transaction, state: Offered, _: None) -> Expired:
    return Expired(state.contract, "nobody has paid")

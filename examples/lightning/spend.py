"""Notes are handed out as text. Until somebody redeems them they can be taken back: by the user, or at a deadline.

    HandedOut ── cancelled (signal) ──▶ TakenBack, and spawns a refund
        └─────── timed_out (at) ──────▶ TakenBack, and spawns a refund

Keys written, relative to the module:
    taken   hash: ``<note>`` → the spend that took it back
"""

from __future__ import annotations

from datetime import datetime

from examples.lightning.peers import Federation
from examples.lightning.refund import Refunding
from smqueue import Context, Module, State, StateMachine, Transaction, at

spends = Module[Federation]("spends")


@spends.state
class HandedOut(State):
    """``until`` is absolute: a worker that was away for a day does not start it afresh."""

    spend: str
    notes: list[str]
    until: datetime


@spends.state(terminal=True)
class TakenBack(State):
    spend: str
    by: str


cancel = spends.signal("cancel")


@spends.on(HandedOut, cancel)
def cancelled(tx: Transaction, state: HandedOut, _: None, context: Context[Federation]) -> TakenBack:
    take_back(tx, state, context)
    return TakenBack(state.spend, "the user")


@spends.on(HandedOut, at(lambda state: state.until))
def timed_out(tx: Transaction, state: HandedOut, _: None, context: Context[Federation]) -> TakenBack:
    take_back(tx, state, context)
    return TakenBack(state.spend, "the deadline")


def take_back(tx: Transaction, state: HandedOut, context: Context[Federation]) -> None:
    """Claim the notes and start their refund; of two that try, one commits."""
    tx.hset("taken", dict.fromkeys(state.notes, state.spend))
    tx.add_state_machines([StateMachine(context.operation_id, Refunding(state.spend, state.notes))])

"""A rejected transaction starts, in its transition, the machine that gets back what it would have spent.

    Submitted ── judged (poll) ──▶ Accepted
        └─────────────────────────▶ Rejected, and spawns
    Refunding ── refunded (call) ─▶ Refunded
        └─────────────────────────▶ RefundFailed

Keys written, relative to the module:
    notes   hash: ``<old note>`` → the note that it was exchanged for
"""

from __future__ import annotations

from datetime import timedelta

from examples.lightning.peers import Federation, Verdict
from smqueue import Context, Failed, Module, Retry, State, StateMachine, Transaction, call, poll

refunds = Module[Federation]("refunds")


@refunds.state
class Submitted(State):
    transaction: str
    notes: list[str]
    fee: int


@refunds.state(terminal=True)
class Accepted(State):
    transaction: str


@refunds.state(terminal=True)
class Rejected(State):
    transaction: str
    why: str


@refunds.state
class Refunding(State):
    """``reason`` names what wants the notes back."""

    reason: str
    notes: list[str]


@refunds.state(terminal=True)
class Refunded(State):
    reason: str


@refunds.state(terminal=True)
class RefundFailed(State):
    reason: str
    why: str


def verdict(state: Submitted, context: Context[Federation]) -> Verdict | None:
    return context.module.verdict(state.notes, state.fee)


def reissue(state: Refunding, context: Context[Federation]) -> list[str]:
    return context.module.reissue(state.notes)


@refunds.on(Submitted, poll(verdict, every=timedelta(seconds=1)))
def judged(tx: Transaction, state: Submitted, said: Verdict, context: Context[Federation]) -> Accepted | Rejected:
    if said.accepted:
        return Accepted(state.transaction)
    tx.add_state_machines([StateMachine(context.operation_id, Refunding(state.transaction, state.notes))])
    return Rejected(state.transaction, said.why)


# A federation that cannot be reached is asked again; notes that are spent stay spent.
@refunds.on(Refunding, call(reissue, timeout=30, retry=Retry(max_attempts=10, on=(ConnectionError, TimeoutError))))
def refunded(tx: Transaction, state: Refunding, fresh: list[str] | Failed) -> Refunded | RefundFailed:
    if isinstance(fresh, Failed):
        return RefundFailed(state.reason, fresh.error)
    tx.hset("notes", dict(zip(state.notes, fresh, strict=True)))
    return Refunded(state.reason)

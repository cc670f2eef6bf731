"""A help desk's event log, replayed: each case is an operation, each event a signal, each activity a step.

A worker, and then the first hundred cases of a log in XES:

    export CELERY_BROKER_URL=redis://localhost:6379/0 SMQUEUE_URL=redis://localhost:6379/0
    celery -A examples.helpdesk.app worker
    python -m examples.helpdesk helpdesk.xes.gz --limit 100
"""

from __future__ import annotations

from dataclasses import dataclass

from smqueue import Module, State, Transaction

helpdesk = Module("helpdesk")


@helpdesk.state
class Ticket(State):
    """A ticket after ``seen`` of its ``total`` events. ``seen`` tells apart two visits of one activity."""

    case: str
    total: int
    seen: int = 0
    last: str = ""


@helpdesk.state(terminal=True)
class Closed(State):
    """A ticket after all of them."""

    case: str
    events: int
    last: str


@dataclass(frozen=True)
class Event:
    activity: str


event = helpdesk.signal("event", Event)


@helpdesk.on(Ticket, event)
def moved(tx: Transaction, state: Ticket, happened: Event) -> Ticket | Closed:
    tx.hincrby("activities", happened.activity)  # how often each occurred, over all tickets
    seen = state.seen + 1
    if seen == state.total:
        return Closed(state.case, seen, happened.activity)
    return Ticket(state.case, state.total, seen, happened.activity)

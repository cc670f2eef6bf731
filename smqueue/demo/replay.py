"""The machine that replays an event log: one operation for each case, one signal for each event.

Its recorded path says what came, in the order in which it was taken; so it can be compared with the log.
"""

# ruff: noqa: ARG001 - handlers take what the contract passes

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from smqueue.demo.xes import Case
from smqueue.modules import Module
from smqueue.states import State, StateMachine
from smqueue.transaction import Transaction

replay = Module("replay")


@replay.state
class Ticket(State):
    """A case in the middle of its life.

    Attributes:
        case: Its name; also the id of the operation.
        total: How many events it will have.
        seen: How many have come; it tells apart two visits of one activity.
        last: The activity of the last one; empty before the first.
    """

    case: str
    total: int
    seen: int = 0
    last: str = ""


@replay.state(terminal=True)
class Closed(State):
    """All events have come; ``last`` is the activity of the last one."""

    case: str
    events: int
    last: str


@replay.state(terminal=True)
class Misplaced(State):
    """An event came out of its order, twice, or instead of one that was lost.

    Attributes:
        case: The case.
        due: The index of the event that was due.
        came: The index of the one that came.
    """

    case: str
    due: int
    came: int


@dataclass(frozen=True)
class Happened:
    """One event of a case.

    Attributes:
        activity: What happened.
        index: Its place in the case, from 0.
    """

    activity: str
    index: int


event = replay.signal("event", Happened)


@replay.on(Ticket, event)
def moved(tx: Transaction, state: Ticket, it: Happened) -> Ticket | Closed | Misplaced:
    """Each event is one step; the last one closes the case."""
    if it.index != state.seen:
        return Misplaced(state.case, due=state.seen, came=it.index)
    seen = state.seen + 1
    if seen == state.total:
        return Closed(state.case, seen, it.activity)
    return Ticket(state.case, state.total, seen, it.activity)


def machine_of(case: Case) -> StateMachine:
    """Return the machine to add for a case, which must have an event: nothing would ever close it."""
    return StateMachine(case.name, Ticket(case.name, len(case.events)), replay.name)


def signals_of(case: Case) -> list[Happened]:
    """Return the payloads to send, in this order. ``event-<index>`` makes a good id for each."""
    return [Happened(it.activity, index) for index, it in enumerate(case.events)]


def trace_of(states: Iterable[State]) -> list[str]:
    """Return the activities that a path of states has recorded; of a case that went well, those of the log."""
    return [s.last for s in states if isinstance(s, Closed) or (isinstance(s, Ticket) and s.seen > 0)]

"""An application under test whose machines wait for a signal and for two deadlines, far away."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from smqueue import Module, State, Transaction, after, at
from tests.apps.wiring import application, executor_on

parked = Module("parked", version=1)


@parked.state
class Parked(State):
    n: int
    until: datetime = datetime(2999, 1, 1, tzinfo=UTC)


@parked.state(terminal=True)
class Gone(State):
    how: str


leave = parked.signal("leave")


@parked.on(Parked, leave)
def left(tx: Transaction, state: Parked, _: None) -> Gone:
    return Gone("left")


@parked.on(Parked, after(timedelta(minutes=30)))
def expired(tx: Transaction, state: Parked, _: None) -> Gone:
    return Gone("expired")


@parked.on(Parked, at(lambda state: state.until))
def ended(tx: Transaction, state: Parked, _: None) -> Gone:
    return Gone("ended")


app = application("parked")
executor = executor_on(app, parked=parked)

"""An application under test whose machines wait for a signal and for two deadlines, far away."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta

from celery import Celery

from smqueue import ExecutorBuilder, Module, State, Transaction, after, at

app = Celery("parked", broker=os.environ.get("TEST_BROKER_URL"), set_as_current=False)
app.conf.update(
    task_ignore_result=True,
    broker_connection_retry_on_startup=True,
    task_default_queue=os.environ.get("TEST_QUEUE", "celery"),
)

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


executor = (
    ExecutorBuilder()
    .with_module("parked", parked)
    .build(app, url=os.environ.get("TEST_STATE_URL"), namespace=os.environ.get("TEST_NAMESPACE"))
)

"""The end of a user's task comes but once: it is kept until it is known whether it is needed."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery

from smqueue import Failed, Module, State, Transaction, after, task
from smqueue.worker.tasks import _record
from tests.inprocess import Local, Play

tasking = Module("tasking")
word = tasking.signal("word", str)


@tasking.state
class Tasked(State):
    n: int = 0


@tasking.state(terminal=True)
class Over(State):
    got: str


@tasking.on(Tasked, task(Celery("users", set_as_current=False).signature("users.task")))
def done(tx: Transaction, state: Tasked, got: str | Failed) -> Over:
    return Over(str(got))


@tasking.on(Tasked, after(milliseconds=100))
def reminded(tx: Transaction, state: Tasked, _: None) -> Over | None:
    return None


@tasking.on(Tasked, word)
def told(tx: Transaction, state: Tasked, got: str) -> Over | None:
    return None


@pytest.fixture
def local(play: Play) -> Local:
    return play(tasking=tasking)


def test_an_end_after_a_deadline_whose_handler_stays_is_not_lost(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that ends between a deadline and its handler, which keeps the machine, is the next outcome.
    (semantics 16)"""
    monkeypatch.setattr(local.engine, "send_linked", lambda *_: None)
    local.add("op", Tasked())
    local.run()
    stored = local.stored("op", Tasked())
    deadline: Any = stored.armed["reminded"]
    local.wait_past(deadline)
    _record(local.engine, f"{stored.entry}:done", {"value": "late"})
    local.until(lambda: Over("late") in local.inactive("op"), "its end to count")


def test_an_end_that_overtakes_its_own_sending_is_not_put_off(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that ends before its sender has noted that it was sent, and loses to an outcome that comes to nothing, is
    looked at at once, not in an hour. (semantics 16)"""
    local.add("op", Tasked())
    entry = f"{local.stored('op', Tasked()).entry}:done"

    def send(*_: Any) -> None:
        local.executor.signal("op", word, "first")
        _record(local.engine, entry, {"value": "soon"})

    monkeypatch.setattr(local.engine, "send_linked", send)
    local.until(lambda: Over("soon") in local.inactive("op"), "its end to count")

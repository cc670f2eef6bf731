"""The script that begins an operation leaves what the EXEC would that ``autocommit`` sends."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from smqueue import Module, State, Transaction, after, at
from smqueue.instances import Instance, Instances
from smqueue.keys import Keys
from smqueue.protocols import add as adding
from smqueue.protocols.add import add
from smqueue.states import StateMachine
from smqueue.testing.memory import Memory
from smqueue.testing.store import Store

work = Module("work", version=3)
go = work.signal("go", str)
stop = work.signal("stop")
END = datetime(2100, 1, 1, microsecond=1, tzinfo=UTC)


@work.state
class Waiting(State):
    name: str


@work.state
class Patient(State):
    name: str


@work.state
class Undoing(State):
    name: str


@work.state(terminal=True)
class Gone(State):
    name: str


@work.on(Waiting, go)
def went(tx: Transaction, state: Waiting, name: str) -> Gone:
    return Gone(name)


@work.on(Waiting, after(timedelta(milliseconds=1, microseconds=1)))
def soon(tx: Transaction, state: Waiting, _: None) -> Gone:
    return Gone("soon")


@work.on(Waiting, stop)
def stopped(tx: Transaction, state: Waiting, _: None) -> Gone:
    return Gone("stopped")


@work.on(Patient, at(END))
def ended(tx: Transaction, state: Patient, _: None) -> Gone:
    return Gone("ended")


@work.on(Undoing, go)
def undid(tx: Transaction, state: Undoing, name: str) -> Gone:
    return Gone(name)


@work.on_cancel(Undoing)
def undo(tx: Transaction, state: Undoing, _: str | None) -> None:
    tx.set("undone", state.name)


INSTANCES = Instances()
INSTANCES.register(Instance("work a", work, None, "here"))
KEYS = Keys("begin")
pytestmark = pytest.mark.usefixtures("even")


def left(machine: StateMachine, trace: str) -> tuple[Any, ...]:
    """What adding returns, and all that it leaves."""
    store = Store()
    done = Memory(store).run(add(KEYS, INSTANCES, [machine], "commit-1", trace=trace))
    return done.value, done.machines, store.data, store.expires


@pytest.mark.parametrize("trace", ["", '00-ab-cd-01"'])
@pytest.mark.parametrize("op", ["op", 'ä:{}%\n"\\', "a b"])
@pytest.mark.parametrize("kind", [Waiting, Patient, Undoing])
def test_it_leaves_what_exec_would(
    kind: type[Waiting | Patient | Undoing], op: str, trace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Byte for byte, so that whoever reads, watches or audits a machine need not know how it was begun."""
    machine = StateMachine(op, kind('π "1"'))
    with monkeypatch.context() as patch:
        patch.setattr(adding, "autocommit", None)  # is not needed
        begun = left(machine, trace)

    monkeypatch.setattr(adding, "begin", lambda *_: None)
    assert left(machine, trace) == begun

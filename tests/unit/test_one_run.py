"""Callers of one run of a script meet each other there as they would in runs of their own."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest

from smqueue import Module, State, Transaction, after
from smqueue.drivers.group import group
from smqueue.errors import SmqueueError, StoreRefused
from smqueue.instances import Instance, Instances
from smqueue.keys import Keys
from smqueue.protocols.add import add
from smqueue.protocols.claim import claim
from smqueue.protocols.signal import Delivered, signal
from smqueue.protocols.transition import transition
from smqueue.roundtrip import Steps
from smqueue.states import StateMachine
from smqueue.testing.memory import Memory
from smqueue.testing.store import Store

work = Module("work", keep=timedelta(days=1))
go = work.signal("go", str)


@work.state
class Waiting(State):
    name: str


@work.state(terminal=True)
class Gone(State):
    name: str


@work.on(Waiting, go)
def went(tx: Transaction, state: Waiting, to: str) -> Waiting | Gone:
    tx.incrby("count", 1)
    return Gone(state.name) if to == "end" else Waiting(to)


@work.on(Waiting, after(minutes=1))
def late(tx: Transaction, state: Waiting, _: None) -> Gone:
    return Gone("late")


INSTANCES = Instances()
INSTANCES.register(Instance("work", work, None, "here"))
KEYS = Keys("run")
pytestmark = pytest.mark.usefixtures("even")
STARTED = [("a", "1"), ("b", "1"), ("a", "1"), ("c", "1"), ("b", "2"), ("d", "1"), ("e", "1")]
"""Operations and machines that are started at once: one twice, and two machines of one operation."""
SENT = [("a", "end", 1), ("c", "2", 2), ("a", "end", 3), ("c", "2", 2), ("b", "2", 4), ("e", "end", 5), ("d", "end", 6)]
"""Operations, where their machines are to go, and attempts: two for one machine, one that is repeated, and one into a
state that another machine is in."""


def ask(memory: Memory, protocols: Sequence[Steps[Any]], together: bool) -> list[Any]:
    """What each has come to."""
    told: list[Any] = []
    for some in [protocols] if together else [[one] for one in protocols]:
        for run in memory.run(group(some)):
            done: Any = type(run.error) if isinstance(run.error, SmqueueError) else run.result()
            told.append(done.delivery if isinstance(done, Delivered) else done)  # one is told to send the hint: any
    return told


def left(together: bool, most: int | None = None) -> tuple[list[Any], dict[str, Any]]:
    """What all have come to, and all that they leave; the updates, which may be in another order, sorted."""
    store, at = Store(), 0
    memory, told = Memory(store), list[Any]()
    starting = [
        add(KEYS, INSTANCES, [StateMachine(op, Waiting(name))], f"commit-{n}", max_active=most)
        for n, (op, name) in enumerate(STARTED)
    ]
    told += ask(memory, starting, together)
    store.advance(1_000)
    told += ask(
        memory,
        [signal(KEYS, INSTANCES.signal(op, "go", to, "work"), f"attempt-{n}") for op, to, n in SENT],
        together,
    )
    store.advance(1_000)
    while due := memory.run(claim(KEYS, INSTANCES, 10)).machines:
        at += 1
        moving = [transition(KEYS, INSTANCES, one, f"move-{one.machine.op}-{at}") for one in due]
        told += sorted(map(str, ask(memory, moving, together)))
    data: dict[str, Any] = dict(store.data)
    data[KEYS.updates] = sorted(pairs for _, pairs in data[KEYS.updates])
    return told, data


@pytest.mark.parametrize("most", [None, 3])
def test_together_as_one_by_one(most: int | None) -> None:
    """Adding, signalling and moving leave and answer the same, however many share a run (semantics 1, 18)."""
    assert left(together=True, most=most) == left(together=False, most=most)


def test_an_error_leaves_records_whole() -> None:
    """What is refused after the machines were written, as by updates that are garbage, leaves each with its active
    record, or there would be entries without a machine (semantics 32)."""
    store = Store()
    memory = Memory(store)
    store.do("SET", KEYS.updates, "garbage")
    names = ["a", "b", "c"]
    adding = [add(KEYS, INSTANCES, [StateMachine(op, Waiting("1"))], f"commit-{op}") for op in names]
    assert set(ask(memory, adding, together=True)) == {StoreRefused}
    for op in names:
        assert store.do("HLEN", KEYS.active(op)) == 1
    assert store.do("ZCARD", KEYS.schedule) == len(names)


def test_a_count_of_claims_that_is_garbage_keeps_no_other_waiting() -> None:
    """It is told of as unreadable, and what was claimed beside it moves (semantics 32)."""
    store = Store()
    memory = Memory(store)
    for op in "abc":
        memory.run(add(KEYS, INSTANCES, [StateMachine(op, Waiting("1"))], f"commit-{op}"))
        memory.run(signal(KEYS, INSTANCES.signal(op, "go", "end", "work"), f"attempt-{op}"))
    (entry, *_) = store.do("ZRANGE", KEYS.schedule, 0, -1)
    store.do("HSET", KEYS.race(entry.decode().partition(":")[0]), "claims", "garbage")
    due = memory.run(claim(KEYS, INSTANCES, 10))
    assert [one.entry for one in due.unreadable] == [entry.decode()]
    assert len(due.machines) == 2

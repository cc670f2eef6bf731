"""Entering a state again, entering one that another machine is in, and what the records and histories say of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest

from smqueue import Module, Retry, State, StateMachine, Transaction, after
from smqueue.drain import Drain
from tests.inprocess import Local, Play

walk = Module("walk", version=1, retry=Retry(max_attempts=2, base=timedelta(milliseconds=1)))


@walk.state
class Here(State):
    name: str


@walk.state
class There(State):
    name: str


@walk.state(terminal=True)
class End(State):
    name: str


@walk.state(terminal=True)
class TimedOut(State):
    name: str


go = walk.signal("go", str)
before_returning: list[Callable[[], object]] = []
"""What a test wants done within the next runs of the handler."""


@walk.on((Here, There), go)
def gone(tx: Transaction, state: Here | There, to: str) -> Here | There | End | None:
    tx.incrby("moves")
    if before_returning:
        before_returning.pop(0)()
    kind, _, name = to.partition(" ")
    match kind:
        case "here":
            return Here(name)
        case "there":
            return There(name)
        case "end":
            return End(name)
        case "twin":  # spawns what it is in
            tx.add_state_machines([StateMachine("op", state)])
            return End(name)
        case "shadow":  # spawns what it goes to
            tx.add_state_machines([StateMachine("op", There(name))])
            return There(name)
        case _:
            return None


@walk.on((Here, There), after(minutes=30))
def late(tx: Transaction, state: Here | There, _: None) -> TimedOut:
    return TimedOut(state.name)


@pytest.fixture
def local(play: Play) -> Local:
    before_returning.clear()
    return play(walk=walk)


def send(local: Local, to: str, machine: str | None = None) -> None:
    local.executor.signal("op", go, to, machine=machine)
    local.run()


def inactive(local: Local) -> dict[State, Any]:
    return {machine.state: found for machine, found in local.executor.get_inactive_states("op")}


def path(local: Local, machine: str) -> list[tuple[int, State | None]]:
    """The states of one machine, as the history has them."""
    return [(update.step, update.state) for update in local.history("op") if update.machine_id == machine]


def moves(local: Local) -> int:
    return int(local.redis.get(local.keys().data("walk", "moves")) or 0)


# --- A → A, A → B → A ------------------------------------------------------------------------------------------------


def test_a_to_a_is_a_new_step_with_fresh_timers(local: Local) -> None:
    """A→A: the same machine stays, one step on, under a new arming whose deadline starts afresh. (semantics 24)"""
    (machine,) = local.add("op", Here("x"))
    before = local.stored("op", Here("x"))
    local.wait_past(local.now_ms())
    send(local, "here x")
    after_it = local.stored("op", Here("x"))
    ((_, active),) = local.executor.get_active_states("op")
    assert (active.machine_id, active.step) == (machine, 2)
    assert after_it.arming != before.arming
    assert after_it.armed["late"] > before.armed["late"]  # pyright: ignore[reportOperatorIssue]
    assert local.redis.zscore(local.keys().schedule, before.entry) is None
    assert local.redis.zscore(local.keys().schedule, after_it.entry) is not None


def test_a_to_a_counts_visits(local: Local) -> None:
    """A→A: the inactive record counts how often the state was left, and is there while the state is active.
    (semantics 24)"""
    (machine,) = local.add("op", Here("x"))
    for visits in (1, 2, 3):
        send(local, "here x")
        assert inactive(local)[Here("x")].visits == visits
        assert local.executor.contains_active_state(StateMachine("op", Here("x")))
    assert path(local, machine) == [(step, Here("x")) for step in (1, 2, 3, 4)]
    send(local, "end x")
    assert inactive(local)[Here("x")].visits == 4
    assert not local.executor.has_active_states("op")


def test_a_visit_that_is_over_cannot_act_on_the_next(local: Local) -> None:
    """A→A: a deadline of an earlier visit that was claimed and not applied is nothing to the present one.
    (semantics 24)"""
    local.add("op", Here("x"))
    old = local.stored("op", Here("x"))
    send(local, "here x")
    local.redis.zadd(local.keys().schedule, {old.entry: 0, f"{old.entry}:late": 0})
    local.run()
    assert local.active("op") == [Here("x")]
    assert local.redis.zscore(local.keys().schedule, old.entry) is None


def test_a_to_b_to_a(local: Local) -> None:
    """A→B→A: into a state that is inactive already: it is active again, its inactive record stays. (semantics 25)"""
    (machine,) = local.add("op", Here("x"))
    send(local, "there x")
    first = inactive(local)[Here("x")]
    send(local, "here x")
    assert local.active("op") == [Here("x")]
    assert inactive(local)[Here("x")] == first
    assert local.executor.contains_inactive_state(StateMachine("op", Here("x")))
    assert local.executor.contains_active_state(StateMachine("op", Here("x")))
    send(local, "there x")
    assert {state: found.visits for state, found in inactive(local).items()} == {Here("x"): 2, There("x"): 1}
    assert path(local, machine) == [(1, Here("x")), (2, There("x")), (3, Here("x")), (4, There("x"))]


def test_first_and_last_times_of_a_state_visited_twice(local: Local) -> None:
    """A state visited twice has one record: created when first entered, exited when last left. (semantics 25)"""
    local.add("op", Here("x"))
    send(local, "there x")
    first = inactive(local)[Here("x")]
    local.wait_past(local.now_ms())
    send(local, "here x")
    send(local, "there x")
    second = inactive(local)[Here("x")]
    assert second.created_at == first.created_at
    assert second.exited_at > first.exited_at


def test_adding_a_state_that_was_re_entered_is_refused(local: Local) -> None:
    """A state that is active again after it was inactive exists, like any other, and the first add knows itself.
    (semantics 25)"""
    local.add("op", Here("x"))
    send(local, "there x")
    send(local, "here x")
    (again,) = local.executor.add_state_machines([StateMachine("op", Here("x"))], exist_ok=True)
    ((_, active),) = local.executor.get_active_states("op")
    assert again == active.machine_id


# --- into a terminal state that is there -----------------------------------------------------------------------------


def test_two_machines_end_in_one_terminal_state(local: Local) -> None:
    """Into a terminal state already there: one record, visits counted, first times and first machine kept.
    (semantics 26)"""
    one, two = local.add("op", Here("1"), Here("2"))
    send(local, "end x", one)
    first = inactive(local)[End("x")]
    assert first.created_at == first.exited_at
    assert (first.visits, first.terminal, first.machine_id) == (1, True, one)
    local.wait_past(local.now_ms())
    send(local, "end x", two)
    second = inactive(local)[End("x")]
    assert (second.visits, second.machine_id) == (2, one)
    assert (second.created_at, second.exited_at) == (first.created_at, first.exited_at)
    assert path(local, two) == [(1, Here("2")), (2, End("x"))]
    assert not local.executor.has_active_states("op")


def test_two_that_end_in_one_terminal_state_in_one_group(local: Local) -> None:
    """Machines that end in one terminal state in the same batch lose no visit. (semantics 26)"""
    local.add("op", *[Here(str(n)) for n in range(5)])
    for _ in range(5):
        local.executor.signal("op", go, "end x")
    local.settle("op")
    assert inactive(local)[End("x")].visits == 5
    assert moves(local) == 5


@contextmanager
def meanwhile(local: Local, to: str, machine: str) -> Iterator[None]:
    """Another process moves a machine between the next look of this one and its commit."""
    other = local.another()

    def move() -> None:
        local.executor.signal("op", go, to, machine=machine)
        other.run()

    with local.before_moves(move):
        yield


def test_two_that_end_in_one_terminal_state_at_the_same_time(local: Local) -> None:
    """One that ends between another's look and its commit makes that look again: both visits count. (semantics 26)"""
    one, two = local.add("op", Here("1"), Here("2"))
    local.executor.signal("op", go, "end x", machine=one)
    with meanwhile(local, "end x", two):
        local.settle("op")
    found = inactive(local)[End("x")]
    assert (found.visits, found.machine_id) == (2, two)


# --- merging ---------------------------------------------------------------------------------------------------------


def check_merged(local: Local, gone: str, going_on: str) -> None:
    """One machine goes on in There("x"); both histories say so."""
    ((machine, active),) = local.executor.get_active_states("op")
    assert (machine.state, active.machine_id) == (There("x"), going_on)
    (merging,) = [update for update in local.history("op") if update.merged_into]
    assert (merging.machine_id, merging.merged_into, merging.state) == (gone, going_on, There("x"))
    assert [found.merged_into for found in inactive(local).values() if found.machine_id == gone] == [going_on]


def check_ends_once(local: Local) -> None:
    """The merged machine transitions once."""
    before = moves(local)
    local.executor.signal("op", go, "end x")
    local.settle("op")
    assert moves(local) == before + 1
    assert inactive(local)[There("x")].visits == 1
    assert inactive(local)[End("x")].visits == 1
    assert len([update for update in local.history("op") if update.state == End("x")]) == 1


def test_one_after_the_other_merges(local: Local) -> None:
    """A machine that reaches an active state ends there; the one that was there goes on, with its timers.
    (semantics 27)"""
    one, two = local.add("op", Here("1"), Here("2"))
    send(local, "there x", one)
    armed = local.stored("op", There("x"))
    send(local, "there x", two)
    check_merged(local, two, one)
    assert local.stored("op", There("x")) == armed
    assert local.redis.zcard(local.keys().schedule) == 1
    check_ends_once(local)


def test_two_of_one_group_merge(local: Local) -> None:
    """Two machines that reach one state in the same batch become one, which transitions once. (semantics 27)"""
    one, two = local.add("op", Here("1"), Here("2"))
    local.executor.signal("op", go, "there x", machine=one)
    local.executor.signal("op", go, "there x", machine=two)
    local.run()
    (found,) = local.executor.get_active_states("op")
    going_on = found[1].machine_id
    check_merged(local, two if going_on == one else one, going_on)
    check_ends_once(local)


def test_two_merge_at_the_same_time(local: Local) -> None:
    """One that arrives between another's look and its commit goes on; the other looks again and merges. (semantics
    27)"""
    one, two = local.add("op", Here("1"), Here("2"))
    local.executor.signal("op", go, "there x", machine=one)
    with meanwhile(local, "there x", two):
        local.until(lambda: len(local.active("op")) == 1, "both to have merged")
    check_merged(local, one, two)
    check_ends_once(local)


def test_merging_while_the_other_leaves(local: Local) -> None:
    """A machine about to merge into one that leaves meanwhile enters the state itself. (semantics 27)"""
    one, two = local.add("op", Here("1"), Here("2"))
    send(local, "there x", one)
    local.executor.signal("op", go, "there x", machine=two)
    with meanwhile(local, "end one", one):
        local.until(lambda: local.active("op") == [There("x")], "the second to have arrived")
    ((_, active),) = local.executor.get_active_states("op")
    assert active.machine_id == two
    assert not [update for update in local.history("op") if update.merged_into]
    send(local, "end x", two)
    assert inactive(local)[There("x")].visits == 2


def test_many_merge_under_two_drains(local: Local) -> None:
    """However two drains share the work: of 40 machines that reach one state, one goes on and 39 merged. (semantics
    27)"""
    machines = local.add("op", *[Here(str(n)) for n in range(40)])
    drains = [local.another() for _ in range(2)]
    threads = [
        threading.Thread(target=one.until, args=(lambda: len(local.active("op")) == 1, "all to have merged"))
        for one in drains
    ]
    for thread in threads:
        thread.start()
    for machine in machines:
        local.executor.signal("op", go, "there x", machine=machine)
    for thread in threads:
        thread.join(30)
    ((_, active),) = local.executor.get_active_states("op")
    merged = [update for update in local.history("op") if update.merged_into]
    assert {update.merged_into for update in merged} == {active.machine_id}
    assert {update.machine_id for update in merged} == set(machines) - {active.machine_id}
    assert len(merged) == 39
    assert moves(local) == 40
    check_ends_once(local)


def test_machines_of_two_operations_do_not_merge(local: Local) -> None:
    """Merging is within an operation: an equal state of another operation is another machine. (semantics 27)"""
    local.add("op", Here("1"))
    local.add("other", Here("1"))
    for op in ("op", "other"):
        local.executor.signal(op, go, "there x")
    local.run()
    assert local.active("op") == local.active("other") == [There("x")]


# --- spawning what is left -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["twin x", "shadow x"])
def test_spawning_an_equal_machine_is_refused(local: Local, to: str) -> None:
    """Spawning a machine equal to the one being left, or to the one entered, is a duplicate: nothing commits, the
    transition is retried, then the machine is quarantined with the error. (semantics 28)"""
    local.add("op", Here("1"))
    send(local, to)
    local.until(lambda: local.explained("op").status == "quarantined", "the machine to be quarantined")
    explained = local.explained("op")
    assert explained.attempts == 2
    assert explained.last_error.startswith("StateAlreadyExists: ")
    assert "op" in explained.last_error
    assert local.active("op") == [Here("1")]
    assert inactive(local) == {}
    assert moves(local) == 0
    assert len(local.history("op")) == 1


def test_a_drain_is_not_stopped_by_it(local: Local) -> None:
    """The other machines of the batch go on. (semantics 28)"""
    local.add("op", Here("1"), Here("2"))
    local.executor.signal("op", go, "twin x")
    local.executor.signal("op", go, "end y")
    Drain(local.driver, local.keys(), local.engine.instances, local.engine.leases, local.sent).run()
    assert End("y") in inactive(local)

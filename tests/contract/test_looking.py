"""Queries, waiting, and being told."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from smqueue import AwaitTimeout, Executor, InvalidInput, StateMachine, UnknownModule
from tests.contract.deployed import WAIT_S, Deployed
from tests.contract.machines import Awaiting, Done, End, Here, Idle, Instant, Packing, Payment, There, go, payment

# --- queries ---


def test_where_machines_are(shop: Deployed, op: str) -> None:
    """All queries agree on where an operation's machines are. (semantics 23, 33)"""
    executor = shop.executor
    shop.add(op, Awaiting(op, 1), Here("x"))
    shop.executor.signal(op, payment, Payment(1))
    shop.enters(op, Packing(op))
    assert shop.active(op) == [Here("x"), Packing(op)]
    assert [machine.state for machine, _ in executor.get_inactive_states(op)] == [Awaiting(op, 1)]
    assert [machine.module for machine, _ in executor.get_active_states(op, "orders")] == ["orders"]
    assert list(executor.get_active_states(op, "kinds")) == []
    assert [machine.state for machine, _ in executor.get_operation_states(op)][-1] == Awaiting(op, 1)
    assert len(list(executor.get_operation_states(op))) == 3
    assert op in set(executor.get_active_operations())
    assert executor.has_active_states(op)
    assert StateMachine(op, Here("x"), "walk") in {machine for machine, _ in executor.get_active_states(module="walk")}
    assert StateMachine(op, Awaiting(op, 1), "orders") in {machine for machine, _ in executor.get_inactive_states()}


def test_what_is_not_there(shop: Deployed, op: str) -> None:
    """An operation that never began has no states."""
    executor = shop.executor
    assert list(executor.get_operation_states(op)) == []
    assert not executor.has_active_states(op)
    assert op not in set(executor.get_active_operations())
    assert executor.explain(op).active == ()


def test_point_look_ups(shop: Deployed, op: str) -> None:
    """A state is active, inactive, or neither; under an unregistered module id it is neither. (semantics 23)"""
    contains = shop.executor.contains_active_state, shop.executor.contains_inactive_state

    def stands(machine: StateMachine) -> tuple[bool, ...]:
        return tuple(one(machine) for one in contains)

    shop.add(op, Instant(1), Here("x"))
    shop.enters(op, Done("instant"))
    assert stands(StateMachine(op, Here("x"))) == (True, False)
    assert stands(StateMachine(op, Here("y"))) == (False, False)
    assert stands(StateMachine(op, Instant(1))) == (False, True)
    assert stands(StateMachine(op, Done("instant"))) == (False, True)
    assert stands(StateMachine(op, Here("x"), "nowhere")) == (False, False)


def test_an_operation_bound(shop: Deployed, op: str) -> None:
    """``operation(id)`` has the same methods, without the id."""
    bound = shop.executor.operation(op)
    bound.add(Here("x"))
    assert bound.has_active_states()
    assert bound.explain().operation_id == op
    bound.signal(go, "end y")
    bound.wait(WAIT_S)
    assert {machine.state for machine, _ in bound.states()} == {Here("x"), End("y")}
    with bound.subscribe(timeout=WAIT_S) as updates:
        assert [next(updates).state for _ in range(2)] == [Here("x"), End("y")]


# --- waiting ---


def test_what_is_so_already_is_told_at_once(shop: Deployed, op: str) -> None:
    """A state that has been entered, or left, at any time since counts. (semantics 34)"""
    (machine,) = shop.add(op, Instant(2))
    shop.executor.await_operation(op, WAIT_S)
    for n in (2, 1, 0):
        found = shop.executor.await_active_state(StateMachine(op, Instant(n)), 0)
        assert (found.machine_id, found.step) == (machine, 3 - n)
        left = shop.executor.await_inactive_state(StateMachine(op, Instant(n)), 0)
        assert (left.won, left.visits) == ("at_once", 1)
    assert shop.executor.await_inactive_state(StateMachine(op, Done("instant")), 0).terminal
    shop.executor.await_operation(op, 0)


WAITS: dict[str, Callable[[Executor, str, Any], Any]] = {
    "active": lambda executor, op, t: executor.await_active_state(StateMachine(op, End("z")), t),
    "inactive": lambda executor, op, t: executor.await_inactive_state(StateMachine(op, Here("x")), t),
    "operation": lambda executor, op, t: executor.await_operation(op, t),
}


@pytest.mark.real("nothing moves in memory while a thread waits elsewhere")
@pytest.mark.parametrize("what", WAITS)
def test_what_comes_ends_the_wait(shop: Deployed, op: str, what: str) -> None:
    """A waiter that was there first is told. (semantics 35)"""
    shop.add(op, Here("x"))
    done = threading.Event()

    def waits() -> None:
        WAITS[what](shop.executor, op, WAIT_S)
        done.set()

    thread = threading.Thread(target=waits)
    thread.start()
    shop.executor.signal(op, go, "end z")
    thread.join(WAIT_S)
    assert done.is_set()


@pytest.mark.parametrize("timeout", [0.05, timedelta(milliseconds=50)], ids=["seconds", "timedelta"])
@pytest.mark.parametrize("what", WAITS)
def test_waiting_in_vain(shop: Deployed, op: str, what: str, timeout: Any) -> None:
    """What does not come is ``AwaitTimeout``, which names what was waited for."""
    shop.add(op, Here("x"))
    with pytest.raises(AwaitTimeout, match=op) as caught:
        WAITS[what](shop.executor, op, timeout)
    assert caught.value.seconds == 0.05


def test_waiting_for_a_module_that_is_not_there(shop: Deployed, op: str) -> None:
    """Waiting for what can never come is an error at once."""
    with pytest.raises(UnknownModule):
        shop.executor.await_active_state(StateMachine(op, Here("x"), "nowhere"), WAIT_S)
    with pytest.raises(InvalidInput):
        shop.executor.await_operation("", WAIT_S)


# --- being told ---


def test_history_then_live(shop: Deployed, op: str) -> None:
    """First what has happened, in order, then what happens; no gap, no duplicate. (semantics 36)"""
    (machine,) = shop.add(op, Here("a"))
    shop.executor.signal(op, go, "there b")
    shop.enters(op, There("b"))
    with shop.executor.notifier.subscribe(op, timeout=WAIT_S) as updates:
        found = [next(updates), next(updates)]
        for to in ("here c", "end d"):
            shop.executor.signal(op, go, to)
            found.append(next(updates))
    assert [one.state for one in found] == [Here("a"), There("b"), Here("c"), End("d")]
    assert [one.sequence for one in found] == [0, 1, 2, 3]
    assert [one.step for one in found] == [1, 2, 3, 4]
    assert [one.terminal for one in found] == [False, False, False, True]
    assert {(one.operation_id, one.module, one.machine_id) for one in found} == {(op, "walk", machine)}
    assert [one.at for one in found] == sorted(one.at for one in found)


def test_resuming(shop: Deployed, op: str) -> None:
    """``after`` goes on behind a sequence."""
    shop.add(op, Instant(3))
    shop.executor.await_operation(op, WAIT_S)
    for cursor in (0, 2, 3):
        with shop.executor.notifier.subscribe(op, after=cursor, timeout=WAIT_S) as updates:
            assert [next(updates).sequence for _ in range(4 - cursor)] == [*range(cursor + 1, 5)]


def test_a_subscription_ends_when_it_is_quiet(shop: Deployed, op: str) -> None:
    """With a timeout the iterator ends when nothing comes; an operation may not exist yet."""
    with shop.executor.notifier.subscribe(op, timeout=0) as updates:
        assert list(updates) == []
    shop.add(op, Here("x"))
    with shop.executor.notifier.subscribe(op, timeout=timedelta(milliseconds=20)) as updates:
        assert [one.state for one in updates] == [Here("x")]


def test_one_module_only(shop: Deployed, op: str) -> None:
    """``module=`` tells of that instance alone. (semantics 38)"""
    shop.add(op, Here("x"))
    shop.add(op, Idle("x"), module="left")
    with shop.executor.notifier.subscribe(op, module="left", timeout=WAIT_S) as updates:
        assert next(updates).state == Idle("x")


def test_all_operations_live(shop: Deployed, op: str) -> None:
    """``subscribe_all`` tells of every operation, of what happens from now on. (semantics 37)"""
    shop.add(op, Here("before"))
    with shop.executor.notifier.subscribe_all(module="walk", timeout=WAIT_S) as updates:
        shop.add(f"{op}/1", Here("a"))
        shop.executor.signal(op, go, "end z")
        found = [next(updates)]
        while found[-1].state != End("z"):
            found.append(next(updates))
    mine = [(one.operation_id, one.state, one.module) for one in found if one.operation_id.startswith(op)]
    assert mine == [(f"{op}/1", Here("a"), "walk"), (op, End("z"), "walk")]

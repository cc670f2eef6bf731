"""Entering a state again, and two machines that meet in one."""

from __future__ import annotations

from typing import Any

import pytest

from smqueue import InactiveState, State, StateAlreadyExists, StateMachine
from tests.contract.deployed import Deployed
from tests.contract.machines import End, Here, There, go


def inactive(shop: Deployed, op: str) -> dict[State, InactiveState]:
    return {machine.state: found for machine, found in shop.executor.get_inactive_states(op)}


def sent(shop: Deployed, op: str, *path: str, machine: str | None = None) -> None:
    """Send a machine along a path, each step once the one before it is done."""
    for to in path:
        have = len(shop.executor.notifier.history(op))
        shop.executor.signal(op, go, to, machine=machine)
        shop.until(lambda have=have: len(shop.executor.notifier.history(op)) > have, f"step {to}")


def test_a_to_a(shop: Deployed, op: str) -> None:
    """A→A: a new step of the same machine, timers afresh, visits counted. (semantics 24)"""
    (machine,) = shop.add(op, Here("x"))
    (before,) = shop.executor.explain(op).active
    sent(shop, op, "here x", "here x")
    (again,) = shop.executor.explain(op).active
    assert (again.machine_id, again.step) == (machine, 3)
    restarted, first = again.triggers[1].deadline, before.triggers[1].deadline
    assert restarted is not None
    assert first is not None
    assert restarted > first
    assert inactive(shop, op)[Here("x")].visits == 2
    sent(shop, op, "end x")
    assert shop.ends(op) == [End("x")]
    assert inactive(shop, op)[Here("x")].visits == 3


def test_a_to_b_to_a(shop: Deployed, op: str) -> None:
    """A→B→A: it is active again, its inactive record stays; adding it is refused as ever. (semantics 25)"""
    shop.add(op, Here("x"))
    sent(shop, op, "there x")
    first = inactive(shop, op)[Here("x")]
    sent(shop, op, "here x")
    assert shop.executor.contains_active_state(StateMachine(op, Here("x")))
    assert shop.executor.contains_inactive_state(StateMachine(op, Here("x")))
    with pytest.raises(StateAlreadyExists):
        shop.add(op, Here("x"))
    sent(shop, op, "end x")
    last = inactive(shop, op)[Here("x")]
    assert (last.created_at, last.visits) == (first.created_at, 2)
    assert last.exited_at > first.exited_at


def test_two_end_in_one_terminal_state(shop: Deployed, op: str) -> None:
    """One record, visits counted, the first times and the first machine kept. (semantics 26)"""
    ids = shop.add(op, Here("a"), Here("b"), Here("c"))
    sent(shop, op, "end x", machine=ids[0])
    first = inactive(shop, op)[End("x")]
    for machine in ids[1:]:
        sent(shop, op, "end x", machine=machine)
    last = inactive(shop, op)[End("x")]
    assert shop.ends(op) == [End("x")]
    assert (first.visits, last.visits) == (1, 3)
    assert (last.created_at, last.exited_at, last.machine_id) == (first.created_at, first.exited_at, ids[0])


def test_two_that_meet_merge(shop: Deployed, op: str) -> None:
    """The one that arrives ends, the one that was there goes on, and moves once; both histories say so.
    (semantics 27)"""
    mover, stayer = shop.add(op, Here("a"), There("b"))
    (before,) = [one for one in shop.executor.explain(op).active if one.machine_id == stayer]
    sent(shop, op, "there b", machine=mover)
    ((machine, stands),) = shop.executor.get_active_states(op)
    assert (machine.state, stands.machine_id, stands.step) == (There("b"), stayer, 1)
    (after_it,) = shop.executor.explain(op).active
    assert [one.deadline for one in after_it.triggers] == [one.deadline for one in before.triggers]
    sent(shop, op, "end z")
    assert shop.ends(op) == [End("z")]
    found = inactive(shop, op)
    assert found[Here("a")].merged_into == stayer
    assert (found[There("b")].visits, found[End("z")].visits) == (1, 1)
    history: list[Any] = shop.executor.notifier.history(op)
    assert [(one.machine_id, one.merged_into) for one in history[2:]] == [(mover, stayer), (stayer, None)]


def test_what_a_transition_spawns(shop: Deployed, op: str) -> None:
    """A machine spawned in a transition starts with it; a second spawn of one state is refused. (semantics 18, 28)"""
    (machine,) = shop.add(op, Here("a"))
    shop.executor.signal(op, go, "sibling b")
    shop.enters(op, Here("b"))
    assert shop.active(op) == [Here("a"), Here("b")]
    shop.executor.signal(op, go, "sibling b", machine=machine)
    shop.until(lambda: any(one.status == "quarantined" for one in shop.executor.explain(op).active), "the refusal")
    errors = {one.machine_id: one.last_error for one in shop.executor.explain(op).active}
    assert str(errors[machine]).startswith("StateAlreadyExists: ")
    assert shop.executor.cancel(op) == 2

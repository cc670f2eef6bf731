"""Adding machines, and what they are known by."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC

import pytest

from smqueue import (
    AmbiguousModule,
    InvalidInput,
    InvalidState,
    NotRegistered,
    SmqueueError,
    State,
    StateAlreadyExists,
    StateAlreadyTerminal,
    StateMachine,
    TooLarge,
    UnknownModule,
)  # fmt: skip
from tests.contract.deployed import Deployed
from tests.contract.machines import Awaiting, Done, End, Here, Idle, Instant, Packing, Payment, There, go, payment


class Stray(State):
    n: int


def test_ids_are_returned_in_order(shop: Deployed, op: str) -> None:
    """Adding returns one id for each machine, in the order given; the machines are active, at step 1. (semantics 13)"""
    ids = shop.add(op, Here("a"), Here("b"), There("a"))
    assert len(set(ids)) == 3
    found = {machine.state: stands for machine, stands in shop.executor.get_active_states(op)}
    assert [found[state].machine_id for state in (Here("a"), Here("b"), There("a"))] == ids
    assert {stands.step for stands in found.values()} == {1}
    assert {stands.created_at.tzinfo for stands in found.values()} == {UTC}


def test_nothing_is_added_by_an_empty_batch(shop: Deployed) -> None:
    """No machines are no error."""
    assert shop.executor.add_state_machines([]) == []


def test_a_large_batch(shop: Deployed, op: str) -> None:
    """A batch of 1,000 machines is added as a whole; each is there once."""
    assert len(set(shop.add(op, *[Here(str(n)) for n in range(1_000)]))) == 1_000
    assert len(shop.active(op)) == 1_000
    assert shop.executor.cancel(op) == 1_000


UNFIT: dict[str, tuple[Callable[[str], StateMachine], type[SmqueueError], str]] = {
    "unknown module": (lambda op: StateMachine(op, Here("x"), "nowhere"), UnknownModule, "nowhere"),
    "of no module": (lambda op: StateMachine(op, Stray(1)), NotRegistered, "Stray"),
    "of two instances": (lambda op: StateMachine(op, Idle("x")), AmbiguousModule, "left"),
    "there already": (lambda op: StateMachine(op, Here("there")), StateAlreadyExists, "Here"),
    "terminal": (lambda op: StateMachine(op, End("x")), StateAlreadyTerminal, "End"),
    "a wrong type": (lambda op: StateMachine(op, Instant("1")), InvalidState, "n"),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    "over the limit": (lambda op: StateMachine(op, Here("x" * 70_000)), TooLarge, "65536"),
}


@pytest.mark.parametrize("what", UNFIT)
def test_all_or_none(shop: Deployed, op: str, what: str) -> None:
    """What cannot be added is refused with a typed error that names it, with its whole batch. (semantics 6, 9)"""
    make, error, names = UNFIT[what]
    shop.add(op, Here("there"))
    with pytest.raises(error, match=names):
        shop.executor.add_state_machines(
            [StateMachine(op, Here("before")), make(op), StateMachine(f"{op}/2", Here("after"))]
        )
    assert shop.active(op) == [Here("there")]
    assert not shop.executor.has_active_states(f"{op}/2")


def test_the_first_unfit_machine_is_the_one_reported(shop: Deployed, op: str) -> None:
    """Of several that cannot be added, the first counts. (semantics 6)"""
    with pytest.raises(StateAlreadyTerminal):
        shop.executor.add_state_machines([StateMachine(op, End("x")), StateMachine(op, Here("x"), "nowhere")])


def test_a_state_is_added_once(shop: Deployed, op: str) -> None:
    """A state that is, was, or stands twice in the batch cannot be added: active, passed through, finished.
    (semantics 7, 8)"""
    with pytest.raises(StateAlreadyExists):
        shop.add(op, Awaiting(op, 1), Awaiting(op, 1))
    shop.add(op, Awaiting(op, 1))
    with pytest.raises(StateAlreadyExists):
        shop.add(op, Awaiting(op, 1))
    shop.executor.signal(op, payment, Payment(1))
    shop.enters(op, Packing(op))
    with pytest.raises(StateAlreadyExists) as caught:
        shop.add(op, Awaiting(op, 1))
    assert caught.value.operation_id == op
    assert caught.value.module == "orders"


def test_exist_ok(shop: Deployed, op: str) -> None:
    """With ``exist_ok`` those that exist are left out, and their ids are the ones they have."""
    (first,) = shop.add(op, Here("a"))
    machines = [StateMachine(op, Here("a")), StateMachine(op, Here("b"))]
    ids = shop.executor.add_state_machines(machines, exist_ok=True)
    assert ids[0] == first
    assert shop.executor.add_state_machines(machines, exist_ok=True) == ids
    assert shop.active(op) == [Here("a"), Here("b")]


def test_equal_states_elsewhere_are_other_machines(shop: Deployed, op: str) -> None:
    """Equal states in two operations, or two instances, are independent. (semantics 14)"""
    ids = shop.add(op, Here("x")) + shop.add(f"{op}/2", Here("x"))
    ids += shop.add(op, Idle("x"), module="left") + shop.add(op, Idle("x"), module="right")
    assert len(set(ids)) == 4
    shop.executor.signal(op, go, "end x")
    shop.executor.await_inactive_state(StateMachine(op, Here("x")), 30)
    assert shop.executor.contains_active_state(StateMachine(f"{op}/2", Here("x")))
    assert StateMachine(op, Idle("x"), "left") != StateMachine(op, Idle("x"), "right")


@pytest.mark.parametrize("id", ["", "x" * 513])
def test_ids_have_limits(id: str) -> None:
    """An operation id has 1 to 512 bytes."""
    with pytest.raises(InvalidInput, match=r"512|empty"):
        StateMachine(id, Here("x"))


@pytest.mark.parametrize("odd", [":", "{}", "{a}:*", "%3A", "\n", "\0", "\u00e9", "e\u0301", "\U0001d11e"])
def test_any_other_id_works(shop: Deployed, op: str, odd: str) -> None:
    """Whatever an id holds, it is an operation of its own that runs to its end."""
    shop.add(f"{op}{odd}", Instant(1))
    assert shop.ends(f"{op}{odd}") == [Done("instant")]
    assert not list(shop.executor.get_operation_states(op))


def test_a_batch_is_seen_by_its_subscribers(shop: Deployed, op: str) -> None:
    """Each added machine is announced. (semantics 12)"""
    shop.add(op, Here("a"), Here("b"))
    with shop.executor.notifier.subscribe(op, timeout=30) as updates:
        found = [next(updates) for _ in range(2)]
    assert [(one.sequence, one.step, one.module) for one in found] == [(0, 1, "walk"), (1, 1, "walk")]
    assert {one.state for one in found} == {Here("a"), Here("b")}

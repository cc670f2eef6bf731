"""Cancelling, pausing, quarantine and explaining."""

from __future__ import annotations

from typing import Any

import pytest

from smqueue import InvalidInput, OperationFinished, StateMachine, UnknownModule
from tests.contract.deployed import WAIT_S, Deployed
from tests.contract.machines import Brief, Done, End, Held, Here, Idle, Instant, Packing, Spent, There, go

# --- cancel ---


def test_cancel_ends_all(shop: Deployed, op: str) -> None:
    """Every active machine ends, marked with the reason; nothing moves it afterwards, and who waits is told."""
    shop.add(op, Here("a"), There("b"))
    assert shop.executor.cancel(op, "changed their mind") == 2
    shop.executor.await_operation(op, WAIT_S)
    past = {machine.state: found for machine, found in shop.executor.get_inactive_states(op)}
    assert {state: found.cancelled for state, found in past.items()} == {
        Here("a"): "changed their mind", There("b"): "changed their mind",
    }  # fmt: skip
    assert {found.won for found in past.values()} == {None}
    with pytest.raises(OperationFinished):
        shop.executor.signal(op, go, "end x")
    with shop.executor.notifier.subscribe(op, after=1, timeout=WAIT_S) as updates:
        assert {next(updates).cancelled for _ in range(2)} == {"changed their mind"}


def test_cancelling_nothing(shop: Deployed, op: str) -> None:
    """What never began or has ended is not cancelled, and that is no error."""
    assert shop.executor.cancel(op) == 0
    shop.add(op, Instant(0))
    assert shop.ends(op) == [Done("instant")]
    assert shop.executor.cancel(op) == 0
    assert shop.ends(op) == [Done("instant")]


@pytest.mark.parametrize("children", [True, False])
def test_cancel_of_children(shop: Deployed, op: str, children: bool) -> None:
    """With ``children`` the operations that its transitions have started are cancelled, too; else they go on."""
    shop.add(op, Here("a"))
    shop.executor.signal(op, go, "child c")
    shop.enters(f"{op}/c", Here("c"))
    assert shop.executor.cancel(op, children=children) == 1 + children
    assert shop.executor.has_active_states(f"{op}/c") is not children


# --- pause ---


def stays_while_others_go(shop: Deployed, op: str, *held: Any) -> None:
    """What is held has not moved although another operation, started later, has come to its end."""
    shop.add(f"{op}/free", Instant(1))
    assert shop.ends(f"{op}/free") == [Done("instant")]
    assert shop.active(op) == [*held]
    assert shop.status(op) == "paused"


def test_pausing_an_operation(shop: Deployed, op: str) -> None:
    """Nothing of a paused operation commits until it is resumed; then what fell due meanwhile happens."""
    shop.add(op, Here("x"))
    shop.executor.pause(op)
    shop.executor.signal(op, go, "end y")
    stays_while_others_go(shop, op, Here("x"))
    shop.executor.resume(op)
    assert shop.ends(op) == [End("y")]


def test_pausing_before_it_begins(shop: Deployed, op: str) -> None:
    """An operation may be paused before it is started."""
    shop.executor.pause(op)
    shop.add(op, Instant(1))
    stays_while_others_go(shop, op, Instant(1))
    shop.executor.resume(op)
    assert shop.ends(op) == [Done("instant")]


def test_a_deadline_of_a_paused_machine_fires_at_the_resume(shop: Deployed, op: str) -> None:
    """Deadlines run on while paused."""
    shop.executor.pause(op)
    shop.add(op, Brief(1))
    stays_while_others_go(shop, op, Brief(1))
    shop.executor.resume(op)
    assert shop.ends(op) == [Done("over")]


@pytest.mark.parametrize("what", ["module", "state"])
def test_pausing_a_module_or_a_state_type(shop: Deployed, op: str, what: str) -> None:
    """A module, or one type of state, is paused in all operations; nothing else is."""
    narrowed: dict[str, Any] = {"module": "right"} if what == "module" else {"module": "walk", "state": Held}
    machine = StateMachine(op, Idle("x"), "right") if what == "module" else StateMachine(op, Held("x"))
    shop.executor.add_state_machines([machine])
    shop.executor.pause(**narrowed)
    try:
        shop.executor.signal(op, "hail" if what == "module" else "go", "end", module=narrowed["module"])
        stays_while_others_go(shop, op, machine.state)
    finally:
        shop.executor.resume(**narrowed)
    shop.executor.await_operation(op, WAIT_S)


def test_pausing_twice(shop: Deployed, op: str) -> None:
    """One resume ends a pause of an operation, but not that of its state type."""
    shop.add(op, Held("x"))
    shop.executor.pause(op)
    shop.executor.pause(state=Held)
    try:
        shop.executor.signal(op, go, "end y")
        shop.executor.resume(op)
        stays_while_others_go(shop, op, Held("x"))
    finally:
        shop.executor.resume(state=Held)
    assert shop.ends(op) == [End("y")]


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({}, InvalidInput),
        ({"operation_id": "x", "module": "walk"}, InvalidInput),
        ({"operation_id": ""}, InvalidInput),
        ({"module": "nowhere"}, UnknownModule),
        ({"module": "walk", "state": "Nothing"}, InvalidInput),
        ({"module": "walk", "state": Packing}, InvalidInput),
    ],
)
def test_what_cannot_be_paused(shop: Deployed, given: dict[str, Any], error: type[Exception]) -> None:
    """Pausing nothing, or something that is not there, is an error."""
    with pytest.raises(error):
        shop.executor.pause(**given)
    with pytest.raises(error):
        shop.executor.resume(**given)


# --- quarantine ---

TROUBLES = {
    "raise": "ValueError: on purpose",
    "undeclared": "UndeclaredTransition: ",
    "clash": "WrongKind: ",
    "twin": "StateAlreadyExists: ",
}


def set_aside(shop: Deployed, op: str) -> Any:
    """The explanation of an operation's only machine, once it is in quarantine."""
    shop.until(lambda: shop.status(op) == "quarantined", f"{op} to be set aside")
    (machine,) = shop.executor.explain(op).active
    return machine


@pytest.mark.parametrize("how", TROUBLES)
def test_a_failing_handler_sets_its_machine_aside(shop: Deployed, op: str, how: str) -> None:
    """It is tried again, then quarantined with its error: still active, nothing written, all others go on.
    (semantics 20)"""
    shop.add(op, Here("x"))
    shop.executor.signal(op, go, f"{how} y")
    found = set_aside(shop, op)
    assert (found.attempts, found.won) == (2, "gone")
    assert found.last_error.startswith(TROUBLES[how])
    assert shop.active(op) == [Here("x")]
    assert shop.executor.has_active_states(op)
    assert shop.executor.autocommit(lambda tx: tx.exists(f"log:{op}"), module="walk") is False
    shop.add(f"{op}/2", Instant(1))
    assert shop.ends(f"{op}/2") == [Done("instant")]


def test_retry_goes_on(shop: Deployed, op: str) -> None:
    """``retry`` runs the recorded outcome again: in vain while the cause is there, and to the end once it is mended.
    (semantics 20)"""
    shop.add(op, Here("x"))
    shop.executor.signal(op, go, "raise y")
    set_aside(shop, op)
    assert shop.executor.retry(op) == 1
    set_aside(shop, op)
    shop.executor.autocommit(lambda tx: tx.set(f"mended:{op}", 1), module="walk")
    assert shop.executor.retry(op) == 1
    assert shop.ends(op) == [End("y")]
    assert shop.executor.retry(op) == 0


def test_nothing_to_wait_for(shop: Deployed, op: str) -> None:
    """A handler that stays with nothing left armed sets its machine aside."""
    shop.add(op, Here("x"))
    shop.executor.signal(op, go, "spent y")
    shop.enters(op, Spent("y"))
    assert set_aside(shop, op).last_error.startswith("NothingToWaitFor: ")


def test_a_quarantined_machine_can_be_cancelled(shop: Deployed, op: str) -> None:
    """Cancelling ends it."""
    shop.add(op, Here("x"))
    shop.executor.signal(op, go, "raise")
    set_aside(shop, op)
    assert shop.executor.cancel(op, "given up") == 1
    shop.executor.await_operation(op, WAIT_S)


# --- explain ---


def test_explain(shop: Deployed, op: str) -> None:
    """What is armed since when, what is buffered, what was, and who won."""
    (machine,) = shop.add(op, Here("a"))
    shop.executor.signal(op, go, "there b")
    shop.enters(op, There("b"))
    shop.executor.signal(op, "payment", {"amount": 1, "card": ""})
    found = shop.executor.explain(op)
    (active,) = found.active
    assert (active.machine, active.machine_id, active.step) == (StateMachine(op, There("b"), "walk"), machine, 2)
    assert (active.status, active.won, active.attempts, active.last_error) == ("waiting", None, 0, None)
    armed = {one.name: one for one in active.triggers}
    assert {name: one.kind for name, one in armed.items()} == {
        "walk.There/gone": "signal",
        "walk.There/late": "deadline",
    }
    assert {one.since for one in armed.values()} == {active.since}
    deadline = armed["walk.There/late"].deadline
    assert deadline is not None
    assert active.since is not None
    assert abs((deadline - active.since).total_seconds() - 1800) < 0.01
    assert [(one.module, one.signal, one.count) for one in found.buffered] == [("orders", "payment", 1)]
    ((past, stands),) = found.past
    assert (past.state, stands.won) == (Here("a"), "gone")

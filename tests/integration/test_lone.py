"""The only machine of an operation that has not begun registers nowhere for its signals, and gets them all the same."""

from __future__ import annotations

import pytest

from smqueue import Delivery, Module, State, Transaction, after
from tests.inprocess import Local, Play

lone = Module("lone")
call = lone.signal("call", str)


@lone.state
class Sitting(State):
    n: int


@lone.state
class Torn(State):
    n: int


@lone.state(terminal=True)
class Gone(State):
    how: str


@lone.on(Sitting, call)
def called(tx: Transaction, state: Sitting, how: str) -> Gone | None:
    return None if how == "stay" else Gone(f"{state.n} {how}")


@lone.on(Sitting, after(hours=1))
def expired(tx: Transaction, state: Sitting, _: None) -> Gone:
    return Gone("late")


@lone.on(Torn, call)
def zeal(tx: Transaction, state: Torn, how: str) -> Gone:
    return Gone(f"zeal {how}")


@lone.on(Torn, call)
def awe(tx: Transaction, state: Torn, how: str) -> Gone:
    return Gone(f"awe {how}")


@pytest.fixture
def local(play: Play) -> Local:
    return play(lone=lone)


def registered(local: Local, op: str) -> int:
    """How many wait for the signal."""
    return int(local.redis.zcard(local.keys().waiting(op, "lone", "call")))


@pytest.mark.parametrize("op", ["op", "ä:{}%\n", "ΩЖ", "a b", "x" * 512, "\x00", "op:active:", "}:active:"])
def test_it_is_found_by_its_record(local: Local, op: str) -> None:
    """Whatever its operation is called: a script makes the same id of a record as the library."""
    local.add(op, Sitting(1))
    assert registered(local, op) == 0
    assert local.executor.signal(op, call, "hi") is Delivery.DELIVERED
    local.settle(op)
    assert Gone("1 hi") in local.inactive(op)


def test_it_registers_when_another_comes(local: Local) -> None:
    """From then on it is the one that has waited longest."""
    local.add("op", Sitting(1))
    local.add("op", Sitting(2))
    assert registered(local, "op") == 2
    local.executor.signal("op", call, "a")
    local.executor.signal("op", call, "b")
    local.settle("op")
    assert {Gone("1 a"), Gone("2 b")} <= set(local.inactive("op"))


def test_one_that_has_been_given_a_signal_takes_no_second(local: Local) -> None:
    """While its race is decided the next signal is kept; what the handler leaves waiting takes it."""
    local.add("op", Sitting(1))
    assert local.executor.signal("op", call, "stay") is Delivery.DELIVERED
    assert local.executor.signal("op", call, "end") is Delivery.BUFFERED
    local.settle("op")
    assert Gone("1 end") in local.inactive("op")


def test_of_two_triggers_the_one_declared_first_gets_it(local: Local) -> None:
    """A state that waits twice for one signal registers, for its order matters."""
    local.add("op", Torn(1))
    assert registered(local, "op") == 2
    local.executor.signal("op", call, "hi")
    local.settle("op")
    assert Gone("zeal hi") in local.inactive("op")


def test_a_signal_for_another_machine_is_not_given_to_it(local: Local) -> None:
    """One that names a machine is kept for that."""
    (machine,) = local.add("op", Sitting(1))
    assert local.executor.signal("op", call, "hi", machine="another") is Delivery.BUFFERED
    assert local.executor.signal("op", call, "hi", machine=machine) is Delivery.DELIVERED


def test_after_its_last_state_nobody_is_found(local: Local) -> None:
    """An operation whose only machine has ended has begun: a signal for it finds nobody."""
    local.add("op", Sitting(1))
    local.executor.signal("op", call, "hi")
    local.settle("op")
    local.add("op", Sitting(2))
    assert registered(local, "op") == 1
    assert local.executor.signal("op", call, "ho") is Delivery.DELIVERED

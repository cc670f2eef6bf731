"""Hints: how many there are, and that nobody who cannot send one keeps the others from it."""

from __future__ import annotations

from datetime import timedelta

import pytest

from smqueue import Context, Module, State, StateMachine, Transaction, finished, now, poll
from smqueue import drain as draining
from smqueue.errors import StoreUnavailable
from smqueue.protocols.claim import Armed, claim, pump
from smqueue.relay import Relay
from tests.inprocess import Local, Play

hinted = Module("hinted", handler_timeout=timedelta(seconds=5))


@hinted.state
class Due(State):
    n: int


@hinted.state
class Both(State):
    n: int


@hinted.state(terminal=True)
class Gone(State):
    n: int


@hinted.on(Due, now())
def gone(tx: Transaction, state: Due, _: None) -> Gone:
    return Gone(state.n)


@hinted.on(Both, finished(lambda _: "elsewhere"))
def ended(tx: Transaction, state: Both, _: None) -> Gone:
    return Gone(state.n)


def look(state: Both, context: Context[object]) -> int | None:
    return None


@hinted.on(Both, poll(look, every=timedelta(seconds=1)))
def seen(tx: Transaction, state: Both, _: int) -> Gone:
    return Gone(state.n)


@pytest.fixture
def local(play: Play) -> Local:
    return play(hinted=hinted)


def test_the_pump_hints_although_others_hold_the_flag(local: Local) -> None:
    """Whoever makes work due all the time and cannot reach the broker holds the flag all the time: once something is
    due for longer than the flag lives, the pump sends a hint all the same, and one a second. (semantics 29)"""
    keys = local.keys()
    local.add("op", Due(1))
    local.wait_past(local.now_ms() + 1_100)
    local.redis.set(keys.hint, "1", px=60_000)
    sent = [local.driver.run(pump(keys, hosted=False)).hint for _ in range(5)]
    assert sent == [True, False, False, False, False]
    assert local.redis.pttl(keys.hint) <= 1_000


def test_the_pump_trusts_a_young_flag(local: Local) -> None:
    """As long as nothing is due for long, a hint under way is enough. (semantics 29)"""
    local.add("op", Due(1))
    local.redis.set(local.keys().hint, "1", px=1_000)
    assert local.driver.run(pump(local.keys(), hosted=False)).hint is False


def test_the_claim_that_finds_nothing_ends_the_drain(local: Local) -> None:
    """The flag of the hint stands for as long as something is due, and is gone with the drain, in the script that saw
    that nothing is: whatever falls due after that sends a hint of its own. (semantics 29)"""
    keys = local.keys()
    local.add("op", Due(1))
    local.redis.set(keys.hint, "1", px=60_000)
    assert local.driver.run(claim(keys, local.instances, 10)).found == 1
    assert local.redis.exists(keys.hint)
    assert local.driver.run(claim(keys, local.instances, 10)).found == 0  # it is leased
    assert not local.redis.exists(keys.hint)
    local.redis.set(keys.hint, "1", px=60_000)
    assert local.driver.run(claim(keys, local.instances, 10, keys.hosted)).found == 0
    assert local.redis.exists(keys.hint)


def test_a_drain_sends_one_hint_for_one(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    """With more to do than fits into it a drain hands on one hint, not two: they would double with every drain."""
    monkeypatch.setattr(draining, "DRAIN_S", 0.0)
    local.executor.add_state_machines([StateMachine(f"op{n}", Due(n)) for n in range(40)])
    local.sent.hints = 0
    local.drain()
    assert len(list(local.executor.get_active_operations())) > 0
    assert local.sent.hints == 1


def test_a_look_that_fails_keeps_no_task_waiting(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    """To see whether another operation has ended may fail, as when its server is away: the tasks of all triggers that
    were found due beside it are sent all the same."""

    def fail(relay: Relay, armed: Armed) -> None:
        raise StoreUnavailable("redis://elsewhere", "gone")

    monkeypatch.setattr(Relay, "look", fail)
    local.executor.add_state_machines([StateMachine(f"op{n}", Both(n)) for n in range(3)])
    with pytest.raises(StoreUnavailable):
        local.drain()
    assert sorted(armed.machine.op for armed in local.sent.triggers) == ["op0", "op1", "op2"]

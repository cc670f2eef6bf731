"""A busy drain claims ahead, and runs handlers while its last commit is under way: whatever happens, all move once."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest

from smqueue import Module, SignalFor, State, StateMachine, Transaction
from smqueue.drain import AHEAD_FROM
from smqueue.errors import StoreUnavailable
from tests.inprocess import Local, Play

many = Module("many")
go = many.signal("go", int)
MACHINES = 150


@many.state
class Waiting(State):
    n: int


@many.state
class Half(State):
    n: int


@many.state(terminal=True)
class Gone(State):
    n: int


@many.on(Waiting, go)
def went(tx: Transaction, state: Waiting, to: int) -> Half | Gone:
    tx.incrby("moved")
    if to == 1:  # such take a look
        tx.incrby("looked", 1 if tx.get("never") is None else 0)
    if to == 2:
        raise ValueError("not this one")
    return Half(state.n) if to == 3 else Gone(state.n)


@many.on(Half, go)
def went_on(tx: Transaction, state: Half, _: int) -> Gone:
    return Gone(state.n)


@pytest.fixture
def local(play: Play) -> Local:
    local = play(many=many)
    local.drain()  # there is a drain now, which has found nothing
    local.engine._local.drains[0]._batch = AHEAD_FROM
    ops = [f"o{n}" for n in range(MACHINES)]
    local.executor.add_state_machines(StateMachine(op, Waiting(n)) for n, op in enumerate(ops))
    local.executor.signal_many(SignalFor(op, go, n % 4 if n % 7 == 0 else 0) for n, op in enumerate(ops))
    return local


def begun(local: Local, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the driver begins from now on."""
    found: list[Any] = []
    start = local.driver.start

    def noting(steps: Any) -> Any:
        found.append(start(steps))
        return found[-1]

    monkeypatch.setattr(local.driver, "start", noting)
    return found


def all_once(local: Local) -> None:
    """Each handler has committed once, and each machine has gone where it was sent."""
    failing = sum(n % 7 == 0 and n % 4 == 2 for n in range(MACHINES))
    assert int(local.data("many", "moved") or 0) == MACHINES - failing
    assert int(local.data("many", "looked") or 0) == sum(n % 7 == 0 and n % 4 == 1 for n in range(MACHINES))
    for n in range(MACHINES):
        wanted = {2: Waiting(n), 3: Half(n)}.get(n % 4 if n % 7 == 0 else 0)
        assert local.active(f"o{n}") == ([] if wanted is None else [wanted])
    assert local.driver.nodes().node(local.keys().schedule).in_use == 0, "every connection was given back"


def test_all_move_once(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    """By script and by look, beside some that fail. (semantics 18)"""
    found = begun(local, monkeypatch)
    local.until(lambda: local.redis.hlen(local.keys().moves) and int(local.data("many", "moved") or 0) >= MACHINES - 6)
    assert len(found) > 2
    all_once(local)


@pytest.mark.parametrize("at", range(1, 5))
def test_connections_that_are_cut(local: Local, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """After any of the requests that a busy drain sends ahead: what was applied is known, what was not is done again.
    (semantics 5, 18)"""
    found = begun(local, monkeypatch)
    start = local.driver.start

    def cutting(steps: Any) -> Any:
        sent = start(steps)
        if len(found) == at:
            local.redis.client_kill_filter(_type="normal", skipme=True)
        return sent

    monkeypatch.setattr(local.driver, "start", cutting)
    with suppress(StoreUnavailable):
        local.drain()
    assert len(found) >= at
    assert not local.engine.leases._held, "nobody works on what is not worked on"
    local.expire_leases()
    local.until(lambda: local.expire_leases() or int(local.data("many", "moved") or 0) >= MACHINES - 6)
    all_once(local)


def test_what_was_claimed_ahead_and_is_read_late(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is left to others, or to be due again: no handler runs for what is somebody else's by now. (semantics 3)"""
    found = begun(local, monkeypatch)
    monkeypatch.setattr("smqueue.drain.LATE_S", -1.0)
    assert local.drain() < MACHINES - 6
    assert found
    monkeypatch.undo()
    local.until(lambda: local.expire_leases() or int(local.data("many", "moved") or 0) >= MACHINES - 6)
    all_once(local)

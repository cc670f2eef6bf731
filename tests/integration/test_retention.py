"""Finished operations are forgotten when all of their modules say so, and no other."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from unittest.mock import patch

import pytest

from smqueue import Module, State, Transaction, now, reached
from smqueue.protocols import retention
from smqueue.protocols.bounds import LEASE_MS
from smqueue.roundtrip import Commit, Steps
from tests.inprocess import Local, Play

briefly = Module("briefly", keep=timedelta(milliseconds=20))
long = Module("long", keep=timedelta(days=30))
ever = Module("ever")


@briefly.state
class Brief(State):
    n: int = 0


@briefly.state(terminal=True)
class BriefEnd(State):
    n: int = 0


@long.state
class Long(State):
    n: int = 0


@long.state(terminal=True)
class LongEnd(State):
    n: int = 0


@ever.state
class Following(State):
    op: str


@ever.state(terminal=True)
class Followed(State):
    op: str


@briefly.on(Brief, now())
def brief_ends(tx: Transaction, state: Brief, _: None) -> BriefEnd:
    return BriefEnd(state.n)


@long.on(Long, now())
def long_ends(tx: Transaction, state: Long, _: None) -> LongEnd:
    return LongEnd(state.n)


@ever.on(Following, reached(lambda state: state.op, Long))
def followed(tx: Transaction, state: Following, got: Long) -> Followed:
    return Followed(state.op)


@pytest.fixture
def local(play: Play) -> Local:
    return play(briefly=briefly, long=long, ever=ever)


def _finish(local: Local, op: str, *states: State) -> None:
    """Let an operation end. What a slow machine would forget meanwhile is left to the test."""
    with patch.object(retention, "sweep", lambda keys, instances: _nothing()):
        local.add(op, *states)
        local.settle(op)


def _nothing() -> Steps[None]:
    yield from ()


def _sweep(local: Local) -> retention.Swept:
    local.wait_past(local.now_ms() + 30)
    return local.driver.run(retention.sweep(local.keys(), local.instances))


def _kept(local: Local, op: str) -> bool:
    return bool(local.redis.exists(local.keys().inactive(op)))


def _entry(local: Local) -> float | None:
    score: float | None = local.redis.zscore(local.keys().schedule, retention.ENTRY)
    return None if score is None else score - local.now_ms()


def test_the_longest_of_an_operations_modules_counts(local: Local) -> None:
    """An operation with states of two modules is kept as long as the one that keeps longer says."""
    _finish(local, "short", Brief())
    _finish(local, "both", Long(), Brief())
    _finish(local, "other", Brief())
    assert _sweep(local).forgotten == 2
    assert [_kept(local, op) for op in ("short", "both", "other")] == [False, True, False]
    assert local.redis.zcard(local.keys().finished) == 1


def test_what_is_kept_for_long_is_not_in_the_way(local: Local) -> None:
    """However many are kept for long, what is kept briefly is looked at in time, and forgotten."""
    for n in range(retention.BATCH + 1):
        local.add(f"long{n}", Long())
    local.until(lambda: not list(local.executor.get_active_operations()), "all to end")
    assert _sweep(local).again_ms > 3_000_000
    _finish(local, "short", Brief())
    left = _entry(local)
    assert left is not None
    assert left <= LEASE_MS, "due within a moment; on a slow machine it was, and is leased"
    assert _sweep(local).forgotten == 1
    assert not _kept(local, "short")


def test_one_that_ends_during_a_round_has_an_entry(local: Local) -> None:
    """An operation that ends while a round of forgetting is about to say that nothing is left is forgotten in time."""
    other = local.another()
    _finish(local, "first", Brief())
    local.wait_past(local.now_ms() + 30)

    def meddle(commit: Commit) -> None:
        if retention.ENTRY in commit.commands[0]:
            _finish(other, "second", Brief())

    with local.before_commits(meddle):
        local.driver.run(retention.sweep(local.keys(), local.instances))
    left = _entry(local)
    assert left is not None
    assert left < 5_000
    local.until(lambda: not _kept(local, "second"), "it to be forgotten")


def test_only_a_worker_with_all_modules_may_judge(play: Play, local: Local) -> None:
    """A worker that lacks a module of an operation leaves it to others, and to itself of later."""
    _finish(local, "op", Brief())
    stranger = play(long=long)
    assert _sweep(stranger).forgotten == 0
    assert local.redis.zscore(local.keys().finished, "op") > local.now_ms()


def test_who_waits_for_a_forgotten_operation_is_rung_when_it_begins_again(local: Local) -> None:
    """Forgetting an operation leaves those who wait for a state of it registered (semantics 35)."""
    local.add("follower", Following("op"))
    _finish(local, "op", Brief())
    assert _sweep(local).forgotten == 1
    local.add("op", Long())
    local.run()
    local.run()
    found: Any = local.inactive("follower")
    assert Followed("op") in found

"""Workers whose clocks are an hour off change nothing: all times are by Redis's clock."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from smqueue import StateMachine
from smqueue.embedded import EmbeddedServer
from tests.apps import skew
from tests.apps.skewed import Busy, Calling, Failing, Over, Polling, Slow, Until, Waiting, clocks, ping
from tests.apps.wiring import environment
from tests.inprocess import Local, Play
from tests.waiting import wait_until
from tests.workers import Worker, running

HOUR_S = 3_600
PATIENCES = [timedelta(milliseconds=ms) for ms in (1, 300, 1_500)]
UNTIL_S = 2


@pytest.fixture
def local(play: Play) -> Local:
    return play(clocks=clocks)


def worker(
    server: EmbeddedServer, namespace: str, directory: Path, monkeypatch: pytest.MonkeyPatch, skew_s: int
) -> Worker:
    """A worker whose clock is off, in its main process and in its children."""
    paths = [str(Path(skew.__path__[0])), os.environ.get("PYTHONPATH", "")]
    env = environment(server.url, server.broker_url, namespace, directory) | {"TEST_SKEW_S": str(skew_s)}
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        return Worker("tests.apps.skewed", env, ["-c", "1"])


def redis_now(local: Local) -> datetime:
    seconds, micros = local.redis.time()
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=micros)


def noted(local: Local, key: str) -> dict[int, int]:
    """What each worker has noted, by how far its clock is off."""
    return {int(k): int(v) for k, v in local.redis.hgetall(local.keys().data("clocks", key)).items()}


def start(local: Local, op: str) -> datetime:
    """Start machines that wait in every way; returns the instant that one waits for."""
    when = redis_now(local) + timedelta(seconds=UNTIL_S)
    local.add(op, *[Waiting(n, patience) for n, patience in enumerate(PATIENCES)], Until(when))
    local.add(op, Waiting(9, timedelta(hours=2)), Polling(1), Calling(1), Failing(1))
    return when


def check(local: Local, op: str, when: datetime, began: datetime) -> None:
    """All has ended as it should, and no sooner than it should."""
    ends = [
        machine.state.what for machine, _ in local.executor.get_inactive_states(op) if isinstance(machine.state, Over)
    ]
    assert sorted(ends) == ["called 3", "came", "failed twice", "pinged", "polled 3", "waited"]
    past = {machine.state: found for machine, found in local.executor.get_inactive_states(op)}
    for state, found in past.items():
        assert began <= found.created_at <= found.exited_at <= redis_now(local)
        if isinstance(state, Waiting) and state.n < 9:
            assert found.exited_at - found.created_at >= state.patience
            assert found.won == "waited"
        if isinstance(state, Until):
            assert found.exited_at >= when
    history = local.history(op)
    assert all(began <= update.at <= redis_now(local) for update in history)
    assert [update.at for update in history] == sorted(update.at for update in history)


@pytest.mark.parametrize("skew_s", [HOUR_S, -HOUR_S])
def test_a_worker_alone(
    local: Local, server: EmbeddedServer, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, skew_s: int
) -> None:
    """With nobody else there, a worker an hour ahead or behind fires deadlines, polls, repeats what failed and takes
    signals as any other, never early, and the times of records and history are by Redis's clock. (semantics 22)"""
    began = redis_now(local)
    with running(one := worker(server, namespace, tmp_path, monkeypatch, skew_s)):
        one.wait_ready()
        when = start(local, "op")
        local.executor.signal("op", ping, "pinged", machine=machine_of(local, "op", Waiting(9, timedelta(hours=2))))
        local.executor.await_operation("op", 60)
        check(local, "op", when, began)
        off_s = noted(local, "clocks")[skew_s] - redis_now(local).timestamp()
        assert abs(off_s - skew_s) < HOUR_S / 2, "its clock was off"


def machine_of(local: Local, op: str, state: Waiting) -> str:
    return next(found.machine_id for machine, found in local.executor.get_active_states(op) if machine.state == state)


def test_beside_each_other(
    local: Local, server: EmbeddedServer, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One worker an hour ahead, one an hour behind and one that is right share the work: all of them do some, what one
    holds no other takes however long it runs, and everything ends as it should. (semantics 3, 22)"""
    began = redis_now(local)
    workers = [worker(server, namespace, tmp_path, monkeypatch, off) for off in (HOUR_S, 0, -HOUR_S)]
    with running(*workers):
        for one in workers:
            one.wait_ready()
        local.executor.add_state_machines([StateMachine(f"busy{n}", Busy(n)) for n in range(12)])
        wait_until(lambda: set(noted(local, "worked")) == {HOUR_S, 0, -HOUR_S}, "each to have worked", timeout_s=60)
        whens: dict[str, datetime] = {f"op{n}": start(local, f"op{n}") for n in range(5)}
        for op in whens:
            local.executor.signal(op, ping, "pinged", machine=machine_of(local, op, Waiting(9, timedelta(hours=2))))
        local.executor.autocommit(lambda tx: tx.set("stop", "1"), module="clocks")
        for n in range(12):
            local.executor.await_operation(f"busy{n}", 60)
        local.executor.add_state_machines([StateMachine(f"slow{n}", Slow(n)) for n in range(3)])
        for op, when in whens.items():
            local.executor.await_operation(op, 60)
            check(local, op, when, began)
        for n in range(3):
            local.executor.await_operation(f"slow{n}", 60)
        assert [over(local, f"slow{n}") for n in range(3)] == [f"slow {n}" for n in range(3)]
        # Who holds it may run it again: what it is committed with, of other operations, may have met with a conflict.
        ran_in = [(tmp_path / f"slow-{n}").read_text().split() for n in range(3)]
        assert [len(set(processes)) for processes in ran_in] == [1, 1, 1], ran_in
        for one in workers:
            assert not re.search(r"Traceback|quarantined", one.output)


def over(local: Local, op: str) -> Any:
    return next(state.what for state in local.inactive(op) if isinstance(state, Over))

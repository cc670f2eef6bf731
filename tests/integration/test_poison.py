"""Code that kills its worker is set aside wherever it stands, and nothing beside it."""

from __future__ import annotations

from typing import Any

import pytest

from smqueue import Context, Failed, Module, Retry, State, Transaction, call, now
from smqueue.instances import Instances
from smqueue.protocols.runs import MAX_DIED
from smqueue.worker.tasks import _record
from tests.inprocess import Crash, Local, Play
from tests.integration import test_ends_of_tasks as ends

poison = Module("poison")
kills: set[str] = set()
"""Operations whose code kills its process."""


@poison.state
class Calling(State):
    n: int = 0


@poison.state
class Instant(State):
    n: int = 0


@poison.state(terminal=True)
class Over(State):
    n: int


def ring(state: Calling, context: Context) -> int:
    if context.operation_id in kills:
        raise Crash
    return state.n


@poison.on(Calling, call(ring, retry=Retry(max_attempts=1)))
def rung(tx: Transaction, state: Calling, got: int | Failed) -> Over:
    return Over(got if isinstance(got, int) else -1)


@poison.on(Instant, now())
def at_once(tx: Transaction, state: Instant, _: None) -> Over:
    return Over(state.n)


@pytest.fixture
def local(play: Play) -> Local:
    kills.clear()
    return play(poison=poison)


def lives(local: Local) -> None:
    """A worker runs until it is killed; then what it held is due again."""
    try:
        local.run()
    except Crash:
        local.expire_leases()


def test_a_call_that_kills_its_worker_is_set_aside(local: Local) -> None:
    """A trigger whose code never comes back is tried a few times, then its machine is quarantined, and says why; the
    attempts that died do not use up those of the call. (semantics 20)"""
    kills.add("bad")
    local.add("bad", Calling())
    local.add("good", Calling(3))
    for _ in range(2 * MAX_DIED + 4):
        lives(local)
    machine = local.explained("bad")
    assert machine.status == "quarantined"
    assert str(machine.last_error).startswith("WorkerKilled: ")
    assert local.inactive("good")[-1] == Over(3)
    kills.clear()
    assert local.executor.retry("bad") == 1
    local.settle("bad")
    assert local.inactive("bad")[-1] == Over(0)


def test_a_few_deaths_are_no_reason_to_set_aside(local: Local) -> None:
    """Workers that are killed beside a call, as at each deployment, leave it its attempts. (semantics 5, 20)"""
    kills.add("op")
    local.add("op", Calling(5))
    for _ in range(MAX_DIED):
        lives(local)
    kills.clear()
    local.settle("op")
    assert local.inactive("op")[-1] == Over(5)


def test_a_record_whose_decoding_kills_its_worker_is_set_aside(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    """A migration or a constructor that kills the process is found as a handler is: others go on, it is quarantined.
    (semantics 32)"""
    for n in range(5):
        local.add(f"op{n}", Instant(n))
    load = Instances.load

    def deadly(self: Instances, op: str, *rest: Any) -> Any:
        if op == "op2":
            raise Crash
        return load(self, op, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(Instances, "load", deadly)
        for _ in range(20):
            lives(local)
    assert [local.inactive(f"op{n}")[-1] for n in (0, 1, 3, 4)] == [Over(n) for n in (0, 1, 3, 4)]
    assert local.explained("op2").status == "quarantined"


def test_an_end_that_reaches_a_worker_without_the_module_is_kept(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a user's task comes but once: a worker that cannot read its machine keeps it for one that can.
    (semantics 32)"""
    local, other = play(tasking=ends.tasking), play(poison=poison)
    monkeypatch.setattr(local.engine, "send_linked", lambda *_: None)
    local.add("op", ends.Tasked())
    local.run()
    _record(other.engine, f"{local.stored('op', ends.Tasked()).entry}:done", {"value": "far"})
    local.until(lambda: ends.Over("far") in local.inactive("op"), "its end to count")

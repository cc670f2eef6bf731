"""A namespace at a glance: its counts are kept by the commits, and agree with the records whatever happens."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta

import pytest

from smqueue import Executor, Module, Retry, State, StateMachine, Transaction, after
from smqueue.early import early_signals
from smqueue.overview import EdgeCount, causes
from smqueue.presence import KEPT_MS, Noted, leave, note, workers
from smqueue.roundtrip import LostReply, RoundTrip, commits
from tests.inprocess import Crash, Local, Play

walk = Module("walk", version=1, retry=Retry(max_attempts=1, base=timedelta(milliseconds=1)))


@walk.state
class Here(State):
    name: str


@walk.state
class There(State):
    name: str


@walk.state(terminal=True)
class End(State):
    name: str


go = walk.signal("go", str)
other = walk.signal("other")


@walk.on((Here, There), go)
def gone(tx: Transaction, state: Here | There, to: str) -> Here | There | End | None:
    kind, _, name = to.partition(" ")
    match kind:
        case "here":
            return Here(name)
        case "there":
            return There(name)
        case "end":
            return End(name)
        case "spawn":
            tx.add_state_machines([StateMachine("spawned", Here(n)) for n in name.split()])
            return None
        case "fail":
            raise ValueError(name)
        case _:
            return None


@walk.on((Here, There), after(hours=1))
def late(tx: Transaction, state: Here | There, _: None) -> End:
    return End("late")


@pytest.fixture
def local(play: Play) -> Local:
    """A namespace with that module."""
    return play(walk=walk)


def told(local: Local, op: str, *words: str) -> None:
    """Signal, and work it off."""
    for word in words:
        local.executor.signal(op, go, word)
        local.run()


def counted(executor: Executor) -> dict[str, int]:
    """How many machines are said to be in each state."""
    return {state.state: state.active for state in executor.overview().states if state.active}


def agree(local: Local) -> None:
    """What is counted is what is there."""
    there = Counter(type(machine.state).__name__ for machine, _ in local.executor.get_active_states())
    assert counted(local.executor) == dict(there)


def test_counts_agree_with_the_records(local: Local) -> None:
    """Added, moved, re-entered, merged, spawned, ended, cancelled: what came less what left is what is there."""
    local.add("a", Here("1"), Here("2"), There("3"))
    agree(local)
    assert counted(local.executor) == {"Here": 2, "There": 1}
    told(local, "a", "here 1", "there 3", "spawn x y")
    agree(local)
    told(local, "spawned", "end x")
    agree(local)
    assert local.executor.cancel("a") > 0
    agree(local)
    ended = {state.state: state.ended for state in local.executor.overview().states if state.ended}
    assert ended == {"End": 1}


def test_edges_have_the_trigger_that_won(local: Local) -> None:
    """How often machines have gone which way, and what has brought them there."""
    local.add("a", Here("1"))
    told(local, "a", "there 1", "here 1", "there 1", "end 1")
    local.add("b", Here("1"))
    local.executor.cancel("b")
    assert set(local.executor.overview().edges) == {
        EdgeCount("walk", None, "Here", "+add", 2),
        EdgeCount("walk", "Here", "There", "gone", 2),
        EdgeCount("walk", "There", "Here", "gone", 1),
        EdgeCount("walk", "There", "End", "gone", 1),
        EdgeCount("walk", "Here", None, "+cancel", 1),
    }


def test_a_merge_is_counted_once(local: Local) -> None:
    """Of two machines that reach one state one goes on, and one is counted there."""
    here, _ = local.add("a", Here("1"), There("2"))
    local.executor.signal("a", go, "there 2", machine=here)
    local.run()
    agree(local)
    assert counted(local.executor) == {"There": 1}


def test_a_lost_commit_is_counted_once(local: Local) -> None:
    """A move whose reply was lost, or whose worker died behind it, is counted once."""
    local.add("a", Here("1"))
    local.executor.signal("a", go, "there 1")
    lost: list[RoundTrip] = []

    def lose(request: RoundTrip) -> None:
        if commits(request) and not lost:
            lost.append(request)
            raise LostReply

    with local.around_trips(after=lose):
        local.run()
    assert lost
    agree(local)
    local.executor.signal("a", go, "end 1")

    def die(request: RoundTrip) -> None:
        if commits(request):
            raise Crash

    with pytest.raises(Crash), local.around_trips(after=die):
        local.run()
    local.expire_leases()
    local.until(lambda: not local.executor.has_active_states("a"))
    agree(local)
    assert sum(edge.count for edge in local.executor.overview().edges) == 3


def test_the_oldest_of_each_state(local: Local) -> None:
    """Since when the machine that is in a state longest is in it; a bound where too few operations were looked at."""
    for op in ("a", "b", "c"):
        local.add(op, Here(op))
    told(local, "a", "there a")
    whole = {state.state: state for state in local.executor.overview().states}
    since = {op: local.explained(op).since for op in ("a", "b", "c")}
    assert (whole["Here"].oldest, whole["Here"].exact) == (since["b"], True)
    assert (whole["There"].oldest, whole["There"].exact) == (since["a"], True)


def test_what_is_quarantined_is_counted_by_its_error(local: Local) -> None:
    """The cause says how many machines were set aside, and of what kind their errors are."""
    for op in ("a", "b"):
        local.add(op, Here(op))
        told(local, op, "fail now")
    found = local.executor.overview()
    assert (found.quarantined, found.errors) == (2, {"ValueError": 2})
    assert "2 ValueError" in next(cause.text for cause in found.causes if cause.kind == "quarantined")


def test_what_nobody_takes_is_late(local: Local) -> None:
    """An entry that is due and claimed by nobody is told of, with how long it has waited."""
    note(local.driver, local.keys(), Noted("w@h", ("q",), "q", "q", {"walk": 1}))
    local.add("a", Here("1"))
    local.executor.signal("a", go, "end 1")
    local.make_due(local.stored("a", Here("1")).entry)
    found = local.executor.overview()
    assert found.due == 1
    assert found.lag_s > 3600
    assert [cause.kind for cause in causes(found)] == ["behind"]


def test_signals_nobody_waits_for_are_found(local: Local) -> None:
    """By operation and name, until somebody takes them."""
    local.executor.signal("a", go, "end 1")
    local.executor.signal("b", other)
    found = local.driver.run(early_signals(local.keys()))
    assert [(one.operation_id, one.signal, one.count) for one in found] == [("b", "other", 1), ("a", "go", 1)]
    local.add("a", Here("1"))
    local.run()
    assert [one.operation_id for one in local.executor.overview().early] == ["b"]


def test_workers_are_known_for_a_day(local: Local) -> None:
    """A worker is alive while it notes itself, told of for a day, and not at all once it has ended in order."""
    driver, keys = local.driver, local.keys()
    noted = Noted("one@host", ("q",), "q", "other", {"walk": 1})
    note(driver, keys, noted)
    note(driver, keys, Noted("two@host", ("q",), "q", "q", {}))
    assert {one.name for one in workers(driver, keys) if one.alive} == {"one@host", "two@host"}
    kinds = [(cause.kind, cause.subject) for cause in local.executor.overview().causes]
    assert kinds == [("queue_without_worker", "other")]
    leave(driver, keys, noted)
    (left,) = local.redis.zrange(keys.workers, 0, -1)
    local.redis.zadd(keys.workers, {left: local.now_ms() - 60_000})
    assert [(one.name, one.alive) for one in workers(driver, keys)] == [("two@host", False)]
    assert "two@host" in local.executor.overview().causes[0].text
    local.redis.zadd(keys.workers, {left: local.now_ms() - KEPT_MS - 1})
    note(driver, keys, noted)
    assert [one.name for one in workers(driver, keys)] == ["one@host"]


def test_a_module_that_no_worker_has(local: Local) -> None:
    """Machines in a module that no living worker has are told of, by the module's name."""
    note(local.driver, local.keys(), Noted("w@h", ("q",), "q", "q", {"elsewhere": 1}))
    assert local.executor.overview().causes == ()
    local.add("a", Here("1"))
    (found,) = local.executor.overview().causes
    assert (found.kind, found.subject) == ("module_without_worker", "walk")

"""Cancel handlers: what is undone commits with the end of the machine, exactly once, or the machine stays."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from smqueue import CancelUnfinished, Context, Module, Retry, State, StateMachine, Transaction, after
from smqueue.errors import InvalidInput, StoreUnavailable
from smqueue.keys import Keys
from smqueue.protocols import cancel, ending
from smqueue.protocols.bounds import MAX_ALONE
from smqueue.roundtrip import LostReply, Read, RoundTrip
from tests.inprocess import Crash, Local, Play

undoing = Module("undoing", retry=Retry(max_attempts=3, base=timedelta(milliseconds=1)))


@undoing.state
class Held(State):
    """``how`` says what its cancel handler does besides."""

    n: int
    how: str = ""


@undoing.state
class Plain(State):
    n: int


@undoing.state(terminal=True)
class Done(State):
    n: int


go = undoing.signal("go")
broken: set[str] = set()
"""What fails now."""
during: list[Callable[[], object]] = []


@undoing.on((Held, Plain), go)
def went(tx: Transaction, state: Held | Plain, _: None) -> Done:
    return Done(state.n)


@undoing.on(Held, after(hours=1))
def late(tx: Transaction, state: Held, _: None) -> Done:
    return Done(state.n)


@undoing.on_cancel(Held)
def undo(tx: Transaction, state: Held, reason: str | None, context: Context) -> None:
    if during:
        during.pop()()
    tx.incrby("undone")
    tx.rpush("log", f"{state.n} {reason} {context.machine_id}")
    match state.how:
        case "read":
            tx.set("seen", f"{tx.get('stock')} {tx.get('price')}")
        case "leave":
            tx.send_task("refund", args=[state.n])
            tx.signal("other", go)
            tx.add_state_machines([StateMachine("refund", Plain(state.n))])
        case "own":
            tx.add_state_machines([StateMachine(context.operation_id, Plain(99))])
        case "kill" if "kill" in broken:
            raise Crash
        case how if how in broken:
            raise ValueError("on purpose")
        case _:
            pass


@pytest.fixture
def local(play: Play) -> Iterator[Local]:
    broken.clear()
    during.clear()
    yield play(undoing=undoing)
    broken.clear()
    during.clear()


def log(local: Local) -> list[str]:
    return [line.decode() for line in local.listed("undoing", "log")]


def without_code(local: Local) -> Local:
    """A process of the namespace that has no module."""
    settings = local.settings
    return Local(settings.url, local.namespace, {}, shards=settings.shards)


# --- what it does ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", ["no stock", None])
def test_what_is_undone_commits_with_the_end(local: Local, reason: str | None) -> None:
    """A cancel handler gets the state and the reason; what it writes commits with the end of its machine, which is
    inactive, marked cancelled and in the history; machines without a handler end beside it. (semantics 18)"""
    machines = local.add("op", Held(1), Held(2), Plain(3))
    assert local.executor.cancel("op", reason) == 3
    assert sorted(log(local)) == [f"{n} {reason} {machines[n - 1]}" for n in (1, 2)]
    assert local.data("undoing", "undone") == b"2"
    assert {found.cancelled for _, found in local.executor.get_inactive_states("op")} == {reason or ""}
    assert sorted(str(one.machine_id) for one in local.history("op") if one.cancelled is not None) == sorted(machines)
    assert local.redis.zrange(local.keys().schedule, 0, -1) == []
    assert local.executor.cancel("op", reason) == 0
    assert len(log(local)) == 2


def test_what_it_leaves_to_be_done_is_done(local: Local) -> None:
    """A cancel handler sends tasks and signals, and starts machines in other operations, which are not cancelled with
    the operation's children, not even by the worker that finishes the cancelling. (semantics 18)"""
    local.add("op", Held(1, "leave"), Held(2, "fail"))
    local.add("other", Plain(1))
    broken.add("fail")
    with pytest.raises(CancelUnfinished):
        local.executor.cancel("op", children=True)
    broken.clear()
    local.make_due("~cancel:op")
    local.settle("op", "other")
    assert [(name, args) for name, args, *_ in local.sent.tasks] == [("refund", [1])]
    assert local.active("refund") == [Plain(1)]
    assert local.redis.lrange(local.keys().requests, 0, -1) == []


def test_starting_a_machine_in_its_own_operation_is_refused(local: Local) -> None:
    """It would end at once: that is an error of the handler's, and says where to start it. (semantics 28)"""
    local.add("op", Held(1, "own"))
    with pytest.raises(CancelUnfinished, match="start it in another"):
        local.executor.cancel("op")
    assert local.active("op") == [Held(1, "own")]


def test_its_reads_hold_still(local: Local) -> None:
    """A cancel handler whose reads have changed until its commit runs again. (semantics 19)"""
    local.add("op", Held(1, "read"))
    key = local.keys().data("undoing", "stock")
    with local.before_moves(lambda: local.redis.set(key, 7)):
        assert local.executor.cancel("op") == 1
    assert local.data("undoing", "seen") == b"7 None"
    assert local.data("undoing", "undone") == b"1"


def test_a_cancelling_that_is_over_when_its_handler_returns(local: Local) -> None:
    """Two that cancel at once run the handler both, and one of them commits. (semantics 18)"""
    other = local.another()
    local.add("op", Held(1))
    during.append(lambda: other.executor.cancel("op", "first"))
    assert local.executor.cancel("op", "second") == 0
    assert [line.split(" ")[:2] for line in log(local)] == [["1", "first"]]


def bounded(trips: int = 300) -> Callable[[RoundTrip], object]:
    """Fails after so many round trips: what goes round for ever is noticed."""
    left = iter(range(trips))

    def count(_: RoundTrip) -> None:
        assert next(left, None) is not None, "it goes on and on"

    return count


@pytest.mark.parametrize("force", [False, True])
def test_a_cancelling_that_another_begins_again_goes_on(local: Local, force: bool) -> None:
    """One cancels an operation that is being cancelled, and dies: the first goes on with what that one has asked for,
    its reason and its force. (semantics 5)"""
    other = local.another()
    local.add("op", Held(1), Plain(2))
    again = iter([True])
    count = bounded()

    def meddle(request: RoundTrip) -> None:
        count(request)
        if isinstance(request, Read) and request.commands[0][0] == "HSCAN" and next(again, False):
            other.driver.run(cancel.begin(local.keys(), "op", "second", children=False, force=force))

    with local.around_trips(before=meddle):
        assert local.executor.cancel("op", "first") == 2
    assert {found.cancelled for _, found in local.executor.get_inactive_states("op")} == {"second"}
    assert [line.split(" ")[:2] for line in log(local)] == ([] if force else [["1", "second"]])


def test_a_worker_whose_cancelling_is_begun_again_and_again_hands_over(
    local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often others begin it again, a worker keeps its time. (semantics 31)"""
    other, keys, reasons = local.another(), local.keys(), iter(range(1_000))
    local.add("op", Plain(1))
    local.driver.run(cancel.begin(keys, "op", "x", children=False))
    local.make_due("~cancel:op")
    monkeypatch.setattr("smqueue.cancelling.WORKER_S", -1.0)
    count = bounded()

    def meddle(request: RoundTrip) -> None:
        count(request)
        if isinstance(request, Read) and request.commands[0][0] == "HSCAN":
            other.driver.run(cancel.begin(keys, "op", f"{next(reasons)}", children=False))

    with local.around_trips(before=meddle):
        local.engine.drain(0)
    assert local.active("op") == [Plain(1)]


def test_two_who_cancel_get_what_either_has_asked_for(local: Local) -> None:
    """Whoever cancels what is being cancelled takes back neither ``children`` nor ``force``. (semantics 5)"""
    for first, second in (({"children": True}, {"force": True}), ({"force": True}, {"children": True})):
        for asked in (first, second):
            wanted: Any = {"children": False, **asked}
            local.driver.run(cancel.begin(local.keys(), "op", "why", **wanted))
        noted = local.driver.run(cancel.noted(local.keys(), "op"))
        assert noted is not None
        assert (noted.children, noted.force, noted.reason) == (True, True, "why")
        assert local.executor.cancel("op") == 0


def test_a_failure_is_noted_of_the_cancelling_that_it_belongs_to(local: Local) -> None:
    """A cancel handler that fails after its operation is cancelled anew, or no longer, has no attempt to answer for."""
    local.add("op", Held(1))
    keys = local.keys()
    local.driver.run(cancel.begin(keys, "op", "x", children=False))
    noted = local.driver.run(cancel.noted(keys, "op"))
    assert noted is not None
    _, (one,) = local.driver.run(ending.page(keys, local.instances, "op", b"0", force=False))
    local.driver.run(cancel.begin(keys, "op", "y", children=False))
    assert local.driver.run(ending.failed(keys, "op", one, noted, ValueError(), "x", retry=None)) == 0
    assert local.redis.hlen(keys.quarantine) == 0
    assert local.redis.exists(keys.race(local.stored("op", Held(1)).record)) == 0
    assert local.executor.cancel("op") == 1


# --- crashes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [Crash, LostReply])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_crash_at_any_round_trip_undoes_once(local: Local, fault: type[BaseException], when: str) -> None:
    """Whoever cancels dies, or hears nothing, before or after any of its round trips: in the end all machines have
    ended, and each handler has committed once. (semantics 5)"""
    for at in range(40):
        op, left = f"op{at}", iter([True])
        machines = local.add(op, Held(at, "leave" if at % 2 else "read"), Held(at + 100), Plain(at))
        trips = iter(range(at + 1))

        def hit(_: RoundTrip, trips: Iterator[int] = trips, left: Iterator[bool] = left) -> None:
            if next(trips, None) is None and next(left, False):
                raise fault

        try:
            with local.around_trips(**{when: hit}):
                local.executor.cancel(op, "why")
        except (Crash, StoreUnavailable):
            pass
        if local.redis.get(local.keys().control(op)) is None:
            if next(left, False):  # it was over before
                break
            if local.active(op):  # it had not begun
                assert local.executor.cancel(op, "why") == 3
        elif local.active(op):
            local.make_due(f"~cancel:{op}")
            local.settle(op)
        undone = [line for line in log(local) if line.split(" ")[2] in machines]
        assert sorted(line.split(" ")[0] for line in undone) == sorted([str(at), str(at + 100)])
    else:
        raise AssertionError("there was no end of round trips")
    local.requests_due()
    local.run()
    wanted = sum(range(1, at, 2)) + (at if at % 2 else 0)
    assert sum({id: args[0] for _, args, _, id, _ in local.sent.tasks}.values()) == wanted


def test_a_lost_reply_is_counted(local: Local) -> None:
    """Whichever reply is lost, the caller is told of all machines that it has ended, and no handler commits twice.
    (semantics 5)"""
    for at in range(40):
        op, trips, left = f"op{at}", iter(range(at)), iter([True])
        local.add(op, Held(at), Plain(1), Plain(2))

        def hit(_: RoundTrip, trips: Iterator[int] = trips, left: Iterator[bool] = left) -> None:
            if next(trips, None) is None and next(left, False):
                raise LostReply

        try:
            with local.around_trips(after=hit):
                assert local.executor.cancel(op, "why") == 3
        except StoreUnavailable:  # of a look
            local.make_due(f"~cancel:{op}")
            local.settle(op)
        if next(left, False):
            break
    else:
        raise AssertionError("there was no end of round trips")
    assert sorted(int(line.split(" ")[0]) for line in log(local)) == list(range(at + 1))


# --- failures --------------------------------------------------------------------------------------------------------


def test_a_handler_that_fails_keeps_its_machine(local: Local, caplog: pytest.LogCaptureFixture) -> None:
    """Of an operation the others end; the caller is told how many have, how many not, and why. The machine stays, a
    worker tries again with back-off, and once the handler works it ends. (semantics 20)"""
    local.add("op", Held(1, "fail"), Held(2), Plain(3))
    broken.add("fail")
    with pytest.raises(CancelUnfinished) as caught:
        local.executor.cancel("op", "why")
    assert (caught.value.ended, caught.value.left) == (2, 1)
    assert "cancel handler undoing.Held/undo: ValueError: on purpose" in str(caught.value)
    assert local.active("op") == [Held(1, "fail")]
    one = local.explained("op")
    assert (one.status, one.attempts) == ("cancelling", 1)
    assert one.last_error == "cancel handler undoing.Held/undo: ValueError: on purpose"
    assert local.redis.zscore(local.keys().schedule, "~cancel:op") < local.now_ms() + 10_000
    assert local.data("undoing", "undone") == b"1"
    local.redis.zadd(local.keys().schedule, {"~cancel:op": local.now_ms() + 60_000})  # else it may fail once too often
    local.executor.signal("op", go)
    local.run()
    assert local.active("op") == [Held(1, "fail")], "nothing commits while it is being cancelled"
    broken.clear()
    local.make_due("~cancel:op")
    local.settle("op")
    assert sorted(line.split(" ")[0] for line in log(local)) == ["1", "2"]
    assert local.redis.hlen(local.keys().quarantine) == 0
    assert "cancel handler undoing.Held/undo of operation op failed" in caplog.text


def exhausted(local: Local) -> None:
    """A machine that was set aside, because its cancel handler kept failing."""
    local.add("op", Held(1, "fail"))
    broken.add("fail")
    with pytest.raises(CancelUnfinished):
        local.executor.cancel("op", "why")
    local.until(lambda: local.redis.hlen(local.keys().quarantine), "it to be set aside")
    one = local.explained("op")
    assert (one.status, one.attempts) == ("quarantined", 3)
    assert "on purpose" in one.last_error
    local.make_due("~cancel:op")
    local.run()
    assert local.explained("op").attempts == 3, "a worker leaves alone what was set aside"
    assert local.redis.zscore(local.keys().schedule, "~cancel:op") > local.now_ms() + 600_000


@pytest.mark.parametrize("how", ["retry", "retry the module", "cancel", "force"])
def test_a_handler_that_keeps_failing_sets_its_machine_aside(local: Local, how: str) -> None:
    """After the module's attempts the machine is quarantined, with the error. ``retry`` has workers cancel it again, so
    does another ``cancel``, and ``force`` ends it without its handler. (semantics 20)"""
    exhausted(local)
    if how == "force":
        assert local.executor.cancel("op", "enough", force=True) == 1
        assert log(local) == []
    else:
        broken.clear()
        match how:
            case "cancel":
                assert local.executor.cancel("op", "why") == 1
            case "retry":
                assert local.executor.retry("op") == 1
            case _:
                assert local.executor.retry(module="undoing") == 1
        local.settle("op")
        assert [line.split(" ")[0] for line in log(local)] == ["1"]
    assert not local.executor.has_active_states("op")
    assert local.redis.hlen(local.keys().quarantine) == 0
    assert local.redis.get(local.keys().control("op")) is None


def test_a_forced_cancel_is_finished_by_a_worker_without_handlers(local: Local) -> None:
    """That no handler is to run is noted with the cancelling, for a worker that finishes it. (semantics 5)"""
    local.add("op", Held(1))
    local.driver.run(cancel.begin(local.keys(), "op", "x", children=False, force=True))
    local.make_due("~cancel:op")
    local.settle("op")
    assert log(local) == []


def test_a_quarantined_machine_is_cancelled_with_its_handler(local: Local) -> None:
    """What was set aside for another reason is cancelled like any other, by a worker too. (semantics 20)"""
    local.add("op", Held(1))
    stored = local.stored("op", Held(1))
    why = json.dumps({"error": "x", "op": "op", "entry": stored.entry, "at": 1})
    local.redis.hset(local.keys().quarantine, stored.record, why)
    local.driver.run(cancel.begin(local.keys(), "op", "x", children=False))
    local.make_due("~cancel:op")
    local.settle("op")
    assert len(log(local)) == 1


@pytest.mark.parametrize("deadly", [True, False])
def test_a_handler_that_kills_its_worker_sets_its_machine_aside(local: Local, deadly: bool) -> None:
    """A cancel handler that never comes back costs no more workers than a transition's does: then its machine is
    quarantined, and says why, and the others end. One whose workers died beside it is run again. (semantics 20)"""
    local.add("op", Held(1, "kill"), Held(2))
    local.driver.run(cancel.begin(local.keys(), "op", "x", children=False))
    broken.add("kill")
    for _ in range(MAX_ALONE if deadly else 1):
        local.make_due("~cancel:op")
        with pytest.raises(Crash):
            local.run()
    if not deadly:
        broken.clear()
    local.make_due("~cancel:op")
    if deadly:
        local.run()
        one = local.explained("op")
        assert one.status == "quarantined"
        assert "WorkerKilled: " in one.last_error
        assert [line.split(" ")[0] for line in log(local)] == ["2"]
        broken.clear()
        assert local.executor.retry("op") == 1
    local.settle("op")
    assert sorted(line.split(" ")[0] for line in log(local)) == ["1", "2"]
    assert local.redis.hlen(local.keys().quarantine) == 0


def test_a_handler_that_comes_back_is_not_accused(local: Local) -> None:
    """However often its commit comes to nothing, a cancel handler that returns kills no worker. (semantics 20)"""
    other = local.another()
    local.add("op", Held(1))
    local.driver.run(cancel.begin(local.keys(), "op", "x", children=False))
    for n in range(2 * MAX_ALONE + 2):
        again = cancel.begin(local.keys(), "op", f"x{n}", children=False)
        during.append(lambda again=again: other.driver.run(again))
    local.make_due("~cancel:op")
    local.run()
    assert local.active("op") == []
    assert len(log(local)) == 1


# --- without its code ------------------------------------------------------------------------------------------------


def test_who_has_no_code_leaves_it_to_a_worker(local: Local) -> None:
    """A process without the module ends what has no cancel handler, and leaves the rest to a worker, which is hinted
    at once; the caller is told. With force it ends all. (semantics 32)"""
    bare = without_code(local)
    local.add("op", Held(1), Plain(2))
    with pytest.raises(CancelUnfinished, match="undoing") as caught:
        bare.executor.cancel("op", "why")
    assert (caught.value.ended, caught.value.left) == (1, 1)
    assert bare.sent.hints == 1
    assert local.redis.zscore(local.keys().schedule, "~cancel:op") <= local.now_ms()
    local.drain()
    assert local.active("op") == []
    assert [line.split(" ")[:2] for line in log(local)] == [["1", "why"]]
    local.add("more", Held(3), Plain(3))
    assert bare.executor.cancel("more", force=True) == 2
    assert len(log(local)) == 1


def test_a_worker_that_lacks_the_code_leaves_it_to_another(local: Local) -> None:
    """It looks again later, and does not spin. (semantics 32)"""
    bare = without_code(local)
    local.add("op", Held(1))
    with pytest.raises(CancelUnfinished):
        bare.executor.cancel("op")
    bare.drain()
    assert local.redis.zscore(local.keys().schedule, "~cancel:op") > local.now_ms()
    assert local.active("op") == [Held(1)]


def of_version(version: int) -> tuple[Module[Any], type[State]]:
    """A module as it is defined in one process, without a cancel handler."""
    module = Module("versioned", version=version)

    @module.state(name="Kept")
    class Kept(State):
        n: int

    @module.state(name="Over", terminal=True)
    class Over(State):
        n: int

    @module.on(Kept, after(hours=1))
    def ends(tx: Transaction, state: Kept, _: None) -> Over:
        return Over(state.n)

    return module, Kept


def undoes(module: Module[Any], kept: type[State]) -> None:
    """Give its state a cancel handler."""

    @module.on_cancel(kept)
    def undone(tx: Transaction, state: State, reason: str | None) -> None:
        tx.incrby("undone")


@pytest.mark.parametrize(("version", "why"), [(1, "version"), (2, "has none for m.Kept")])
def test_code_without_its_handler_leaves_it_to_others(play: Play, version: int, why: str) -> None:
    """A machine whose state has a cancel handler where it was entered is left by code that has none, be it of an
    earlier version or of the same: that code may not judge. (semantics 32)"""
    (newer, kept), (older, _) = of_version(2), of_version(version)
    undoes(newer, kept)
    new, old = play(m=newer), play(m=older)
    new.add("op", kept(1))  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    with pytest.raises(CancelUnfinished, match=why):
        old.executor.cancel("op")
    new.drain()
    assert not new.executor.has_active_states("op")
    assert new.data("m", "undone") == b"1"


def test_what_was_there_before_its_handler_is_undone_by_who_has_that(play: Play) -> None:
    """A machine that entered its state before that had a cancel handler is undone where the handler is known. Who lacks
    its module cannot know of it, and ends it without. (semantics 32)"""
    (newer, kept), (older, _) = of_version(1), of_version(1)
    undoes(newer, kept)
    new, old = play(m=newer), play(m=older)
    for op in ("op", "more"):
        old.executor.add_state_machines([StateMachine(op, older.types["Kept"].cls(1))])  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    assert new.executor.cancel("op") == 1
    assert new.data("m", "undone") == b"1"
    assert without_code(new).executor.cancel("more") == 1
    assert new.data("m", "undone") == b"1"


def test_garbage_ends_without_a_handler(local: Local) -> None:
    """What nobody can read has no handler that could run. (semantics 32)"""
    local.add("op", Held(1))
    field = b"undoing Held {not json"
    local.redis.hset(local.keys().active("op"), field, b'["x",1,1,1]')
    assert local.executor.cancel("op") == 2
    assert len(log(local)) == 1


# --- many, and slow --------------------------------------------------------------------------------------------------


def test_children_are_undone_too(local: Local) -> None:
    """Cancelling with children runs the handlers of theirs; one that fails there is told of, too. (semantics 18)"""
    parent = Module("parent")

    @parent.state
    class Parent(State):
        n: int

    @parent.state(terminal=True)
    class Over(State):
        n: int

    begin = parent.signal("begin")

    @parent.on(Parent, begin)
    def begun(tx: Transaction, state: Parent, _: None) -> Over | None:
        tx.add_state_machines([StateMachine("child1", Held(1)), StateMachine("child2", Held(2, "fail"))])
        return None

    both = Local(local.settings.url, local.namespace, {"undoing": undoing, "parent": parent})
    both.add("op", Parent(1))
    both.executor.signal("op", begin)
    both.run()
    broken.add("fail")
    with pytest.raises(CancelUnfinished) as caught:
        both.executor.cancel("op", "all", children=True)
    assert (caught.value.ended, caught.value.left) == (2, 1)
    assert not both.executor.has_active_states("op")
    broken.clear()
    both.settle("child1", "child2")
    assert sorted(line.split(" ")[:2] for line in log(both)) == [["1", "all"], ["2", "all"]]


def test_a_worker_hands_over_after_a_while(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many handlers that one task would run for long are spread over several. (semantics 31)"""
    monkeypatch.setattr("smqueue.cancelling.WORKER_S", -1.0)
    local.add("op", Held(1), Plain(2))
    local.driver.run(cancel.begin(local.keys(), "op", "x", children=False))
    local.make_due("~cancel:op")
    monkeypatch.setattr("smqueue.drain.DRAIN_S", -1.0)
    hints = local.sent.hints
    local.drain()
    assert local.active("op") == [Held(1)]
    assert local.sent.hints > hints
    monkeypatch.undo()
    local.drain()
    assert local.active("op") == []


def test_a_worker_hands_over_between_batches(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many machines without a handler, too, are spread over several tasks; each ends some. (semantics 31)"""
    local.add("op", *[Plain(n) for n in range(250)])
    local.driver.run(cancel.begin(local.keys(), "op", "x", children=False))
    local.make_due("~cancel:op")
    monkeypatch.setattr("smqueue.cancelling.WORKER_S", -1.0)
    monkeypatch.setattr("smqueue.drain.DRAIN_S", -1.0)
    left: list[int] = []
    for _ in range(3):
        local.drain()
        left.append(len(local.active("op")))
    assert left == [150, 50, 0]
    assert local.redis.get(local.keys().control("op")) is None


def test_many_cancellings_are_spread_over_several_tasks(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    """A drain that has claimed many ends in time: it goes on with some, and the rest is leased. (semantics 31)"""
    ops = [f"op{n}" for n in range(5)]
    for op in ops:
        local.add(op, Plain(1))
        local.driver.run(cancel.begin(local.keys(), op, "x", children=False))
        local.make_due(f"~cancel:{op}")
    monkeypatch.setattr("smqueue.drain.DRAIN_S", -1.0)
    hints = local.sent.hints
    local.drain()
    left = [op for op in ops if local.active(op)]
    assert len(left) == 4
    assert local.sent.hints > hints
    assert all(local.redis.zscore(local.keys().schedule, f"~cancel:{op}") > local.now_ms() for op in left)


def test_the_entry_of_a_cancelling_is_renewed(local: Local) -> None:
    """While a handler runs no other worker begins with the same cancelling: its entry is leased, and renewed like that
    of any machine. (semantics 5)"""
    from smqueue.protocols.runs import renew

    keys: Keys = local.keys()
    local.add("op:1", Held(1))
    local.driver.run(cancel.begin(keys, "op:1", "x", children=False))
    local.make_due("~cancel:op:1")
    assert local.driver.run(renew(keys, keys.schedule, [("~cancel:op:1", "")])) == []
    assert local.redis.zscore(keys.schedule, "~cancel:op:1") > local.now_ms()
    assert local.driver.run(renew(keys, keys.schedule, [("~cancel:elsewhere", "")])) == ["~cancel:elsewhere"]
    during.append(lambda: held.append({lease.entry for lease in local.engine.leases._held}))
    held: list[set[str]] = []
    local.make_due("~cancel:op:1")
    local.settle("op:1")
    assert held == [{"~cancel:op:1"}]


def test_an_onlooker_is_told_that_triggers_are_revoked(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    """While somebody looks on, the triggers of cancelled machines are told of as revoked, whether or not they have a
    cancel handler; without an onlooker nothing is sent. (semantics 15)"""
    told: list[tuple[Any, set[str], str | None]] = []
    monkeypatch.setattr(
        local.sent, "ended", lambda placed, _active, _arming, armed, won: told.append((placed.state, set(armed), won))
    )
    local.add("quiet", Held(1), Plain(1))
    local.executor.cancel("quiet")
    assert told == []
    local.redis.set(local.keys().watched, "1")
    local.add("op", Held(1), Plain(2))
    local.executor.cancel("op")
    assert sorted(told, key=lambda one: one[0].n) == [(Held(1), {"went", "late"}, None), (Plain(2), {"went"}, None)]


def test_reasons_are_checked(local: Local) -> None:
    """A reason that cannot be stored is a typed error, and nothing is cancelled."""
    local.add("op", Held(1))
    for bad in ("\ud800", "x" * 2_001):
        with pytest.raises(InvalidInput):
            local.executor.cancel("op", bad)
    assert local.active("op") == [Held(1)]


def test_its_looks_are_bounded(local: Local) -> None:
    """A machine with a cancel handler costs 2 round trips; an operation is read page by page. (semantics 31)"""
    local.add("op", *[Held(n) for n in range(5)])
    trips: list[RoundTrip] = []
    with local.around_trips(before=trips.append):
        assert local.executor.cancel("op") == 5
    assert len(trips) <= 2 * 5 + 10
    assert any(isinstance(trip, Read) and trip.commands[0][0] == "HSCAN" for trip in trips)

"""Pausing, resuming, cancelling, retrying and explaining."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from smqueue import Context, Module, Retry, State, StateMachine, Transaction, after, call, finished, poll
from smqueue.errors import AmbiguousModule, CancelUnfinished, InvalidInput, OperationFinished, UnknownModule
from smqueue.protocols import cancel, control, ending, runs
from smqueue.relay import Relay
from smqueue.roundtrip import Call, Commit, Read, RoundTrip
from tests.inprocess import Crash, Local, Play

steered = Module("steered", version=1, retry=Retry(max_attempts=2, base=timedelta(milliseconds=1)))


@steered.state
class Waiting(State):
    n: int
    patience: timedelta = timedelta(minutes=30)


@steered.state
class Other(State):
    n: int


@steered.state
class Racing(State):
    """One trigger of each kind that explain has something to say about."""

    n: int


@steered.state(terminal=True)
class Done(State):
    n: int


go = steered.signal("go", str)
unheard = steered.signal("unheard")
during: list[Any] = []


@steered.on((Waiting, Other), go)
def went(tx: Transaction, state: Waiting | Other, what: str) -> Other | Done | None:
    if during:
        during.pop(0)()
    tx.incrby("went")
    if what == "fail":
        raise ValueError("on purpose")
    if what.startswith("children"):
        tx.add_state_machines([StateMachine(f"child{n}", Waiting(n)) for n in range(2)])
        tx.add_state_machines([StateMachine("op", Other(99))])
        return None
    if what.startswith("child of"):
        tx.add_state_machines([StateMachine("grandchild", Waiting(1))])
        return None
    return Other(state.n) if what == "other" else Done(state.n)


@steered.on(Waiting, after(lambda state: state.patience))
def late(tx: Transaction, state: Waiting, _: None) -> Done:
    return Done(-state.n)


def look(state: Racing, context: Context) -> int | None:
    return None


def ring(state: Racing, context: Context) -> int:
    raise ConnectionError("engaged")


@steered.on(Racing, go)
def told(tx: Transaction, state: Racing, what: str) -> Done:
    raise ValueError(what)


@steered.on(Racing, after(hours=1))
def gave_up(tx: Transaction, state: Racing, _: None) -> Done:
    return Done(0)


@steered.on(Racing, poll(look, every=timedelta(hours=2)))
def looked(tx: Transaction, state: Racing, found: int) -> Done:
    return Done(found)


@steered.on(Racing, call(ring, retry=Retry(max_attempts=9, base=timedelta(hours=1))))
def rang(tx: Transaction, state: Racing, found: Any) -> Done:
    return Done(0)


@steered.on(Racing, finished("elsewhere"))
def ended(tx: Transaction, state: Racing, _: None) -> Done:
    return Done(0)


@pytest.fixture
def local(play: Play) -> Iterator[Local]:
    during.clear()
    yield play(steered=steered)
    during.clear()


def ends(local: Local, op: str = "op") -> list[int]:
    """Numbers of the states in which machines of an operation have finished."""
    states = [machine.state for machine, found in local.executor.get_inactive_states(op) if found.terminal]
    return sorted(state.n for state in states if isinstance(state, Done))


def state_of(local: Local, op: str) -> dict[Any, Any]:
    """All that is stored of the operation's active machines and what they have written."""
    return {
        "active": local.redis.hgetall(local.keys().active(op)),
        "inactive": local.redis.hgetall(local.keys().inactive(op)),
        "history": local.redis.lrange(local.keys().history(op), 0, -1),
        "went": local.redis.get(local.keys().data("steered", "went")),
    }


# --- pause -----------------------------------------------------------------------------------------------------------


def test_nothing_of_a_paused_operation_commits(local: Local) -> None:
    """While an operation is paused nothing of it commits: signals, deadlines and further drains change nothing; it is
    still active, and others go on. At the resume what fell due fires, once. (semantics 20)"""
    local.add("op", Waiting(1), Waiting(2, timedelta(milliseconds=5)))
    local.add("free", Waiting(1))
    local.executor.pause("op")
    before = state_of(local, "op")
    due = local.stored("op", Waiting(2, timedelta(milliseconds=5))).armed["late"]
    assert isinstance(due, int)
    local.wait_past(due)
    assert local.executor.signal("op", go, "done").value == "DELIVERED"
    for _ in range(3):
        local.run()
    assert state_of(local, "op") == before
    assert {found.status for found in local.executor.explain("op").active} == {"paused"}
    assert local.executor.has_active_states("op")
    local.executor.signal("free", go, "done")
    local.settle("free")
    hints = local.sent.hints
    local.executor.resume("op")
    assert local.sent.hints == hints + 1
    local.run()
    assert ends(local) == [-2, 1]


def test_a_transition_under_way_does_not_commit(local: Local) -> None:
    """Once ``pause`` has returned nothing commits: a transition between its look and its EXEC fails. (semantics 20)"""
    local.add("op", Waiting(1))
    local.executor.signal("op", go, "done")
    before = state_of(local, "op")
    with local.before_moves(lambda: local.executor.pause("op")):
        local.run()
    assert state_of(local, "op") == before
    local.executor.resume("op")
    local.settle("op")
    assert local.redis.get(local.keys().data("steered", "went")) == b"1"


def test_a_handler_that_runs_while_pause_returns_does_not_commit(local: Local) -> None:
    """A handler that was running when ``pause`` returned comes to nothing, and runs again after the resume.
    (semantics 20)"""
    local.add("op", Waiting(1))
    running, paused = threading.Event(), threading.Event()
    during.append(lambda: (running.set(), paused.wait(20)))
    local.executor.signal("op", go, "done")
    thread = threading.Thread(target=local.run)
    thread.start()
    assert running.wait(20)
    local.executor.pause("op")
    before = state_of(local, "op")
    paused.set()
    thread.join(20)
    assert state_of(local, "op") == before
    local.executor.resume("op")
    local.settle("op")
    assert ends(local) == [1]


@pytest.mark.parametrize("by", ["class", "name", "module"])
def test_pausing_a_module_or_a_state_type(local: Local, by: str) -> None:
    """A module, or one state type of it, is paused over all operations; others go on; resuming lets all of it go.
    (semantics 20)"""
    how: dict[str, Any] = {"class": {"state": Waiting}, "name": {"module": "steered", "state": "Waiting"}}.get(
        by, {"module": "steered"}
    )
    for n in range(5):
        local.add(f"op{n}", Waiting(n))
        local.add(f"other{n}", Other(n))
    local.executor.pause(**how)
    for n in range(5):
        local.executor.signal(f"op{n}", go, "done")
        local.executor.signal(f"other{n}", go, "done")
    local.run()
    assert [ends(local, f"op{n}") for n in range(5)] == [[]] * 5
    assert [ends(local, f"other{n}") for n in range(5)] == ([[]] * 5 if by == "module" else [[n] for n in range(5)])
    assert local.explained("op1").status == "paused"
    local.executor.resume(**how)
    local.run()
    assert [ends(local, f"op{n}") for n in range(5)] == [[n] for n in range(5)]


def test_two_pauses_need_two_resumes(local: Local) -> None:
    """A machine that is paused by its operation and by its module goes on when both are resumed. (semantics 20)"""
    local.add("op", Waiting(1))
    local.executor.pause("op")
    local.executor.pause(module="steered")
    local.executor.signal("op", go, "done")
    local.run()
    local.executor.resume("op")
    local.run()
    assert ends(local) == []
    local.executor.resume(module="steered")
    local.run()
    assert ends(local) == [1]


def test_a_resume_between_look_and_hold_is_noticed(local: Local) -> None:
    """A machine that is held just after the resume is due at once. (semantics 20)"""
    from smqueue.protocols import runs

    local.add("op", Waiting(1))
    local.executor.pause("op")
    local.executor.signal("op", go, "done")
    hold = runs.hold
    patch = pytest.MonkeyPatch()
    patch.setattr(runs, "hold", lambda *args: (local.executor.resume("op"), hold(*args))[1])
    local.run()
    patch.undo()
    local.run()
    assert ends(local) == [1]


def test_many_are_resumed(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than one script's worth is let go. (semantics 20)"""
    monkeypatch.setattr(control, "RESUME_BATCH", 100)
    local.executor.add_state_machines([StateMachine(f"op{n}", Other(n)) for n in range(310)])
    local.executor.pause(state=Other)
    for n in range(310):
        local.executor.signal(f"op{n}", go, "done")
    local.until(
        lambda: local.redis.scard(local.keys().held(local.keys().control_module("steered", "Other"))) == 310, "all held"
    )
    local.executor.resume(state=Other)
    local.until(lambda: local.redis.zcard(local.keys().operations) == 0, "all to have ended")


def test_what_can_be_paused(local: Local, play: Play) -> None:
    """Pausing what does not exist, nothing, or too much at once is a typed error. (semantics 20)"""
    with pytest.raises(UnknownModule):
        local.executor.pause(module="elsewhere")
    for wrong in (
        {},
        {"operation_id": "op", "module": "steered"},
        {"module": "steered", "state": "Nope"},
        {"state": "Nope"},
    ):
        with pytest.raises(InvalidInput):
            local.executor.pause(**wrong)  # type: ignore[arg-type]
    twice = play(a=steered, b=steered)
    with pytest.raises(AmbiguousModule):
        twice.executor.pause(state=Waiting)
    local.executor.resume("never paused")


# --- cancel ----------------------------------------------------------------------------------------------------------


def test_cancel_ends_all(local: Local) -> None:
    """Every active machine ends: inactive, marked with the reason, in the history; nothing armed is left.
    (semantics 23)"""
    machines = local.add("op", *[Waiting(n) for n in range(250)], Racing(1))
    local.run()
    assert local.executor.cancel("op", "no stock") == 251
    assert not local.executor.has_active_states("op")
    assert list(local.executor.get_active_operations()) == []
    past = list(local.executor.get_inactive_states("op"))
    assert {found.cancelled for _, found in past} == {"no stock"}
    assert {found.terminal for _, found in past} == {False}
    assert {str(found.machine_id) for _, found in past} == set(machines)
    assert local.redis.zrange(local.keys().schedule, 0, -1) == []
    left = {
        key.decode().removeprefix(local.keys().prefix).partition(":")[0]
        for key in local.redis.scan_iter(match=f"{local.keys().prefix}*")
    }
    assert left <= {
        "inactive",
        "history",
        "updates",
        "moves",
        "workers",
        "meta",
        "finished",
        "hint",
        "watched",
        "watch",
        "roused",
    }
    told = [update for update in local.history("op") if update.cancelled]
    assert len(told) == 251
    assert all(update.terminal and update.step == 2 for update in told)
    with pytest.raises(OperationFinished):
        local.executor.signal("op", go, "x")
    assert local.executor.cancel("op") == 0


def test_a_lone_machine_is_cancelled_with_its_first_entry(local: Local) -> None:
    """Cancelling a machine that nothing has happened to yet leaves its adding and its end in the history.
    (semantics 36)"""
    (machine,) = local.add("op", Waiting(1))
    local.executor.cancel("op")
    assert [(u.machine_id, u.step, u.terminal, u.cancelled) for u in local.history("op")] == [
        (machine, 1, False, None), (machine, 2, True, ""),
    ]  # fmt: skip


def test_cancel_tells_those_who_wait(local: Local) -> None:
    """Who waits for the operation, or for a state of it to be left, is told. (semantics 34)"""
    local.add("op", Waiting(1))
    got: list[Any] = []
    threads = [
        threading.Thread(target=lambda: got.append(local.executor.await_operation("op", 20))),
        threading.Thread(
            target=lambda: got.append(local.executor.await_inactive_state(StateMachine("op", Waiting(1)), 20).cancelled)
        ),
    ]
    for thread in threads:
        thread.start()
    local.until(
        lambda: sum(local.redis.pubsub_shardnumsub(local.keys().bell("op"))[0][1:]) == 2, "both to have subscribed"
    )
    local.executor.cancel("op", "enough")
    for thread in threads:
        thread.join(20)
    assert sorted(map(str, got)) == ["None", "enough"]


def test_a_transition_under_way_does_not_survive_cancel(local: Local) -> None:
    """A transition between its look and its EXEC fails when its operation is cancelled: nothing of it commits.
    (semantics 18)"""
    local.add("op", Waiting(1))
    local.executor.signal("op", go, "other")
    with local.before_moves(lambda: local.executor.cancel("op", "too late")):
        local.run()
    assert not local.executor.has_active_states("op")
    assert local.redis.get(local.keys().data("steered", "went")) is None
    ((machine, found),) = local.executor.get_inactive_states("op")
    assert (machine.state, found.cancelled) == (Waiting(1), "too late")


def test_cancel_ends_what_enters_meanwhile(local: Local) -> None:
    """A machine that moves between two batches of the cancelling ends, too, and exactly once. (semantics 18)"""
    other = local.another()
    machines = local.add("op", *[Waiting(n) for n in range(50)])
    for machine in machines:
        local.executor.signal("op", go, "other", machine=machine)
    thread = threading.Thread(target=other.run)
    thread.start()
    local.executor.cancel("op", "stop")
    thread.join(20)
    other.run()
    assert not local.executor.has_active_states("op")
    told = [update for update in local.history("op") if update.cancelled]
    assert {str(update.machine_id) for update in told} == set(machines)
    assert len(told) == 50


def test_cancel_of_children(local: Local) -> None:
    """With ``children`` the operations that its transitions have started are cancelled, theirs too; else they go
    on. (semantics 18)"""
    for children in (False, True):
        local.executor.add_state_machines([StateMachine("op", Waiting(int(children)))])
        if not children:
            local.executor.signal("op", go, "children")
            local.run()
            local.executor.signal("child1", go, "child of child")
            local.run()
        local.executor.cancel("op", "all", children=children)
        assert not local.executor.has_active_states("op")
        alive = [op for op in ("child0", "child1", "grandchild") if local.executor.has_active_states(op)]
        assert alive == ([] if children else ["child0", "child1", "grandchild"])
    past = [
        found.cancelled
        for op in ("child0", "child1", "grandchild")
        for _, found in local.executor.get_inactive_states(op)
    ]
    assert past == ["all"] * 3


def test_an_interrupted_cancel_is_finished_by_a_worker(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller that dies half-way leaves an entry: a worker finishes the cancelling, with its reason; meanwhile no
    transition commits. (semantics 5)"""
    machines = local.add("op", *[Waiting(n) for n in range(150)])

    class Killed(BaseException):
        pass

    commits: list[int] = []
    settle = ending.settle

    def die(*args: Any, **options: Any) -> Any:
        commits.append(1)
        if len(commits) == 2:
            raise Killed
        return settle(*args, **options)

    monkeypatch.setattr(ending, "settle", die)
    with pytest.raises(Killed):
        local.executor.cancel("op", "half")
    monkeypatch.undo()
    left = local.active("op")
    assert 0 < len(left) < 150
    score = local.redis.zscore(local.keys().schedule, "~cancel:op")
    assert local.now_ms() - 1_000 < score < local.now_ms() + 5_000
    local.executor.signal("op", go, "other")
    local.run()
    assert len(local.active("op")) == len(left)
    assert {found.status for found in local.executor.explain("op").active} == {"cancelling"}
    local.make_due("~cancel:op")
    local.settle("op")
    assert {found.cancelled for _, found in local.executor.get_inactive_states("op")} == {"half"}
    assert {str(update.machine_id) for update in local.history("op") if update.cancelled} == set(machines)
    assert local.redis.zscore(local.keys().schedule, "~cancel:op") is None
    assert local.redis.get(local.keys().control("op")) is None
    assert local.redis.exists(local.keys().held(local.keys().control("op"))) == 0


@pytest.mark.parametrize("what", ["pause", "resume"])
def test_pausing_and_resuming_leave_a_cancel_alone(local: Local, what: str) -> None:
    """While a cancelling is under way neither ``pause`` nor ``resume`` lifts it, and its reason stays. (semantics 5)"""
    local.add("op", Waiting(1))
    local.driver.run(cancel.begin(local.keys(), "op", "half", children=False))
    getattr(local.executor, what)("op")
    local.executor.signal("op", go, "other")
    local.run()
    assert local.active("op") == [Waiting(1)]
    local.make_due("~cancel:op")
    local.settle("op")
    assert [found.cancelled for _, found in local.executor.get_inactive_states("op")] == ["half"]


def test_children_of_an_interrupted_cancel(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the caller of a cancel with children dies half-way, a worker finishes it for the children, too.
    (semantics 5)"""
    local.add("op", Waiting(0))
    local.executor.signal("op", go, "children")
    local.run()

    class Killed(BaseException):
        pass

    def die(*args: Any, **options: Any) -> Any:
        raise Killed

    monkeypatch.setattr(ending, "settle", die)
    with pytest.raises(Killed):
        local.executor.cancel("op", "half", children=True)
    monkeypatch.undo()
    for op in ("op", "child0", "child1"):
        local.make_due(f"~cancel:{op}")
    local.settle("op", "child0", "child1")


def test_a_quarantined_and_a_paused_machine_can_be_cancelled(local: Local) -> None:
    """Neither quarantine nor pause keeps a machine from being cancelled; the quarantine is lifted with it.
    (semantics 20)"""
    local.add("op", Waiting(1))
    local.executor.signal("op", go, "fail")
    local.until(lambda: local.explained("op").status == "quarantined", "it to be set aside")
    local.executor.pause("op")
    assert local.explained("op").status == "paused"
    assert local.executor.cancel("op") == 1
    assert local.redis.hlen(local.keys().quarantine) == 0


@pytest.mark.parametrize("when", ["before", "during", "again"])
def test_a_pause_outlives_a_cancelling(local: Local, when: str) -> None:
    """Once ``pause`` has returned nothing of the operation commits until the resume, be it being cancelled then or
    later: what is added after the cancelling waits. (semantics 20)"""
    local.add("op", Waiting(1))
    if when != "during":
        local.executor.pause("op", reason="a pause: 100%")
    local.driver.run(cancel.begin(local.keys(), "op", "half way", children=False))
    if when != "before":
        local.executor.pause("op", reason="a pause: 100%")
    local.driver.run(cancel.begin(local.keys(), "op", "all the way", children=True))
    (before,) = local.executor.paused()
    local.make_due("~cancel:op")
    local.settle("op")
    assert [found.cancelled for _, found in local.executor.get_inactive_states("op")] == ["all the way"]
    (machine,) = local.add("op", Other(2))
    local.executor.signal("op", go, "done", machine=machine)
    local.run()
    assert local.explained("op").status == "paused"
    assert local.executor.paused() == [before]
    assert (before.operation_id, before.reason) == ("op", "a pause: 100%")
    local.executor.resume("op")
    local.settle("op")
    assert ends(local) == [2]
    assert local.executor.paused() == []


def test_a_pause_is_lifted_during_a_cancelling(local: Local) -> None:
    """A ``resume`` that comes before the end of the cancelling leaves that alone, and no pause stands after it.
    (semantics 20)"""
    local.add("op", Waiting(1))
    local.driver.run(cancel.begin(local.keys(), "op", "half", children=False))
    local.executor.pause("op")
    local.executor.resume("op")
    assert local.executor.paused() == []
    local.make_due("~cancel:op")
    local.settle("op")
    assert [found.cancelled for _, found in local.executor.get_inactive_states("op")] == ["half"]
    assert local.redis.get(local.keys().control("op")) is None


# --- explain ---------------------------------------------------------------------------------------------------------


def test_explain_says_why(local: Local) -> None:
    """Each armed trigger, since when, deadline, next run, attempts, last error; buffered signals, also of names
    that nobody waits for; the past. (semantics 15)"""
    (machine,) = local.add("op", Racing(1))
    local.executor.signal("op", unheard)
    local.executor.signal("op", unheard)
    local.run()
    explained = local.executor.explain("op")
    (found,) = explained.active
    assert (found.machine, found.machine_id, found.step, found.status) == (
        StateMachine("op", Racing(1), "steered"), machine, 1, "waiting",
    )  # fmt: skip
    triggers = {trigger.name: trigger for trigger in found.triggers}
    assert list(triggers) == [f"steered.Racing/{name}" for name in ("told", "gave_up", "looked", "rang", "ended")]
    assert [trigger.kind for trigger in found.triggers] == ["signal", "deadline", "poll", "call", "finished"]
    assert all(trigger.since == found.since for trigger in found.triggers)
    assert triggers["steered.Racing/gave_up"].deadline is not None
    assert triggers["steered.Racing/told"].waits_for == "signal go"
    looked, rang = triggers["steered.Racing/looked"], triggers["steered.Racing/rang"]
    assert (looked.attempts, looked.last_error, looked.running) == (1, None, False)
    assert (rang.attempts, rang.last_error) == (1, "ConnectionError: engaged")
    assert found.since is not None
    assert looked.next_run is not None
    assert rang.next_run is not None
    assert looked.next_run - found.since > timedelta(hours=1)
    assert timedelta(minutes=4) < rang.next_run - found.since < timedelta(minutes=11)
    assert [(buffered.signal, buffered.count) for buffered in explained.buffered] == [("unheard", 2)]
    local.executor.signal("op", go, "broken")
    local.until(lambda: local.explained("op").status == "quarantined", "it to be set aside")
    found = local.explained("op")
    assert (found.won, found.attempts, found.last_error) == ("told", 2, "ValueError: broken")
    assert {trigger.name: trigger.last_error for trigger in found.triggers}[
        "steered.Racing/told"
    ] == "ValueError: broken"
    assert local.executor.explain("nothing").active == ()


def test_explain_orders_the_past(local: Local) -> None:
    """The past is told in the order in which states were first entered, with who won. (semantics 15)"""
    local.add("op", Waiting(1))
    local.executor.signal("op", go, "other")
    local.run()
    local.executor.signal("op", go, "done")
    local.settle("op")
    past = local.executor.explain("op").past
    assert [(machine.state, found.won) for machine, found in past] == [
        (Waiting(1), "went"), (Other(1), "went"), (Done(1), None),
    ]  # fmt: skip


# --- steering and what goes on meanwhile -----------------------------------------------------------------------------


def test_a_machine_added_at_the_end_of_a_cancel_is_not_held_for_ever(local: Local) -> None:
    """One that comes between the last look of a cancelling and its end is ended with the others; it is not left behind,
    held by a control that is gone. (semantics 5)"""
    other = local.another()
    local.add("op", Waiting(1))
    late_one = iter([Other(2)])

    def meddle(commit: Commit) -> None:
        if commit.commands[0][:2] == ("DEL", local.keys().control("op")):
            for state in late_one:
                (machine,) = other.add("op", state)
                other.executor.signal("op", go, "done", machine=machine)
                other.drain()

    with local.before_commits(meddle):
        local.executor.cancel("op")
    assert not local.executor.has_active_states("op")


def test_a_cancel_that_another_has_finished_ends_nothing_later(local: Local) -> None:
    """Once a cancel has returned, nothing that is added is ended by a worker that was helping with it. (semantics 5)"""
    other = local.another()
    local.add("op", Waiting(1))
    local.driver.run(cancel.begin(local.keys(), "op", "mine", children=False))
    once = iter([True])

    def meddle(request: RoundTrip) -> None:
        if isinstance(request, Read) and request.commands[0][0] == "HSCAN" and next(once, False):
            other.executor.cancel("op", "mine")
            other.add("op", Waiting(2))

    with local.around_trips(before=meddle):
        Relay(local.driver, local.keys(), local.instances, local.engine.outbound).other("~cancel:op")
    assert local.active("op") == [Waiting(2)]


@pytest.mark.parametrize("shards", [1, 8])
def test_who_helps_with_a_cancel_that_is_over_ends_no_child(play: Play, shards: int) -> None:
    """Once a cancel with children has returned, nothing that is added to those is ended by a worker that was helping
    with it, in no shard. (semantics 5)"""
    local = play(steered=steered, shards=shards)
    other, child = local.another(), local.keys("grandchild")
    op = next(f"p{n}" for n in range(100) if shards == 1 or local.keys(f"p{n}").shard != child.shard)
    local.add(op, Waiting(1))
    local.executor.signal(op, go, "child of")
    local.run()
    local.driver.run(cancel.begin(local.keys(op), op, "mine", children=True))
    trips = iter(range(1_000))

    def meddle(_: RoundTrip) -> None:
        if next(trips) == 1:  # it has seen that it is being cancelled
            assert other.executor.cancel(op, "mine", children=True) == 2
            other.add("grandchild", Other(2))

    with local.around_trips(before=meddle):
        Relay(local.driver, local.keys(op), local.instances, local.engine.outbound).other(f"~cancel:{op}")
    assert local.active("grandchild") == [Other(2)]


def test_a_child_that_has_ended_is_left_alone(local: Local) -> None:
    """What is added to a child whose cancelling is over is not ended by a worker that still tries to end its parent; by
    a ``cancel`` with children, it is. (semantics 5)"""
    local.add("op", Waiting(0))
    local.executor.signal("op", go, "children")
    local.run()
    keys = local.keys()

    def die(commit: Commit) -> None:
        if any(command[0] == "HDEL" and command[1] == keys.active("op") for command in commit.commands):
            raise Crash

    with pytest.raises(Crash), local.before_commits(die):
        local.executor.cancel("op", "all", children=True)
    for child in ("child0", "child1"):
        local.make_due(f"~cancel:{child}")
        local.settle(child)
        local.add(child, Other(5))
    local.make_due("~cancel:op")
    local.settle("op")
    assert local.active("child0") == local.active("child1") == [Other(5)]
    assert local.executor.cancel("op", "all", children=True) == 2


def test_who_cancels_waits_for_children_that_another_has_begun(local: Local) -> None:
    """A ``cancel`` with children has ended those when it returns, although another has begun to, and has died.
    (semantics 18)"""
    local.add("op", Waiting(0))
    local.executor.signal("op", go, "children")
    local.run()
    other, keys = local.another(), local.keys()
    trips = iter(range(1_000))

    def meddle(_: RoundTrip) -> None:
        if next(trips) == 2:  # it has begun, and is about to look
            noted = other.driver.run(cancel.noted(keys, "op"))
            assert noted is not None
            assert other.driver.run(cancel.begin_with(keys, ["child0", "child1"], noted, "op")) is not None
            other.driver.run(cancel.children_begun(keys, "op", noted))

    with local.around_trips(before=meddle):
        assert local.executor.cancel("op", "all", children=True) == 4
    assert not list(local.executor.get_active_operations())


def test_many_children_are_cancelled_over_several_tasks(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    """Children are looked at page by page, and a worker keeps its time among them, too. (semantics 31)"""
    children = [f"child{n}" for n in range(1_000)]
    local.executor.add_state_machines([StateMachine(op, Other(1)) for op in ["op", *children]])
    local.redis.sadd(local.keys().children("op"), *children, "op")
    local.driver.run(cancel.begin(local.keys(), "op", "all", children=True))
    local.make_due("~cancel:op")
    monkeypatch.setattr("smqueue.cancelling.WORKER_S", -1.0)
    trips: list[RoundTrip] = []
    with local.around_trips(before=trips.append):
        Relay(local.driver, local.keys(), local.instances, local.engine.outbound).other("~cancel:op")
    assert len(trips) < 15
    assert local.active("op") == [Other(1)]
    monkeypatch.undo()
    assert local.executor.cancel("op", "all", children=True) == 1_001
    assert not list(local.executor.get_active_operations())


def test_cancel_of_children_in_other_shards(play: Play) -> None:
    """Operations that a transition has started in another shard are cancelled with it. (semantics 18)"""
    local = play(steered=steered, shards=8)
    parent = next(f"p{n}" for n in range(100) if local.keys(f"p{n}").shard != local.keys("grandchild").shard)
    local.add(parent, Waiting(1))
    local.executor.signal(parent, go, "child of")
    local.run()
    assert local.executor.has_active_states("grandchild")
    local.executor.cancel(parent, children=True)
    assert not local.executor.has_active_states("grandchild")


@pytest.mark.parametrize("who", ["itself", "a worker", "force"])
def test_cancel_of_children_that_are_not_there_yet(play: Play, who: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operation that a transition has started in another shard is cancelled with it, although its machine is a
    request still; by a worker, when who cancels lacks its code. By force it is not started any more.
    (semantics 5, 18)"""
    local = play(steered=steered, shards=8)
    bare = Local(local.settings.url, local.namespace, {}, shards=8)
    parent = next(f"p{n}" for n in range(100) if local.keys(f"p{n}").shard != local.keys("grandchild").shard)
    local.add(parent, Waiting(1))
    local.executor.signal(parent, go, "child of")
    with monkeypatch.context() as patch:
        patch.setattr(Relay, "own", lambda *_: None)  # its worker dies
        local.run()
    keys = local.keys(parent)
    fillers = [
        b'{"kind":"task","id":"%d","name":"x","args":[],"kwargs":{},"options":{},"due":9e15}' % n for n in range(1_200)
    ]
    local.redis.lpush(keys.requests, *fillers)
    assert not local.executor.has_active_states("grandchild")
    match who:
        case "itself":
            assert local.executor.cancel(parent, "all", children=True) == 2
        case "a worker":
            with pytest.raises(CancelUnfinished, match="another shard"):
                bare.executor.cancel(parent, "all", children=True)
            local.settle(parent)
            local.until(lambda: local.redis.get(keys.control(parent)) is None, "it to be over")
        case _:
            assert bare.executor.cancel(parent, "all", children=True, force=True) == 1
    local.requests_due()
    local.run()
    assert not local.executor.has_active_states("grandchild")
    past = [found.cancelled for _, found in local.executor.get_inactive_states("grandchild")]
    assert past == ([] if who == "force" else ["all"])
    assert local.redis.llen(keys.requests) == 0


def test_a_resume_whose_caller_dies_is_finished_by_a_worker(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a pause has held goes on although the one who resumed dies after the first batch; but not what has been
    paused again. (semantics 5)"""
    monkeypatch.setattr(control, "RESUME_BATCH", 1)
    for op, paused_again in (("op", False), ("again", True)):
        machines = local.add(op, *[Waiting(n) for n in range(3)])
        local.executor.pause(op)
        for machine in machines:
            local.executor.signal(op, go, "done", machine=machine)
        local.run()
        second = iter([False, True])

        def die(request: RoundTrip, second: Iterator[bool] = second) -> None:
            if isinstance(request, Call) and request.script == "resume" and next(second, False):
                raise Crash

        with pytest.raises(Crash), local.around_trips(before=die):
            local.executor.resume(op)
        if paused_again:
            local.executor.pause(op)
        local.make_due(f"~resume:{local.keys().control(op)}")
        local.run()
        assert local.redis.zscore(local.keys().schedule, f"~resume:{local.keys().control(op)}") is None
        assert len(local.active(op)) == (3 if paused_again else 0)
        if paused_again:
            local.executor.resume(op)
            local.run()
            assert local.active(op) == []


def test_a_machine_that_moved_on_is_not_kept_in_quarantine(local: Local) -> None:
    """One that is set aside by a worker which took its own for dead, and then stays in its state, goes on.
    (semantics 20)"""
    local.add("op", Waiting(0))
    stored = local.stored("op", Waiting(0))
    local.executor.signal("op", go, "children")

    def aside() -> None:
        error = ValueError("dead")
        local.driver.run(
            runs.defer(local.keys(), stored.entry, stored.guard, 0, failed=True, error="x", op="op", quarantine=error)
        )

    with local.before_moves(aside):
        local.run()
    assert local.redis.hlen(local.keys().quarantine) == 0


def test_retry_leaves_nothing_watched_on_its_connection(local: Local) -> None:
    """What is asked next over the connection of a ``retry`` is done, though the machine it looked at has changed."""
    (machine,) = local.add("op", Waiting(1))
    local.executor.signal("op", go, "fail")
    local.until(lambda: local.explained("op").status == "quarantined", "it to be set aside")
    assert local.executor.retry("op") == 1
    local.redis.hset(local.keys().race(local.stored("op", Waiting(1)).record), "touched", machine)
    local.executor.pause("other")
    assert local.redis.get(local.keys().control("other")).startswith(b"paused ")

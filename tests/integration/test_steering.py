"""Pausing, resuming, cancelling, retrying and explaining."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from smqueue import Context, Module, Retry, State, StateMachine, Transaction, after, call, finished, poll
from smqueue.embedded import EmbeddedServer
from smqueue.errors import AmbiguousModule, InvalidInput, OperationFinished, UnknownModule
from smqueue.protocols import control
from tests.integration.driving import Loop

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
def loop(server: EmbeddedServer, namespace: str) -> Iterator[Loop]:
    during.clear()
    yield Loop(server.url, namespace, {"steered": steered})
    during.clear()


def ends(loop: Loop, op: str = "op") -> list[int]:
    """Numbers of the states in which machines of an operation have finished."""
    states = [machine.state for machine, found in loop.executor.get_inactive_states(op) if found.terminal]
    return sorted(state.n for state in states if isinstance(state, Done))


def state_of(loop: Loop, op: str) -> dict[Any, Any]:
    """All that is stored of the operation's active machines and what they have written."""
    return {
        "active": loop.redis.hgetall(loop.keys.active(op)),
        "inactive": loop.redis.hgetall(loop.keys.inactive(op)),
        "history": loop.redis.lrange(loop.keys.history(op), 0, -1),
        "went": loop.redis.get(loop.keys.data("steered", "went")),
    }


# --- pause -----------------------------------------------------------------------------------------------------------


def test_nothing_of_a_paused_operation_commits(loop: Loop) -> None:
    """While an operation is paused nothing of it commits: signals, deadlines and further drains change nothing; it is
    still active, and others go on. At the resume what fell due fires, once. (semantics 20)"""
    loop.add("op", Waiting(1), Waiting(2, timedelta(milliseconds=5)))
    loop.add("free", Waiting(1))
    loop.executor.pause("op")
    before = state_of(loop, "op")
    due = loop.stored("op", Waiting(2, timedelta(milliseconds=5))).armed["late"]
    assert isinstance(due, int)
    loop.wait_past(due)
    assert loop.executor.signal("op", go, "done").value == "DELIVERED"
    for _ in range(3):
        loop.run()
    assert state_of(loop, "op") == before
    assert {found.status for found in loop.executor.explain("op").active} == {"paused"}
    assert loop.executor.has_active_states("op")
    loop.executor.signal("free", go, "done")
    loop.settle("free")
    hints = loop.sent.hints
    loop.executor.resume("op")
    assert loop.sent.hints == hints + 1
    loop.run()
    assert ends(loop) == [-2, 1]


def test_a_transition_under_way_does_not_commit(loop: Loop) -> None:
    """Once ``pause`` has returned nothing commits: a transition between its look and its EXEC fails. (semantics 20)"""
    loop.add("op", Waiting(1))
    loop.executor.signal("op", go, "done")
    before = state_of(loop, "op")
    loop.driver.before_commit(lambda: loop.executor.pause("op"))
    loop.run()
    assert loop.driver.acted == 1
    assert state_of(loop, "op") == before
    loop.executor.resume("op")
    loop.settle("op")
    assert loop.redis.get(loop.keys.data("steered", "went")) == b"1"


def test_a_handler_that_runs_while_pause_returns_does_not_commit(loop: Loop) -> None:
    """A handler that was running when ``pause`` returned comes to nothing, and runs again after the resume.
    (semantics 20)"""
    loop.add("op", Waiting(1))
    running, paused = threading.Event(), threading.Event()
    during.append(lambda: (running.set(), paused.wait(20)))
    loop.executor.signal("op", go, "done")
    thread = threading.Thread(target=loop.run)
    thread.start()
    assert running.wait(20)
    loop.executor.pause("op")
    before = state_of(loop, "op")
    paused.set()
    thread.join(20)
    assert state_of(loop, "op") == before
    loop.executor.resume("op")
    loop.settle("op")
    assert ends(loop) == [1]


@pytest.mark.parametrize("by", ["class", "name", "module"])
def test_pausing_a_module_or_a_state_type(loop: Loop, by: str) -> None:
    """A module, or one state type of it, is paused over all operations; others go on; resuming lets all of it go.
    (semantics 20)"""
    how: dict[str, Any] = {"class": {"state": Waiting}, "name": {"module": "steered", "state": "Waiting"}}.get(
        by, {"module": "steered"}
    )
    for n in range(5):
        loop.add(f"op{n}", Waiting(n))
        loop.add(f"other{n}", Other(n))
    loop.executor.pause(**how)
    for n in range(5):
        loop.executor.signal(f"op{n}", go, "done")
        loop.executor.signal(f"other{n}", go, "done")
    loop.run()
    assert [ends(loop, f"op{n}") for n in range(5)] == [[]] * 5
    assert [ends(loop, f"other{n}") for n in range(5)] == ([[]] * 5 if by == "module" else [[n] for n in range(5)])
    assert loop.explained("op1").status == "paused"
    loop.executor.resume(**how)
    loop.run()
    assert [ends(loop, f"op{n}") for n in range(5)] == [[n] for n in range(5)]


def test_two_pauses_need_two_resumes(loop: Loop) -> None:
    """A machine that is paused by its operation and by its module goes on when both are resumed. (semantics 20)"""
    loop.add("op", Waiting(1))
    loop.executor.pause("op")
    loop.executor.pause(module="steered")
    loop.executor.signal("op", go, "done")
    loop.run()
    loop.executor.resume("op")
    loop.run()
    assert ends(loop) == []
    loop.executor.resume(module="steered")
    loop.run()
    assert ends(loop) == [1]


def test_a_resume_between_look_and_hold_is_noticed(loop: Loop) -> None:
    """A machine that is held just after the resume is due at once. (semantics 20)"""
    from smqueue.protocols import runs

    loop.add("op", Waiting(1))
    loop.executor.pause("op")
    loop.executor.signal("op", go, "done")
    hold = runs.hold
    patch = pytest.MonkeyPatch()
    patch.setattr(runs, "hold", lambda *args: (loop.executor.resume("op"), hold(*args))[1])
    loop.run()
    patch.undo()
    loop.run()
    assert ends(loop) == [1]


def test_many_are_resumed(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than one script's worth is let go. (semantics 20)"""
    monkeypatch.setattr(control, "RESUME_BATCH", 100)
    loop.executor.add_state_machines([StateMachine(f"op{n}", Other(n)) for n in range(310)])
    loop.executor.pause(state=Other)
    for n in range(310):
        loop.executor.signal(f"op{n}", go, "done")
    loop.until(
        lambda: loop.redis.scard(loop.keys.held(loop.keys.control_module("steered", "Other"))) == 310, "all held"
    )
    loop.executor.resume(state=Other)
    loop.until(lambda: loop.redis.zcard(loop.keys.operations) == 0, "all to have ended")


def test_what_can_be_paused(loop: Loop, server: EmbeddedServer, namespace: str) -> None:
    """Pausing what does not exist, nothing, or too much at once is a typed error. (semantics 20)"""
    with pytest.raises(UnknownModule):
        loop.executor.pause(module="elsewhere")
    for wrong in (
        {},
        {"operation_id": "op", "module": "steered"},
        {"module": "steered", "state": "Nope"},
        {"state": "Nope"},
    ):
        with pytest.raises(InvalidInput):
            loop.executor.pause(**wrong)  # type: ignore[arg-type]
    twice = Loop(server.url, namespace, {"a": steered, "b": steered})
    with pytest.raises(AmbiguousModule):
        twice.executor.pause(state=Waiting)
    loop.executor.resume("never paused")


# --- cancel ----------------------------------------------------------------------------------------------------------


def test_cancel_ends_all(loop: Loop) -> None:
    """Every active machine ends: inactive, marked with the reason, in the history; nothing armed is left.
    (semantics 23)"""
    machines = loop.add("op", *[Waiting(n) for n in range(250)], Racing(1))
    loop.run()
    assert loop.executor.cancel("op", "no stock") == 251
    assert not loop.executor.has_active_states("op")
    assert list(loop.executor.get_active_operations()) == []
    past = list(loop.executor.get_inactive_states("op"))
    assert {found.cancelled for _, found in past} == {"no stock"}
    assert {found.terminal for _, found in past} == {False}
    assert {str(found.machine_id) for _, found in past} == set(machines)
    assert loop.redis.zrange(loop.keys.schedule, 0, -1) == []
    left = {
        key.decode().removeprefix(loop.keys.prefix).partition(":")[0]
        for key in loop.redis.scan_iter(match=f"{loop.keys.prefix}*")
    }
    assert left <= {"inactive", "history", "updates", "meta", "finished", "hint", "watched"}
    told = [update for update in loop.history("op") if update.cancelled]
    assert len(told) == 251
    assert all(update.terminal and update.step == 2 for update in told)
    with pytest.raises(OperationFinished):
        loop.executor.signal("op", go, "x")
    assert loop.executor.cancel("op") == 0


def test_a_lone_machine_is_cancelled_with_its_first_entry(loop: Loop) -> None:
    """Cancelling a machine that nothing has happened to yet leaves its adding and its end in the history.
    (semantics 36)"""
    (machine,) = loop.add("op", Waiting(1))
    loop.executor.cancel("op")
    assert [(u.machine_id, u.step, u.terminal, u.cancelled) for u in loop.history("op")] == [
        (machine, 1, False, None), (machine, 2, True, ""),
    ]  # fmt: skip


def test_cancel_tells_those_who_wait(loop: Loop) -> None:
    """Who waits for the operation, or for a state of it to be left, is told. (semantics 34)"""
    loop.add("op", Waiting(1))
    got: list[Any] = []
    threads = [
        threading.Thread(target=lambda: got.append(loop.executor.await_operation("op", 20))),
        threading.Thread(
            target=lambda: got.append(loop.executor.await_inactive_state(StateMachine("op", Waiting(1)), 20).cancelled)
        ),
    ]
    for thread in threads:
        thread.start()
    loop.until(lambda: sum(loop.redis.pubsub_numsub(loop.keys.bell("op"))[0][1:]) == 2, "both to have subscribed")
    loop.executor.cancel("op", "enough")
    for thread in threads:
        thread.join(20)
    assert sorted(map(str, got)) == ["None", "enough"]


def test_a_transition_under_way_does_not_survive_cancel(loop: Loop) -> None:
    """A transition between its look and its EXEC fails when its operation is cancelled: nothing of it commits.
    (semantics 18)"""
    loop.add("op", Waiting(1))
    loop.executor.signal("op", go, "other")
    loop.driver.before_commit(lambda: loop.executor.cancel("op", "too late"))
    loop.run()
    assert not loop.executor.has_active_states("op")
    assert loop.redis.get(loop.keys.data("steered", "went")) is None
    ((machine, found),) = loop.executor.get_inactive_states("op")
    assert (machine.state, found.cancelled) == (Waiting(1), "too late")


def test_cancel_ends_what_enters_meanwhile(loop: Loop) -> None:
    """A machine that moves between two batches of the cancelling ends, too, and exactly once. (semantics 18)"""
    other = Loop(loop.settings.url, loop.settings.namespace, {"steered": steered})
    machines = loop.add("op", *[Waiting(n) for n in range(50)])
    for machine in machines:
        loop.executor.signal("op", go, "other", machine=machine)
    thread = threading.Thread(target=other.run)
    thread.start()
    loop.executor.cancel("op", "stop")
    thread.join(20)
    other.run()
    assert not loop.executor.has_active_states("op")
    told = [update for update in loop.history("op") if update.cancelled]
    assert {str(update.machine_id) for update in told} == set(machines)
    assert len(told) == 50


def test_cancel_of_children(loop: Loop) -> None:
    """With ``children`` the operations that its transitions have started are cancelled, theirs too; else they go
    on. (semantics 18)"""
    for children in (False, True):
        loop.executor.add_state_machines([StateMachine("op", Waiting(int(children)))])
        if not children:
            loop.executor.signal("op", go, "children")
            loop.run()
            loop.executor.signal("child1", go, "child of child")
            loop.run()
        loop.executor.cancel("op", "all", children=children)
        assert not loop.executor.has_active_states("op")
        alive = [op for op in ("child0", "child1", "grandchild") if loop.executor.has_active_states(op)]
        assert alive == ([] if children else ["child0", "child1", "grandchild"])
    past = [
        found.cancelled
        for op in ("child0", "child1", "grandchild")
        for _, found in loop.executor.get_inactive_states(op)
    ]
    assert past == ["all"] * 3


def test_an_interrupted_cancel_is_finished_by_a_worker(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller that dies half-way leaves an entry: a worker finishes the cancelling, with its reason; meanwhile no
    transition commits. (semantics 5)"""
    machines = loop.add("op", *[Waiting(n) for n in range(150)])

    class Killed(BaseException):
        pass

    commits: list[int] = []
    settle = control.settle

    def die(*args: Any) -> Any:
        commits.append(1)
        if len(commits) == 2:
            raise Killed
        return settle(*args)

    monkeypatch.setattr(control, "settle", die)
    with pytest.raises(Killed):
        loop.executor.cancel("op", "half")
    monkeypatch.undo()
    left = loop.active("op")
    assert 0 < len(left) < 150
    score = loop.redis.zscore(loop.keys.schedule, "~cancel:op")
    assert loop.now_ms() - 1_000 < score < loop.now_ms() + 5_000
    loop.executor.signal("op", go, "other")
    loop.run()
    assert len(loop.active("op")) == len(left)
    assert {found.status for found in loop.executor.explain("op").active} == {"cancelling"}
    loop.make_due("~cancel:op")
    loop.settle("op")
    assert {found.cancelled for _, found in loop.executor.get_inactive_states("op")} == {"half"}
    assert {str(update.machine_id) for update in loop.history("op") if update.cancelled} == set(machines)
    assert loop.redis.zscore(loop.keys.schedule, "~cancel:op") is None
    assert loop.redis.get(loop.keys.control("op")) is None
    assert loop.redis.exists(loop.keys.held(loop.keys.control("op"))) == 0


@pytest.mark.parametrize("what", ["pause", "resume"])
def test_pausing_and_resuming_leave_a_cancel_alone(loop: Loop, what: str) -> None:
    """While a cancelling is under way neither ``pause`` nor ``resume`` lifts it, and its reason stays. (semantics 5)"""
    loop.add("op", Waiting(1))
    loop.driver.run(control.begin_cancel(loop.keys, "op", "half", children=False))
    getattr(loop.executor, what)("op")
    loop.executor.signal("op", go, "other")
    loop.run()
    assert loop.active("op") == [Waiting(1)]
    loop.make_due("~cancel:op")
    loop.settle("op")
    assert [found.cancelled for _, found in loop.executor.get_inactive_states("op")] == ["half"]


def test_children_of_an_interrupted_cancel(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the caller of a cancel with children dies half-way, a worker finishes it for the children, too.
    (semantics 5)"""
    loop.add("op", Waiting(0))
    loop.executor.signal("op", go, "children")
    loop.run()

    class Killed(BaseException):
        pass

    def die(*args: Any) -> Any:
        raise Killed

    monkeypatch.setattr(control, "settle", die)
    with pytest.raises(Killed):
        loop.executor.cancel("op", "half", children=True)
    monkeypatch.undo()
    loop.make_due("~cancel:op")
    loop.settle("op")
    loop.run()
    assert not [op for op in ("child0", "child1") if loop.executor.has_active_states(op)]


def test_a_quarantined_and_a_paused_machine_can_be_cancelled(loop: Loop) -> None:
    """Neither quarantine nor pause keeps a machine from being cancelled; both are lifted with it. (semantics 20)"""
    loop.add("op", Waiting(1))
    loop.executor.signal("op", go, "fail")
    loop.until(lambda: loop.explained("op").status == "quarantined", "it to be set aside")
    loop.executor.pause("op")
    assert loop.explained("op").status == "paused"
    assert loop.executor.cancel("op") == 1
    assert loop.redis.hlen(loop.keys.quarantine) == 0
    assert loop.redis.get(loop.keys.control("op")) is None


# --- explain ---------------------------------------------------------------------------------------------------------


def test_explain_says_why(loop: Loop) -> None:
    """Each armed trigger, since when, deadline, next run, attempts, last error; buffered signals, also of names
    that nobody waits for; the past. (semantics 15)"""
    (machine,) = loop.add("op", Racing(1))
    loop.executor.signal("op", unheard)
    loop.executor.signal("op", unheard)
    loop.run()
    explained = loop.executor.explain("op")
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
    loop.executor.signal("op", go, "broken")
    loop.until(lambda: loop.explained("op").status == "quarantined", "it to be set aside")
    found = loop.explained("op")
    assert (found.won, found.attempts, found.last_error) == ("told", 2, "ValueError: broken")
    assert {trigger.name: trigger.last_error for trigger in found.triggers}[
        "steered.Racing/told"
    ] == "ValueError: broken"
    assert loop.executor.explain("nothing").active == ()


def test_explain_orders_the_past(loop: Loop) -> None:
    """The past is told in the order in which states were first entered, with who won. (semantics 15)"""
    loop.add("op", Waiting(1))
    loop.executor.signal("op", go, "other")
    loop.run()
    loop.executor.signal("op", go, "done")
    loop.settle("op")
    past = loop.executor.explain("op").past
    assert [(machine.state, found.won) for machine, found in past] == [
        (Waiting(1), "went"), (Other(1), "went"), (Done(1), None),
    ]  # fmt: skip

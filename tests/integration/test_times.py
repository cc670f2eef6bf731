"""Deadlines, clocks and the times that records carry."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest

from smqueue import Context, Module, Retry, State, StateMachine, Transaction, after, at, poll
from tests.inprocess import Local, Play

DAY_S = 86_400

clocks = Module("clocks", version=1, retry=Retry(max_attempts=2, base=timedelta(milliseconds=1)))


@clocks.state
class Waiting(State):
    n: int
    patience: timedelta = timedelta(minutes=30)


@clocks.state
class Until(State):
    when: datetime


@clocks.state
class Reminded(State):
    """Its first deadline is spent, the second ends it."""

    first: timedelta
    second: timedelta


@clocks.state
class Polling(State):
    n: int


@clocks.state
class Rung(State):
    n: int


@clocks.state(terminal=True)
class Ended(State):
    how: str


ping = clocks.signal("ping", str)
during: list[object] = []
"""What the handler of ``ping`` does while it runs: functions, each called once."""


@clocks.on((Waiting, Rung), ping)
def pinged(tx: Transaction, state: Waiting | Rung, what: str) -> Rung | Ended | None:
    if during:
        during.pop(0)()  # type: ignore[operator]  # pyright: ignore[reportCallIssue, reportUnknownMemberType]
    if what == "rung":
        return Rung(state.n)
    return None if what == "stay" else Ended(what)


@clocks.on(Waiting, after(lambda state: state.patience))
def waited(tx: Transaction, state: Waiting, _: None) -> Ended:
    tx.set("noticed", tx.now().isoformat())
    return Ended("late")


@clocks.on(Until, at(lambda state: state.when))
def came(tx: Transaction, state: Until, _: None) -> Ended:
    return Ended("came")


@clocks.on(Reminded, after(lambda state: state.first))
def reminded(tx: Transaction, state: Reminded, _: None) -> None:
    tx.incrby("reminders")


@clocks.on(Reminded, after(lambda state: state.second))
def over(tx: Transaction, state: Reminded, _: None) -> Ended:
    return Ended("over")


def look(state: Polling, context: Context) -> int | None:
    polls.append(context.operation_id)
    return len(polls) if len(polls) in {2, 4} else None


polls: list[str] = []


@clocks.on(Polling, poll(look, every=timedelta(milliseconds=5)))
def polled(tx: Transaction, state: Polling, found: int) -> Ended | None:
    tx.rpush("found", found)
    return Ended("polled") if found == state.n else None


@pytest.fixture
def local(play: Play) -> Local:
    during.clear()
    polls.clear()
    return play(clocks=clocks)


def how(local: Local, op: str = "op") -> list[str]:
    """How the machines of an operation have ended."""
    states = [machine.state for machine, found in local.executor.get_inactive_states(op) if found.terminal]
    return sorted(state.how for state in states if isinstance(state, Ended))


def redis_now(local: Local) -> datetime:
    seconds, micros = local.redis.time()
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=micros)


# --- what is terminal ------------------------------------------------------------------------------------------------


def test_terminal_is_what_is_marked_so(local: Local) -> None:
    """A machine that enters a state marked terminal has ended: no active record, no guard, no schedule entry.
    (semantics 21)"""
    local.add("op", Waiting(1))
    local.executor.signal("op", ping, "done")
    local.settle("op")
    record = local.placed("op", Ended("done")).record
    assert local.redis.get(local.keys().machine(record)) is None
    assert local.redis.zrange(local.keys().schedule, 0, -1) == []
    assert local.redis.zscore(local.keys().operations, "op") is None
    assert [update.terminal for update in local.history("op")] == [False, True]


def test_passed_through_or_finished(local: Local) -> None:
    """An inactive record says whether a machine passed through its state or finished in it, and who won. (semantics
    23)"""
    (machine,) = local.add("op", Waiting(1))
    for what in ("rung", "done"):
        local.executor.signal("op", ping, what)
        local.run()
    found = {machine.state: past for machine, past in local.executor.get_inactive_states("op")}
    assert {state: (past.terminal, past.won, past.step) for state, past in found.items()} == {
        Waiting(1): (False, "pinged", 1),
        Rung(1): (False, "pinged", 2),
        Ended("done"): (True, None, 3),
    }
    assert {past.machine_id for past in found.values()} == {machine}


# --- the times of records --------------------------------------------------------------------------------------------


def test_times_chain(local: Local) -> None:
    """``created_at`` of an active state is that of its inactive record; each is left no later than the next is entered;
    a terminal record has both equal. (semantics 22)"""
    local.add("op", Waiting(1))
    created: dict[State, datetime] = {}
    for what in ("rung", "done"):
        created.update({machine.state: active.created_at for machine, active in local.executor.get_active_states("op")})
        local.wait_past(local.now_ms())
        local.executor.signal("op", ping, what)
        local.run()
    past = {machine.state: found for machine, found in local.executor.get_inactive_states("op")}
    assert {state: past[state].created_at for state in created} == created
    assert set(created) == {Waiting(1), Rung(1)}
    assert past[Waiting(1)].created_at < past[Waiting(1)].exited_at <= past[Rung(1)].created_at
    assert past[Rung(1)].created_at < past[Rung(1)].exited_at <= past[Ended("done")].created_at
    assert past[Ended("done")].created_at == past[Ended("done")].exited_at
    assert all(found.created_at.tzinfo is UTC for found in past.values())


def test_the_clock_is_the_servers(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    """Times and deadlines are by Redis's clock: a worker whose own is a day ahead or behind changes nothing.
    (semantics 22)"""
    real = time.time
    for off in (DAY_S, -DAY_S):
        op = f"op{off}"
        before = redis_now(local)
        monkeypatch.setattr(time, "time", lambda off=off: real() + off)
        local.add(op, Waiting(1), Waiting(2, timedelta(milliseconds=30)))
        local.until(lambda op=op: how(local, op) == ["late"], "the deadline to have come")
        local.executor.signal(op, ping, "done")
        local.settle(op)
        monkeypatch.undo()
        after_it = redis_now(local)
        noticed = datetime.fromisoformat(local.redis.get(local.keys().data("clocks", "noticed")).decode())
        for _, past in local.executor.get_inactive_states(op):
            assert before <= past.created_at <= past.exited_at <= after_it
        assert before <= noticed <= after_it
        assert all(before <= update.at <= after_it for update in local.history(op))


# --- deadlines -------------------------------------------------------------------------------------------------------


def test_a_deadline_is_fixed_at_entering(local: Local) -> None:
    """A deadline is absolute from the entering on: neither ``None``, nor new workers, nor interruptions move it.
    (semantics 24)"""
    local.add("op", Waiting(1))
    due = local.stored("op", Waiting(1)).armed["waited"]
    for _ in range(3):
        local.wait_past(local.now_ms())
        local.executor.signal("op", ping, "stay")
        local.another().run()
    assert local.stored("op", Waiting(1)).armed["waited"] == due
    ((_, active),) = local.executor.get_active_states("op")
    assert abs(active.created_at + timedelta(minutes=30) - local.explained("op").triggers[1].deadline) < timedelta(
        milliseconds=2
    )


def test_a_deadline_fires_with_nobody_up_at_its_time(local: Local) -> None:
    """A deadline that passes while no worker runs counts as completed at its time, and fires once one does.
    (semantics 15, 24)"""
    local.add("op", Waiting(1, timedelta(milliseconds=5)))
    due = local.stored("op", Waiting(1, timedelta(milliseconds=5))).armed["waited"]
    assert isinstance(due, int)
    local.wait_past(due + 30)
    fresh = local.another()
    fresh.settle("op")
    assert how(local) == ["late"]
    ((_, past),) = [(m, p) for m, p in local.executor.get_inactive_states("op") if not p.terminal]
    assert past.won == "waited"


def test_no_deadline_fires_early(local: Local) -> None:
    """Nothing is noticed before its time. (semantics 15)"""
    local.add("op", *[Waiting(n, timedelta(milliseconds=5 * n, microseconds=700 + n)) for n in range(1, 21)])
    for machine, active in local.executor.get_active_states("op"):
        assert isinstance(machine.state, Waiting)
        due_ms = local.stored("op", machine.state).armed["waited"]
        assert isinstance(due_ms, int)
        wanted = active.created_at + machine.state.patience - datetime(1970, 1, 1, tzinfo=UTC)
        assert timedelta(0) <= timedelta(milliseconds=due_ms) - wanted < timedelta(milliseconds=1)
    local.settle("op")
    for machine, past in local.executor.get_inactive_states("op"):
        if isinstance(machine.state, Waiting):
            assert past.exited_at - past.created_at >= machine.state.patience


def test_a_signal_after_the_deadline_does_not_win(local: Local) -> None:
    """A signal that comes after a deadline that nobody has noticed does not win. (semantics 15)"""
    patience = timedelta(milliseconds=5)
    local.add("op", Waiting(1, patience))
    due = local.stored("op", Waiting(1, patience)).armed["waited"]
    assert isinstance(due, int)
    local.wait_past(due)
    assert local.executor.signal("op", ping, "done").value == "BUFFERED"
    local.settle("op")
    assert how(local) == ["late"]


def test_a_signal_before_the_deadline_wins_however_late_it_is_noticed(local: Local) -> None:
    """What was recorded before the deadline stands, even if no worker sees either until later. (semantics 15)"""
    patience = timedelta(seconds=2)
    local.add("op", Waiting(1, patience))
    due = local.stored("op", Waiting(1, patience)).armed["waited"]
    assert isinstance(due, int)
    assert local.executor.signal("op", ping, "done").value == "DELIVERED"
    local.wait_past(due)
    local.settle("op")
    assert how(local) == ["done"]


def test_a_signal_during_a_handler_that_stays_does_not_beat_a_passed_deadline(local: Local) -> None:
    """One that comes after the deadline, while the handler of an earlier one still runs and then stays, does not
    win. (semantics 15)"""
    patience = timedelta(seconds=2)
    local.add("op", Waiting(1, patience))
    due = local.stored("op", Waiting(1, patience)).armed["waited"]
    assert isinstance(due, int)

    def late_one() -> None:
        local.wait_past(due)
        assert local.executor.signal("op", ping, "done").value == "BUFFERED"

    during.append(late_one)
    assert local.executor.signal("op", ping, "stay").value == "DELIVERED"
    local.settle("op")
    assert how(local) == ["late"]


def test_a_buffered_signal_before_the_deadline_wins(local: Local) -> None:
    """One that came before the deadline, while the handler of an earlier one ran and stayed, wins. (semantics 15)"""
    patience = timedelta(seconds=2)
    local.add("op", Waiting(1, patience))
    due = local.stored("op", Waiting(1, patience)).armed["waited"]
    assert isinstance(due, int)

    def early_one() -> None:
        assert local.executor.signal("op", ping, "done").value == "BUFFERED"
        local.wait_past(due)

    during.append(early_one)
    assert local.executor.signal("op", ping, "stay").value == "DELIVERED"
    local.settle("op")
    assert how(local) == ["done"]


def test_a_deadline_whose_handler_stays_is_spent(local: Local) -> None:
    """A deadline handler that returns None has had its turn: it never fires again, and the later one still does.
    (semantics 15)"""
    state = Reminded(timedelta(milliseconds=5), timedelta(milliseconds=1_500))
    local.add("op", state)
    local.until(lambda: list(local.stored("op", state).armed) == ["over"], "the first to be spent")
    local.settle("op")
    assert how(local) == ["over"]
    assert local.redis.get(local.keys().data("clocks", "reminders")) == b"1"


def test_an_instant_in_the_past_is_ready_at_once(local: Local) -> None:
    """``at`` an instant that has passed completes at arming. (semantics 15)"""
    local.add("op", Until(datetime(2001, 1, 1, tzinfo=UTC)))
    local.settle("op")
    assert how(local) == ["came"]


def test_an_instant_in_any_time_zone(local: Local) -> None:
    """``at`` takes the instant, wherever its time zone is. (semantics 15)"""
    from datetime import timezone

    when = (redis_now(local) + timedelta(milliseconds=1_500)).astimezone(timezone(timedelta(hours=9)))
    local.add("op", Until(when))
    local.run()
    assert how(local) == []
    local.settle("op")
    assert redis_now(local) >= when


def test_a_poll_whose_handler_stays_polls_on(local: Local) -> None:
    """After None a poll polls on; what it brought was seen once each. (semantics 24)"""
    local.add("op", Polling(4))
    local.settle("op")
    assert local.listed("clocks", "found") == [b"2", b"4"]
    assert how(local) == ["polled"]


def test_losers_are_kept(local: Local) -> None:
    """Who won, and how much a losing deadline had left, is kept and can be asked for. (semantics 15)"""
    local.add("op", Waiting(1))
    local.executor.signal("op", ping, "done")
    local.settle("op")
    explained = local.executor.explain("op")
    past = {machine.state: found for machine, found in explained.past}[Waiting(1)]
    assert past.won == "pinged"
    assert past.losers is not None
    assert past.losers["waited"]["kind"] == "deadline"
    assert 1_700_000 < past.losers["waited"]["left_ms"] <= 1_800_001
    assert local.executor.contains_inactive_state(StateMachine("op", Waiting(1)))

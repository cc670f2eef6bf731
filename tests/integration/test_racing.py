"""The race of a state's triggers, what is recorded of it, and the one transaction that ends it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import permutations
from typing import Any

import pytest
import redis

import smqueue.roundtrip
from smqueue import (
    Delivery,
    Failed,
    InvalidOutcome,
    Module,
    Retry,
    State,
    StateMachine,
    Transaction,
    Transition,
    after,
    at,
    call,
    now,
    poll,
)  # fmt: skip
from smqueue.protocols import runs
from smqueue.protocols.claim import Armed
from smqueue.roundtrip import Commit, Pause, Read, RoundTrip, commits
from tests.inprocess import Crash, Local, Play, machines
from tests.monitor import Asked, monitoring
from tests.waiting import wait_until

races = Module("races", retry=Retry(max_attempts=3, base=timedelta(milliseconds=1)))
first_signal = races.signal("first", int)
second_signal = races.signal("second", int)

answers: dict[str, Any] = {}
"""What the code of a trigger returns or raises, by operation and trigger, and how often it has run."""
ran: dict[str, int] = {}


def _answer(name: str) -> Callable[[State, Any], Any]:
    def fn(state: State, context: Any) -> Any:
        key = f"{context.operation_id}/{name}"
        ran[key] = ran.get(key, 0) + 1
        given = answers.get(key)
        if isinstance(given, Exception):
            raise given
        return given(ran[key]) if callable(given) else given

    return fn


@races.state
class Racing(State):
    """Five triggers of four kinds."""

    n: int = 0


@races.state
class Again(State):
    n: int = 0


@races.state(terminal=True)
class Won(State):
    by: str
    outcome: str = ""


@races.on(Racing, call(_answer("called"), retry=Retry(max_attempts=1)))
def called(tx: Transaction, state: Racing, got: int | Failed) -> Won | Again:
    tx.rpush("winners", "called")
    return Won("called", got.error if isinstance(got, Failed) else str(got)) if state.n == 0 else Again(state.n)


@races.on(Racing, poll(_answer("polled"), every=timedelta(milliseconds=1)))
def polled(tx: Transaction, state: Racing, got: int) -> Won:
    tx.rpush("winners", "polled")
    return Won("polled", str(got))


@races.on(Racing, first_signal)
def by_first(tx: Transaction, state: Racing, got: int) -> Won:
    tx.rpush("winners", "by_first")
    return Won("by_first", str(got))


@races.on(Racing, second_signal)
def by_second(tx: Transaction, state: Racing, got: int) -> Won:
    tx.rpush("winners", "by_second")
    return Won("by_second", str(got))


@races.on(Racing, after(hours=1))
def expired(tx: Transaction, state: Racing, _: None) -> Won:
    return Won("expired")


@races.on(Again, call(_answer("again"), retry=Retry(max_attempts=1)))
def once_more(tx: Transaction, state: Again, got: int | Failed) -> Won:
    return Won("again", str(got))


@pytest.fixture
def local(play: Play) -> Local:
    answers.clear()
    ran.clear()
    return play(races=races)


def _armed(local: Local, op: str = "op", *states: State) -> dict[str, Armed]:
    """Add machines, and return the tasks that were sent for their triggers, by trigger."""
    local.executor.add_state_machines(machines(op, *(states or (Racing(),))))
    local.drain()
    sent, local.sent.triggers = local.sent.triggers, []
    return {armed.trigger: armed for armed in sent}


def _winners(local: Local) -> list[bytes]:
    return local.listed("races", "winners")


# --- one wins ---------------------------------------------------------------------------------------------------------


def test_all_triggers_of_a_state_run_at_once(local: Local) -> None:
    """All are armed when the state is entered: code is sent to run, signals and deadlines wait (semantics 15)."""
    sent = _armed(local)
    assert set(sent) == {"called", "polled"}
    ((explained),) = local.executor.explain("op").active
    kinds = {trigger.name.rpartition("/")[2]: trigger.kind for trigger in explained.triggers}
    assert kinds == {
        "called": "call", "polled": "poll", "by_first": "signal", "by_second": "signal", "expired": "deadline",
    }  # fmt: skip


def _complete(local: Local, name: str, sent: dict[str, Armed]) -> object:
    """Complete one trigger; the answer says whether it counted."""
    match name:
        case "called" | "polled":
            answers[f"op/{name}"] = 7
            return local.attempt(sent[name])
        case _:
            return local.executor.signal("op", "first" if name == "by_first" else "second", 7)


NAMES = ("called", "polled", "by_first", "by_second")


@pytest.mark.parametrize(("winner", "loser"), list(permutations(NAMES, 2)))
def test_the_first_to_complete_wins_and_the_others_never_act(local: Local, winner: str, loser: str) -> None:
    """Whichever completes first wins; a later one does nothing, before the transition or after (semantics 15)."""
    sent = _armed(local)
    assert _complete(local, winner, sent) in {"RECORDED", Delivery.DELIVERED}
    assert _complete(local, loser, sent) in {"LOST", Delivery.BUFFERED}
    local.run()
    assert local.inactive("op") == [Racing(), Won(winner, "7")]
    if loser in sent:
        assert _complete(local, loser, sent) == "STALE"
    local.run()
    assert local.inactive("op") == [Racing(), Won(winner, "7")]
    assert _winners(local) == [winner.encode()]


def test_a_loser_still_running_cannot_act_in_a_later_state(local: Local) -> None:
    """Code of a state's earlier life, still running, cannot complete a trigger of a later one (semantics 15)."""
    old = _armed(local, "op", Racing(1))
    answers["op/polled"] = lambda _: _finish_meanwhile(local, old)
    assert local.attempt(old["polled"]) == "STALE"
    local.drain()
    assert local.active("op") == [Again(1)]


def _finish_meanwhile(local: Local, sent: dict[str, Armed]) -> int:
    answers["op/called"] = 1
    assert local.attempt(sent["called"]) == "RECORDED"
    assert local.drain() == 1
    return 99


class Ordered(State):
    """Its triggers, all ready when it is entered, in the order that its field says."""

    order: str

    def transitions(self, context: Any, global_context: Any) -> Sequence[Transition[Any, Any]]:
        known = {
            "s": Transition(early, by_signal),
            "d": Transition(at(datetime(2020, 1, 1, tzinfo=UTC)), by_deadline),
            "n": Transition(now(), by_now),
        }
        return [known[letter] for letter in self.order]


ordered = Module("ordered")
early = ordered.signal("early", int)
ordered.state(Ordered)


@ordered.state(terminal=True)
class First(State):
    order: str
    by: str


def by_signal(tx: Transaction, state: Ordered, got: int) -> First:
    return First(state.order, "s")


def by_deadline(tx: Transaction, state: Ordered, _: None) -> First:
    return First(state.order, "d")


def by_now(tx: Transaction, state: Ordered, _: None) -> First:
    return First(state.order, "n")


@pytest.mark.parametrize("order", ["sdn", "snd", "dsn", "dns", "nsd", "nds"])
def test_what_is_ready_at_arming_resolves_in_declaration_order(play: Play, order: str) -> None:
    """A kept signal, a passed deadline and now(), all ready at arming: the first declared wins (semantics 15)."""
    local = play(ordered=ordered)
    assert local.executor.signal("op", early, 1) is Delivery.BUFFERED
    local.executor.add_state_machines(machines("op", Ordered(order)))
    local.run()
    assert local.inactive("op") == [Ordered(order), First(order, order[0])]


def test_after_arming_the_first_recorded_wins(local: Local) -> None:
    """Of two signals the first recorded wins, whatever the order of declaration; the other is kept (semantics 15)."""
    _armed(local)
    assert local.executor.signal("op", second_signal, 2) is Delivery.DELIVERED
    assert local.executor.signal("op", first_signal, 1) is Delivery.BUFFERED
    local.run()
    assert local.inactive("op")[-1] == Won("by_second", "2")


brief = Module("brief")
late_signal = brief.signal("late")


@brief.state
class Brief(State):
    ms: int


@brief.state(terminal=True)
class Over(State):
    ms: int
    by: str


@brief.on(Brief, late_signal)
def signalled(tx: Transaction, state: Brief, _: None) -> Over:
    return Over(state.ms, "signal")


@brief.on(Brief, call(_answer("slow"), retry=Retry(max_attempts=1)))
def answered(tx: Transaction, state: Brief, got: int | Failed) -> Over:
    return Over(state.ms, "call")


@brief.on(Brief, after(lambda state: timedelta(milliseconds=state.ms)))
def timed_out(tx: Transaction, state: Brief, _: None) -> Over:
    return Over(state.ms, "deadline")


@pytest.mark.parametrize("rival", ["signal", "outcome"])
def test_a_deadline_counts_at_its_time_not_when_noticed(play: Play, rival: str) -> None:
    """What comes after a deadline that nobody has noticed yet does not win; what comes before does (semantics 15)."""
    answers.clear()
    local = play(brief=brief)
    sent = {op: _armed(local, op, Brief(ms))["answered"] for op, ms in (("short", 2_000), ("long", 60_000))}
    answers["short/slow"] = answers["long/slow"] = 5
    started = {op: _start(local, armed) for op, armed in sent.items()}

    def come(op: str) -> object:
        if rival == "signal":
            return local.executor.signal(op, late_signal)
        return started[op]()

    local.wait_past(local.stored("short", Brief(2_000)).armed["timed_out"])
    assert come("short") in {Delivery.BUFFERED, "LATE"}
    assert come("long") in {Delivery.DELIVERED, "RECORDED"}
    local.run()
    assert local.inactive("short")[-1] == Over(2_000, "deadline")
    assert local.inactive("long")[-1] == Over(60_000, "signal" if rival == "signal" else "call")


def _start(local: Local, armed: Armed) -> Callable[[], str]:
    """Code that is under way; called, it comes to its end."""
    driver, keys = local.executor.deployment.driver, local.keys()
    assert not isinstance(driver.run(runs.start(keys, local.instances, armed.entry, "token", armed.kind)), str)
    return lambda: driver.run(runs.outcome(keys, armed.entry, armed.kind, "5"))[0]


def test_who_won_and_what_the_losers_were_doing_can_be_asked(local: Local) -> None:
    """The record keeps who won, and each loser's kind, tries and time left to its deadline (semantics 15)."""
    sent = _armed(local)
    assert local.attempt(sent["polled"]) == "AGAIN"

    def polled_thrice() -> bool:
        local.drain()
        while local.sent.triggers:
            if (armed := local.sent.triggers.pop()).trigger == "polled":
                assert local.attempt(armed) == "AGAIN"
        return ran["op/polled"] == 3

    wait_until(polled_thrice, "three polls without an answer")
    local.executor.signal("op", first_signal, 4)
    local.settle("op")
    ((_, past), _) = sorted(local.executor.explain("op").past, key=lambda pair: pair[1].step)
    assert past.won == "by_first"
    assert past.losers is not None
    assert set(past.losers) == {"called", "polled", "by_second", "expired"}
    assert past.losers["polled"] == {"kind": "poll", "tries": 3}
    assert past.losers["called"]["kind"] == "call"
    assert past.losers["by_second"] == {"kind": "signal"}
    assert 3_500_000 < past.losers["expired"]["left_ms"] <= 3_600_000


# --- outcomes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [object(), "text", 1.5, True, {"a": 1}, [object()], b"\xff"])
def test_an_outcome_must_survive_serialisation(local: Local, value: object) -> None:
    """A call whose result cannot be stored as declared fails with a typed error of that trigger (semantics 16)."""
    answers["op/called"] = value
    sent = _armed(local)
    local.attempt(sent["called"])
    local.run()
    (_, end) = local.inactive("op")
    assert isinstance(end, Won)
    assert end.by == "called"
    assert end.outcome.startswith("InvalidOutcome: ")
    assert "called" in end.outcome


def test_an_outcome_of_another_type_is_an_error_of_that_trigger_alone(local: Local) -> None:
    """A poll whose answer does not fit polls on and says why; the state's other triggers go on (semantics 16)."""
    answers["op/polled"] = "text"
    sent = _armed(local)
    assert local.attempt(sent["polled"]) == "AGAIN"
    ((machine),) = local.executor.explain("op").active
    errors = {trigger.name.rpartition("/")[2]: trigger.last_error for trigger in machine.triggers}
    assert str(errors.pop("polled")).startswith(f"{InvalidOutcome.__name__}: ")
    assert set(errors.values()) == {None}
    local.executor.signal("op", first_signal, 4)
    local.settle("op")
    assert local.inactive("op")[-1] == Won("by_first", "4")


@pytest.mark.parametrize("dies", ["before the commit", "after the claim"])
def test_the_first_recorded_outcome_stands_over_a_crash(local: Local, play: Play, dies: str) -> None:
    """The call would answer 2 the next time; after a crash the transition runs with the stored 1 (semantics 17)."""
    answers["op/called"] = lambda count: count
    sent = _armed(local)
    assert local.attempt(sent["called"]) == "RECORDED"

    def die(request: RoundTrip) -> None:
        if commits(request) or dies == "after the claim":
            raise Crash

    hook = {"before": die} if dies == "before the commit" else {"after": die}
    with local.around_trips(**hook), pytest.raises(Crash):
        local.drain()
    second = play(races=races)
    second.expire_leases()
    second.settle("op")
    assert ran["op/called"] == 1
    assert second.inactive("op") == [Racing(), Won("called", "1")]


def test_a_second_outcome_is_not_recorded(local: Local) -> None:
    """A call started twice, its first worker being thought dead: the second result is dropped (semantics 17)."""
    sent = _armed(local)
    both = [_start(local, sent["polled"])]
    local.redis.hdel(local.keys().race(sent["called"].machine.record), "until:called")
    answers["op/called"] = lambda count: count
    assert local.attempt(sent["called"]) == "RECORDED"
    assert local.attempt(sent["called"]) == "LOST"
    assert both[0]() == "LOST"
    local.run()
    assert local.inactive("op")[-1] == Won("called", "1")
    assert ran["op/called"] == 1


# --- one transaction --------------------------------------------------------------------------------------------------

trains = Module("trains", retry=Retry(max_attempts=2, base=timedelta(milliseconds=1)))
depart = trains.signal("depart")
runs_of: list[str] = []


@trains.state
class Waiting(State):
    n: int
    stops: bool = False


@trains.state
class Rolling(State):
    n: int


@trains.state
class Ticket(State):
    n: int


@trains.state(terminal=True)
class Arrived(State):
    n: int


@trains.on(Waiting, depart)
def departed(tx: Transaction, state: Waiting, _: None) -> Rolling | Arrived:
    seen = tx.get(f"signal-{state.n}")
    tx.incrby("departed")
    tx.hset("trains", str(state.n), "gone")
    tx.rpush("log", f"train {state.n}")
    tx.publish("platform", f"train {state.n}")
    tx.send_task("announce", [state.n])
    tx.add_state_machines(machines(f"ticket-{state.n}", Ticket(state.n)))
    runs_of.append(f"{state.n} {seen}")  # only the runs to the end: those that ask for a read stop before
    return Arrived(state.n) if state.stops else Rolling(state.n)


@trains.on((Rolling, Ticket), after(hours=1))
def arrived(tx: Transaction, state: Rolling | Ticket, _: None) -> Arrived:
    return Arrived(state.n)


def _transactions(asked: Sequence[Asked]) -> list[list[str]]:
    """The commands of each MULTI/EXEC, a command a line."""
    found: list[list[str]] = []
    within = False
    for one in asked:
        match one.name:
            case "MULTI":
                within = True
                found.append([])
            case "EXEC":
                within = False
            case _ if within:
                found[-1].append(b" ".join(one.args).decode(errors="replace"))
            case _:
                pass
    return found


@pytest.mark.parametrize("stops", [False, True], ids=["to an active state", "to a terminal state"])
def test_one_transaction_holds_all_of_a_transition(play: Play, redis_client: redis.Redis, stops: bool) -> None:
    """MONITOR of one transition shows one MULTI/EXEC, and in it all that belongs to the transition (semantics 18)."""
    local = play(trains=trains)
    keys = local.keys()
    local.executor.add_state_machines(machines("op", Waiting(1, stops)))
    local.executor.signal("op", depart)
    with monitoring(redis_client) as monitor:
        assert local.drain() == 1
        told = [t for t in _transactions(monitor.asked) if any(local.namespace in line for line in t)]
    moving = [t for t in told if any(line.startswith("HDEL") for line in t)]
    assert len(moving) == 1
    (lines,) = moving
    data = keys.data("trains", "")
    expected = {
        "removal of the active record": f"HDEL {keys.active('op')} ",
        "insertion of the inactive one": f"HSET {keys.inactive('op')} trains Waiting ",
        "insertion of the new state": f"HSET {keys.inactive('op') if stops else keys.active('op')} ",
        "a machine spawned": f"HSET {keys.active('ticket-1')} trains Ticket ",
        "its schedule": f"ZADD {keys.schedule} ",
        "its guard": f"SET {keys.machine_prefix}",
        "history": f"RPUSH {keys.history('op')} ",
        "a task to send": f"RPUSH {keys.requests} ",
        "a counter": f"INCRBY {data}departed 1",
        "a hash": f"HSET {data}trains 1 gone",
        "a list": f"RPUSH {data}log train 1",
        "a message": "PUBLISH platform train 1",
    }
    for what, start in expected.items():
        assert any(line.startswith(start) for line in lines), (what, start, lines)
    new = f" trains {'Arrived' if stops else 'Rolling'} "
    assert any(line.startswith(expected["insertion of the new state"]) and new in line for line in lines)
    # and nothing of it outside: all else that was written is bookkeeping of the task sent
    for other in told:
        if other is not lines:
            assert all(line.startswith(f"LREM {keys.requests} ") for line in other), other


def test_a_conflict_runs_the_function_again(play: Play) -> None:
    """What the function has read changes before its commit: it runs again and sees the new value (semantics 19)."""
    local, runs_before = play(trains=trains), len(runs_of)
    key = local.keys().data("trains", "signal-1")
    left = iter(["red", "green"])

    def meddle(_: Commit) -> None:
        if (light := next(left, None)) is not None:
            local.redis.set(key, light)

    local.executor.add_state_machines(machines("op", Waiting(1)))
    local.executor.signal("op", depart)
    with local.before_commits(meddle):
        local.until(lambda: local.active("op") == [Rolling(1)])
    assert runs_of[runs_before:] == ["1 None", "1 red", "1 green"]
    assert local.data("trains", "departed") == b"1"
    assert len(local.listed("trains", "log")) == 1


def test_exhausted_conflicts_affect_one_machine_only(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """100 conflicts of one machine: it is tried later, unpunished; the others of its group commit (semantics 19)."""
    monkeypatch.setattr(smqueue.roundtrip, "uniform", lambda _low, _high: 0.0)
    local, runs_before = play(trains=trains), len(runs_of)
    ids = [f"op-{n}" for n in range(10)]
    local.executor.add_state_machines([StateMachine(op, Waiting(n)) for n, op in enumerate(ids)])
    for op in ids:
        local.executor.signal(op, depart)
    key = local.keys().data("trains", "signal-3")

    def meddle(commit: Commit) -> None:
        local.redis.incr(key)  # whoever has read the signal of train 3 conflicts

    with local.before_commits(meddle):
        local.drain()
    stuck = [run for run in runs_of[runs_before:] if run.startswith("3 ")]
    assert len(stuck) == 100
    assert [op for op in ids if local.active(op) != [Rolling(int(op[3:]))]] == ["op-3"]
    ((explained),) = local.executor.explain("op-3").active
    assert (explained.status, explained.attempts) == ("decided", 0)
    assert str(explained.last_error).startswith("CommitFailed: ")
    local.until(lambda: local.active("op-3") == [Rolling(3)])
    assert local.data("trains", "departed") == b"10"


def test_conflicts_back_off_with_jitter(play: Play) -> None:
    """Attempts after conflicts are spaced ever more, up to some 50 ms, each time by another amount (semantics 19)."""
    local, pauses = play(trains=trains), list[float]()
    key = local.keys().data("trains", "signal-1")
    left = iter(range(12))
    local.executor.add_state_machines(machines("op", Waiting(1)))
    local.executor.signal("op", depart)

    def hook(request: RoundTrip) -> None:
        if isinstance(request, Pause):
            pauses.append(request.ms)
        if isinstance(request, Commit) and request.commands and next(left, None) is not None:
            local.redis.incr(key)

    with local.around_trips(before=hook):
        local.until(lambda: local.active("op") == [Rolling(1)])
    assert len(pauses) >= 9
    assert len(set(pauses)) == len(pauses)
    assert all(0 <= ms <= min(50.0, 0.5 * 2**n) for n, ms in enumerate(pauses, start=12 - len(pauses)))
    assert max(pauses[5:]) > max(pauses[:1])


@pytest.mark.parametrize("at", ["before its script", "before it looks", "before it commits"])
def test_a_worker_thought_dead_does_nothing(play: Play, at: str) -> None:
    """A worker stalls after its claim, another takes over and commits; the first then writes nothing (semantics 3)."""
    stalled, other = play(races=races), play(races=races)
    stalled.executor.add_state_machines(machines("op", Racing()))
    stalled.executor.signal("op", first_signal, 7)
    if at != "before its script":  # somebody watches, so that it takes a look to move it
        stalled.redis.sadd(stalled.keys().watchers("op"), "nobody")
    took_over: list[int] = []
    awaited = {"before its script": commits, "before it looks": Read, "before it commits": Commit}[at]

    def stall(request: RoundTrip) -> None:
        if not took_over and (isinstance(request, awaited) if isinstance(awaited, type) else awaited(request)):
            took_over.append(0)
            other.expire_leases()
            took_over.append(other.drain())

    with stalled.around_trips(before=stall):
        stalled.drain()
    assert took_over == [0, 1]
    assert _winners(stalled) == [b"by_first"]
    assert {m.state: past.visits for m, past in stalled.executor.get_inactive_states("op")} == {
        Racing(): 1, Won("by_first", "7"): 1,
    }  # fmt: skip
    assert stalled.redis.llen(stalled.keys().history("op")) == 2


def test_code_whose_context_fails_says_so_and_is_tried_again(play: Play) -> None:
    """What keeps a trigger's code from being started is told by ``explain``; it is run later. (semantics 20)"""
    failing = [False]

    def context(module: str, op: str) -> None:
        if failing[0]:
            raise ConnectionError("no database")

    local = play(races=races, global_context=context)
    armed = _armed(local, "op", Again())["once_more"]
    answers["op/again"] = 7
    failing[0] = True
    assert local.attempt(armed) == "AGAIN"
    failing[0] = False
    (trigger,) = local.explained("op").triggers
    assert (trigger.last_error, trigger.running) == ("ConnectionError: no database", False)
    local.make_due(armed.entry)
    local.settle("op")
    assert Won("again", "7") in local.inactive("op")

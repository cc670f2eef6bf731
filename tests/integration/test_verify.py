"""The audit: what is damaged by hand is named, mended where it can be, and a healthy namespace gives no alarm."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from smqueue import Context, Failed, Module, State, StateMachine, Transaction, after, finished, now, poll, reached, wait
from smqueue.audit import Kind, Report, audit
from smqueue.chain import Chain
from smqueue.cli import Exit, run
from smqueue.embedded import EmbeddedServer
from smqueue.errors import OperationFinished
from smqueue.records import Active, compact
from smqueue.roundtrip import Commit, LostReply, Read, RoundTrip
from tests.inprocess import Local, Play

work = Module("work", version=1)


@work.state
class Waiting(State):
    n: int
    patience: timedelta = timedelta(minutes=30)


@work.state
class Looking(State):
    n: int


@work.state
class Following(State):
    other: str


@work.state
class Hosted(State):
    n: int


@work.state
class Quick(State):
    n: int


@work.state(terminal=True)
class Done(State):
    n: int


go = work.signal("go", str)
looks_in_vain: set[str] = set()
"""Operations whose poll finds nothing yet."""


@work.on(Waiting, go)
def went(tx: Transaction, state: Waiting, where: str) -> Waiting | Looking | Quick | Done | None:
    tx.incrby("went")
    match where:
        case "around":
            return Waiting(state.n)
        case "spawn":
            tx.add_state_machines([StateMachine("spawned", Quick(state.n))])
            return None
        case "task":
            tx.send_task("tests.nothing", args=[state.n])
            return None
        case "look":
            return Looking(state.n)
        case "quick":
            return Quick(3)
        case "stay":
            return None
        case _:
            return Done(state.n)


@work.on(Waiting, after(lambda state: state.patience))
def late(tx: Transaction, state: Waiting, _: None) -> Done:
    return Done(-state.n)


def look(state: Looking, context: Context) -> str | None:
    return None if context.operation_id in looks_in_vain else "seen"


@work.on(Looking, poll(look, every=timedelta(milliseconds=1)))
def seen(tx: Transaction, state: Looking, _: str) -> Done:
    return Done(state.n)


@work.on(Following, reached(lambda state: state.other, Done))
def reached_it(tx: Transaction, state: Following, _: Done) -> Done:
    return Done(0)


@work.on(Following, finished(lambda state: state.other))
def saw_the_end(tx: Transaction, state: Following, _: None) -> Done:
    return Done(0)


async def never(state: Hosted, context: Context) -> str:
    raise AssertionError("there is no worker here")


@work.on(Hosted, wait(never))
def hosted(tx: Transaction, state: Hosted, _: str | Failed) -> Done:
    return Done(state.n)


@work.on(Hosted, go)
def told(tx: Transaction, state: Hosted, _: str) -> Done:
    return Done(state.n)


@work.on(Quick, now())
def at_once(tx: Transaction, state: Quick, _: None) -> Quick | Done:
    return Quick(state.n - 1) if state.n else Done(0)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    looks_in_vain.clear()
    yield
    looks_in_vain.clear()


def verify(local: Local, **more: Any) -> Report:
    return audit(local.executor.deployment, local.instances, **more)


def kinds(found: Report) -> set[Kind]:
    return {problem.kind for problem in (*found.problems, *found.notes)}


def healthy(play: Play) -> Local:
    """A namespace in which something of each kind waits: operations with and without a history, one that has ended."""
    local = play(work=work)
    looks_in_vain.add("looking")
    local.add("lone", Waiting(1))
    local.add("several", Waiting(1), Waiting(2), Hosted(1))
    local.add("looking", Looking(1))
    local.add("following", Following("lone"), Following("several"))
    local.add("round", Waiting(1))
    for where in ("around", "stay", "around", "spawn", "quick"):
        local.executor.signal("round", go, where)
        local.run()
    local.settle("round", "spawned")
    local.add("again", Waiting(7), Waiting(8))
    local.executor.signal("again", go, "stay")
    local.executor.signal("nobody-yet", go, "early", id="one", module="work")
    local.run()
    assert kinds(verify(local)) == set()
    return local


def finish(local: Local) -> None:
    """Bring all to their ends."""
    looks_in_vain.clear()
    for op in ("lone", "several", "several", "several", "again", "again"):
        if local.executor.has_active_states(op):
            local.executor.signal(op, go, "end")
    local.expire_leases()  # a poll that found nothing comes back after a while
    for op in ("lone", "several", "looking", "following", "again"):
        local.until(lambda op=op: not local.executor.has_active_states(op), f"operation {op} to finish")


# --- damage that can be mended ---------------------------------------------------------------------------------------


class Damage:
    """Hands on a namespace."""

    def __init__(self, local: Local) -> None:
        self.local, self.redis, self.keys = local, local.redis, local.keys()

    def entry(self, op: str, state: State) -> str:
        return self.local.stored(op, state).entry

    def record(self, op: str, state: State) -> str:
        return self.local.placed(op, state).record

    def field(self, op: str, state: State) -> str:
        return self.local.placed(op, state).field

    # --- what --repair mends

    def not_scheduled(self) -> None:
        self.redis.zrem(self.keys.schedule, self.entry("lone", Waiting(1)))

    def trigger_not_scheduled(self) -> None:
        self.redis.zrem(self.keys.schedule, self.entry("looking", Looking(1)) + ":seen")

    def hosted_not_scheduled(self) -> None:
        self.redis.zrem(self.keys.hosted, self.entry("several", Hosted(1)) + ":hosted")

    def scheduled_late(self) -> None:
        self.redis.zadd(self.keys.schedule, {self.entry("lone", Waiting(1)): "+inf"})

    def not_waiting(self) -> None:
        self.redis.zrem(self.keys.waiting("several", "work", "go"), self.entry("several", Waiting(1)) + ":went")

    def lost_signal(self) -> None:
        signal = {"id": "x", "payload": "end", "at": self.local.now_ms() * 1000}
        self.redis.rpush(self.keys.inbox("lone", "work", "go"), compact(signal))

    def orphan_machine(self) -> None:
        machine = self.local.stored("lone", Waiting(1))
        field = self.field("lone", Waiting(99))
        copy = replace(machine, field=field, guard="g" * 16, arming="g" * 16)
        self.redis.set(self.keys.machine(copy.record), copy.dump())
        self.redis.zadd(self.keys.schedule, {copy.entry: 1e15})
        self.redis.zadd(self.keys.waiting("lone", "work", "go"), {f"{copy.entry}:went": 1})

    def orphan_race(self) -> None:
        self.redis.hset(self.keys.race("r" * 22), "claims", 1)

    def orphan_quarantine(self) -> None:
        self.redis.hset(self.keys.quarantine, "r" * 22, compact({"error": "E: x", "op": "lone", "entry": "", "at": 1}))

    def stale_entry(self) -> None:
        self.redis.zadd(self.keys.schedule, {f"{self.record('lone', Waiting(1))}:{'o' * 16}": 1e15, "neither": 1e15})
        self.redis.zadd(self.keys.hosted, {f"{self.record('several', Hosted(1))}:{'o' * 16}:hosted": 1e15})
        self.redis.zadd(self.keys.schedule, {"~cancel:nothing": 1e15})

    def stale_waiting(self) -> None:
        stale = f"{self.record('lone', Waiting(1))}:{'o' * 16}:went"
        self.redis.zadd(self.keys.waiting("lone", "work", "go"), {stale: 0})

    def stale_watcher(self) -> None:
        self.redis.sadd(self.keys.watchers("several"), f"{self.record('lone', Waiting(1))}:{'o' * 16}:went")

    def stale_held(self) -> None:
        self.local.executor.pause("lone")
        self.redis.sadd(self.keys.held(self.keys.control("lone")), f"{'r' * 22}:{'o' * 16}")

    def held_without_control(self) -> None:
        self.redis.sadd(self.keys.held(self.keys.control("lone")), self.entry("lone", Waiting(1)))

    def cancel_not_scheduled(self) -> None:
        self.redis.set(self.keys.control("again"), "cancelling 1 0 enough")

    def pause_not_listed(self) -> None:
        self.redis.set(self.keys.control("again"), "paused")

    def operation_not_listed(self) -> None:
        self.redis.zrem(self.keys.operations, "several")

    def operation_without_machines(self) -> None:
        self.redis.zadd(self.keys.operations, {"round": 1})

    def orphan_finished(self) -> None:
        self.redis.zadd(self.keys.finished, {"nothing": 1e15})
        self.redis.zadd(self.keys.schedule, {"~retention": 1e15})

    def retention_not_scheduled(self) -> None:
        self.redis.zadd(self.keys.finished, {"round": 1e15})

    def requests_not_scheduled(self) -> None:
        request = {"kind": "task", "id": "t", "name": "n", "args": [], "kwargs": {}, "task_id": "t", "options": {}}
        self.redis.rpush(self.keys.requests, compact({**request, "due": 0}))

    def too_many_seen(self) -> None:
        self.redis.zadd(self.keys.seen("lone"), {f"id{n}": n for n in range(1005)})

    # --- what it does not touch

    def unreadable_record(self) -> None:
        self.redis.hset(self.keys.active("several"), self.field("several", Waiting(1)), "{}")

    def no_machine_key(self) -> None:
        self.redis.delete(self.keys.machine(self.record("several", Waiting(1))))

    def unreadable_machine(self) -> None:
        self.redis.set(self.keys.machine(self.record("several", Waiting(1))), "garbage")

    def wrong_machine(self) -> None:
        other = self.redis.get(self.keys.machine(self.record("several", Waiting(2))))
        self.redis.set(self.keys.machine(self.record("several", Waiting(1))), other)

    def unreadable_race(self) -> None:
        self.redis.hset(self.keys.race(self.record("lone", Waiting(1))), "won", "nobody")

    def torn_commit(self) -> None:
        error = "UndecodableRecord: it cannot be decoded: a command failed inside EXEC while the state moved: SET x"
        why = {"error": error, "op": "lone", "entry": "", "at": 1}
        self.redis.hset(self.keys.quarantine, self.record("lone", Waiting(1)), compact(why))

    def unreadable_quarantine(self) -> None:
        self.redis.hset(self.keys.quarantine, self.record("lone", Waiting(1)), "garbage")

    def unreadable_control(self) -> None:
        self.redis.set(self.keys.control("lone"), "stopped")

    def unreadable_signal(self) -> None:
        self.redis.rpush(self.keys.inbox("nobody-yet", "work", "go"), "garbage")

    def unreadable_request(self) -> None:
        self.redis.rpush(self.keys.requests, "garbage")
        self.redis.zadd(self.keys.schedule, {"~requests": 1e15})

    def wrong_type(self) -> None:
        self.redis.delete(self.keys.watchers("several"))
        self.redis.set(self.keys.watchers("several"), "text")

    def unknown_key(self) -> None:
        self.redis.set(self.keys.prefix + "inbox", "an inbox of nobody")

    def inbox_over_limit(self) -> None:
        self.local.instances.inbox_limit = 1
        signal = {"id": "x", "payload": "end", "at": self.local.now_ms() * 1000}
        self.redis.rpush(self.keys.inbox("nobody-yet", "work", "go"), compact(signal))

    # --- histories

    def history(self, change: Callable[[list[dict[str, Any]]], object], op: str = "round") -> None:
        key = self.keys.history(op)
        entries = [json.loads(raw) for raw in self.redis.lrange(key, 0, -1)]
        change(entries)
        self.redis.delete(key)
        if entries:
            self.redis.rpush(key, *[entry if isinstance(entry, str) else compact(entry) for entry in entries])

    def no_history(self) -> None:
        self.history(lambda entries: entries.clear())

    def unreadable_step(self) -> None:
        self.history(lambda entries: entries.__setitem__(1, "garbage"))

    def step_missing(self) -> None:
        self.history(lambda entries: entries.pop(1))

    def step_twice(self) -> None:
        self.history(lambda entries: entries.insert(1, entries[1]))

    def step_after_end(self) -> None:
        self.history(lambda entries: entries.append({**entries[-1], "step": entries[-1]["step"] + 1}))

    def not_an_edge(self) -> None:
        self.history(lambda entries: entries[1].update(won="seen"))

    def wrong_merge(self) -> None:
        self.history(lambda entries: entries[-1].update(merged="nobody", terminal=False))

    def lost_machine(self) -> None:
        self.redis.hdel(self.keys.active("several"), self.field("several", Waiting(1)))

    def active_disagrees(self) -> None:
        key, field = self.keys.active("several"), self.field("several", Waiting(1))
        active = Active.parse(self.redis.hget(key, field))
        self.redis.hset(key, field, replace(active, step=5).dump())

    def inactive(self, **change: Any) -> None:
        key, field = self.keys.inactive("round"), self.field("round", Waiting(1))
        self.redis.hset(key, field, compact({**json.loads(self.redis.hget(key, field)), **change}))

    def inactive_disagrees(self) -> None:
        self.inactive(visits=17)

    def another_was_in_it(self) -> None:
        self.inactive(machine="somebody")

    def inactive_is_gone(self) -> None:
        self.redis.hdel(self.keys.inactive("round"), self.field("round", Waiting(1)))

    def inactive_too_many(self) -> None:
        key = self.keys.inactive("round")
        self.redis.hset(key, self.field("round", Looking(1)), self.redis.hget(key, self.field("round", Waiting(1))))

    def in_both(self) -> None:
        raw = json.loads(self.redis.hget(self.keys.inactive("round"), self.field("round", Waiting(1))))
        self.redis.hset(self.keys.inactive("several"), self.field("several", Waiting(1)), compact(raw))

    def unreadable_inactive(self) -> None:
        self.redis.hset(self.keys.inactive("round"), self.field("round", Waiting(1)), "garbage")

    def wrong_times(self) -> None:
        self.inactive(exited=1)


MENDABLE = {
    "not_scheduled": Kind.NOT_SCHEDULED,
    "trigger_not_scheduled": Kind.TRIGGER_NOT_SCHEDULED,
    "hosted_not_scheduled": Kind.TRIGGER_NOT_SCHEDULED,
    "scheduled_late": Kind.SCHEDULED_LATE,
    "not_waiting": Kind.NOT_WAITING,
    "lost_signal": Kind.LOST_SIGNAL,
    "orphan_machine": Kind.ORPHAN_MACHINE,
    "orphan_race": Kind.ORPHAN_RACE,
    "orphan_quarantine": Kind.ORPHAN_QUARANTINE,
    "stale_entry": Kind.STALE_ENTRY,
    "stale_waiting": Kind.STALE_WAITING,
    "stale_watcher": Kind.STALE_WATCHER,
    "stale_held": Kind.STALE_HELD,
    "held_without_control": Kind.HELD_WITHOUT_CONTROL,
    "cancel_not_scheduled": Kind.CANCEL_NOT_SCHEDULED,
    "pause_not_listed": Kind.PAUSE_NOT_LISTED,
    "operation_not_listed": Kind.OPERATION_NOT_LISTED,
    "operation_without_machines": Kind.OPERATION_WITHOUT_MACHINES,
    "orphan_finished": Kind.ORPHAN_FINISHED,
    "retention_not_scheduled": Kind.RETENTION_NOT_SCHEDULED,
    "requests_not_scheduled": Kind.REQUESTS_NOT_SCHEDULED,
    "too_many_seen": Kind.TOO_MANY_SEEN,
}
BEYOND = {
    "unreadable_record": {Kind.UNREADABLE_RECORD},
    "no_machine_key": {Kind.NO_MACHINE_KEY, Kind.STALE_ENTRY, Kind.STALE_WAITING},
    "unreadable_machine": {Kind.UNREADABLE_MACHINE},
    "wrong_machine": {Kind.WRONG_MACHINE},
    "unreadable_race": {Kind.UNREADABLE_RACE},
    "torn_commit": {Kind.TORN_COMMIT},
    "unreadable_quarantine": {Kind.UNREADABLE_QUARANTINE},
    "unreadable_control": {Kind.UNREADABLE_CONTROL},
    "unreadable_signal": {Kind.UNREADABLE_SIGNAL},
    "unreadable_request": {Kind.UNREADABLE_REQUEST},
    "wrong_type": {Kind.WRONG_TYPE},
    "unknown_key": {Kind.UNKNOWN_KEY},
    "inbox_over_limit": {Kind.INBOX_OVER_LIMIT},
    "no_history": {Kind.NO_HISTORY},
    "unreadable_step": {Kind.UNREADABLE_STEP, Kind.STEP_MISSING, Kind.INACTIVE_DISAGREES},
    "step_missing": {Kind.STEP_MISSING, Kind.INACTIVE_DISAGREES},
    "step_twice": {Kind.STEP_TWICE, Kind.INACTIVE_DISAGREES},
    "step_after_end": {Kind.STEP_AFTER_END, Kind.INACTIVE_DISAGREES, Kind.NOT_AN_EDGE},
    "not_an_edge": {Kind.NOT_AN_EDGE},
    "wrong_merge": {Kind.WRONG_MERGE, Kind.INACTIVE_DISAGREES},
    "lost_machine": {Kind.LOST_MACHINE, Kind.ORPHAN_MACHINE},
    "active_disagrees": {Kind.ACTIVE_DISAGREES},
    "inactive_disagrees": {Kind.INACTIVE_DISAGREES},
    "another_was_in_it": {Kind.INACTIVE_DISAGREES},
    "inactive_is_gone": {Kind.INACTIVE_DISAGREES},
    "inactive_too_many": {Kind.INACTIVE_DISAGREES},
    "in_both": {Kind.INACTIVE_DISAGREES},
    "unreadable_inactive": {Kind.UNREADABLE_INACTIVE},
    "wrong_times": {Kind.WRONG_TIMES},
}


@pytest.mark.parametrize(("how", "kind"), MENDABLE.items(), ids=MENDABLE)
def test_what_can_be_mended_is_named_and_mended_and_all_runs_to_its_end(play: Play, how: str, kind: Kind) -> None:
    """Each damage is named, without repair nothing is written; mended it is clean, and every machine ends."""
    local = healthy(play)
    getattr(Damage(local), how)()
    before = local.everything()
    found = verify(local)
    assert kinds(found) == {kind}
    assert all(problem.mendable and problem.words for problem in (*found.problems, *found.notes))
    assert local.everything() == before
    mended = verify(local, repair=True)
    assert mended.clean
    assert {problem.kind for problem in mended.repaired} == {kind}
    assert kinds(verify(local)) == set()
    for paused in ("lone", "again"):
        local.executor.resume(paused)
    finish(local)
    assert kinds(verify(local)) == set()


@pytest.mark.parametrize(("how", "named"), BEYOND.items(), ids=BEYOND)
def test_what_cannot_be_mended_is_named_and_left_alone(play: Play, how: str, named: set[Kind]) -> None:
    """Each damage is named, with what a person can do; repair writes nothing to what it does not understand."""
    local = healthy(play)
    getattr(Damage(local), how)()
    found = verify(local)
    assert kinds(found) == named
    for problem in (*found.problems, *found.notes):
        assert problem.mendable or problem.remedy.startswith("not mended: ")
    left = [problem for problem in (*found.problems, *found.notes) if not problem.mendable]
    if len(left) == len(found.problems) + len(found.notes):
        before = local.everything()
        verify(local, repair=True)
        assert local.everything() == before
    again = verify(local)
    assert {problem.kind for problem in (*again.problems, *again.notes)} >= {problem.kind for problem in left}


def test_every_kind_is_tried() -> None:
    """No kind of problem is without its damage."""
    tried = {*MENDABLE.values(), *(kind for some in BEYOND.values() for kind in some)}
    assert set(Kind) - tried == {Kind.NOT_RETAINED, Kind.TAMPERED, Kind.UNSEALED}  # tests of their own


# --- beside running workers ------------------------------------------------------------------------------------------


class Busy:
    """Something that happens between any two round trips of an audit."""

    def __init__(self, local: Local) -> None:
        self.local, self.n = local, 0

    def __call__(self) -> None:
        self.n += 1
        local, op = self.local, f"busy{self.n % 7}"
        match self.n % 5:
            case 0:
                local.executor.add_state_machines([StateMachine(op, Waiting(self.n))])
            case 1:
                with suppress(OperationFinished):
                    local.executor.signal(op, go, ("around", "look", "stay", "quick", "spawn")[self.n % 3])
            case 2:
                local.executor.add_state_machines(
                    [StateMachine(op, Following(f"busy{(self.n + 1) % 7}"))], exist_ok=True
                )
            case 3 if self.n % 4 == 0:
                local.executor.cancel(op)
            case _:
                local.run()


def test_what_happens_between_its_round_trips_is_no_problem(play: Play) -> None:
    """Machines begin, move, merge, end and are cancelled between any two round trips of an audit: no false alarm."""
    local = play(work=work)
    busy = Busy(local.another())
    for _ in range(60):
        busy()
    with local.around_trips(before=lambda _: busy()):
        for _ in range(4):
            assert kinds(verify(local)) == set()
            assert kinds(verify(local, operations=[f"busy{n}" for n in range(7)])) == set()
            assert verify(local, repair=True).repaired == []
    assert busy.n > 200


def test_what_happens_within_a_round_trip_is_no_problem(play: Play) -> None:
    """The reads of one round trip are not of one instant, either: others act between them."""
    local = play(work=work)
    busy = Busy(local.another())
    for _ in range(60):
        busy()
    driver: Any = local.driver
    trip = driver._trip

    def torn(line: Any, request: RoundTrip) -> Any:
        if not isinstance(request, Read) or request.watch:
            return trip(line, request)
        replies: list[Any] = []
        some = 1 if len(request.commands) < 20 else 40
        for at in range(0, len(request.commands), some):
            busy()
            replies += trip(line, Read((), request.commands[at : at + some]))
        return replies

    driver._trip = torn
    for _ in range(3):
        assert kinds(verify(local)) == set()


def test_a_verdict_rests_on_one_instant(play: Play) -> None:
    """What is reported was seen in one EXEC, with all that it is compared with."""
    local = healthy(play)
    damage, keys = Damage(local), local.keys()
    entry, record = damage.entry("lone", Waiting(1)), damage.record("lone", Waiting(1))
    damage.not_scheduled()
    damage.lost_machine()
    execs: list[set[tuple[Any, ...]]] = []

    def note(request: RoundTrip) -> None:
        if isinstance(request, Commit):
            execs.append(set(request.commands))

    with local.around_trips(before=note):
        assert {Kind.NOT_SCHEDULED, Kind.LOST_MACHINE} <= kinds(verify(local))
    value = ("HGET", keys.active("lone"), damage.field("lone", Waiting(1)).encode())
    assert any({("ZSCORE", keys.schedule, entry), ("GET", keys.machine(record)), value} <= one for one in execs)
    gone, rest = ("HGET", keys.active("several"), damage.field("several", Waiting(1))), keys.history("several")
    assert any(gone in one and any(c[:2] == ("LRANGE", rest) for c in one) for one in execs)


def test_a_busy_namespace_gives_no_alarm(play: Play) -> None:
    """While producers add and signal and workers drain in threads, audits of many rounds, with repair, find nothing."""
    local = play(work=work)
    ended = threading.Event()
    failures: list[BaseException] = []

    def busy(process: Local, seed: int) -> None:
        try:
            for n in range(10**6):
                if ended.is_set():
                    return
                op = f"op{(n * seed) % 50}"
                process.executor.add_state_machines([StateMachine(op, Waiting(n * 10 + seed))])
                process.executor.signal(op, go, ("around", "look", "quick", "end", "spawn")[n % 5])
                process.run()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=busy, args=(local.another(), seed)) for seed in (3, 7)]
    for thread in threads:
        thread.start()
    try:
        moved = local.redis.get
        rounds = 0
        while rounds < 15 or int(moved(local.keys().data("work", "went")) or 0) < 50:
            found = verify(local, repair=True)
            assert (found.problems, found.repaired) == ([], [])
            rounds += 1
            assert not failures
    finally:
        ended.set()
        for thread in threads:
            thread.join(30)
    assert failures == []
    assert kinds(verify(local)) == set()


def test_a_repair_whose_machine_moves_meanwhile_writes_nothing(play: Play) -> None:
    """Between look and repair the machine ends: the entry that it lacked is not added to the schedule."""
    local = healthy(play)
    Damage(local).not_scheduled()
    entry = local.stored("lone", Waiting(1)).entry
    other = local.another()
    with local.before_commits(lambda commit: wrote(commit) and other.executor.cancel("lone")):
        found = verify(local, repair=True)
    assert (found.problems, found.repaired) == ([], [])
    assert local.redis.zscore(local.keys().schedule, entry) is None


LOOKS = {"TIME", "GET", "HGET", "HMGET", "EXISTS", "ZSCORE", "HEXISTS", "LLEN", "LRANGE"}


def wrote(commit: Commit) -> bool:
    return any(command[0] not in LOOKS for command in commit.commands)


def test_a_repair_whose_reply_is_lost_is_told(play: Play) -> None:
    """The reply to a repair is lost: it is recognised as done, and reported."""
    local = healthy(play)
    Damage(local).not_scheduled()
    lost: list[RoundTrip] = []

    def lose(request: RoundTrip) -> None:
        if isinstance(request, Commit) and request.commands and wrote(request) and not lost:
            lost.append(request)
            raise LostReply

    with local.around_trips(after=lose):
        found = verify(local, repair=True)
    assert lost
    assert [problem.kind for problem in found.repaired] == [Kind.NOT_SCHEDULED]
    assert found.clean


def test_a_scan_that_loses_its_connection_goes_on(play: Play) -> None:
    """One lost reply ends no audit."""
    local = healthy(play)
    for nth in range(12):
        seen: list[RoundTrip] = []

        def lose(request: RoundTrip, nth: int = nth, seen: list[RoundTrip] = seen) -> None:
            seen.append(request)
            if len(seen) == nth:
                raise LostReply

        with local.around_trips(after=lose):
            assert kinds(verify(local)) == set()


def test_a_large_namespace_is_read_in_bounded_batches(play: Play) -> None:
    """A thousand operations and one with a thousand machines: no round trip has many commands or a large reply."""
    local = play(work=work)
    for at in range(0, 1_000, 100):
        local.executor.add_state_machines([StateMachine(f"op{n}", Waiting(n)) for n in range(at, at + 100)])
        local.add("big", *[Waiting(n) for n in range(at, at + 100)])
    sizes: list[tuple[int, int]] = []
    driver: Any = local.driver
    trip = driver._trip

    def measured(connection: Any, request: RoundTrip) -> Any:
        reply = trip(connection, request)
        if isinstance(request, Read | Commit):
            sizes.append((len(request.commands), len(repr(reply))))
        return reply

    driver._trip = measured
    found = verify(local)
    assert kinds(found) == set()
    assert found.looked_at["active records"] == 2_000
    assert found.looked_at["machines"] == 2_000
    assert found.looked_at["steps"] == 1_000
    assert max(commands for commands, _ in sizes) <= 500
    assert max(reply for _, reply in sizes) < 150_000
    names = {str(command[0]) for command in asked(local)}
    assert not names & {"HGETALL", "KEYS", "SMEMBERS", "EVAL", "EVALSHA", "HKEYS"}


def asked(local: Local) -> list[tuple[Any, ...]]:
    """The commands of one audit."""
    commands: list[tuple[Any, ...]] = []

    def note(request: RoundTrip) -> None:
        if isinstance(request, Read | Commit):
            commands.extend(request.commands)

    with local.around_trips(before=note):
        verify(local)
    return commands


# --- what else it knows ----------------------------------------------------------------------------------------------


def test_without_modules_edges_are_not_checked_and_it_says_so(play: Play) -> None:
    """Without modules all but the edges is checked."""
    local = healthy(play)
    Damage(local).not_an_edge()
    found = audit(local.executor.deployment)
    assert (found.edges_checked, found.problems) == (False, [])
    assert verify(local).edges_checked


def test_only_some_operations(play: Play) -> None:
    """Only the named operations are looked at."""
    local = healthy(play)
    damage = Damage(local)
    damage.not_scheduled()
    damage.inactive_disagrees()
    assert kinds(verify(local, operations=["several", "again"])) == set()
    assert kinds(verify(local, operations=["lone"])) == {Kind.NOT_SCHEDULED}
    assert kinds(verify(local, operations=["round"])) == {Kind.INACTIVE_DISAGREES}


def test_every_shard_is_looked_at(play: Play) -> None:
    """A namespace of several shards is audited as a whole."""
    local = play(shards=3, work=work)
    for n in range(12):
        local.add(f"op{n}", Waiting(n))
    assert verify(local).looked_at["active records"] == 12
    for keys in local.executor.deployment.all_keys():
        local.redis.delete(keys.schedule)
    assert len(verify(local).problems) == 12
    assert len(verify(local, repair=True).repaired) == 12
    assert kinds(verify(local)) == set()


def test_an_operation_that_retention_does_not_know_is_a_note_and_is_noted(play: Play) -> None:
    """Cancelled by a process without modules, an operation is never forgotten: that is noted, and mended."""
    kept = Module("kept", version=1, keep=timedelta(days=1))

    @kept.state
    class Here(State):
        n: int

    @kept.state(terminal=True)
    class There(State):
        n: int

    @kept.on(Here, after(timedelta(hours=1)))
    def over(tx: Transaction, state: Here, _: None) -> There:
        return There(state.n)

    local, without = play(kept=kept), play()
    local.add("op", Here(1))
    without.executor.cancel("op")
    found = verify(local)
    assert (found.problems, [note.kind for note in found.notes]) == ([], [Kind.NOT_RETAINED])
    assert [one.kind for one in verify(local, repair=True).repaired] == [Kind.NOT_RETAINED]
    keys = local.keys("op")
    at_ms = local.redis.zscore(keys.finished, "op")
    assert abs(at_ms - local.now_ms() - 24 * 3_600_000) < 600_000
    assert local.redis.zscore(keys.schedule, "~retention") is not None
    assert kinds(verify(local)) == set()


def test_a_state_that_earlier_code_stored_is_no_problem(play: Play) -> None:
    """A record is counted on under its old spelling while the history has the new one: together they are right."""

    def version(n: int) -> tuple[Module[None], type[State]]:
        made = Module("made", version=n)
        if n == 1:

            @made.state
            class Round(State):
                n: int

        else:

            @made.state
            class Round(State):  # type: ignore[no-redef]
                n: int
                more: int = 0

        @made.state(terminal=True)
        class End(State):
            n: int

        turn = made.signal("turn", str)

        @made.on(Round, turn)
        def turned(tx: Transaction, state: Round, how: str) -> Round | End:
            return Round(state.n) if how == "on" else End(state.n)

        return made, Round

    old, state = version(1)
    first = play(made=old)
    first.add("op", state(1))  # type: ignore[call-arg]
    first.executor.signal("op", "turn", "on")
    first.run()
    second = play(made=version(2)[0])
    for _ in range(3):
        second.executor.signal("op", "turn", "on")
        second.run()
    stored = {json.loads(raw)["visits"] for raw in second.redis.hvals(second.keys("op").inactive("op"))}
    assert stored == {4}
    assert kinds(verify(second)) == set()


def test_an_operation_forgotten_and_begun_anew_is_no_problem(play: Play) -> None:
    """While its history is read an operation is forgotten and begins again under its id: that is no damage."""
    local = play(work=work)
    other = local.another()
    local.add("op", Waiting(1), Waiting(2))
    local.executor.signal("op", go, "end")
    local.executor.signal("op", go, "end")
    local.settle("op")

    read: list[str] = []

    def begin_anew(request: RoundTrip) -> None:
        for command in request.commands if isinstance(request, Read) else ():
            if command[0] == "LRANGE":
                read.append(str(command[1]))
            elif command[0] == "HSCAN" and read == [local.keys().history("op")]:
                read.append("once")
                other.redis.delete(local.keys().history("op"), local.keys().inactive("op"))
                other.add("op", Waiting(3), Waiting(4))

    with local.around_trips(before=begin_anew):
        assert kinds(verify(local, operations=["op"])) == set()


def test_progress_is_told(play: Play) -> None:
    """Progress is told after each batch, with counts that grow."""
    local = healthy(play)
    told: list[int] = []
    verify(local, progress=lambda report: told.append(sum(report.looked_at.values())))
    assert told == sorted(told)
    assert told[-1] == sum(verify(local).looked_at.values())


# --- sealed histories ------------------------------------------------------------------------------------------------

KEY = "a secret of the tests"


def sealed(play: Play, key: str = KEY) -> Local:
    local = play(work=work)
    local.instances.chain = Chain(key)
    return local


def every_way(play: Play) -> Local:
    """A sealed namespace in which machines were added, moved, merged, spawned and cancelled."""
    local = sealed(play)
    local.add("round", Waiting(1))
    for where in ("around", "stay", "around", "spawn", "quick"):
        local.executor.signal("round", go, where)
        local.run()
    local.settle("round", "spawned")
    local.add("merge", Waiting(1), Quick(3), Quick(2), Quick(1))  # each becomes one that is there already
    local.executor.signal("merge", go, "end")
    local.settle("merge")
    assert b'"merged"' in b"".join(local.redis.lrange(local.keys().history("merge"), 0, -1))
    local.add("lone", Waiting(1))
    local.add("several", Waiting(1), Waiting(2))
    local.add("ended", Waiting(1))
    local.executor.cancel("ended")
    local.add("late", Waiting(1))
    local.add("late", Waiting(2))
    local.run()
    return local


def test_a_sealed_history_is_clean_and_so_is_one_without(play: Play) -> None:
    """Every step that is written is sealed, whoever writes it: adding, moving, spawning, merging, cancelling."""
    local = every_way(play)
    found = verify(local)
    assert (kinds(found), found.seals_checked) == (set(), True)
    for key in local.redis.scan_iter(match=f"{local.keys().prefix}history:*"):
        assert all(len(json.loads(raw)["seal"]) == 22 for raw in local.redis.lrange(key, 0, -1))
    local.instances.chain = None
    found = verify(local)
    assert (kinds(found), found.seals_checked) == (set(), False)


def test_without_a_key_nothing_is_stored_or_sent_for_it(play: Play) -> None:
    """Off, it costs nothing: no seal anywhere, and an active record under 64 bytes."""
    local = healthy(play)
    for key in local.redis.scan_iter(match=f"{local.keys().prefix}*"):
        assert b'"seal"' not in (local.redis.dump(key) or b"")
    for op in ("lone", "several"):
        for value in local.redis.hvals(local.keys().active(op)):
            assert len(value) < 64
            assert Active.parse(value).seal == ""


def change(entries: list[dict[str, Any]]) -> None:
    entries[1]["at"] += 1


def remove(entries: list[dict[str, Any]]) -> None:
    del entries[1]
    for entry in entries:
        if entry["machine"] == entries[0]["machine"] and entry["step"] > 1:
            entry["step"] -= 1  # so that the steps follow each other


def insert(entries: list[dict[str, Any]]) -> None:
    entries.insert(2, {**entries[1], "step": entries[1]["step"] + 1})
    for entry in entries[3:]:
        if entry["machine"] == entries[0]["machine"]:
            entry["step"] += 1


def reorder(entries: list[dict[str, Any]]) -> None:
    entries[1]["seal"], entries[2]["seal"] = entries[2]["seal"], entries[1]["seal"]


def strip(entries: list[dict[str, Any]]) -> None:
    del entries[2]["seal"]


def forge(entries: list[dict[str, Any]]) -> None:
    entries[-1]["seal"] = Chain("another key, not ours").seal("round", entries[-2]["seal"], entries[-1])


@pytest.mark.parametrize("how", [change, remove, insert, reorder, strip, forge])
def test_tampering_shows(play: Play, how: Callable[[list[dict[str, Any]]], None]) -> None:
    """A step that was changed, removed, inserted, reordered, or has lost its seal, is named, even if all else fits."""
    local = every_way(play)
    Damage(local).history(how)
    assert Kind.TAMPERED in {problem.kind for problem in verify(local).problems}


def test_a_history_moved_to_another_operation_shows(play: Play) -> None:
    """Seals hold the operation: what happened in one cannot be passed off as another's."""
    local = every_way(play)
    keys = local.keys()
    for make in (keys.history, keys.inactive):
        local.redis.copy(make("round"), make("other"))
    assert {problem.kind for problem in verify(local).problems} == {Kind.TAMPERED}


def test_a_changed_active_record_shows(play: Play) -> None:
    """The seal of an active record is that of its last step; of a machine that is not in the history yet, its own."""
    for op, state in (("several", Waiting(1)), ("lone", Waiting(1))):
        local = every_way(play)
        key, field = local.keys().active(op), local.placed(op, state).field
        active = Active.parse(local.redis.hget(key, field))
        change = {"seal": "x" * 22} if op == "several" else {"at_us": active.at_us - 10**9}
        local.redis.hset(key, field, replace(active, **change).dump())
        assert {problem.kind for problem in verify(local).problems} == {Kind.TAMPERED}
        local.redis.delete(*local.redis.keys(f"{local.keys().prefix}*"))


def test_what_was_there_before_the_key_is_a_note(play: Play) -> None:
    """Steps from before the key was set are noted, and what such a machine does next is sealed."""
    local = play(work=work)
    local.add("op", Waiting(1))
    local.executor.signal("op", go, "around")
    local.run()
    local.instances.chain = Chain(KEY)
    for where in ("around", "end"):
        local.executor.signal("op", go, where)
        local.run()
    local.settle("op")
    found = verify(local)
    assert (found.problems, [note.kind for note in found.notes]) == ([], [Kind.UNSEALED])
    assert [bool(json.loads(raw).get("seal")) for raw in local.redis.lrange(local.keys().history("op"), 0, -1)] == [
        *(False, False, True, True)
    ]


def test_another_key_fits_nothing(play: Play) -> None:
    """Whoever has not the key cannot tell, and must not say that all is well."""
    local = every_way(play)
    local.instances.chain = Chain("another key, not ours")
    assert Kind.TAMPERED in {problem.kind for problem in verify(local).problems}
    assert KEY not in repr(local.instances.chain) + str(vars(local.instances))


# --- the command -----------------------------------------------------------------------------------------------------


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], server: EmbeddedServer, namespace: str
) -> Command:
    """Runs a command in this process; its code, output and errors."""
    for name in ("SMQUEUE_MODULES", "SMQUEUE_APP", "CELERY_BROKER_URL"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("SMQUEUE_URL", server.url)
    monkeypatch.setenv("SMQUEUE_NAMESPACE", namespace)

    monkeypatch.setenv("SMQUEUE_HISTORY_KEY", "")

    def call(*args: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run(list(args))
        return code, *capsys.readouterr()

    return call


def test_the_command_exits_0_when_clean_and_1_when_not(play: Play, command: Command) -> None:
    """``smqueue verify`` names what is wrong and exits 1; with ``--repair`` it says what it did, and exits 0."""
    local = healthy(play)
    code, out, err = command("verify")
    assert (code, err) == (0, "")
    assert "0 problems, 0 notes" in out
    assert "no modules were given" in out
    Damage(local).not_scheduled()
    code, out, _ = command("verify")
    assert code == 1
    assert "not-scheduled: work.Waiting of operation lone has no entry in the schedule" in out
    assert "--repair: added, due now" in out
    code, out, _ = command("verify", "lone", "--json")
    told = json.loads(out)
    assert (code, told["clean"], [one["kind"] for one in told["problems"]]) == (1, False, ["not-scheduled"])
    code, out, _ = command("verify", "--repair")
    assert code == 0
    assert "mended not-scheduled" in out
    assert "0 problems, 0 notes, 1 mended" in out
    assert command("verify", "--json")[0] == 0


def test_the_command_checks_edges_with_modules(play: Play, command: Command) -> None:
    """With ``--modules`` steps are compared with declared transitions."""
    local = healthy(play)
    Damage(local).not_an_edge()
    assert command("verify")[0] == 0
    code, out, _ = command("verify", "--modules", "tests.integration.test_verify:work")
    assert code == 1
    assert "not-an-edge: history of operation round" in out
    assert "no modules were given" not in out


def test_the_command_knows_the_key(play: Play, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ``SMQUEUE_HISTORY_KEY`` seals are checked, and what a command writes is sealed; a short key is refused."""
    local = every_way(play)
    monkeypatch.setenv("SMQUEUE_HISTORY_KEY", KEY)
    assert command("cancel", "several")[0] == 0
    code, out, _ = command("verify", "--json")
    assert (code, json.loads(out)["seals_checked"]) == (0, True)
    Damage(local).history(change)
    assert command("verify")[0] == 1
    monkeypatch.setenv("SMQUEUE_HISTORY_KEY", "short")
    code, _, err = command("verify")
    assert (code, "at least 16" in err, "short" in err) == (1, True, False)


def test_the_command_says_what_it_cannot_find(play: Play, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown operation, or no server, is one line and an exit status of its own."""
    healthy(play)
    code, out, err = command("verify", "nope")
    assert (code, out) == (Exit.NO_SUCH_OPERATION, "")
    assert "no operation nope" in err
    monkeypatch.setenv("SMQUEUE_URL", "redis://127.0.0.1:1/0")
    code, out, err = command("verify")
    assert (code, out, err.count("\n")) == (Exit.UNAVAILABLE, "", 1)
    assert "StoreUnavailable" in err

"""Being told: the history of an operation and then live, without gap or duplicate; all operations, bounded."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from smqueue import Client, Executor, Module, State, StoreRefused, Transaction, Update, after
from smqueue.drivers.doorbell import Doorbell
from smqueue.embedded import EmbeddedServer
from smqueue.errors import HistoryRewound, StoreUnavailable, UpdatesLost
from smqueue.following import FollowingOne
from smqueue.records import Active
from smqueue.roundtrip import LostReply
from smqueue.turns import Turns
from tests.inprocess import Local, Play
from tests.waiting import wait_until

told = Module("told", version=1)
other = Module("other", version=1)


@told.state
class Counting(State):
    n: int


@told.state(terminal=True)
class Done(State):
    n: int


@other.state
class Idle(State):
    n: int


step = told.signal("step", str)


@told.on(Counting, step)
def stepped(tx: Transaction, state: Counting, what: str) -> Counting | Done | None:
    return None if what == "stay" else Done(state.n) if what == "end" else Counting(state.n + 1)


@told.on(Counting, after(hours=1))
def late(tx: Transaction, state: Counting, _: None) -> Done:
    return Done(0)


@other.on(Idle, after(hours=1))
def idled(tx: Transaction, state: Idle, _: None) -> Idle:
    return Idle(state.n + 1)


@pytest.fixture
def local(play: Play) -> Local:
    return play(told=told, other=other)


def go(local: Local, op: str, *what: str) -> None:
    for one in what or ("on",):
        local.executor.signal(op, step, one)
        local.run()


def counts(updates: list[Update]) -> list[tuple[int, int, Any]]:
    return [(update.sequence, update.step, update.state) for update in updates]


def cut_all(local: Local) -> int:
    """Cut off all connections to the server but the test's own and those of other tests."""
    killed = 0
    for client in local.redis.client_list():
        if client["id"] != str(local.redis.client_id()):
            killed += local.redis.client_kill_filter(_id=client["id"])
    return killed


class Reader:
    """A subscriber on a thread of its own."""

    def __init__(self, updates: Any) -> None:
        self.seen: list[Update] = []
        self.error: BaseException | None = None
        self.updates = updates
        self.thread = threading.Thread(target=self._read)
        self.thread.start()

    def _read(self) -> None:
        try:
            for update in self.updates:
                self.seen.append(update)
                if update.terminal:
                    return
        except BaseException as error:
            self.error = error

    def ended(self) -> list[Update]:
        """What it has seen, once it has ended."""
        self.thread.join(30)
        assert not self.thread.is_alive()
        assert self.error is None, self.error
        return self.seen


# --- one operation ---------------------------------------------------------------------------------------------------


def test_history_then_live(local: Local) -> None:
    """A subscription gives history in order, then what comes, under consecutive sequences. (semantics 36)"""
    (machine,) = local.add("op", Counting(0))
    go(local, "op", *["on"] * 3)
    with local.executor.notifier.subscribe("op", timeout=10) as updates:
        seen = [next(updates) for _ in range(4)]
        go(local, "op", "on", "stay", "end")
        seen += [next(updates) for _ in range(2)]
    assert counts(seen) == [*[(n, n + 1, Counting(n)) for n in range(5)], (5, 6, Done(4))]
    assert {update.machine_id for update in seen} == {machine}
    assert {(update.operation_id, update.module) for update in seen} == {("op", "told")}
    assert [update.terminal for update in seen] == [False] * 5 + [True]
    assert [update.won for update in seen] == [None] + ["stepped"] * 5
    assert [update.at for update in seen] == sorted(update.at for update in seen)


def test_a_finished_operation_has_a_history(local: Local) -> None:
    """Who subscribes to an operation that has finished before is told all of it. (semantics 36)"""
    local.add("op", Counting(0))
    go(local, "op", "on", "end")
    assert counts(local.history("op")) == [(0, 1, Counting(0)), (1, 2, Counting(1)), (2, 3, Done(1))]


def test_an_operation_may_not_exist_yet(local: Local) -> None:
    """A subscription to an operation that does not exist tells of its first machine as of any other. (semantics 36)"""
    reader = Reader(local.executor.notifier.subscribe("op", timeout=20))
    local.add("op", Counting(0))
    wait_until(lambda: len(reader.seen) == 1, "the adding to be told")
    go(local, "op", "end")
    assert counts(reader.ended()) == [(0, 1, Counting(0)), (1, 2, Done(0))]


@pytest.mark.parametrize("next_thing", ["a transition", "another machine", "a cancelling"])
def test_a_lone_machines_first_entry_is_the_one_written_later(local: Local, next_thing: str) -> None:
    """What a subscriber is told of a machine to which nothing has happened yet is what the history says later: the same
    update, once. (semantics 36)"""
    local.add("op", Counting(0))
    assert local.redis.exists(local.keys().history("op")) == 0
    with local.executor.notifier.subscribe("op", timeout=0.2) as updates:
        first = next(updates)
        match next_thing:
            case "a transition":
                go(local, "op")
            case "another machine":
                local.add("op", Counting(7))
            case _:
                local.executor.cancel("op")
        rest = list(updates)
    again = local.history("op")
    assert [first, *rest] == again
    assert [update.sequence for update in again] == [0, 1]
    assert (first.step, first.state) == (1, Counting(0))


def test_machines_added_together(local: Local) -> None:
    """Machines added in one call are told in the order given. (semantics 36)"""
    machines = local.add("op", *[Counting(n) for n in range(5)])
    seen = local.history("op")
    assert [(update.machine_id, update.state) for update in seen] == [(machines[n], Counting(n)) for n in range(5)]


def test_after_resumes(local: Local) -> None:
    """``after`` resumes behind a sequence, also behind the last one. (semantics 36)"""
    local.add("op", Counting(0))
    go(local, "op", *["on"] * 4)
    for after_it in range(5):
        with local.executor.notifier.subscribe("op", after=after_it, timeout=0) as updates:
            assert [update.sequence for update in updates] == list(range(after_it + 1, 5))
    with local.executor.notifier.subscribe("op", after=4, timeout=10) as updates:
        go(local, "op", "end")
        assert counts([next(updates)]) == [(5, 6, Done(4))]


def test_after_the_first_of_a_lone_machine(local: Local) -> None:
    """Who has seen the adding of a lone machine resumes behind it. (semantics 36)"""
    local.add("op", Counting(0))
    with local.executor.notifier.subscribe("op", after=0, timeout=0.1) as updates:
        assert list(updates) == []
    with local.executor.notifier.subscribe("op", after=0, timeout=10) as updates:
        go(local, "op", "end")
        assert counts([next(updates)]) == [(1, 2, Done(0))]


def test_more_than_a_page(local: Local) -> None:
    """A long history comes whole, in order. (semantics 36)"""
    local.add("op", *[Counting(1_000 * n) for n in range(1_200)])
    assert [update.sequence for update in local.history("op")] == list(range(1_200))


def test_over_reconnects(local: Local) -> None:
    """However often its connections are cut off while the operation goes on, a subscriber sees each update once, in
    order. (semantics 36)"""
    local.add("op", Counting(0))
    subscription = local.executor.notifier.subscribe("op", timeout=20)
    reader = Reader(subscription)
    writer = local.another()
    for n in range(60):
        while True:
            try:
                writer.executor.signal("op", step, "on", id=str(n))
                writer.run()
                break
            except StoreUnavailable:
                continue
        if n % 3 == 0:
            assert cut_all(local)
    writer.until(lambda: Counting(60) in writer.active("op"), "all steps to have been made")
    writer.executor.signal("op", step, "end")
    writer.run()
    seen = reader.ended()
    assert counts(seen) == [*[(n, n + 1, Counting(n)) for n in range(61)], (61, 62, Done(60))]


@pytest.mark.parametrize("which", ["one operation", "all"])
def test_a_connection_lost_in_mid_look(local: Local, monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    """A look whose reply is lost is made again: the subscriber notices nothing. (semantics 36, 37)"""
    notifier = local.executor.notifier
    with (
        notifier.subscribe("op", timeout=5)
        if which == "one operation"
        else notifier.subscribe_all(timeout=5) as updates
    ):
        local.add("op", Counting(0))
        driver: Any = local.driver
        trip, lost = driver._trip, []

        def losing(connection: Any, request: Any) -> Any:
            reply = trip(connection, request)
            if len(lost) < 2:
                lost.append(1)
                connection.disconnect()
                return LostReply()
            return reply

        monkeypatch.setattr(driver, "_trip", losing)
        assert counts([next(updates)]) == [(0, 1, Counting(0))]
        assert len(lost) == 2


def test_rings_that_are_lost_delay_and_lose_nothing(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a bell that never rings a subscriber still sees everything, at its next look. (semantics 36)"""
    monkeypatch.setattr(Doorbell, "_subscribe", lambda self: None)
    monkeypatch.setattr(Doorbell, "wait", lambda self, seconds: go(local, "op", "end") if local.active("op") else None)
    local.add("op", Counting(0))
    with local.executor.notifier.subscribe("op", timeout=5) as updates:
        assert counts([next(updates), next(updates)]) == [(0, 1, Counting(0)), (1, 2, Done(0))]


def test_nothing_is_missed_between_history_and_live(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    """A subscription is registered before its first look, and each look is by cursor: whatever happens around them
    is told once, without waiting for a later look. (semantics 35, 36)"""
    local.add("op", Counting(0))
    enter, read = Doorbell.__enter__, FollowingOne._read  # pyright: ignore[reportPrivateUsage]

    def entering(self: Doorbell) -> Doorbell:
        go(local, "op")
        entered = enter(self)
        go(local, "op")
        return entered

    reads: list[int] = []

    def reading(self: FollowingOne) -> Turns[bool]:
        found = yield from read(self)
        reads.append(1)
        if len(reads) in {1, 2}:
            go(local, "op")
        return found

    monkeypatch.setattr(Doorbell, "__enter__", entering)
    monkeypatch.setattr(FollowingOne, "_read", reading)
    monkeypatch.setattr("smqueue.drivers.doorbell.LONGEST_S", 30.0)
    with local.executor.notifier.subscribe("op", timeout=5) as updates:
        seen = [next(updates) for _ in range(5)]
    assert counts(seen) == [(n, n + 1, Counting(n)) for n in range(5)]


def test_a_quiet_subscription_ends(local: Local) -> None:
    """With ``timeout`` it ends when nothing has come for so long, and gives its connection back. (semantics 36)"""
    local.add("op", Counting(0))
    subscribed = lambda: local.redis.pubsub_shardnumsub(local.keys().bell("op"))[0][1]  # noqa: E731
    with local.executor.notifier.subscribe("op", timeout=0.05) as updates:
        assert subscribed() == 1
        assert len(list(updates)) == 1
    wait_until(lambda: subscribed() == 0, "its connection to be closed")


@pytest.mark.parametrize("which", ["one operation", "all"])
def test_closing_ends_an_iteration(local: Local, monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    """A subscription that is closed while another thread waits for its next update ends there, at once, and is not made
    again: whoever iterates on is told the end."""
    monkeypatch.setattr("smqueue.drivers.doorbell.LONGEST_S", 3_600)
    local.add("op", Counting(0))
    one, notifier = which == "one operation", local.executor.notifier
    channel = local.keys().bell("op") if one else local.keys().bells
    updates = notifier.subscribe("op") if one else notifier.subscribe_all()
    reader = Reader(updates)
    wait_until(lambda: len(reader.seen) == one, "what there is to be told")
    updates.close()
    reader.ended()
    go(local, "op")
    assert list(updates) == []
    wait_until(lambda: local.redis.pubsub_shardnumsub(channel)[0][1] == 0, "its connection to be closed")


def test_a_history_that_has_shrunk_is_reported(local: Local) -> None:
    """A cursor that does not fit after a fail-over is reported, not guessed. (semantics 36)"""
    local.add("op", Counting(0))
    go(local, "op", "on", "on")
    with local.executor.notifier.subscribe("op", timeout=5) as updates:
        assert len([next(updates) for _ in range(3)]) == 3
        local.redis.ltrim(local.keys().history("op"), 0, 0)
        with pytest.raises(HistoryRewound) as caught:
            next(updates)
    assert (caught.value.operation_id, caught.value.length, caught.value.cursor) == ("op", 1, 3)


@pytest.mark.parametrize("after_it", [None, 1])
def test_a_history_that_was_replaced_is_reported(local: Local, after_it: int | None) -> None:
    """After a fail-over that has lost a suffix and gained as many or more entries the length tells nothing: that what
    was read last is another entry now is reported, also to who has begun behind a sequence. (semantics 36)"""
    local.add("op", Counting(0))
    go(local, "op", "on", "on")
    history = local.keys().history("op")
    with local.executor.notifier.subscribe("op", after=after_it, timeout=0.2) as updates:
        assert len([next(updates) for _ in range(3 if after_it is None else 1)]) == (3 if after_it is None else 1)
        last = json.loads(local.redis.rpop(history))
        local.redis.rpush(history, json.dumps({**last, "commit": "another"}), json.dumps({**last, "commit": "later"}))
        with pytest.raises(HistoryRewound) as caught:
            next(updates)
    assert (caught.value.operation_id, caught.value.length, caught.value.cursor) == ("op", 4, 3)


@pytest.mark.parametrize("anew", [True, False])
def test_a_lone_machine_that_was_added_anew_is_reported(local: Local, anew: bool) -> None:
    """The adding of a lone machine that a fail-over has lost is reported, also when it was added once more, under
    another id, while nobody was looking. (semantics 36)"""
    local.add("op", Counting(0))
    active = local.keys().active("op")
    with local.executor.notifier.subscribe("op", timeout=0.2) as updates:
        next(updates)
        ((field, raw),) = local.redis.hgetall(active).items()
        local.redis.delete(active)
        if anew:
            local.redis.hset(active, field, replace(Active.parse(raw), machine="another", made="another").dump())
        with pytest.raises(HistoryRewound) as caught:
            next(updates)
    assert (caught.value.length, caught.value.cursor) == (int(anew), 1)


def test_another_spelling_is_the_same_history(local: Local) -> None:
    """What was read is known by what it says, not by its bytes: other code may write them otherwise."""
    local.add("op", Counting(0))
    go(local, "op")
    history = local.keys().history("op")
    with local.executor.notifier.subscribe("op", timeout=0.05) as updates:
        assert len([next(updates) for _ in range(2)]) == 2
        local.redis.lset(history, -1, json.dumps({**json.loads(local.redis.lindex(history, -1)), "new": 1}, indent=1))
        assert list(updates) == []


GARBAGE = [b"not json", b"[]", b"{}", b'{"to":"told Counting {}","machine":"m","step":1,"version":1,"at":1e300}', b"1"]


@pytest.mark.parametrize("client", [False, True], ids=["executor", "Client"])
def test_garbage_in_a_history_holds_up_nobody(local: Local, client: bool) -> None:
    """What is no entry is passed over, and keeps its sequence; a state that is none is told as ``None``.
    (semantics 32, 36)"""
    local.add("op", Counting(0))
    go(local, "op")
    history = local.keys().history("op")
    last = json.loads(local.redis.lindex(history, -1))
    local.redis.rpush(history, *GARBAGE)
    for to in ("told Counting {", "told Counting {}", "told"):
        local.redis.rpush(history, json.dumps({**last, "to": to}))
    with Client(local.settings.url, local.namespace) as made:
        notifier: Any = made if client else local.executor.notifier
        with notifier.subscribe("op", timeout=0.05) as updates:
            seen = list(updates)
    assert [update.sequence for update in seen] == [0, 1, 7, 8, 9]
    nothing = {"type": "Counting", "state": {}} if client else None
    assert [update.state for update in seen[2:]] == [None, nothing, None]
    if not client:
        assert local.history("op") == seen


Refusable = Callable[[Executor], object]
OPERATION: Refusable = lambda executor: executor.await_operation("op", 0.2)  # noqa: E731
ONE: Refusable = lambda executor: list(executor.notifier.subscribe("op", timeout=0.2))  # noqa: E731
ALL: Refusable = lambda executor: list(executor.notifier.subscribe_all(timeout=0.2))  # noqa: E731


@pytest.mark.parametrize(
    ("command", "ask"),
    [
        ("exists", OPERATION), ("llen", ONE), ("lrange", ONE), ("hgetall", ONE), ("xinfo", ALL), ("xrange", ALL),
    ],
)  # fmt: skip
def test_what_a_user_may_not_is_an_error(local: Local, server: EmbeddedServer, command: str, ask: Refusable) -> None:
    """Who may not look is told so, with the command, instead of being left to wait or to guess."""
    name = local.namespace
    local.add("op", Counting(0))
    rules = ("on", ">pw", "allkeys", "allchannels", "+@all", f"-{command}")
    local.redis.execute_command("ACL", "SETUSER", name, *rules)
    try:
        url = f"unix://{name}:pw@{server.socket_path}?db=0"
        with pytest.raises(StoreRefused) as caught:
            ask(Local(url, name, local.modules).executor)
        assert command in str(caught.value)
    finally:
        local.redis.execute_command("ACL", "DELUSER", name)


def test_a_key_of_the_wrong_type_is_an_error(local: Local) -> None:
    """It is told as what Redis says of it."""
    local.redis.set(local.keys().history("op"), "x")
    with pytest.raises(StoreRefused, match="WRONGTYPE"):
        ONE(local.executor)


def test_the_module_filter(local: Local) -> None:
    """With ``module`` a subscriber is told of that instance only; sequences stay those of the operation. (semantics
    38)"""
    local.add("op", Counting(0))
    local.add("op", Idle(0))
    go(local, "op")
    with local.executor.notifier.subscribe("op", module="other", timeout=0) as updates:
        assert counts(list(updates)) == [(1, 1, Idle(0))]
    with local.executor.notifier.subscribe("op", module="told", timeout=0) as updates:
        assert counts(list(updates)) == [(0, 1, Counting(0)), (2, 2, Counting(1))]


def test_a_state_that_this_process_cannot_decode(local: Local, play: Play) -> None:
    """A subscriber without the module is told all the same, without the state. (semantics 36)"""
    local.add("op", Counting(0))
    go(local, "op")
    lacking = play(other=other)
    seen = lacking.history("op")
    assert [(update.sequence, update.module, update.state) for update in seen] == [(0, "told", None), (1, "told", None)]


# --- all operations --------------------------------------------------------------------------------------------------


def test_all_is_live_only(local: Local) -> None:
    """``subscribe_all`` tells what happens from now on, in all operations, the adding of a lone machine too.
    (semantics 37)"""
    local.add("before", Counting(0))
    go(local, "before")
    with local.executor.notifier.subscribe_all(timeout=10) as updates:
        local.add("a", Counting(0))
        local.add("b", Counting(5))
        go(local, "a")
        go(local, "before", "end")
        seen = [next(updates) for _ in range(4)]
    assert [(update.operation_id, update.sequence, update.step, update.state) for update in seen] == [
        ("a", 0, 1, Counting(0)), ("b", 0, 1, Counting(5)), ("a", 1, 2, Counting(1)), ("before", 2, 3, Done(1)),
    ]  # fmt: skip
    assert [update for update in seen if update.operation_id == "a"] == local.history("a")


def test_all_of_one_module(local: Local) -> None:
    """With ``module`` only of that instance. (semantics 38)"""
    with local.executor.notifier.subscribe_all("other", timeout=0.1) as updates:
        local.add("a", Counting(0))
        local.add("a", Idle(1))
        assert [(update.module, update.state) for update in updates] == [("other", Idle(1))]


def test_what_a_slow_subscriber_loses_it_is_told(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    """The updates kept are bounded; what a slower subscriber loses is reported with its number, once, and it goes
    on with the later ones. (semantics 37)"""
    monkeypatch.setattr("smqueue.protocols.arming.UPDATES_KEPT", 100)
    with local.executor.notifier.subscribe_all(timeout=1) as updates:
        local.add("first", Counting(0))
        assert next(updates).operation_id == "first"
        for n in range(20):
            local.add(f"op{n}", *[Counting(m) for m in range(30)])
        assert local.redis.xlen(local.keys().updates) < 250
        with pytest.raises(UpdatesLost) as caught:
            next(updates)
        rest = list(updates)
    assert caught.value.count > 0
    assert caught.value.count + len(rest) == 600
    assert rest[-1].operation_id == "op19"


def test_losing_everything_is_told_once(local: Local) -> None:
    """When all that is new was trimmed, that is told once, not again and again. (semantics 37)"""
    with local.executor.notifier.subscribe_all(timeout=0.2) as updates:
        local.add("a", *[Counting(n) for n in range(10)])
        local.redis.xtrim(local.keys().updates, maxlen=0, approximate=False)
        with pytest.raises(UpdatesLost) as caught:
            next(updates)
        assert caught.value.count == 10
        assert list(updates) == []
        local.add("b", Counting(0))
    with local.executor.notifier.subscribe_all(timeout=5) as updates:
        local.add("c", Counting(0))
        assert next(updates).operation_id == "c"


@pytest.mark.parametrize("lost", ["fewer", "as many", "all", "all, none since"])
def test_a_suffix_of_all_updates_that_was_lost_is_told(local: Local, lost: str) -> None:
    """When a fail-over has lost updates that were read, that is told once, however many have come since, and what is
    kept follows from its beginning: nothing that happened there is passed over. (semantics 37)"""
    stream = local.keys().updates
    with local.executor.notifier.subscribe_all(timeout=0.2) as updates:
        local.add("before", Counting(0))
        local.add("gone", *[Counting(n) for n in range(3)])
        assert len([next(updates) for _ in range(4)]) == 4
        (first, *suffix) = local.redis.xrange(stream)
        rest = [first[1]] if lost in {"fewer", "as many"} else []
        since = (
            [entry for _, entry in suffix] if lost == "as many" else [suffix[0][1]] if lost != "all, none since" else []
        )
        local.redis.delete(stream)
        for at, entry in enumerate([*rest, *since]):
            local.redis.xadd(
                stream, entry, id=first[0] if rest and not at else f"{int(first[0].split(b'-')[0]) + 1000}-{at}"
            )
        with pytest.raises(UpdatesLost) as caught:
            next(updates)
        told = list(updates)
    assert caught.value.count == 4 - len(rest) - len(since)
    assert [update.operation_id for update in told] == ["before"] * len(rest) + ["gone"] * len(since)


def test_garbage_among_all_updates_holds_up_nobody(local: Local) -> None:
    """What is no update is passed over, and what follows on its page is told. (semantics 32, 37)"""
    with local.executor.notifier.subscribe_all(timeout=0.2) as updates:
        for pairs in ({"x": "y"}, {"op": b"\xff", "entry": "{}"}, {"op": "op", "entry": "no"}):
            local.redis.xadd(local.keys().updates, pairs)
        local.redis.set(local.keys().history("odd"), "x")
        local.redis.xadd(local.keys().updates, {"op": "odd", "entry": "no"})
        local.add("op", Counting(0))
        assert counts(list(updates)) == [(0, 1, Counting(0))]


def test_a_fast_subscriber_loses_nothing(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that keeps up is never told of a loss, however much is trimmed behind it. (semantics 37)"""
    monkeypatch.setattr("smqueue.protocols.arming.UPDATES_KEPT", 100)
    with local.executor.notifier.subscribe_all(timeout=5) as updates:
        for n in range(30):
            local.add(f"op{n}", *[Counting(m) for m in range(20)])
            seen = [next(updates) for _ in range(20)]
            assert [(update.operation_id, update.sequence) for update in seen] == [(f"op{n}", m) for m in range(20)]


def test_all_over_reconnects(local: Local) -> None:
    """A subscriber to all whose connections are cut off misses and doubles nothing. (semantics 37)"""
    with local.executor.notifier.subscribe_all(timeout=10) as updates:
        seen: list[str] = []
        for n in range(10):
            local.add(f"op{n}", Counting(n))
            assert cut_all(local)
            seen.append(next(updates).operation_id)
    assert seen == [f"op{n}" for n in range(10)]

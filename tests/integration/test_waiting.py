"""How new machines are noticed, what waiting costs, how records are found and waited for, and who gets a signal."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from celery import Celery

from smqueue import (
    Context,
    Executor,
    ExecutorBuilder,
    Module,
    State,
    StateMachine,
    Transaction,
    after,
    finished,
    now,
    poll,
    reached,
)
from smqueue.drivers.doorbell import Doorbell
from smqueue.embedded import EmbeddedServer
from smqueue.errors import AwaitTimeout, InboxFull, OperationFinished, StateAlreadyExists, UnknownModule
from tests.apps import faulty
from tests.apps.wiring import environment
from tests.inprocess import Local, Play, machines
from tests.workers import Worker, running

room = Module("room", version=1)


@room.state
class Sitting(State):
    n: int


@room.state
class Instant(State):
    n: int


@room.state
class Asking(State):
    n: int


@room.state
class Following(State):
    other: str


@room.state
class Joining(State):
    other: str


@room.state(terminal=True)
class Left(State):
    why: str


call = room.signal("call", str)
other = room.signal("other")


@room.on(Sitting, call)
def called(tx: Transaction, state: Sitting, why: str) -> Sitting | Instant | Left | None:
    tx.rpush(f"heard-{state.n}", why)
    if why == "instant":
        return Instant(state.n)
    return None if why.startswith("stay") else Sitting(state.n + 100) if why == "move" else Left(why)


@room.on(Sitting, after(minutes=30))
def bored(tx: Transaction, state: Sitting, _: None) -> Left:
    return Left("bored")


@room.on(Instant, now())
def at_once(tx: Transaction, state: Instant, _: None) -> Left:
    return Left(f"instant {state.n}")


def ask(state: Asking, context: Context) -> int | None:
    return None


@room.on(Asking, poll(ask, every=timedelta(hours=1)))
def asked(tx: Transaction, state: Asking, found: int) -> Left:
    return Left("asked")


@room.on(Asking, other)
def stopped(tx: Transaction, state: Asking, _: None) -> Left:
    return Left("stopped")


@room.on(Following, reached(lambda state: state.other, Left))
def followed(tx: Transaction, state: Following, found: Left) -> Left:
    return Left(f"followed {found.why}")


@room.on(Joining, finished(lambda state: state.other))
def joined(tx: Transaction, state: Joining, _: None) -> Left:
    return Left("joined")


@pytest.fixture
def local(play: Play) -> Local:
    return play(room=room)


def worker(server: EmbeddedServer, namespace: str, *options: str) -> Worker:
    return Worker("tests.apps.faulty", environment(server.url, server.broker_url, namespace), ["-c", "2", *options])


def producer(server: EmbeddedServer, namespace: str) -> Executor:
    """One whose hints reach the workers, as those of a ``Local`` do not."""
    app = Celery("producer", broker=server.broker_url, set_as_current=False)
    app.conf.update(task_default_queue=namespace)
    return ExecutorBuilder().with_module("faulty", faulty.faulty).build(app, url=server.url, namespace=namespace)


def heard(local: Local, n: int) -> list[str]:
    return [raw.decode() for raw in local.listed("room", f"heard-{n}")]


# --- being noticed ---------------------------------------------------------------------------------------------------


def test_a_new_machine_is_noticed_at_once(server: EmbeddedServer, namespace: str) -> None:
    """A new machine with something to do is taken up at once, also under steady traffic, which starves nobody.
    (semantics 29)"""
    busy, client = producer(server, namespace), producer(server, namespace)
    stop = threading.Event()

    def traffic() -> None:
        n = 0
        while not stop.is_set():  # as much as the workers can do, and always some to do
            busy.add_state_machines(machines(f"t{n}", faulty.Trying(n)))
            busy.signal(f"t{n}", faulty.word, "go")
            if n >= 40:
                busy.await_operation(f"t{n - 40}", 30)
            n += 1

    with running(one := worker(server, namespace), two := worker(server, namespace)):
        one.wait_ready()
        two.wait_ready()
        thread = threading.Thread(target=traffic)
        thread.start()
        try:
            took: list[float] = []
            for n in range(10):
                began = time.monotonic()
                client.add_state_machines(machines(f"new{n}", faulty.Bad("fine")))
                client.await_operation(f"new{n}", 20)
                took.append(time.monotonic() - began)
            assert sorted(took)[5] < 1, took
        finally:
            stop.set()
            thread.join()


def test_each_is_noticed_by_one_of_several_workers(server: EmbeddedServer, namespace: str) -> None:
    """Several workers of one namespace share the work, and each transition happens once. (semantics 29)"""
    client = Local(server.url, namespace, {"faulty": faulty.faulty})
    with running(one := worker(server, namespace), two := worker(server, namespace)):
        one.wait_ready()
        two.wait_ready()
        for n in range(200):
            client.add(f"op{n}", faulty.Trying(n))
            client.executor.signal(f"op{n}", faulty.word, "go")
        for n in range(200):
            client.executor.await_operation(f"op{n}", 30)
        assert client.redis.get(client.keys().data("faulty", "tried")) == b"200"


def test_adding_makes_due_what_is_to_do(local: Local) -> None:
    """What has something to do is due in the very commit that adds it, and the hint goes out once; what waits is
    not. (semantics 29)"""
    local.add("waits", Sitting(1))
    assert local.sent.hints == 0
    local.add("runs", Instant(1))
    assert local.sent.hints == 1
    assert local.redis.zscore(local.keys().schedule, local.stored("runs", Instant(1)).entry) <= local.now_ms()
    local.add("polls", Asking(1))
    entry = f"{local.stored('polls', Asking(1)).entry}:asked"
    assert local.redis.zscore(local.keys().schedule, entry) <= local.now_ms()


def test_adding_restarts_nothing(local: Local) -> None:
    """Adding machines, in the same operation and in others, leaves the triggers of all others as they are: their
    deadlines, their place in a queue, their polls. (semantics 30)"""
    local.add("op", Sitting(1), Asking(1))
    local.run()
    before = everything(local)
    for n in range(2, 30):
        local.add("op", Sitting(n), Asking(n))
        local.add(f"op{n}", Sitting(1))
        local.run()
    assert {key: everything(local)[key] for key in before} == before


def everything(local: Local) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for state in (Sitting(1), Asking(1)):
        machine = local.stored("op", state)
        found[f"{state}"] = machine
        for schedule in (machine.entry, f"{machine.entry}:asked"):
            found[f"{state} {schedule}"] = local.redis.zscore(local.keys().schedule, schedule)
    waiting = local.keys().waiting("op", "room", "call")
    found["place"] = local.redis.zscore(waiting, f"{local.stored('op', Sitting(1)).entry}:called")
    found["race"] = local.redis.hgetall(local.keys().race(local.stored("op", Asking(1)).record))
    return found


@pytest.mark.parametrize("beside", ["in its operation", "in others"])
def test_the_cost_of_a_transition_does_not_grow(local: Local, beside: str) -> None:
    """A transition costs the same commands and bytes with 2,000 machines waiting as with 20. (semantics 31)"""
    costs: list[tuple[int, int]] = []
    have = 0
    for waiting in (20, 2_000):
        batch = [StateMachine("op" if "its" in beside else f"w{n}", Sitting(n)) for n in range(have, waiting)]
        local.executor.add_state_machines(batch)
        have = waiting
        (machine,) = local.add("op", Sitting(1_000_000 + waiting))
        local.run()
        local.executor.signal("op", call, "move", machine=machine)
        before = spent(local)
        assert local.run() == 1
        after_it = spent(local)
        costs.append((after_it[0] - before[0], after_it[1] - before[1]))
    assert abs(costs[0][0] - costs[1][0]) < 5
    assert abs(costs[0][1] - costs[1][1]) < 500


def spent(local: Local) -> tuple[int, int]:
    """Commands and bytes of output so far."""
    commands = local.redis.info("commandstats")
    calls = sum(
        found["calls"] for name, found in commands.items() if not name.startswith(("cmdstat_info", "cmdstat_config"))
    )
    return calls, local.redis.info("stats")["total_net_output_bytes"]


# --- queries ---------------------------------------------------------------------------------------------------------


def test_queries_work_before_any_worker(local: Local) -> None:
    """Everything can be asked before a worker has run. (semantics 33)"""
    local.add("a", Sitting(1), Sitting(2))
    local.add("b", Instant(1))
    executor = local.executor
    assert {(m.operation_id, m.state, m.module) for m, _ in executor.get_active_states()} == {
        ("a", Sitting(1), "room"), ("a", Sitting(2), "room"), ("b", Instant(1), "room"),
    }  # fmt: skip
    assert {machine.state for machine, _ in executor.get_active_states("a")} == {Sitting(1), Sitting(2)}
    assert list(executor.get_active_states(module="elsewhere")) == []
    assert sorted(executor.get_active_operations()) == ["a", "b"]
    assert list(executor.get_inactive_states()) == []
    assert len(list(executor.get_operation_states("a"))) == 2
    assert executor.contains_active_state(StateMachine("a", Sitting(1)))
    assert not executor.contains_active_state(StateMachine("b", Sitting(1)))
    assert not executor.contains_active_state(StateMachine("a", Sitting(1), "elsewhere"))
    assert not executor.contains_inactive_state(StateMachine("a", Sitting(1)))
    assert executor.has_active_states("a")
    assert not executor.has_active_states("c")
    assert executor.explain("a").active[0].status == "waiting"


def test_queries_are_streamed(local: Local) -> None:
    """The first machine of many is there after one page, not after all; each is told once. (semantics 33)"""
    local.executor.add_state_machines([StateMachine("op", Sitting(n)) for n in range(1_500)])
    for query in (local.executor.get_active_states, lambda: local.executor.get_active_states("op")):
        before = (
            local.redis.info("commandstats")["cmdstat_hscan"]["calls"]
            if "cmdstat_hscan" in local.redis.info("commandstats")
            else 0
        )
        found = query()
        next(found)
        assert local.redis.info("commandstats")["cmdstat_hscan"]["calls"] - before == 1
        assert len({machine.state for machine, _ in found}) == 1_499


# --- waiting for states ----------------------------------------------------------------------------------------------


def meanwhile(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object], *, subscribed: bool) -> list[float]:
    """Act right before, or right after, a waiter subscribes; returns how long each wait for the bell took."""
    waits: list[float] = []
    enter, wait = Doorbell.__enter__, Doorbell.wait
    acted: list[int] = []

    def entering(self: Doorbell) -> Doorbell:
        if not subscribed:
            act()
        return enter(self)

    def waiting(self: Doorbell, seconds: float) -> None:
        if subscribed and not acted:
            acted.append(1)
            act()
        began = time.monotonic()
        wait(self, seconds)
        waits.append(time.monotonic() - began)

    monkeypatch.setattr(Doorbell, "__enter__", entering)
    monkeypatch.setattr(Doorbell, "wait", waiting)
    monkeypatch.setattr("smqueue.drivers.doorbell.LONGEST_S", 15.0)
    return waits


WAITS: dict[str, Callable[[Local], Any]] = {
    "inactive": lambda local: local.executor.await_inactive_state(StateMachine("op", Instant(1)), 20),
    "active": lambda local: local.executor.await_active_state(StateMachine("op", Left("instant 1")), 20),
    "operation": lambda local: local.executor.await_operation("op", 20),
}


@pytest.mark.parametrize("what", list(WAITS))
def test_it_is_so_already(local: Local, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """What is so already is told at once, without subscribing. (semantics 34)"""
    local.add("op", Instant(1))
    local.settle("op")
    monkeypatch.setattr(Doorbell, "__enter__", lambda self: pytest.fail("it subscribed"))
    WAITS[what](local)


@pytest.mark.parametrize("what", list(WAITS))
def test_nothing_is_missed_before_the_waiter_is_registered(
    local: Local, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """A waiter registers before the look that counts: what happens just before it does is seen by that look.
    (semantics 35)"""
    local.add("op", Instant(1))
    waits = meanwhile(monkeypatch, lambda: local.settle("op"), subscribed=False)
    WAITS[what](local)
    assert waits == []


@pytest.mark.parametrize("what", list(WAITS))
def test_nothing_is_missed_after_the_waiter_is_registered(
    local: Local, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """What happens after the look rings the bell, so that the waiter does not wait for its next look. (semantics 35)"""
    local.add("op", Instant(1))
    waits = meanwhile(monkeypatch, lambda: local.settle("op"), subscribed=True)
    WAITS[what](local)
    assert sum(waits) < 5


def test_a_short_lived_state_is_not_missed(local: Local) -> None:
    """``await_active_state`` returns if the state has been entered at any time, however short it was; it tells when
    and by whom. (semantics 34)"""
    (machine,) = local.add("op", Sitting(1))
    created = next(local.executor.get_active_states("op"))[1].created_at
    local.executor.signal("op", call, "instant")
    local.settle("op")
    assert not local.executor.contains_active_state(StateMachine("op", Instant(1)))
    found = local.executor.await_active_state(StateMachine("op", Instant(1)), timedelta(seconds=5))
    assert (found.machine_id, found.step) == (machine, 2)
    first = local.executor.await_active_state(StateMachine("op", Sitting(1)), 5)
    assert (first.machine_id, first.step, first.created_at) == (machine, 1, created)


def test_waiting_in_vain(local: Local) -> None:
    """A timeout is a typed error that says for what, and for how long. (semantics 34)"""
    local.add("op", Sitting(1))
    for what in (
        lambda: local.executor.await_inactive_state(StateMachine("op", Sitting(1)), 0.05),
        lambda: local.executor.await_active_state(StateMachine("op", Sitting(2)), timedelta(milliseconds=50)),
        lambda: local.executor.await_operation("op", 0.05),
        lambda: local.executor.await_operation("never", 0.05),
    ):
        with pytest.raises(AwaitTimeout) as caught:
            what()
        assert caught.value.seconds == 0.05
    with pytest.raises(UnknownModule):
        local.executor.await_active_state(StateMachine("op", Sitting(1), "elsewhere"), 1)


def test_waiting_over_a_lost_connection(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    """A waiter whose connections are cut off connects again, and misses nothing. (semantics 35)"""
    local.add("op", Instant(1))

    def cut() -> None:
        for client in local.redis.client_list():
            if client["id"] != str(local.redis.client_id()):
                local.redis.client_kill_filter(_id=client["id"])
        local.settle("op")

    waits = meanwhile(monkeypatch, cut, subscribed=True)
    local.executor.await_operation("op", 20)
    assert sum(waits) < 5


def test_machines_wait_for_other_operations(local: Local) -> None:
    """``reached`` and ``finished`` see what is so already, and what comes after they were armed. (semantics 35)"""
    local.add("early", Instant(1))
    local.settle("early")
    local.add("late", Sitting(1))
    for n, target in enumerate(("early", "late")):
        local.add(f"follow{n}", Following(target))
        local.add(f"join{n}", Joining(target))
    local.settle("follow0")
    local.settle("join0")
    assert local.active("follow1") == [Following("late")]
    assert local.active("join1") == [Joining("late")]
    local.executor.signal("late", call, "done")
    local.settle("follow1")
    local.settle("join1")
    assert local.executor.contains_inactive_state(StateMachine("follow1", Left("followed done")))
    assert local.executor.contains_inactive_state(StateMachine("join1", Left("joined")))


def test_a_ring_between_look_and_parking_is_heard(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``finished`` waits for may end between the look and the parking of the entry: it looks again at once.
    (semantics 35)"""
    from smqueue.protocols import runs

    local.add("late", Sitting(1))
    local.add("join", Joining("late"))
    park = runs.look_again
    acted: list[int] = []

    def ended_meanwhile(*args: Any) -> Any:
        if not acted:
            acted.append(1)
            local.executor.cancel("late")
        return park(*args)

    monkeypatch.setattr(runs, "look_again", ended_meanwhile)
    local.until(lambda: not local.executor.has_active_states("join"), "it to have joined", timeout_s=5)


def test_a_look_in_vain_does_not_park_what_another_has_claimed_since(
    local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It rings after the first look; a second worker claims the entry and dies: its lease brings the entry back soon.

    The first one, slow, has seen nothing and would put it off for an hour. (semantics 35)
    """
    from smqueue.protocols import runs
    from smqueue.protocols.claim import claim

    local.add("late", Sitting(1))
    local.add("join", Joining("late"))
    driver, keys = local.executor.deployment.driver, local.executor.deployment.all_keys()[0]
    park = runs.look_again
    claimed: list[str] = []

    def claimed_meanwhile(*args: Any) -> Any:
        if not claimed:
            local.executor.cancel("late")
            claimed.extend(it.entry for it in driver.run(claim(keys, local.executor.instances, 10)).triggers)
        return park(*args)

    monkeypatch.setattr(runs, "look_again", claimed_meanwhile)
    local.until(lambda: claimed, "a second worker to have claimed the entry")
    (entry,) = claimed
    assert float(driver.command("ZSCORE", keys.schedule, entry)) < local.now_ms() + 600_000
    driver.command("ZADD", keys.schedule, 0, entry)  # the lease has run out
    local.until(lambda: not local.executor.has_active_states("join"), "it to have joined")


# --- signals ---------------------------------------------------------------------------------------------------------


def test_the_one_that_has_waited_longest_gets_it(local: Local) -> None:
    """Each signal goes to one machine: that which has waited longest; after None it keeps its place. (semantics 29)"""
    for n in (3, 1, 2):
        local.add("op", Sitting(n))
        local.wait_past(local.now_ms())
    for word in ("stay 1", "stay 2"):
        assert local.executor.signal("op", call, word).value == "DELIVERED"
        local.run()
    assert heard(local, 3) == ["stay 1", "stay 2"]
    for word in ("a", "b", "c"):
        assert local.executor.signal("op", call, word).value == "DELIVERED"
    local.settle("op")
    assert [heard(local, n)[-1] for n in (3, 1, 2)] == ["a", "b", "c"]


def test_early_signals_are_taken_in_order(local: Local) -> None:
    """Signals sent before anything waits are kept, and taken in the order accepted, each once. (semantics 29)"""
    for n in range(5):
        assert local.executor.signal("op", call, f"stay {n}").value == "BUFFERED"
    assert local.executor.explain("op").buffered[0].count == 5
    local.add("op", Sitting(1))
    for n in range(5, 8):
        local.executor.signal("op", call, f"stay {n}")
    local.run()
    assert heard(local, 1) == [f"stay {n}" for n in range(8)]
    assert local.executor.explain("op").buffered == ()


def test_a_signal_between_look_and_commit_is_not_lost(local: Local) -> None:
    """A signal that comes between the look and the commit of a handler that stays, or of one that enters, is taken.
    (semantics 35)"""
    local.add("op", Sitting(1))
    for n, word in enumerate(("stay", "move")):
        local.executor.signal("op", call, word)
        with local.before_moves(lambda n=n: local.executor.signal("op", call, f"stay between {n}")):
            local.run()
    assert heard(local, 1) == ["stay", "stay between 0", "move"]
    assert heard(local, 101) == ["stay between 1"]


def test_signals_for_one_machine(local: Local) -> None:
    """With ``machine=`` it is for that one only: one that waits behind others, or that does not wait yet.
    (semantics 29)"""
    one, two = local.add("op", Sitting(1), Sitting(2))
    assert local.executor.signal("op", call, "stay two", machine=two).value == "DELIVERED"
    local.run()
    assert (heard(local, 1), heard(local, 2)) == ([], ["stay two"])
    assert local.executor.signal("op", call, "never", machine="nobody").value == "BUFFERED"
    local.executor.signal("op", call, "move", machine=one)
    local.executor.signal("op", call, "stay later", machine=one)
    local.run()
    assert (heard(local, 1), heard(local, 101)) == (["move"], ["stay later"])
    assert [found.count for found in local.executor.explain("op").buffered] == [1]


def test_a_signal_id_counts_once(local: Local) -> None:
    """A second signal of the same id is a DUPLICATE, whether the first was delivered or buffered. (semantics 29)"""
    assert local.executor.signal("op", call, "stay 1", id="a").value == "BUFFERED"
    assert local.executor.signal("op", call, "stay 1", id="a").value == "DUPLICATE"
    local.add("op", Sitting(1))
    local.run()
    assert local.executor.signal("op", call, "stay 2", id="b").value == "DELIVERED"
    assert local.executor.signal("op", call, "stay 2", id="b").value == "DUPLICATE"
    assert local.executor.signal("op", call, "stay 2", id="a").value == "DUPLICATE"
    local.run()
    assert heard(local, 1) == ["stay 1", "stay 2"]


def test_a_finished_operation_takes_no_signal(local: Local) -> None:
    """A signal to an operation that has finished is OperationFinished; one to an operation never started is kept.
    (semantics 34)"""
    local.add("op", Instant(1))
    local.settle("op")
    with pytest.raises(OperationFinished) as caught:
        local.executor.signal("op", call, "x")
    assert (caught.value.operation_id, caught.value.signal) == ("op", "call")
    assert local.executor.signal("new", call, "x").value == "BUFFERED"


def test_the_inbox_is_bounded(local: Local) -> None:
    """1,000 early signals of one name are kept, for 7 days; the next is InboxFull, and others' are not affected.
    (semantics 29)"""
    for n in range(1_000):
        local.executor.signal("op", call, f"stay {n}")
    with pytest.raises(InboxFull) as caught:
        local.executor.signal("op", call, "one too many", id="x")
    assert (caught.value.operation_id, caught.value.limit) == ("op", 1_000)
    assert local.executor.signal("op", other).value == "BUFFERED"
    assert local.executor.signal("op2", call, "x").value == "BUFFERED"
    left_ms = local.redis.pttl(local.keys().inbox("op", "room", "call"))
    assert timedelta(days=7) - timedelta(minutes=1) < timedelta(milliseconds=left_ms) <= timedelta(days=7)
    local.add("op", Sitting(1))
    local.run()
    assert local.executor.signal("op", call, "there is room again", id="x").value in {"BUFFERED", "DELIVERED"}


# --- each module its own ---------------------------------------------------------------------------------------------


def test_instances_see_only_their_own(play: Play) -> None:
    """Two instances of one module have states, signals and keys of their own. (semantics 38)"""
    local = play(a=room, b=room)
    local.add("op", Sitting(1), module="a")
    local.add("op", Sitting(1), module="b")
    with pytest.raises(StateAlreadyExists):
        local.add("op", Sitting(1), module="b")
    assert local.executor.signal("op", "call", "stay a", module="a").value == "DELIVERED"
    assert local.executor.signal("op", "call", "gone b", module="b").value == "DELIVERED"
    local.run()
    assert [(m.state, m.module) for m, _ in local.executor.get_active_states("op")] == [(Sitting(1), "a")]
    assert list(local.executor.get_active_states(module="b")) == []
    assert {m.module for m, _ in local.executor.get_inactive_states("op", "b")} == {"b"}
    assert local.listed("a", "heard-1") == [b"stay a"]
    assert local.listed("b", "heard-1") == [b"gone b"]
    with local.executor.notifier.subscribe("op", module="b", timeout=0) as updates:
        assert [(update.module, update.state) for update in updates] == [("b", Sitting(1)), ("b", Left("gone b"))]


def test_a_module_cannot_reach_records(local: Local) -> None:
    """A module's keys are below its own prefix, whatever they are called, and ``tx.shared`` refuses smqueue's
    records. (semantics 38)"""
    from smqueue.errors import InvalidKey

    wild = ["../x", "a:b", "{x}", "*", "é\n\0", f"{local.keys().schedule}"]
    local.executor.autocommit(lambda tx: [tx.set(key, key) for key in wild])
    own = [key for key in local.redis.scan_iter(match=f"*{local.namespace}*") if b":data:" in key]
    assert len(own) == len(wild)
    assert all(key.startswith(local.keys().data("room", "").encode()) for key in own)
    with pytest.raises(InvalidKey):
        local.executor.autocommit(lambda tx: tx.shared.set(local.keys().schedule, "x"))


def test_waiting_costs_nothing_at_idle(local: Local) -> None:
    """A drain with 1,000 machines parked asks the server twice, whatever they wait for. (semantics 31)"""
    local.executor.add_state_machines([StateMachine(f"w{n}", Sitting(n)) for n in range(1_000)])
    local.run()
    before = spent(local)[0]
    local.run()
    assert spent(local)[0] - before < 12

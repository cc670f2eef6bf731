"""Building an executor, running it in any number of processes, and stopping them at any instant."""

from __future__ import annotations

import json
import os
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
import redis
from celery import Celery

from smqueue import (
    Context,
    DefinitionError,
    DuplicateModule,
    ExecutorBuilder,
    InvalidInput,
    Module,
    State,
    StateAlreadyExists,
    StateMachine,
    Transaction,
    after,
    now,
)  # fmt: skip
from smqueue.embedded import EmbeddedServer
from smqueue.roundtrip import Pause, RoundTrip
from smqueue.worker.steps import load_modules
from tests.apps import shop
from tests.apps.wiring import environment
from tests.inprocess import Crash, Local, Play, machines
from tests.waiting import wait_until
from tests.workers import Worker, running

parcels = Module("parcels")
go = parcels.signal("go")


@parcels.state
class Ready(State):
    n: int


@parcels.state
class Moving(State):
    n: int


@parcels.state
class Label(State):
    n: int


@parcels.state(terminal=True)
class There(State):
    n: int


@parcels.on(Ready, go)
def leave(tx: Transaction, state: Ready, _: None) -> Moving:
    tx.incrby("left")
    tx.add_state_machines(machines(f"label-{state.n}", Label(state.n), module="parcels"))
    tx.send_task("print", args=[state.n])
    return Moving(state.n)


@parcels.on(Moving, after(days=1))
def arrive(tx: Transaction, state: Moving, _: None) -> There:
    return There(state.n)


@parcels.on(Label, after(days=1))
def fade(tx: Transaction, state: Label, _: None) -> There:
    return There(state.n)


# --- building ---------------------------------------------------------------------------------------------------------


def test_an_id_is_given_to_one_module_only() -> None:
    """The same module instance id twice is refused at build time, naming both places (semantics 1)."""
    builder = ExecutorBuilder().with_module("a", parcels).with_module("b", parcels)
    with pytest.raises(DuplicateModule) as caught:
        builder.with_module("a", shop.orders)
    assert caught.value.what == "a"
    assert caught.value.first != caught.value.where
    assert Path(__file__).name in caught.value.first
    assert Path(__file__).name in caught.value.where


def test_several_executors_on_one_application(server: EmbeddedServer, namespace: str) -> None:
    """A task in plain JSON finds the executor with its module; where several could be meant it wants a namespace."""
    app = Celery("several", broker="memory://", set_as_current=False)
    spaces = {"parcels": namespace, "orders": namespace[::-1]}
    for id, module in (("parcels", parcels), ("orders", shop.orders)):
        ExecutorBuilder().with_module(id, module).build(app, url=server.url, namespace=spaces[id])
    add = cast("Any", app).tasks["smqueue.add"]

    def machine(module: str | None) -> dict[str, Any]:
        return {"operation_id": "op", "module": module, "type": "Ready", "state": {"n": 1}}

    assert len(add([machine("parcels")])) == 1
    for module in (None, "nobody"):
        with pytest.raises(InvalidInput) as caught:
            add([machine(module)])
        assert caught.value.field == "namespace"
        assert all(space in caught.value.problem for space in spaces.values())
    with pytest.raises(StateAlreadyExists):
        add([machine("parcels")], namespace=namespace)


def test_a_namespace_has_one_executor_on_an_application(server: EmbeddedServer, namespace: str) -> None:
    """Built again, the first with all modules counts; modules spread over several are refused, and it is said why."""
    app = Celery("again", broker="memory://", set_as_current=False)

    def build(**modules: Module[Any]) -> None:
        builder = ExecutorBuilder()
        for id, module in modules.items():
            builder = builder.with_module(id, module)
        builder.build(app, url=server.url, namespace=namespace)

    build(parcels=parcels)
    engines = cast("Any", app).smqueue_engines
    build(parcels=parcels)
    assert engines.get(namespace) is next(iter(engines))
    build(orders=shop.orders)
    with pytest.raises(DefinitionError, match=r"orders, parcels.*build one with all of them"):
        engines.get(namespace)
    build(orders=shop.orders, parcels=parcels)
    assert set(engines.get(namespace).instances.ids()) == {"orders", "parcels"}


def test_a_worker_says_at_once_which_module_cannot_be_used(server: EmbeddedServer, caplog: Any) -> None:
    """A module given by name is imported when a worker starts; one that cannot be is named in the log, once."""
    app = Celery("lame", broker="memory://", set_as_current=False)
    builder = ExecutorBuilder().with_module("good", "tests.apps.shop:orders").with_module("bad", "tests.nowhere:orders")
    builder.build(app, url=server.url, namespace="lame")
    (engine,) = cast("Any", app).smqueue_engines
    load_modules(engine)
    (record,) = [record for record in caplog.records if record.name == "smqueue.worker"]
    assert "module bad cannot be used" in record.getMessage()
    assert "tests.nowhere" in record.getMessage()


def test_building_connects_to_nothing() -> None:
    """Building with the address of no server at all succeeds: it runs and connects nothing (semantics 2)."""
    app = Celery("nowhere", broker="redis://127.0.0.1:1/0", set_as_current=False)
    ExecutorBuilder().with_module("parcels", parcels).build(app, url="redis://127.0.0.1:1/0")


def _shop(play: Play) -> Local:
    return play(orders=shop.orders, kinds=shop.kinds)


def test_what_is_stored_moves_once_a_worker_is_up(
    server: EmbeddedServer, namespace: str, play: Play, tmp_path: Path
) -> None:
    """Building and adding run no machine, even one that is ready; it moves once a worker is up (semantics 2)."""
    local = _shop(play)
    local.executor.add_state_machines(machines("op", shop.Instant(2)))
    _shop(play).executor.has_active_states("op")  # another process that builds, and no more
    assert local.active("op") == [shop.Instant(2)]
    assert local.inactive("op") == []
    worker = Worker("tests.apps.shop", environment(server.url, server.broker_url, namespace, tmp_path), ["-P", "solo"])
    with running(worker):
        local.executor.await_operation("op", 60)
    assert local.executor.contains_inactive_state(StateMachine("op", shop.Done("instant"), "kinds"))


def test_workers_share_a_namespace(server: EmbeddedServer, namespace: str, play: Play, tmp_path: Path) -> None:
    """Two workers run one namespace at once: both take part, and each machine moves exactly once (semantics 3)."""
    local, env = _shop(play), environment(server.url, server.broker_url, namespace, tmp_path)
    two = [Worker("tests.apps.shop", env, ["-P", "solo"]) for _ in range(2)]
    ids = [f"op-{n}" for n in range(150)]

    def took_part() -> bool:
        return all("smqueue.transition[" in worker.output for worker in two)

    with running(*two):
        for worker in two:
            worker.wait_ready()
        local.executor.add_state_machines([StateMachine(op, shop.Awaiting(op, 5)) for op in ids])
        for op in ids:
            local.executor.signal(op, shop.payment, shop.Payment(5))
            local.executor.signal(op, shop.packed)
        for op in ids:
            local.executor.await_operation(op, 60)
        extra = iter(range(1000))

        def one_more() -> bool:  # who takes a message is the broker's choice: give more until both had one
            op = f"more-{next(extra)}"
            local.executor.add_state_machines(machines(op, shop.Instant(0)))
            local.executor.await_operation(op, 60)
            return took_part()

        wait_until(one_more, "both workers have taken part", timeout_s=60)
    assert local.data("orders", "revenue") == b"%d" % (5 * len(ids))
    for op in ids:
        assert local.inactive(op) == [shop.Awaiting(op, 5), shop.Packing(op), shop.Shipped(op)]


def test_the_global_context_is_made_for_instance_and_operation(play: Play) -> None:
    """The global context that handlers get is made of their module instance and operation (semantics 4)."""
    seen: list[tuple[str, str, Any, Any]] = []
    module = Module[str]("contexts")

    @module.state
    class Begin(State):
        pass

    @module.state(terminal=True)
    class End(State):
        pass

    @module.on(Begin, now())
    def note(tx: Transaction, state: Begin, _: None, context: Context[str, Any]) -> End:
        seen.append((context.module, context.operation_id, context.global_context, context.machine_id))
        return End()

    local = play(
        a=module, b=module, contexts={"a": "A", "b": "B"}, global_context=lambda module_id, op: f"{module_id} of {op}"
    )
    added = [StateMachine(op, Begin(), id) for op in ("1", "2") for id in ("a", "b")]
    ids = local.executor.add_state_machines(added)
    local.run()
    assert sorted(seen) == sorted(
        (id.upper(), op, f"{id} of {op}", machine)
        for machine, (op, id) in zip(ids, [("1", "a"), ("1", "b"), ("2", "a"), ("2", "b")], strict=True)
    )


def test_a_context_given_as_a_function_is_made_once(play: Play) -> None:
    """A context given as a function is made at first use, once for each instance."""
    made: list[int] = []
    module = Module[int]("lazy")

    @module.state
    class Begin(State):
        pass

    @module.state(terminal=True)
    class End(State):
        number: int

    @module.on(Begin, now())
    def note(tx: Transaction, state: Begin, _: None, context: Context[int, Any]) -> End:
        return End(context.module)

    def make() -> int:
        made.append(7)
        return len(made)

    local = play(lazy=module, contexts={"lazy": make})
    assert made == []
    local.executor.add_state_machines([*machines("1", Begin()), *machines("2", Begin())])
    local.run()
    assert local.inactive("1")[-1] == local.inactive("2")[-1] == End(1)
    assert made == [7]


def test_a_context_that_happens_to_be_callable_is_a_value(play: Play) -> None:
    """Only a function, a class or a partial is called for a context; an object with __call__ is the context."""

    class Shop:
        def __call__(self) -> str:
            return "called"

    module = Module[Shop]("valued")

    @module.state
    class Begin(State):
        pass

    @module.state(terminal=True)
    class End(State):
        kind: str

    @module.on(Begin, now())
    def note(tx: Transaction, state: Begin, _: None, context: Context[Shop, Any]) -> End:
        return End(type(context.module).__name__)

    local = play(valued=module, contexts={"valued": Shop()})
    local.executor.add_state_machines(machines("1", Begin()))
    local.run()
    assert local.inactive("1")[-1] == End("Shop")


# --- stopping at any instant ------------------------------------------------------------------------------------------


def _legal(local: Local) -> str:
    """Where the operation stands: ``before`` or ``after`` its transition, never in between."""
    active, past = local.active("op"), local.inactive("op")
    labels, left = local.active("label-1"), local.data("parcels", "left")
    if active == [Ready(1)]:
        assert (past, labels, left) == ([], [], None)
        return "before"
    assert (active, past, labels, left) == ([Moving(1)], [Ready(1)], [Label(1)], b"1")
    return "after"


@pytest.mark.parametrize("when", ["before it is sent", "once it is executed"])
def test_a_crash_at_any_round_trip_leaves_no_half_done_transition(play: Play, when: str) -> None:
    """A worker dies at its n-th round trip, for every n: it is all there or nothing; another finishes (semantics 5)."""
    trip, crashed = 0, True
    stands: set[str] = set()
    while crashed:
        trip += 1
        first = play(parcels=parcels)
        first.executor.add_state_machines(machines("op", Ready(1)))
        first.executor.signal("op", go)
        counted = iter(range(1, 1000))

        def hook(request: RoundTrip, counted: Any = counted, trip: int = trip) -> None:
            if not isinstance(request, Pause) and next(counted) == trip:
                raise Crash

        crashed = False
        _ = first.executor.deployment.driver
        hooks = {"before": hook} if when == "before it is sent" else {"after": hook}
        with first.around_trips(**hooks):
            try:
                first.drain()
            except Crash:
                crashed = True
        stands.add(_legal(first))
        second = play(parcels=parcels)
        second.expire_leases()
        second.requests_due()
        second.until(lambda s=second: _legal(s) == "after" and not s.redis.exists(s.keys().requests))
        told = [(name, args) for sent in (first.sent, second.sent) for name, args, *_ in sent.tasks]
        ids = {task_id for sent in (first.sent, second.sent) for _, _, _, task_id, _ in sent.tasks}
        assert told, "the task that the transition sent is lost"
        assert set(map(str, told)) == {str(("print", [1]))}
        assert len(ids) == 1
        assert [json.loads(one)["step"] for one in _history(second, "op")] == [1, 2]
        second.redis.delete(*second.everything())
    assert trip > 4  # claim, look, commit, request removed: there was something to interrupt
    assert stands == {"before", "after"}


def _history(local: Local, op: str) -> list[bytes]:
    return cast("list[bytes]", local.redis.lrange(local.keys().history(op), 0, -1))


def test_nothing_is_lost_with_killed_workers_and_broker(
    server: EmbeddedServer, namespace: str, play: Play, tmp_path: Path
) -> None:
    """All workers get SIGKILL and their queue is emptied; new ones finish all, nothing twice (semantics 5)."""
    local, env = _shop(play), environment(server.url, server.broker_url, namespace, tmp_path)
    ids = [f"op-{n}" for n in range(120)]
    broker = redis.Redis(unix_socket_path=str(server.socket_path), db=1)
    killed = [Worker("tests.apps.shop", env, ["-P", "prefork", "-c", "2"])]
    with running(*killed):
        killed[0].wait_ready()
        local.executor.add_state_machines([StateMachine(op, shop.Awaiting(op, 5)) for op in ids])
        for op in ids[:60]:
            local.executor.signal(op, shop.payment, shop.Payment(5))
        wait_until(lambda: local.data("orders", "revenue"), "the first ones are paid")
        for op in ids[60:]:
            local.executor.signal(op, shop.payment, shop.Payment(5))
        killed[0].kill()
    broker.delete(namespace)
    paid = int(local.data("orders", "revenue") or 0)
    in_packing = sum(isinstance(machine.state, shop.Packing) for machine, _ in local.executor.get_active_states())
    assert paid == 5 * in_packing  # no half-done one among them
    worker = Worker("tests.apps.shop", env, ["-P", "solo"])
    with running(worker):
        for op in ids:
            local.executor.signal(op, shop.packed)
        for op in ids:
            local.executor.await_operation(op, 60)
    assert local.data("orders", "revenue") == b"%d" % (5 * len(ids))
    for op in ids:
        assert local.inactive(op) == [shop.Awaiting(op, 5), shop.Packing(op), shop.Shipped(op)]


def test_a_killed_server_keeps_what_it_acknowledged(tmp_path: Path, namespace: str) -> None:
    """With appendfsync always, a killed server comes back with every commit, and work goes on (semantics 5)."""
    with EmbeddedServer(tmp_path / "data", fsync="always") as own:
        local = Local(own.url, namespace, {"parcels": parcels})
        local.executor.add_state_machines(machines("op", Ready(1)))
        local.executor.signal("op", go)
        os.kill(own.pid, 9)
        wait_until(lambda: not own.alive, "the server is gone")
        own.start()
        assert _legal(local) == "before"
        local.run()
        os.kill(own.pid, 9)
        wait_until(lambda: not own.alive, "the server is gone")
        own.start()
        assert _legal(local) == "after"


def test_a_deadline_that_passed_while_nothing_ran_fires_then(play: Play) -> None:
    """A deadline runs while no worker does: the next one to come up applies it, with its own time (semantics 5)."""
    module = Module("brief")

    @module.state
    class Brief(State):
        pass

    @module.state(terminal=True)
    class Over(State):
        pass

    @module.on(Brief, after(timedelta(milliseconds=1)))
    def end(tx: Transaction, state: Brief, _: None) -> Over:
        return Over()

    first = play(brief=module)
    first.executor.add_state_machines(machines("op", Brief()))
    first.wait_past(first.stored("op", Brief()).armed["end"])
    assert first.active("op") == [Brief()]
    second = play(brief=module)
    second.run()
    assert second.inactive("op") == [Brief(), Over()]

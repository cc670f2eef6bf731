"""A namespace on a primary that sentinels watch: a replica takes over, asked to, or because the primary was killed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from smqueue import (
    ExecutorBuilder,
    HistoryRewound,
    Module,
    State,
    StateAlreadyExists,
    StateMachine,
    StoreRefused,
    StoreUnavailable,
    Transaction,
    after,
)  # fmt: skip
from smqueue.embedded import EmbeddedServer
from smqueue.keys import Keys
from tests.apps import shop
from tests.apps.wiring import environment
from tests.deployments import HOST, SentinelDeployment, free_ports
from tests.inprocess import Local, Play, machines
from tests.waiting import wait_until
from tests.workers import Worker, running

parcels = Module("parcels", version=1)


@parcels.state
class Ready(State):
    n: int


@parcels.state(terminal=True)
class There(State):
    n: int


go = parcels.signal("go", int)


@parcels.on(Ready, go)
def went(tx: Transaction, state: Ready, by: int) -> There:
    tx.incrby("went", by)
    return There(state.n)


@parcels.on(Ready, after(days=1))
def never(tx: Transaction, state: Ready, _: None) -> There:
    return There(-1)


@pytest.fixture
def deployed() -> Iterator[SentinelDeployment]:
    with SentinelDeployment(sentinels=3) as deployment:
        yield deployment


def again(call: Callable[[], Any], what: str) -> Any:
    """Call until there is an answer."""

    def answered() -> list[Any]:
        try:
            return [call()]
        except StoreUnavailable:
            return []

    return wait_until(answered, what, 60)[0]


@contextmanager
def producing(*locals: Local) -> Iterator[list[int]]:
    """Each in a thread of its own, add operations of two machines and signal one of them; yields those acknowledged."""
    acknowledged, done, errors = list[int](), threading.Event(), list[Exception]()

    def produce(first: int, local: Local) -> None:
        n = first
        try:
            while not done.is_set():
                n += len(locals)
                try:
                    local.executor.add_state_machines(machines(f"op{n}", Ready(1), Ready(2)))
                except StateAlreadyExists:  # applied the time before, and unacknowledged then
                    pass
                except StoreUnavailable:
                    n -= len(locals)
                    continue
                with suppress(StoreUnavailable):
                    local.executor.signal(f"op{n}", go, 1, id="once")
                    acknowledged.append(n)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=produce, args=pair) for pair in enumerate(locals)]
    for thread in threads:
        thread.start()
    try:
        yield acknowledged
    finally:
        done.set()
        for thread in threads:
            thread.join(60)
    assert errors == []


def whole(local: Local) -> list[str]:
    """The operations that are there; each with all that its commits wrote, or it fails."""
    found = sorted(local.executor.get_active_operations())
    for op in found:
        active, past = local.active(op), local.inactive(op)
        steps = [update.step for update in local.history(op)]
        if len(active) == 2:
            assert (set(active), past, steps) == ({Ready(1), Ready(2)}, [], [1, 1])
        else:
            assert len(active) == 1, op
            assert len(past) == 2, op
            assert steps == [1, 1, 2], op
        for state in active:
            assert local.stored(op, state).entry
            assert local.redis.zscore(local.keys(op).schedule, local.stored(op, state).entry) is not None
    went = sum(len(local.active(op)) == 1 for op in found)
    assert int(local.data("parcels", "went") or 0) == went
    return found


def test_a_replica_that_is_asked_to_take_over(play: Play, deployed: SentinelDeployment) -> None:
    """A replica takes over from a primary that lives, while producers add and signal and a worker runs: nobody is
    refused, all goes on at the new one, and with durability="replica" nothing acknowledged is lost."""
    locals = [play(url=deployed.url, durability="replica", parcels=parcels) for _ in range(3)]
    with producing(*locals) as acknowledged:
        wait_until(lambda: len(acknowledged) > 20, "some to be acknowledged", 60)
        before = deployed.primary
        after_ = deployed.promote()
        wait_until(lambda: deployed._follows(before), "the old primary to follow the new one", 60)
        so_far = len(acknowledged)
        wait_until(lambda: len(acknowledged) > so_far + 20, "more to be acknowledged", 60)
    assert after_ is not before
    found = again(lambda: whole(play(url=deployed.url, parcels=parcels)), "the records")
    assert {f"op{n}" for n in acknowledged} <= set(found)


def test_a_primary_that_is_killed(play: Play, deployed: SentinelDeployment, monkeypatch: pytest.MonkeyPatch) -> None:
    """The primary is killed under load, and its replica was behind; with durability="replica" all that was acknowledged
    is at the one that takes over, nothing is there in part, and all goes on. (semantics 5)"""
    monkeypatch.setattr("smqueue.drivers.blocking.REPLICA_MS", 300)
    *locals, worker = [play(url=deployed.url, durability="replica", parcels=parcels) for _ in range(4)]
    keys = worker.keys()
    with producing(*locals) as acknowledged, draining(worker):
        wait_until(lambda: len(acknowledged) > 20, "some to be acknowledged", 60)
        deployed.cut_off()
        first = deployed.primary
        (other,) = [node for node in deployed.servers if node is not first]
        count = lambda node: node.client.zcard(keys.operations)  # noqa: E731
        wait_until(lambda: count(first) > count(other), "some that no replica has", 60)
        deployed.restart(deployed.kill_primary())
        so_far = len(acknowledged)
        wait_until(lambda: len(acknowledged) > so_far + 20, "more to be acknowledged", 60)
    local = play(url=deployed.url, parcels=parcels)
    signalled = {f"op{n}" for n in acknowledged}
    local.expire_leases()
    local.until(lambda: all(len(local.active(op)) == 1 for op in signalled), "what was acknowledged to be done", 60)
    assert signalled <= set(whole(local))


@contextmanager
def draining(local: Local) -> Iterator[None]:
    """A worker's drains, in a thread."""
    done, errors = threading.Event(), list[Exception]()

    def drain() -> None:
        while not done.wait(0.01):
            try:
                local.run()
            except StoreUnavailable:
                continue
            except Exception as error:
                errors.append(error)
                return

    thread = threading.Thread(target=drain)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(60)
    assert errors == []


def test_what_is_lost_is_a_suffix(play: Play, deployed: SentinelDeployment) -> None:
    """Without a durability a primary that is killed loses what its replica had not yet: the last commits, each wholly,
    and none before one that is kept. A subscriber that has read further is told. (semantics 5)"""
    local = play(url=deployed.url, parcels=parcels)
    count = 0

    def one_more() -> str:
        nonlocal count
        count += 1
        op = f"op{count:04}"
        local.add(op, Ready(1), Ready(2))
        local.executor.signal(op, go, 1)
        local.run()
        return op

    kept = [one_more() for _ in range(10)]
    local.redis.wait(1, 10_000)
    deployed.cut_off()
    lost = [one_more() for _ in range(10)]
    with local.executor.notifier.subscribe(lost[0], timeout=60) as updates:
        assert [next(updates).step for _ in range(3)] == [1, 1, 2]
        deployed.kill_primary()
        found = again(lambda: whole(play(url=deployed.url, parcels=parcels)), "the records")
        with pytest.raises(HistoryRewound):
            again(lambda: next(updates), "an update")
    assert found == kept
    again(lambda: local.add(lost[0], Ready(1), Ready(2)), "it to be added again")


def test_a_waiter_stays(play: Play, deployed: SentinelDeployment) -> None:
    """Who waits while a replica takes over hears of the end."""
    local = play(url=deployed.url, parcels=parcels)
    local.add("op", Ready(1))
    got: list[Any] = []
    waiter = threading.Thread(target=lambda: got.append(local.another().executor.await_operation("op", 120)))
    waiter.start()
    deployed.promote()
    again(lambda: local.executor.signal("op", go, 1), "the signal")
    wait_until(lambda: again(local.run, "a run") or not local.active("op"), "the machine to move")
    waiter.join(60)
    assert got == [None]


def test_odd_urls(deployed: SentinelDeployment, namespace: str) -> None:
    """A URL without a service is StoreRefused; one of a service that nobody knows, or of sentinels that are away,
    StoreUnavailable; of several sentinels one is enough."""

    def add(url: str) -> None:
        app = Celery("odd", broker="memory://", set_as_current=False)
        executor = ExecutorBuilder().with_module("parcels", parcels).build(app, url=url, namespace=namespace)
        executor.add_state_machines([StateMachine("op", Ready(1))])

    (gone,) = free_ports(1)
    hosts, _, _ = deployed.url.partition("/state")
    with pytest.raises(StoreRefused, match="service"):
        add(hosts)
    with pytest.raises(StoreUnavailable, match="another"):
        add(f"{hosts}/another")
    with pytest.raises(StoreUnavailable):
        add(f"redis+sentinel://{HOST}:{gone}/state")
    add(f"redis+sentinel://{HOST}:{gone},{deployed.sentinels[2].address}/state?db=0")


def test_real_workers(
    play: Play, deployed: SentinelDeployment, server: EmbeddedServer, namespace: str, tmp_path: Path
) -> None:
    """Two real workers with durability="replica", the primary killed in mid-run: every acknowledged order is shipped,
    each paid for once."""
    env = {**environment(deployed.url, server.broker_url, namespace, tmp_path), "TEST_DURABILITY": "replica"}
    workers = [Worker("tests.apps.shop:app", env, ["--pool", pool, "-c", "2"]) for pool in ("threads", "prefork")]
    app = Celery("producer", broker=server.broker_url, set_as_current=False)
    app.conf.update(task_default_queue=namespace, smqueue_durability="replica")
    builder = ExecutorBuilder().with_module("orders", shop.orders).with_module("kinds", shop.kinds)
    executor = builder.build(app, url=deployed.url, namespace=namespace)
    orders = [f"order{n}" for n in range(60)]
    with running(*workers):
        for worker in workers:
            worker.wait_ready()
        again(lambda: executor.add_state_machines(machines("kinds", shop.Listening("room"))), "the listener")
        for n, op in enumerate(orders):
            if n == 30:
                killed = deployed.kill_primary()
                deployed.restart(killed)
            again(lambda op=op: executor.add_state_machines(machines(op, shop.Awaiting(op, 1)), exist_ok=True), op)
            again(lambda op=op: executor.signal(op, shop.payment, shop.Payment(1), id="pay"), op)
            again(lambda op=op: executor.signal(op, shop.packed, id="pack"), op)
        for op in orders:
            again(lambda op=op: executor.await_operation(op, 60), op)

        def listened() -> bool:
            deployed.primary.client.publish("room", '"hello"')
            return not again(lambda: executor.has_active_states("kinds"), "a look")

        wait_until(listened, "the channel to be heard at the new primary", 60)
    assert deployed.primary.client.get(Keys(namespace).data("orders", "revenue")) == b"60"
    for op in orders:
        assert executor.contains_inactive_state(StateMachine(op, shop.Shipped(op)))

"""A namespace on a cluster of three real nodes: shards spread over them, slots that move in mid-run, nodes that go."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

from smqueue import (
    Client,
    ExecutorBuilder,
    Module,
    Retry,
    State,
    StateMachine,
    StoreRefused,
    StoreUnavailable,
    Transaction,
    after,
    now,
)  # fmt: skip
from smqueue.drivers.cluster import slot_of
from smqueue.drivers.doorbell import Doorbell
from smqueue.embedded import EmbeddedServer
from smqueue.keys import Keys, shard_of
from smqueue.protocols.claim import claim
from smqueue.roundtrip import Call, Commit, LostReply, Pause, Read, RoundTrip
from tests.apps import shop
from tests.apps.wiring import environment
from tests.deployments import HOST, Node, ValkeyCluster, free_ports
from tests.inprocess import Local, Play, machines
from tests.waiting import wait_until
from tests.workers import Worker, running

SHARDS = 6
goods = Module("goods", version=1, retry=Retry(max_attempts=1))
brief = Module("brief", version=1, keep=timedelta(milliseconds=20))


@goods.state
class Ready(State):
    n: int


@goods.state
class Short(State):
    n: int


@goods.state
class Borrowing(State):
    key: str


@goods.state(terminal=True)
class There(State):
    n: int


@brief.state
class Brief(State):
    n: int


@brief.state(terminal=True)
class Over(State):
    n: int


go = goods.signal("go", int)


@goods.on(Ready, go)
def went(tx: Transaction, state: Ready, by: int) -> There:
    tx.incrby("went", by)
    return There(state.n)


@goods.on(Ready, after(days=1))
def never(tx: Transaction, state: Ready, _: None) -> There:
    return There(-1)


@goods.on(Short, after(milliseconds=30))
def fired(tx: Transaction, state: Short, _: None) -> There:
    return There(state.n)


@goods.on(Borrowing, now())
def borrowed(tx: Transaction, state: Borrowing, _: None) -> There:
    return There(int(tx.shared.get(state.key) or 0))


@brief.on(Brief, now())
def ended(tx: Transaction, state: Brief, _: None) -> Over:
    return Over(state.n)


@pytest.fixture(scope="module")
def cluster() -> Iterator[ValkeyCluster]:
    with ValkeyCluster() as deployed:
        yield deployed


@pytest.fixture
def local(play: Play, cluster: ValkeyCluster) -> Local:
    return play(url=cluster.url, goods=goods)


def operations(local: Local) -> list[str]:
    """An operation in each shard."""
    found: dict[int, str] = {}
    for n in range(1_000):
        found.setdefault(shard_of(f"op{n}", local.settings.shards), f"op{n}")
    return [found[shard] for shard in sorted(found)]


def shards_on(cluster: ValkeyCluster, namespace: str, node: Node) -> list[int]:
    """The shards whose slot a node has."""
    return [n for n in range(SHARDS) if cluster.owner(Keys(namespace, n).schedule) is node]


# --- everything, on shards of every node -----------------------------------------------------------------------------


def test_shards_of_several_nodes(play: Play, cluster: ValkeyCluster) -> None:
    """On shards that several nodes have, machines are added, signalled, timed, looked up, cancelled, and told of."""
    local = play(url=cluster.url, shards=SHARDS, goods=goods)
    ops = operations(local)
    assert len({cluster.owner(local.keys(op).schedule).port for op in ops}) > 1
    with local.executor.notifier.subscribe_all(timeout=20) as feed:
        for op in ops:
            local.add(op, Ready(1))
            local.add(op, Short(2), Ready(3))
            local.executor.signal(op, go, 1, id="once")
            assert local.executor.signal(op, go, 1, id="once").name == "DUPLICATE"
        assert sorted(local.executor.get_active_operations()) == sorted(ops)
        local.until(lambda: all(len(local.active(op)) == 1 for op in ops), "signals and deadlines to be done")
        for op in ops:
            assert set(local.inactive(op)) == {Ready(1), Short(2), There(1), There(2)}
            assert local.active(op) == [Ready(3)]
            assert local.executor.cancel(op, "enough") == 1
            assert len(local.history(op)) == 6
        told = {(update.operation_id, update.sequence) for update in [next(feed) for _ in range(6 * len(ops))]}
    assert told == {(op, n) for op in ops for n in range(6)}
    assert {m.operation_id for m, _ in local.executor.get_inactive_states()} == set(ops)


def test_it_is_told_why(play: Play, cluster: ValkeyCluster) -> None:
    """A namespace on several nodes is looked at as one, each of its servers included; and so is one operation."""
    local = play(url=cluster.url, shards=SHARDS, goods=goods)
    ops = operations(local)
    for op in ops:
        local.add(op, Ready(1), Ready(2))
        local.executor.pause(op)
    local.executor.signal("nobody", go, 1)
    seen = local.executor.overview()
    assert (seen.operations, len(seen.paused), len(seen.stores)) == (SHARDS, SHARDS, SHARDS)
    assert all(store.used_bytes for store in seen.stores)
    for op in ops:
        found = local.executor.diagnose(op)
        assert [cause.kind for cause in found.causes] == ["no_worker", "paused", "paused"]
        assert all(trigger.elsewhere for one in found.explanation.active for trigger in one.triggers if trigger.signal)


def test_retention(play: Play, cluster: ValkeyCluster) -> None:
    """A finished operation is forgotten."""
    local = play(url=cluster.url, brief=brief)
    local.add("op", Brief(1))
    local.settle("op")
    local.until(lambda: not list(local.executor.get_inactive_states()), "the operation to be forgotten")


def test_pause_and_resume(local: Local) -> None:
    """What is paused stays until it is resumed."""
    local.add("op", Ready(1))
    local.executor.pause("op")
    local.executor.signal("op", go, 1)
    local.run()
    assert local.active("op") == [Ready(1)]
    local.executor.resume("op")
    local.settle("op")


def test_a_waiter_is_rung_for(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits hears of the end by the bell: it would look again by itself only in an hour. (semantics 35)"""
    monkeypatch.setattr("smqueue.drivers.doorbell.LONGEST_S", 3_600)
    local.add("op", Ready(1))
    with Awaiting(local) as thread:
        wait_until(lambda: _subscribers(local) == 1, "the waiter to be subscribed")
        local.executor.signal("op", go, 1)
        local.run()
        thread.join(30)
        assert not thread.is_alive()


@pytest.mark.parametrize("who", ["a thread", "a task"])
def test_a_waiter_is_rung_for_where_the_slot_has_gone(
    local: Local, cluster: ValkeyCluster, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    """Who waits while the slot moves is told by the old node, and subscribes at the new one. (semantics 35)"""
    monkeypatch.setattr("smqueue.drivers.doorbell.LONGEST_S", 3_600)
    monkeypatch.setattr("smqueue.drivers.bells.LONGEST_S", 3_600)
    local.add("op", Ready(1))
    with Awaiting(local, on_a_loop=who == "a task") as thread:
        wait_until(lambda: _subscribers(local) == 1, "the waiter to be subscribed")
        there = cluster.move(local.keys().schedule)
        wait_until(lambda: _count(there, local) == 1, "the waiter to be subscribed at the new node")
        local.executor.signal("op", go, 1)
        local.run()
        thread.join(30)
        assert not thread.is_alive()


def test_a_follower_of_all_is_rung_for(play: Play, cluster: ValkeyCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who follows all operations hears of each at once, from whichever node its shard is at."""
    monkeypatch.setattr("smqueue.drivers.doorbell.LONGEST_S", 3_600)
    waits, wait = threading.Semaphore(0), Doorbell.wait

    def waiting(self: Doorbell, seconds: float) -> None:
        waits.release()
        wait(self, seconds)

    monkeypatch.setattr(Doorbell, "wait", waiting)
    local = play(url=cluster.url, shards=SHARDS, goods=goods)
    ops = operations(local)
    heard: list[str] = []
    with local.executor.notifier.subscribe_all(timeout=60) as feed:
        thread = threading.Thread(target=lambda: [heard.append(next(feed).operation_id) for _ in ops], daemon=True)
        thread.start()
        for n, op in enumerate(ops):
            assert waits.acquire(timeout=30)
            local.add(op, Ready(1))
            wait_until(lambda n=n: len(heard) > n or not thread.is_alive(), "it to be heard")
        thread.join(30)
    assert heard == ops


class Awaiting:
    """A thread that waits for the operation to end, by itself or by a task of an event loop."""

    def __init__(self, local: Local, on_a_loop: bool = False) -> None:
        self._executor, self._on_a_loop = local.another().executor, on_a_loop
        self._thread = threading.Thread(target=self._wait, daemon=True)

    def _wait(self) -> None:
        if self._on_a_loop:
            asyncio.run(self._executor.async_client().await_operation("op", 60))
        else:
            self._executor.await_operation("op", 60)

    def __enter__(self) -> threading.Thread:
        self._thread.start()
        return self._thread

    def __exit__(self, *_: object) -> None:
        self._thread.join(60)


def test_a_task_follows_all_nodes(play: Play, cluster: ValkeyCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that follows all operations hears of each by a ring, from whichever node its shard is at."""
    monkeypatch.setattr("smqueue.drivers.bells.LONGEST_S", 3_600)
    local = play(url=cluster.url, shards=SHARDS, goods=goods)
    ops = operations(local)

    async def follow() -> list[str]:
        async with local.executor.async_client() as client, client.subscribe_all(timeout=60) as updates:
            heard: list[str] = []
            for op in ops:
                await asyncio.to_thread(local.add, op, Ready(1))
                heard.append((await anext(updates)).operation_id)
            return heard

    assert asyncio.run(follow()) == ops


def _subscribers(local: Local) -> int:
    return sum(_count(node, local) for node in local.redis.get_primaries())


def _count(node: Any, local: Local) -> int:
    client = node.client if isinstance(node, Node) else redis.Redis(host=node.host, port=node.port)
    return int(client.pubsub_shardnumsub(local.keys().bell("op"))[0][1])


# --- a slot that moves -----------------------------------------------------------------------------------------------


def test_a_slot_that_moves_at_any_round_trip(play: Play, cluster: ValkeyCluster) -> None:
    """The slot moves before the n-th round trip of adding, signalling and transition, for every n: nobody gets an
    error, and all is done once. (semantics 18)"""
    trip, moved = 0, True
    while moved:
        trip += 1
        local = play(url=cluster.url, goods=goods)
        op, moved = f"op{trip}", False
        counted = iter(range(1, 1_000))
        _ = local.driver

        def hook(request: RoundTrip, counted: Any = counted, trip: int = trip, local: Local = local) -> None:
            nonlocal moved
            if not isinstance(request, Pause) and next(counted) == trip:
                moved = True
                cluster.move(local.keys().schedule)

        with local.around_trips(before=hook):
            local.add(op, Ready(trip))
            local.executor.signal(op, go, 1)
            local.run()
        local.until(lambda local=local, op=op: not local.active(op), "the machine to move")
        assert local.inactive(op) == [Ready(trip), There(trip)]
        assert [update.step for update in local.history(op)] == [1, 2]
        assert local.data("goods", "went") == str(trip).encode()
    assert trip > 5


def test_a_commit_is_not_repeated_without_its_watch(play: Play, cluster: ValkeyCluster) -> None:
    """Between look and commit the machine is moved on by another, and its slot goes to another node: the commit, which
    nothing watches there, is not sent to it. (semantics 17)"""
    first = play(url=cluster.url, goods=goods)
    first.add("op", Ready(1))
    first.executor.signal("op", go, 1)
    second = first.another()
    second.driver.command("PING")

    def overtake() -> None:
        second.expire_leases()
        second.settle("op")
        cluster.move(first.keys().schedule)

    with first.before_moves(overtake):
        first.run()
    assert first.inactive("op") == [Ready(1), There(1)]
    assert first.data("goods", "went") == b"1"
    assert [update.step for update in first.history("op")] == [1, 2]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smqueue.drivers.blocking.ELSEWHERE_S", 0.05)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("kinds", [("machine",), ("active",), ("schedule",), ("machine", "active", "race"), ("inbox",)])
def test_a_slot_that_is_half_moved(local: Local, cluster: ValkeyCluster, kinds: tuple[str, ...]) -> None:
    """While a slot is moved key by key, calls wait and then are StoreUnavailable; nothing is misjudged by what is
    missing, and all goes on where it has gone."""
    keys = local.keys()
    local.add("op", Ready(1))
    local.add("early", Short(9))
    local.settle("early")
    local.executor.signal("op", go, 1)
    # What the claim names exists, so that it alone would not be refused.
    local.redis.hset(keys.quarantine, "another", "{}")
    local.redis.set(keys.watched, "1")
    source, slot = cluster.owner(keys.schedule), cluster.slot(keys.schedule)
    target = next(node for node in cluster.nodes if node is not source)
    cluster.begin_move(slot, source, target)
    for key in source.client.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 1_000):
        if key.decode().removeprefix(keys.prefix).partition(":")[0] in kinds:
            source.client.execute_command("MIGRATE", HOST, target.port, key, 0, 10_000)
    with pytest.raises(StoreUnavailable):
        local.driver.run(claim(keys, local.instances, 10))
    with pytest.raises(StoreUnavailable):
        local.executor.signal("op", go, 2)
    with pytest.raises(StoreUnavailable):
        local.add("other", Ready(2))
    cluster.end_move(slot, source, target)
    local.redis.hdel(keys.quarantine, "another")
    local.expire_leases()
    local.settle("op")
    assert local.inactive("op") == [Ready(1), There(1)]
    assert local.data("goods", "went") == b"1"
    assert not local.redis.exists(keys.quarantine)
    local.add("other", Ready(2))


def test_what_a_redirection_is_to_a_protocol(local: Local, cluster: ValkeyCluster) -> None:
    """A request that a node has certainly not applied is sent again when nothing is watched. Else a commit is a
    conflict, and everything else a lost reply: the protocol looks again."""
    keys, driver = local.keys(), local.driver
    read, write = Read((keys.meta,), (("GET", keys.hint),)), Commit((("SET", keys.hint, "1"),))
    call = Call("pump", (keys.hint, keys.schedule, keys.watch, keys.roused), ("1000", "me", "1000"))
    assert driver.run(_two(read, None, cluster.move, keys)) == [None]
    assert driver.run(_two(write, None, cluster.move, keys)) == [b"OK"]
    assert driver.run(_two(call, None, cluster.move, keys))[3] == 1
    assert driver.run(_two(read, read, cluster.move, keys)) is LostReply
    assert driver.run(_two(write, read, cluster.move, keys)) is None
    assert driver.run(_two(call, read, cluster.move, keys)) is LostReply


def _two(request: RoundTrip, before: RoundTrip | None, move: Callable[[str], object], keys: Keys) -> Any:
    """A protocol: perhaps a look, then the slot moves, then a request; returns what came of it."""
    yield before or Pause(0)
    move(keys.schedule)
    try:
        return (yield request)
    except LostReply:
        return LostReply


# --- a node that goes ------------------------------------------------------------------------------------------------


def test_a_node_that_is_killed(play: Play, cluster: ValkeyCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a node its shards are StoreUnavailable and the others go on; when it is back all is there, and goes on.
    (semantics 5)"""
    monkeypatch.setattr("smqueue.drivers.circuit.Circuit.patience_s", 0.1)
    local = play(url=cluster.url, shards=SHARDS, goods=goods)
    ops = operations(local)
    for op in ops:
        local.add(op, Ready(1))
    node = cluster.owner(local.keys(ops[0]).schedule)
    away = [ops[shard] for shard in shards_on(cluster, local.namespace, node)]
    others = [op for op in ops if op not in away]
    assert away
    assert others
    node.kill()
    try:
        for op in away:
            with pytest.raises(StoreUnavailable):
                local.executor.signal(op, go, 1)
        for op in others:
            local.executor.signal(op, go, 1)
            local.drain(local.keys(op).shard)
            assert local.active(op) == []
    finally:
        cluster.restart(node)
    for op in away:
        wait_until(lambda op=op: _signalled(local, op), "the node to be found again")
    local.settle(*ops)
    assert all(local.inactive(op) == [Ready(1), There(1)] for op in ops)


def _signalled(local: Local, op: str) -> bool:
    try:
        return bool(local.executor.signal(op, go, 1, id="once"))
    except StoreUnavailable:
        return False


# --- what does not fit -----------------------------------------------------------------------------------------------


def test_keys_outside_of_the_shard(local: Local, cluster: ValkeyCluster) -> None:
    """What ``tx.shared`` reaches has to be in the shard's slot, wherever the nodes have them: else the machine is set
    aside with an error that says so."""
    tag = local.keys().tag
    same_node = next(name for name in map(str, range(10_000)) if cluster.owner(name) is cluster.owner(tag))
    inside = f"mine:{tag}"
    assert slot_of(inside) == slot_of(local.keys().schedule) != slot_of(same_node)
    local.redis.set(inside, 7)
    local.add("fine", Borrowing(inside))
    local.settle("fine")
    assert There(7) in local.inactive("fine")
    local.add("odd", Borrowing(same_node))

    def told() -> str:
        local.expire_leases()
        return str(local.explained("odd").last_error or "")

    error = local.until(told, "the machine to be set aside")
    assert "name:{namespace.0}" in error
    with pytest.raises(StoreRefused, match="tag of its shard"):
        local.executor.autocommit(lambda tx: (tx.shared.set(same_node, 1), tx.set("mine", 1)))


def test_a_url_of_the_wrong_kind(cluster: ValkeyCluster, namespace: str, tmp_path: Path) -> None:
    """A cluster under the URL of one server, one server under that of a cluster, and no host are StoreRefused."""
    for node in cluster.nodes:
        app = Celery("other", broker="memory://", set_as_current=False)
        builder = ExecutorBuilder().with_module("goods", goods)
        other = builder.build(app, url=f"redis://{node.address}", namespace=namespace)
        if cluster.owner(Keys(namespace).schedule) is not node:
            with pytest.raises(StoreRefused, match=r"redis\+cluster://"):
                other.add_state_machines(machines("op", Ready(1)))
    (port,) = free_ports(1)
    single = Node(tmp_path / "single", port, {})
    try:
        single.start()
        with pytest.raises(StoreRefused, match="cluster support disabled"):
            Client(f"redis+cluster://{single.address}", "ns").signal("op", "m", "go", timeout=1)
    finally:
        single.kill()
    with pytest.raises(StoreRefused, match="no host"):
        Client("redis+cluster://", "ns").signal("op", "m", "go", timeout=1)


def test_a_node_that_is_not_there_is_passed_over(play: Play, cluster: ValkeyCluster) -> None:
    """Of the nodes in the URL one is enough."""
    (gone,) = free_ports(1)
    url = f"redis+cluster://{HOST}:{gone},{cluster.nodes[1].address}"
    local = play(url=url, goods=goods)
    local.add("op", Ready(1))
    assert local.active("op") == [Ready(1)]


# --- real workers ----------------------------------------------------------------------------------------------------


def test_real_workers(server: EmbeddedServer, namespace: str, cluster: ValkeyCluster, tmp_path: Path) -> None:
    """Two real workers on six shards: every kind of trigger, a client without machine code; a slot moves meanwhile."""
    env = {**environment(cluster.url, server.broker_url, namespace, tmp_path), "TEST_SHARDS": str(SHARDS)}
    workers = [Worker("tests.apps.shop:app", env, ["--pool", pool, "-c", "2"]) for pool in ("threads", "prefork")]
    with pytest.MonkeyPatch.context() as patch, running(*workers):
        for name, value in env.items():
            patch.setenv(name, value)
        for worker in workers:
            worker.wait_ready()
        app = Celery("producer", broker=server.broker_url, set_as_current=False)
        app.conf.update(task_default_queue=namespace, smqueue_shards=SHARDS)
        builder = ExecutorBuilder().with_module("orders", shop.orders).with_module("kinds", shop.kinds)
        executor = builder.build(app, url=cluster.url, namespace=namespace)
        states: dict[str, State] = {
            "poll": shop.Polling(2), "call": shop.Calling(1), "wait": shop.Hosting(50), "task": shop.Tasking(4),
            "channel": shop.Listening("room"), "now": shop.Instant(3), "reached": shop.Watching("now"),
        }  # fmt: skip
        for op, state in states.items():
            executor.add_state_machines(machines(op, state))
        orders = [f"order{n}" for n in range(40)]
        for n, op in enumerate(orders):
            executor.add_state_machines(machines(op, shop.Awaiting(op, 1)))
            executor.signal(op, shop.payment, shop.Payment(1))
            if n % 10 == 5:
                cluster.move(Keys(namespace, n % SHARDS).schedule)
            executor.signal(op, shop.packed)
        publisher = cluster.nodes[0].client

        def listened() -> bool:
            publisher.publish("room", '"hello"')
            return not executor.has_active_states("channel")

        wait_until(listened, "the message to be heard", 60)
        for op in (*orders, *states):
            executor.await_operation(op, 60)
        client = Client(cluster.url, namespace, shards=SHARDS)
        client.add([{"operation_id": "other", "module": "kinds", "type": "Instant", "state": {"n": 2}}])
        client.await_operation("other", 60)
        assert executor.contains_inactive_state(StateMachine("task", shop.Done("sum 5"), "kinds"))
        for op in orders:
            assert [u.step for u in _told(executor, op)] == [1, 2, 3]


def _told(executor: Any, op: str) -> list[Any]:
    with executor.notifier.subscribe(op, timeout=0) as updates:
        return list(updates)

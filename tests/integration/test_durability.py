"""What an answer promises: ``durability="fsync"`` and ``durability="replica"``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

from smqueue import (
    DefinitionError,
    Executor,
    ExecutorBuilder,
    Module,
    NotDurable,
    NotReplicated,
    Retry,
    State,
    StateAlreadyExists,
    Transaction,
)  # fmt: skip
from smqueue.embedded import EmbeddedServer
from smqueue.roundtrip import Commit, LostReply, RoundTrip, Steps, commit, read
from tests.apps import shop
from tests.apps.wiring import environment
from tests.deployments import SentinelDeployment
from tests.inprocess import Local, Play, machines
from tests.waiting import wait_until
from tests.workers import Worker, running

parcels = Module("parcels", version=1, retry=Retry(max_attempts=1))


@parcels.state
class Ready(State):
    n: int


@parcels.state(terminal=True)
class There(State):
    n: int


go = parcels.signal("go")


@parcels.on(Ready, go)
def went(tx: Transaction, state: Ready, _: None) -> There:
    tx.incrby("went")
    tx.send_task("print", args=[state.n])
    return There(state.n)


def executor_at(url: str, namespace: str, durability: str | None = None, **conf: Any) -> Executor:
    app = Celery("durable", broker="memory://", set_as_current=False)
    app.conf.update(conf)
    builder = ExecutorBuilder().with_module("parcels", parcels)
    return builder.build(app, url=url, namespace=namespace, durability=durability)


# --- fsync -----------------------------------------------------------------------------------------------------------


def test_a_server_that_answers_before_its_disk_has_it(server: EmbeddedServer, namespace: str) -> None:
    """With durability="fsync" a server with appendfsync everysec is NotDurable, and told what to set; whether it was
    asked for in build or in the configuration."""
    for executor in (
        executor_at(server.url, namespace, "fsync"),
        executor_at(server.url, namespace, smqueue_durability="fsync"),
    ):
        with pytest.raises(NotDurable, match="appendfsync everysec") as caught:
            executor.add_state_machines(machines("op", Ready(1)))
        assert "appendfsync always" in str(caught.value)
    assert not list(executor_at(server.url, namespace).get_active_operations())


def test_a_server_whose_disk_has_it(namespace: str) -> None:
    """One with appendfsync always is taken; when it is set otherwise later, the next connection is NotDurable."""
    with EmbeddedServer(fsync="always") as server:
        executor = executor_at(server.url, namespace, "fsync")
        executor.add_state_machines(machines("op", Ready(1)))
        client: Any = redis.Redis.from_url(server.url)
        client.config_set("appendfsync", "everysec")
        client.client_kill_filter(_type="normal")
        with pytest.raises(NotDurable):
            executor.add_state_machines(machines("op", Ready(2)))
        client.config_set("appendfsync", "always")
        executor.add_state_machines(machines("op", Ready(2)))


def test_a_user_that_may_not_look(namespace: str) -> None:
    """A user that may not ask for the setting is NotDurable, and told what to allow."""
    with EmbeddedServer(fsync="always") as server:
        client: Any = redis.Redis.from_url(server.url)
        client.execute_command("ACL", "SETUSER", "shop", "on", ">x", "~*", "&*", "+@all", "-config")
        url = server.url.replace("unix://", "unix://shop:x@")
        with pytest.raises(NotDurable, match=r"\+config\|get"):
            executor_at(url, namespace, "fsync").add_state_machines(machines("op", Ready(1)))
        client.execute_command("ACL", "SETUSER", "shop", "+config|get")
        executor_at(url, namespace, "fsync").add_state_machines(machines("op", Ready(1)))


def test_another_durability(server: EmbeddedServer, namespace: str) -> None:
    """Another word is a DefinitionError that names those that there are."""
    with pytest.raises(DefinitionError, match="'fsync' and 'replica'"):
        executor_at(server.url, namespace, "disk")
    with pytest.raises(DefinitionError, match="'fsync' and 'replica'"):
        executor_at(server.url, namespace, smqueue_durability="disk").add_state_machines(machines("op", Ready(1)))


# --- replica ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair() -> Iterator[SentinelDeployment]:
    with SentinelDeployment() as deployed:
        yield deployed


@pytest.fixture
def local(play: Play, pair: SentinelDeployment, monkeypatch: pytest.MonkeyPatch) -> Local:
    """A process with durability="replica", and the replica is there."""
    monkeypatch.setattr("smqueue.drivers.blocking.REPLICA_MS", 4_000)  # all but what its answer may take
    return play(url=f"redis://{pair.primary.address}", durability="replica", parcels=parcels)


@contextmanager
def apart(pair: SentinelDeployment, *, connected: bool = False) -> Iterator[None]:
    """Nothing reaches the replica, and that is not waited for; at the end it has all.

    Args:
        pair: It and its primary.
        connected: It is connected, but takes nothing.
    """
    (replica,) = [node for node in pair.servers if node is not pair.primary]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("smqueue.drivers.blocking.REPLICA_MS", 50)
        (replica.pause if connected else pair.cut_off)()
        try:
            yield
        finally:
            if connected:
                replica.resume()
            pair.join()


def at_replica(pair: SentinelDeployment) -> Any:
    (replica,) = [node for node in pair.servers if node is not pair.primary]
    return replica.client


def test_what_is_answered_is_on_a_replica(local: Local, pair: SentinelDeployment) -> None:
    """When adding, a signal, and a group of transitions have returned, the replica has them."""
    keys, replica = local.keys("op"), at_replica(pair)
    for n in range(20):
        local.add("op", Ready(n))
        assert replica.hlen(keys.active("op")) == n + 1
        local.executor.signal("op", go)
    assert len([1 for key in replica.scan_iter(keys.race("*"), count=1_000) if replica.hexists(key, "won")]) == 20
    assert local.drain() == 20
    assert replica.hlen(keys.inactive("op")) == 40
    local.executor.pause("op")
    assert replica.exists(keys.control("op"))
    local.executor.autocommit(lambda tx: tx.set("a", 1), module="parcels")
    assert replica.get(keys.data("parcels", "a")) == b"1"


WRITES: dict[str, Callable[[Local], Any]] = {
    "add": lambda local: local.executor.add_state_machines(machines("new", Ready(1))),
    "signal": lambda local: local.executor.signal("op", go, id="once"),
    "autocommit": lambda local: local.executor.autocommit(lambda tx: tx.set("a", 1), module="parcels"),
    "pause": lambda local: local.executor.pause("op"),
    "cancel": lambda local: local.executor.cancel("op"),
}


@pytest.mark.parametrize("call", WRITES)
def test_what_no_replica_has_is_not_acknowledged(local: Local, pair: SentinelDeployment, call: str) -> None:
    """Without a replica a call is NotReplicated, and so is its repetition, which has nothing more to write: only once
    the replica has it, is the caller told."""
    local.add("op", Ready(1))
    with apart(pair):
        for _ in range(2):
            with pytest.raises(NotReplicated):
                WRITES[call](local)
    if call == "add":
        with pytest.raises(StateAlreadyExists):
            WRITES[call](local)
        assert local.active("new") == [Ready(1)]
    else:
        WRITES[call](local)


def test_what_another_has_written_is_not_acknowledged_either(local: Local, pair: SentinelDeployment) -> None:
    """An answer that rests on what others have written is given once a replica has that: not that a state exists
    already, not that a signal was accepted before. (Valkey's WAIT is content with a connection that only looked.)"""
    other = local.another()
    other.add("op", Ready(1))
    _ = local.driver
    with apart(pair, connected=True):
        with pytest.raises(NotReplicated):
            other.add("new", Ready(1))
        with pytest.raises(NotReplicated):
            other.executor.signal("op", go, id="once")
        with pytest.raises(NotReplicated):
            local.add("new", Ready(1))
        with pytest.raises(NotReplicated):
            local.executor.signal("op", go, id="once")


def test_a_lost_reply_is_no_way_around(local: Local, pair: SentinelDeployment) -> None:
    """A commit whose reply was lost is recognised over another connection, which has written nothing: it is
    acknowledged only when a replica has it."""
    lost: list[RoundTrip] = []

    def lose(request: RoundTrip) -> None:
        """The commit is applied, and its confirmation never comes: as if the connection had broken in between."""
        if isinstance(request, Commit) and request.commands and not lost:
            lost.append(request)
            pipe: Any = local.redis.pipeline(transaction=True)
            for command in request.commands:
                pipe.execute_command(*command)
            pipe.execute()
            raise LostReply

    _ = local.driver
    with local.around_trips(before=lose):
        with apart(pair, connected=True), pytest.raises(NotReplicated):
            local.add("op", Ready(1))
        lost.clear()
        local.add("op", Ready(2))
        lost.clear()
        with apart(pair, connected=True), pytest.raises(NotReplicated):
            local.driver.run(_looked(local.keys().hint))
    assert set(local.active("op")) == {Ready(1), Ready(2)}


def _looked(key: str) -> Steps[bool]:
    """A protocol that finds by a look without WATCH that its commit was applied."""
    try:
        yield from commit([("SET", key, "1")])
    except LostReply:
        return (yield from read([], ("GET", key))) == [b"1"]
    return True


def test_a_group_that_no_replica_has(local: Local, pair: SentinelDeployment) -> None:
    """What transitions ask for is done only when a replica has them: their tasks are sent then, each under one id."""
    for n in range(5):
        local.add(f"op{n}", Ready(n))
        local.executor.signal(f"op{n}", go)
    with apart(pair):
        with pytest.raises(NotReplicated):
            local.drain()
        local.requests_due()
        with pytest.raises(NotReplicated):
            local.drain()
        assert not local.sent.tasks

    def all_sent() -> bool:
        local.expire_leases()
        local.requests_due()
        local.run()
        return len(local.sent.tasks) >= 5

    wait_until(all_sent, "the tasks to be sent")
    assert len({task_id for _, _, _, task_id, _ in local.sent.tasks}) == 5
    assert local.data("parcels", "went") == b"5"


def test_a_real_worker(pair: SentinelDeployment, server: EmbeddedServer, namespace: str, tmp_path: Path) -> None:
    """A real worker with smqueue_durability="replica" goes on when the replica is away for a while."""
    env = {**environment(pair.url, server.broker_url, namespace, tmp_path), "TEST_DURABILITY": "replica"}
    worker = Worker("tests.apps.shop:app", env, ["--pool", "threads", "-c", "2"])
    app = Celery("producer", broker=server.broker_url, set_as_current=False)
    app.conf.update(task_default_queue=namespace, smqueue_durability="replica")
    builder = ExecutorBuilder().with_module("orders", shop.orders).with_module("kinds", shop.kinds)
    executor = builder.build(app, url=pair.url, namespace=namespace)
    with running(worker):
        worker.wait_ready()
        executor.add_state_machines(machines("before", shop.Tasking(1), shop.Instant(2), shop.Polling(2)))
        executor.await_operation("before", 60)
        with apart(pair), pytest.raises(NotReplicated):
            executor.add_state_machines(machines("while", shop.Tasking(1), shop.Instant(2), shop.Polling(2)))
        executor.await_operation("while", 60)

"""The users of docs/security.md: with what the page gives them, and no more, everything works."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest
import redis

from smqueue import AsyncClient, AwaitTimeout, Executor, Module, State, StateMachine, StoreRefused, Transaction, now
from smqueue.cli import run
from smqueue.client import Client
from smqueue.drivers import functions
from smqueue.embedded import EmbeddedServer
from tests.apps import shop
from tests.brokers import redis_server
from tests.docs.pages import ROOT
from tests.inprocess import Local
from tests.monitor import Monitor, monitoring
from tests.shopping import Shop
from tests.waiting import wait_until
from tests.workers import running

USERS = re.findall(r"^ACL SETUSER (\w+) (.*)$", (ROOT / "docs/security.md").read_text(), re.MULTILINE)
"""As the page writes them: name and rules."""
NAMESPACE = "smqueue"
PASSWORD = "sesame"


class Guarded(NamedTuple):
    """A server with the users of the page."""

    admin: redis.Redis
    state: str
    broker: str


def as_user(url: str, user: str) -> str:
    """A URL with a user."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{user}:{PASSWORD}@{rest}"


@contextmanager
def serving(kind: str, directory: Path) -> Iterator[tuple[str, str]]:
    """A server; yields URLs of its databases for state and messages, as redis-py and as Celery spell them."""
    if kind == "valkey":
        with EmbeddedServer() as server:
            yield server.url, server.broker_url
        return
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("there is no redis-server on the PATH")
    with redis_server(binary, directory) as url:
        yield f"{url}/0", f"{url}/1"


@pytest.fixture(params=["valkey", "redis"])
def guarded(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Guarded]:
    with serving(request.param, tmp_path) as (url, broker), redis.Redis.from_url(url) as admin:
        assert [name for name, _ in USERS] == ["smqueue", "smqueue_broker", "smqueue_gateway"]
        newer = request.param == "valkey"  # what Redis 7.0 does not know cannot be allowed there
        for name, written in USERS:
            rules = written if newer else written.replace(" +client|setinfo", "")
            admin.execute_command("ACL", "SETUSER", name, *rules.replace("PASSWORD", PASSWORD).split())
        admin.execute_command("ACL", "LOG", "RESET")
        yield Guarded(admin, as_user(url, "smqueue"), as_user(broker, "smqueue_broker"))
        assert denied(admin) == []


def denied(admin: redis.Redis) -> list[tuple[Any, ...]]:
    """What users were refused: by whom, what, why."""
    log = cast("list[dict[str, Any]]", admin.acl_log())
    return [(one["username"], one["reason"], one["context"], one["object"]) for one in log]


brief = Module("brief", keep=timedelta(milliseconds=1))


@brief.state
class Writing(State):
    n: int


@brief.state(terminal=True)
class Wrote(State):
    n: int


@brief.on(Writing, now())
def wrote(tx: Transaction, state: Writing, _: None) -> Wrote:
    """Everything that a transaction can do."""
    assert (tx.now(), tx.get("a"), tx.get_bytes("b"), tx.get_many(["a", "c"])) != ()
    assert (tx.hget("h", "a"), tx.hgetall("h"), tx.exists("e"), tx.smembers("s"), tx.sismember("s", "x")) != ()
    assert tx.zrange("z", 0, -1) == []
    tx.set("a", "1")
    tx.delete("c")
    tx.incrby("n", 1)
    tx.hset("h", "a", "1")
    tx.hdel("h", "b")
    tx.hincrby("h", "n", 1)
    tx.sadd("s", "a")
    tx.srem("s", "b")
    tx.zadd("z", {"a": 1})
    tx.zrem("z", "b")
    tx.rpush("l", "a")
    tx.expire("l", timedelta(minutes=1))
    tx.publish("room-news", "a")
    tx.add_state_machines([StateMachine("child", Wrote(1))] if state.n < 0 else [])
    tx.signal("early", "again")
    return Wrote(state.n)


again = brief.signal("again")


@brief.on(Writing, again)
def kept(tx: Transaction, state: Writing, _: None) -> None:
    return None


steps = Module("steps")
on = steps.signal("on", int)


@steps.state
class Step(State):
    n: int


@steps.on(Step, on)
def stepped(tx: Transaction, state: Step, to: int) -> Step:
    return Step(to)


def steer(executor: Executor) -> None:
    """Pausing, cancelling, looking and following; the machines need no worker for it."""
    executor.pause("steered")
    executor.add_state_machines([StateMachine("steered", shop.Packing("steered"))])
    executor.resume("steered")
    executor.pause(module="orders", state=shop.Packing)
    executor.resume(module="orders", state=shop.Packing)
    assert executor.retry("steered") == 0
    assert executor.has_active_states("steered")
    assert executor.contains_active_state(StateMachine("steered", shop.Packing("steered")))
    assert list(executor.get_active_states("steered"))
    assert executor.cancel("steered", "no more", children=True) == 1
    assert [
        *executor.get_active_operations(),
        *executor.get_inactive_states(),
        *executor.get_operation_states("steered"),
    ]
    assert executor.autocommit(lambda tx: tx.set("a", "1"), module="orders") is None
    with executor.notifier.subscribe("steered", timeout=0.1) as updates:
        assert len(list(updates)) == 2
    with executor.notifier.subscribe_all(timeout=0.1) as feed:
        assert list(feed) == []


def allowed(user: str) -> set[str]:
    """The commands that the page allows a user; of those with subcommands their names."""
    rules = dict(USERS)[user]
    return {rule[1:].partition("|")[0].upper() for rule in rules.split() if rule.startswith("+")} - {"CLIENT"}


def used(monitor: Monitor, db: int) -> set[str]:
    """The commands that were asked of a database, scripts' included."""
    return {one.name for one in monitor.asked if one.db == db}


async def from_a_loop(client: AsyncClient, admin: redis.Redis) -> None:
    """What a client does for event loops; it listens to one operation no more while it listens to another."""

    def listened() -> bool:
        return bool(admin.pubsub_shardchannels("*:never"))  # type: ignore[no-untyped-call]

    machine = {"operation_id": "loop", "module": "orders", "type": "Packing", "state": {"order_id": "x"}}
    async with client, client.subscribe("loop", timeout=30) as updates:
        await client.add([machine])
        await client.signal("loop", "packed")
        assert [(await anext(updates)).step for _ in range(2)] == [1, 2]
        await client.await_operation("loop", 30)
        with pytest.raises(AwaitTimeout):
            await client.await_operation("never", 0.1)
        waits = asyncio.create_task(client.await_operation("never", 30))
        await asyncio.to_thread(wait_until, listened, "it listens")
        waits.cancel()
        await asyncio.to_thread(wait_until, lambda: not listened(), "it listens no more")
        await client.await_operation("client", 30)


def test_a_whole_life_under_least_privilege(guarded: Guarded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the two users of docs/security.md every kind of trigger runs to its end in a real worker; adding,
    signalling, steering, looking, following, auditing, retention, a client without Celery and all that a transaction
    can do work, too; and the server has refused nobody anything."""
    world = Shop(guarded.state, guarded.broker, NAMESPACE, tmp_path)
    with running(worker := world.worker("-c", "2", "-E")), monitoring(guarded.admin) as monitor:
        worker.wait_ready()
        world.run_every_kind()
        steer(world.executor)
        world.add("breaking", shop.Breaking("raise"))
        wait_until(lambda: world.executor.explain("breaking").active[0].status == "quarantined", "set aside", 60)
        assert world.executor.retry("breaking") == 1
        client = Client(guarded.state, NAMESPACE)
        client.add([{"operation_id": "client", "module": "orders", "type": "Packing", "state": {"order_id": "x"}}])
        client.signal("client", "packed", id="once")
        client.await_operation("client", 30)
        asyncio.run(from_a_loop(AsyncClient(guarded.state, NAMESPACE), guarded.admin))
        monkeypatch.setenv("SMQUEUE_URL", guarded.state)
        monkeypatch.setenv("SMQUEUE_NAMESPACE", NAMESPACE)
        watchers = world.executor.deployment.keys("gone").watchers("gone")
        guarded.admin.sadd(watchers, "left:behind:by-nobody")  # for the audit to look at
        for command in (["list"], ["show", "client"], ["why", "breaking"], ["verify"], ["metrics", "--once"]):
            assert run(command) in {0, 1}, command
        local = Local(guarded.state, NAMESPACE, {"brief": brief})
        local.add("writing", Writing(1))
        local.until(lambda: "UNLINK" in used(monitor, 0), timeout_s=60)  # it is forgotten
        needless = allowed("smqueue") - used(monitor, 0)
    assert needless <= {"SELECT"}, "only for a database other than 0"


@pytest.mark.parametrize(
    "command",
    [
        "FLUSHALL", "KEYS *", "CONFIG GET *", "SCRIPT FLUSH", "ACL WHOAMI", "CLIENT LIST", "MONITOR", "SHUTDOWN",
        "SAVE", "GET {other.0}:meta", "GET {smqueue.0.0}:meta", "SET celery x", "PUBLISH other x", "SUBSCRIBE other",
        "EVAL return(redis.call('get','{other.0}:meta')) 0", "EVAL return(redis.call('keys','*')) 0",
    ],
)  # fmt: skip
def test_what_the_user_may_not(server: EmbeddedServer, command: str) -> None:
    """The user of the state can neither reach another namespace's keys, the broker's or other channels, nor ask the
    server for anything but what it needs, in a script as little as outside of one."""
    name, rules = USERS[0]
    with redis.Redis.from_url(server.url) as admin:
        admin.execute_command("ACL", "SETUSER", "least", *rules.replace("PASSWORD", PASSWORD).split())
        assert name == "smqueue"
        with redis.Redis.from_url(as_user(server.url, "least")) as least:
            assert least.get("{smqueue.0}:meta") is None
            with pytest.raises(redis.ResponseError, match="permission"):
                least.execute_command(*command.split(maxsplit=2 if command.startswith("EVAL") else -1))


def test_who_lacks_a_permission_is_told(server: EmbeddedServer, namespace: str) -> None:
    """A user whose rules are not those of the page is told what he lacks, in one line and without his password."""
    with redis.Redis.from_url(server.url) as admin:
        admin.execute_command("ACL", "SETUSER", "lesser", "on", f">{PASSWORD}", "~*", "&*", "+@all", "-hsetnx")
        local = Local(as_user(server.url, "lesser"), namespace, {"brief": brief})
        with pytest.raises(StoreRefused, match="hsetnx") as caught:
            local.add("op", Writing(1))
    assert PASSWORD not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_who_may_not_all_that_a_script_writes_moves_machines_by_exec(server: EmbeddedServer, namespace: str) -> None:
    """Rules that are older than a script tear nothing: a machine that such a user moves is whole, and moves on."""
    with redis.Redis.from_url(server.url) as admin:
        admin.execute_command("ACL", "SETUSER", "poorer", "on", f">{PASSWORD}", "~*", "&*", "+@all", "-mset")
    whole = Local(server.url, namespace, {"steps": steps})
    poorer = Local(as_user(server.url, "poorer"), namespace, {"steps": steps})
    whole.add("op", Step(1))
    for to in (2, 3):
        whole.executor.signal("op", on, to)
        assert poorer.drain() == 1
        assert whole.active("op") == [Step(to)]


def test_a_gateways_user(guarded: Guarded) -> None:
    """Under the gateway's user of the page all functions work and answers are taken, in every shard, and the server has
    refused nothing; it has no right that is not needed."""
    guarded.admin.function_load(functions.text())
    local = Local(guarded.state, NAMESPACE, {"brief": brief}, shards=2)
    assert list(local.executor.get_active_operations()) == []
    gateway = redis.Redis.from_url(guarded.state.replace("//smqueue:", "//smqueue_gateway:"))
    with gateway, monitoring(guarded.admin) as monitor:
        for op in ("op-1", "op-2", "op-3", "op-4"):
            key: Any = gateway.fcall_ro("smqueue_key", 1, "{smqueue.0}:meta", op)
            added: Any = gateway.fcall("smqueue_add", 1, key, op, "brief", "Writing", '{"n": "x"}')
            sent: Any = gateway.fcall("smqueue_signal", 1, key, op, "again", "null", "id", "1")
            local.drain(0)
            local.drain(1)
            refused, done = (json.loads(cast("Any", gateway.blpop([reply], 10))[1]) for reply in (added, sent))
            assert (refused["error"], done) == ("InvalidState", {"value": "BUFFERED"})
        needless = allowed("smqueue_gateway") - used(monitor, 0)
    assert needless == set()


@pytest.mark.parametrize(
    "command",
    [
        "GET {smqueue.0}:machine:x", "HGETALL {smqueue.0}:active:op", "HSET {smqueue.0}:active:op f v",
        "HSET {smqueue.0}:meta shards 9", "DEL {smqueue.0}:requests", "LRANGE {smqueue.0}:requests 0 -1",
        "RPUSH {smqueue.0}:unsent x", "SET {smqueue.0}:data:m:k v", "SET {smqueue.0}:marker:x v",
        "FCALL smqueue_signal 1 {other.0}:requests op name null", "FUNCTION LIST", "FUNCTION DELETE smqueue",
        "PUBLISH {smqueue.0}:bells x", "EVAL return(1) 0", "KEYS *",
    ],
)  # fmt: skip
def test_what_the_gateway_may_not(server: EmbeddedServer, command: str) -> None:
    """The gateway's user can read and change no record, nor the functions, nor what belongs to others."""
    with redis.Redis.from_url(server.url) as admin:
        rules = dict(USERS)["smqueue_gateway"]
        admin.execute_command("ACL", "SETUSER", "gate", *rules.replace("PASSWORD", PASSWORD).split())
        admin.function_load(functions.text(), replace=True)
        gate = redis.Redis.from_url(as_user(server.url, "gate"))
        with gate, pytest.raises(redis.ResponseError, match="ermission"):
            gate.execute_command(*command.split())

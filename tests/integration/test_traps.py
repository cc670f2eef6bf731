"""Traps of the systems that we stand on, where no other file has a test of what we do about them: see docs/traps.md."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import pickle
import signal
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.utils.serialization import get_pickled_exception
from redis.connection import AbstractConnection, UnixDomainSocketConnection

from smqueue import (
    AwaitTimeout,
    Client,
    ExecutorBuilder,
    Module,
    Retry,
    SmqueueError,
    State,
    StateMachine,
    Transaction,
    after,
    errors,
    poll,
)  # fmt: skip
from smqueue.embedded import EmbeddedServer
from smqueue.protocols import runs
from smqueue.roundtrip import Commit, Read, RoundTrip
from tests.inprocess import Local, Play
from tests.proxy import Proxy

walk = Module("walk", retry=Retry(max_attempts=2))
go = walk.signal("go", str)
ran: list[str] = []


@walk.state
class Here(State):
    name: str


@walk.state(terminal=True)
class End(State):
    name: str


@walk.on(Here, go)
def gone(tx: Transaction, state: Here, to: str) -> Here | End:
    ran.append(to)
    kind, _, name = to.partition(" ")
    return End(name) if kind == "end" else Here(name)


@walk.on(Here, after(hours=1))
def late(tx: Transaction, state: Here, _: None) -> End:
    return End("late")


@walk.state
class Asking(State):
    name: str


def ask(state: Asking, context: Any) -> int | None:
    ran.append(state.name)
    return None


@walk.on(Asking, go)
def asked_again(tx: Transaction, state: Asking, to: str) -> Asking:
    return state


@walk.on(Asking, poll(ask, every=timedelta(hours=1)))
def asked(tx: Transaction, state: Asking, found: int) -> End:
    return End("found")


@pytest.fixture
def local(play: Play) -> Local:
    ran.clear()
    return play(walk=walk)


# --- commits ---


@pytest.mark.parametrize("beside", ["in its operation", "in another"])
def test_unrelated_machines_never_conflict(local: Local, beside: str) -> None:
    """A machine whose neighbour, of its operation too, moves between its look and its commit commits at the first
    attempt: each watches a guard of its own, never a hash that they share."""
    other = "op" if beside == "in its operation" else "other"
    a, _ = local.add("op", Here("a"), Here("a2"))
    b, *_ = local.add(other, Here("b"), Here("b2"))
    local.executor.signal("op", go, "here a+", machine=a)
    neighbour = local.another()

    def meddle() -> None:
        neighbour.executor.signal(other, go, "here b+", machine=b)
        assert neighbour.drain() == 1

    with local.before_moves(meddle):
        assert local.drain() == 1
    assert ran == ["here a+", "here b+"]


def test_a_commit_whose_reply_was_lost_is_recognised(local: Local, play: Play, proxy: Proxy) -> None:
    """A worker that does not hear whether its commit was applied looks for its own id before anything else: the handler
    does not run again."""
    local.add("op", Here("x"))
    local.executor.signal("op", go, "end y")
    shaky = play(walk=walk, url=proxy.url)
    shaky.executor.has_active_states("op")
    proxy.lose_replies(1)
    shaky.drain()
    assert proxy.lost == 1
    assert local.inactive("op") == [Here("x"), End("y")]
    assert ran == ["end y"]


def test_a_look_and_a_commit_are_one_packet_each(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    """An add is two packets, its WATCH in one with its reads, and MULTI with all up to EXEC; what begins an operation
    is one, a script. A transition is one, after its claim, or if it takes a look, two."""
    local.add("first", Here("x"))
    sent: list[bytes] = []

    class Noting:
        def __init__(self, socket: Any) -> None:
            self.socket = socket

        def sendall(self, data: bytes) -> None:
            sent.append(data)
            self.socket.sendall(data)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.socket, name)

    connect: Any = UnixDomainSocketConnection._connect
    monkeypatch.setattr(UnixDomainSocketConnection, "_connect", lambda self: Noting(connect(self)))
    local.executor.deployment.driver.close()  # so that the next connection is such a one
    local.executor.has_active_states("first")
    sent.clear()
    local.executor.add_state_machines([StateMachine("op", Here("x"))])
    local.executor.add_state_machines([StateMachine("both", Here(name)) for name in "xy"])
    assert [[word in one for word in (b"EVALSHA", b"WATCH", b"MULTI", b"EXEC\r")] for one in sent] == [
        [True, False, False, False], [False, True, False, False], [False, False, True, True],
    ]  # fmt: skip
    local.executor.signal("op", go, "here y")
    sent.clear()
    assert local.drain() == 1
    (moved,) = [one for one in sent if b"WATCH" in one or b"EXEC\r" in one]
    assert moved.index(b"MULTI") < moved.index(b"EVALSHA") < moved.index(b"EXEC\r")
    local.redis.sadd(local.keys().watchers("op"), "nobody")
    local.executor.signal("op", go, "end y")
    sent.clear()
    assert local.drain() == 1
    _refused, *moved = [one for one in sent if b"WATCH" in one or b"EXEC\r" in one]
    assert [b"MULTI" in one for one in moved] == [False, True]
    assert sent.index(moved[1]) == sent.index(moved[0]) + 1


def test_no_script_is_called_by_digest_among_others_in_a_transaction(local: Local) -> None:
    """A server that has restarted knows no script: everything goes on, and no EXEC holds an EVALSHA beside commands: it
    would fail alone, its neighbours applied. Scripts that are a transition each have no neighbours."""
    held: list[Any] = []

    def note(request: RoundTrip) -> None:
        if isinstance(request, Commit):
            held.extend(command[0] for command in request.commands)
        local.redis.script_flush()

    with local.before_commits(note):
        local.add("op", Here("x"))
        local.executor.signal("op", go, "here y")
        local.redis.script_flush()
        local.run()
        local.redis.script_flush()
        local.redis.sadd(local.keys().watchers("op"), "nobody")  # so that it takes a look to end it
        local.executor.signal("op", go, "end z")
        local.settle("op")
        local.executor.cancel("op")
    assert "EVAL" in held
    assert "EVALSHA" not in held


def test_a_command_that_fails_inside_a_commit_is_reported(local: Local, caplog: pytest.LogCaptureFixture) -> None:
    """EXEC does not roll back. Should a command fail in it all the same, for somebody has meddled with smqueue's keys,
    each reply is looked at, and it is said which machine it was and what failed."""
    local.add("op", Here("x"))
    local.executor.signal("op", go, "here y")
    key = local.keys().updates

    def meddle() -> None:
        local.redis.delete(key)
        local.redis.set(key, "no stream")

    with local.before_moves(meddle):
        local.drain()
    local.redis.delete(key)
    said = [record.getMessage() for record in caplog.records if "torn commit" in record.getMessage()]
    assert len(said) == 1
    assert "operation op" in said[0]
    assert "WRONGTYPE" in said[0]


# --- connections ---


def test_no_connection_repeats_a_command_or_waits_for_ever(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    """redis-py repeats by default, and ``from_url`` has no limit of time: every connection of ours is made without
    repetition and with both limits, those of subscriptions too."""
    made: list[Any] = []
    connect: Any = AbstractConnection.connect

    def note(self: Any) -> Any:
        made.append(self)
        return connect(self)

    local.redis.close()
    monkeypatch.setattr(AbstractConnection, "connect", note)
    another = local.another()
    another.add("op", Here("x"))
    with another.executor.notifier.subscribe("op", timeout=0) as updates:
        assert len(list(updates)) == 1
    ours = [one for one in made if one.redis_connect_func is not None]
    assert len(ours) >= 2
    for one in ours:
        assert one.retry.get_retries() == 0
        assert not one.retry_on_error
        assert 0 < one.socket_timeout <= 30
        assert 0 < getattr(one, "socket_connect_timeout", 5) <= 30


def test_blocking_reads_are_shorter_than_the_limit_of_a_connection(server: EmbeddedServer, namespace: str) -> None:
    """Who waits for longer than a URL lets a connection wait for a reply is told that nothing has come, and not that
    Redis is away."""
    client = Client(f"{server.url}&socket_timeout=0.5", namespace)
    machine = {"operation_id": "op", "module": "walk", "type": "Here", "state": {"name": "x"}}
    with pytest.raises(AwaitTimeout):
        client.add([machine], timeout=1.5)
    with pytest.raises(AwaitTimeout):
        client.await_operation("op", timeout=1.5)


def test_a_fork_shares_no_connection(local: Local) -> None:
    """A process forked from one that has connections, with a lock held, makes its own."""
    driver: Any = local.executor.deployment.driver
    own = driver.command("CLIENT", "ID")
    receiving, sending = os.pipe()
    with driver._lock:
        child = os.fork()
        if not child:
            status = 1
            try:
                signal.alarm(20)
                os.write(sending, json.dumps(driver.command("CLIENT", "ID")).encode())
                status = 0
            finally:
                os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert json.loads(os.read(receiving, 100)) != own
    assert driver.command("CLIENT", "ID") == own
    os.close(receiving)
    os.close(sending)


def test_waiting_leaves_no_subscription_behind(local: Local) -> None:
    """Who has waited, in vain or not, or has followed, leaves no subscription on the server."""
    local.add("op", Here("x"))
    with pytest.raises(AwaitTimeout):
        local.executor.await_operation("op", 0.01)
    local.executor.await_active_state(StateMachine("op", Here("x")), 1)
    with local.executor.notifier.subscribe("op", timeout=0) as updates:
        assert list(updates)
    with local.executor.notifier.subscribe_all(timeout=0) as feed:
        assert not list(feed)
    assert local.redis.pubsub_shardchannels(f"*{local.namespace}*") == []


# --- Celery ---


def test_results_are_not_kept(local: Local) -> None:
    """Hints leave nothing in a result back end; the two tasks that are calls answer, if the application wants that."""
    kept = {name for name, task in local.app.tasks.items() if name.startswith("smqueue.") and not task.ignore_result}
    assert kept == {"smqueue.add", "smqueue.signal"}


MODULE = """
import settings_of_the_framework
if not settings_of_the_framework.ready:
    raise RuntimeError("AppRegistryNotReady")
from smqueue import Module, State
machines = Module("machines")
@machines.state(terminal=True)
class Over(State):
    n: int
"""


def test_modules_and_settings_are_read_late(
    server: EmbeddedServer, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with Django, neither the file of machines can be imported nor Celery configured when the executor is built:
    both are looked at when it is first used."""
    (tmp_path / "settings_of_the_framework.py").write_text("ready = False\n")
    (tmp_path / "late_machines.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    app = Celery("framework", broker="memory://", set_as_current=False)
    executor = ExecutorBuilder().with_module("late", "late_machines:machines").build(app)
    assert "late_machines" not in sys.modules
    monkeypatch.setattr("settings_of_the_framework.ready", True)
    app.conf.update(smqueue_url=server.url, smqueue_namespace=namespace)
    assert list(executor.get_active_states(module="late")) == []
    machine = StateMachine("op", importlib.import_module("late_machines").Over(1))
    assert not executor.contains_active_state(machine)
    assert executor.deployment.settings.namespace == namespace


ERRORS = [one for _, one in inspect.getmembers(errors, inspect.isclass) if issubclass(one, SmqueueError)]


@pytest.mark.parametrize("kind", ERRORS)
def test_every_error_survives_a_trip_through_celery(kind: type[SmqueueError]) -> None:
    """Each comes back from pickle, and from Celery's JSON results, as its own class with its own fields and text."""
    error = kind(*[f"<{name}>" for name in kind.fields])
    backend = Celery("trip", backend="cache+memory://", set_as_current=False).backend
    told = json.loads(json.dumps(backend.prepare_exception(error, serializer="json")))
    for again in (pickle.loads(pickle.dumps(error)), get_pickled_exception(error), backend.exception_to_python(told)):
        assert type(again) is kind
        assert again.args == error.args
        assert str(again) == str(error)
        assert [getattr(again, name) for name in kind.fields] == [f"<{name}>" for name in kind.fields]
    assert all(f"<{name}>" in str(error) for name in kind.fields if f"{{{name}}}" in str(kind.__doc__))


# --- messages ---


def test_a_message_that_comes_twice_runs_nothing_twice(local: Local) -> None:
    """The second copy of a trigger's message finds that the first was answered, and that the next run is later."""
    local.add("op", Asking("a"))
    local.drain()
    (message,) = local.sent.triggers
    assert local.attempt(message) == "AGAIN"
    assert local.attempt(message) == "STALE"
    assert ran == ["a"]


def test_a_message_of_an_earlier_life_does_nothing(local: Local) -> None:
    """A→A: neither does a message of the earlier visit run the trigger of the present one, though that is to run just
    now, nor does an outcome of the earlier one count. (semantics 24)"""
    local.add("op", Asking("a"))
    local.drain()
    (old,) = local.sent.triggers
    local.executor.signal("op", go, "")
    local.drain()
    _, new = local.sent.triggers
    assert local.active("op") == [Asking("a")]
    assert local.attempt(old) == "STALE"
    told, _ = local.driver.run(runs.outcome(local.keys("op"), old.entry, old.kind, "1"))
    assert told == "STALE"
    assert ran == []
    assert local.attempt(new) == "AGAIN"


# --- the store ---


def test_no_command_reads_a_whole_operation(local: Local) -> None:
    """An operation may be large: whoever looks at it, follows it or cancels it reads its machines page by page."""
    local.executor.add_state_machines([StateMachine("op", Here(str(n))) for n in range(1_200)])
    large = {local.keys().active("op"), local.keys().inactive("op")}
    asked: set[str] = set()

    def note(request: RoundTrip) -> None:
        if isinstance(request, Read):
            asked.update(str(command[0]) for command in request.commands if large & set(command[1:]))

    with local.around_trips(before=note):
        assert len(list(local.executor.get_operation_states("op"))) == 1_200
        assert len(local.executor.explain("op").active) == 1_200
        assert len(local.executor.notifier.history("op")) == 1_200
        assert local.executor.cancel("op") == 1_200
        assert len(local.executor.explain("op").past) == 1_200
    assert "HSCAN" in asked
    assert not asked & {"HGETALL", "HVALS", "HKEYS"}

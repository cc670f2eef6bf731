"""What a server that is not there, or not as it should be, gets; and definitions that do not fit."""

from __future__ import annotations

import pickle
import socket
import socketserver
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from smqueue import Executor, ExecutorBuilder, Module, State, StateMachine, Transaction, now
from smqueue.embedded import EmbeddedServer
from smqueue.errors import (
    AmbiguousModule,
    CrossShard,
    DefinitionError,
    DuplicateModule,
    EagerRefused,
    NoDeployment,
    SmqueueError,
    StoreRefused,
    StoreTooOld,
    StoreUnavailable,
    WrongShardCount,
)
from tests.apps import faulty
from tests.apps.wiring import environment
from tests.inprocess import Local, Play
from tests.waiting import wait_until
from tests.workers import Worker, running

plain = Module("plain", version=1)


@plain.state
class Begun(State):
    n: int


@plain.state(terminal=True)
class Ended(State):
    n: int


@plain.on(Begun, now())
def ended(tx: Transaction, state: Begun, _: None) -> Ended:
    return Ended(state.n)


def executor_at(url: str | None, namespace: str = "errors", **conf: Any) -> Executor:
    """An executor as a user builds it; nothing connects before it is used."""
    app = Celery("errors", broker="memory://", set_as_current=False)
    app.conf.update(conf)
    return ExecutorBuilder().with_module("plain", plain).build(app, url=url, namespace=namespace)


CALLS: dict[str, Callable[[Executor], Any]] = {
    "add": lambda executor: executor.add_state_machines([StateMachine("op", Begun(1))]),
    "autocommit": lambda executor: executor.autocommit(lambda tx: tx.set("a", 1)),
    "queries": lambda executor: list(executor.get_active_states()),
    "await": lambda executor: executor.await_operation("op", 1),
    "cancel": lambda executor: executor.cancel("op"),
    "pause": lambda executor: executor.pause("op"),
    "explain": lambda executor: executor.explain("op"),
    "subscribe": lambda executor: next(executor.notifier.subscribe("op", timeout=1)),
    "subscribe_all": lambda executor: next(executor.notifier.subscribe_all(timeout=1)),
}
WRITES = ("add", "autocommit", "cancel", "pause")


def one_line(error: SmqueueError) -> str:
    """The error's text: one line, no traceback, and the same after a trip through Celery."""
    text = str(error)
    assert "\n" not in text
    assert "Traceback" not in text
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == text
    return text


@contextmanager
def raises(kind: type[SmqueueError]) -> Iterator[list[str]]:
    """Exactly this error; its one line is put into the list."""
    lines: list[str] = []
    with pytest.raises(SmqueueError) as caught:
        yield lines
    assert type(caught.value) is kind, repr(caught.value)
    lines.append(one_line(caught.value))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# --- no server -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", list(CALLS))
@pytest.mark.parametrize("where", ["tcp", "unix"])
def test_no_server(call: str, where: str) -> None:
    """With no server every call is StoreUnavailable, in one line that names the address, without its password."""
    url = f"redis://:sesame@127.0.0.1:{free_port()}/0" if where == "tcp" else "unix:///tmp/no-such-smqueue.sock?db=0"
    executor = executor_at(url)
    with raises(StoreUnavailable) as lines:
        CALLS[call](executor)
    assert ("127.0.0.1" if where == "tcp" else "no-such-smqueue.sock") in lines[0]
    assert "sesame" not in lines[0]


def test_building_needs_no_server() -> None:
    """Building connects nothing and runs nothing. (semantics 2)"""
    executor_at(f"redis://127.0.0.1:{free_port()}/0")


def test_a_server_that_goes_and_comes_back(tmp_path: Path) -> None:
    """While the server is away calls are StoreUnavailable; once it is back the same executor works, and nothing
    that was acknowledged is gone. (semantics 5)"""
    with tempfile.TemporaryDirectory(prefix="smq") as data, EmbeddedServer(Path(data), fsync="always") as server:
        executor = executor_at(server.url)
        CALLS["add"](executor)
        server.stop()
        for call in WRITES:
            with raises(StoreUnavailable):
                CALLS[call](executor)
        server.start()
        assert wait_until(lambda: answer(executor), "the circuit to close")
        executor.cancel("op")


def answer(executor: Executor) -> bool:
    """Whether the server answers, with the machine that was acknowledged."""
    try:
        return executor.contains_active_state(StateMachine("op", Begun(1)))
    except StoreUnavailable:
        return False


def test_a_restart_is_no_error_of_its_callers(tmp_path: Path) -> None:
    """A server that restarts while producers add costs them a delay, and none of them an error; what was acknowledged
    is there. (semantics 5)"""
    with tempfile.TemporaryDirectory(prefix="smq") as data, EmbeddedServer(Path(data), fsync="always") as server:
        executor = executor_at(server.url)
        executor.has_active_states("op")
        driver: Any = executor.deployment.driver
        driver._circuit.patience_s = 60  # of the machine that this runs on, nothing is known
        added: list[str] = []
        errors: list[Exception] = []
        done = threading.Event()

        def produce(who: str) -> None:
            while not done.is_set() and not errors:
                try:
                    executor.add_state_machines([StateMachine(f"{who}-{len(added)}", Begun(1))])
                    added.append(who)
                except Exception as error:
                    errors.append(error)

        producers = [threading.Thread(target=produce, args=(f"p{n}",)) for n in range(4)]
        for producer in producers:
            producer.start()
        for _ in range(3):
            so_far = len(added)
            wait_until(lambda so_far=so_far: len(added) > so_far + 20 or errors, "machines to be added")
            server.stop()
            server.start()
        done.set()
        for producer in producers:
            producer.join(70)
        assert errors == []
        assert len(list(executor.get_active_operations())) == len(added)


# --- a server that refuses -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def locked() -> Iterator[EmbeddedServer]:
    with EmbeddedServer(password="sesame") as server:
        yield server


@pytest.mark.parametrize("call", list(CALLS))
@pytest.mark.parametrize("given", ["none", "wrong"])
def test_a_wrong_password(locked: EmbeddedServer, call: str, given: str) -> None:
    """With no or a wrong password every call is StoreRefused, in one line that says to check it and does not show
    it."""
    url = f"unix://{'' if given == 'none' else ':guess@'}{locked.socket_path}?db=0"
    with raises(StoreRefused) as lines:
        CALLS[call](executor_at(url))
    assert "password" in lines[0]
    assert "guess" not in lines[0]
    assert "sesame" not in lines[0]


def test_the_right_password(locked: EmbeddedServer) -> None:
    """With the right one it works."""
    CALLS["add"](executor_at(locked.url))


@pytest.mark.parametrize("call", WRITES)
@pytest.mark.parametrize("since", ["the beginning", "a fail-over"])
def test_a_read_only_replica(call: str, since: str) -> None:
    """Writing to a replica is StoreRefused, in one line that says to give the primary's address."""
    import redis

    with EmbeddedServer() as server:
        executor = executor_at(server.url)
        if since == "a fail-over":
            executor.has_active_states("op")
        client: Any = redis.Redis.from_url(server.url)
        client.execute_command("REPLICAOF", "127.0.0.1", str(free_port()))
        with raises(StoreRefused) as lines:
            CALLS[call](executor)
        assert "replica" in lines[0]
        assert "primary" in lines[0]


class OldServer(socketserver.BaseRequestHandler):
    """Speaks as much of the protocol as a client needs to learn its version."""

    def handle(self) -> None:
        while data := self.request.recv(65536):
            for _ in range(data.count(b"*")):
                info = b"# Server\r\nredis_version:6.2.14\r\n"
                self.request.sendall(b"$%d\r\n%s\r\n" % (len(info), info) if b"INFO\r\n" in data else b"+OK\r\n")
                if b"INFO\r\n" in data:
                    break


@pytest.mark.parametrize("call", list(CALLS))
def test_a_server_that_is_too_old(call: str) -> None:
    """A server before 7.0 is StoreTooOld, in one line that names its version and what is needed."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), OldServer) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            with raises(StoreTooOld) as lines:
                CALLS[call](executor_at(f"redis://127.0.0.1:{server.server_address[1]}/0"))
        finally:
            server.shutdown()
    assert "6.2.14" in lines[0]
    assert "7.0" in lines[0]


def test_a_wrong_number_of_shards(server: EmbeddedServer, namespace: str) -> None:
    """A namespace keeps the number of shards that it was made with; another is refused, naming both."""
    CALLS["add"](executor_at(server.url, namespace))
    wrong = executor_at(server.url, namespace, smqueue_shards=4)
    for call in CALLS.values():
        with raises(WrongShardCount) as lines:
            call(wrong)
        assert "1 shards" in lines[0]
        assert "4 were" in lines[0]
    CALLS["add"](executor_at(server.url, "four-" + namespace[-8:], smqueue_shards=4))
    with raises(WrongShardCount):
        CALLS["add"](executor_at(server.url, "four-" + namespace[-8:]))


def test_a_batch_that_spans_shards(server: EmbeddedServer, namespace: str) -> None:
    """A batch whose operations live in several shards is CrossShard, and nothing is written. (semantics 9)"""
    executor = executor_at(server.url, namespace, smqueue_shards=4)
    with raises(CrossShard):
        executor.add_state_machines([StateMachine(f"op{n}", Begun(1)) for n in range(20)])
    assert list(executor.get_active_operations()) == []


@pytest.mark.parametrize("url", ["http://127.0.0.1/", "nonsense", "redis://127.0.0.1:port/0"])
def test_a_url_that_makes_no_sense(url: str) -> None:
    """A URL that makes no sense is StoreRefused in one line."""
    with raises(StoreRefused):
        CALLS["add"](executor_at(url))


def test_no_url_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a URL anywhere it is NoDeployment, which names the three places for one; eager mode is refused."""
    monkeypatch.delenv("SMQUEUE_URL", raising=False)
    with raises(NoDeployment) as lines:
        CALLS["add"](executor_at(None))
    assert "SMQUEUE_URL" in lines[0]
    with raises(EagerRefused):
        CALLS["add"](executor_at("redis://127.0.0.1:1/0", task_always_eager=True))


def test_workers_keep_trying_and_say_so_once(server: EmbeddedServer, namespace: str) -> None:
    """A worker whose state server is away says so once, keeps trying, says once that it is back, and goes on.
    (semantics 5)"""
    with tempfile.TemporaryDirectory(prefix="smq") as data, EmbeddedServer(Path(data), fsync="always") as state:
        env = environment(state.url, server.broker_url, namespace)
        client = Local(state.url, namespace, {"faulty": faulty.faulty})
        client.add("op", faulty.Trying(1))
        state.stop()
        with running(one := Worker("tests.apps.faulty", env, ["-c", "1"])):
            one.wait_ready()
            for back in (1, 2):
                wait_until(lambda back=back: one.output.count("trying again until it answers") == back, "it to say so")
                gone = one.output.count("No answer from Redis")
                state.start()
                wait_until(
                    lambda back=back: one.output.count("Redis answers again") == back or back == 1, "it to say so"
                )
                client.add(f"op{back}", faulty.Bad("fine"))
                client.executor.await_operation(f"op{back}", 30)
                assert one.output.count("trying again until it answers") == back
                assert gone == back
                if back == 1:
                    state.stop()
            client.executor.signal("op", faulty.word, "go")
            client.executor.await_operation("op", 30)
            assert "Traceback" not in one.output


# --- definitions -----------------------------------------------------------------------------------------------------


def test_one_id_twice() -> None:
    """Two modules with one id are refused when defined, naming both places. (semantics 1)"""
    builder = ExecutorBuilder().with_module("plain", plain)
    with raises(DuplicateModule) as lines:
        builder.with_module("plain", Module("another", version=1))
    assert lines[0].count("test_store_errors.py:") == 2


@pytest.mark.parametrize("kind", ["no return", "wrong state", "two parameters", "wrong outcome"])
def test_wrong_annotations(kind: str) -> None:
    """A handler whose annotations do not fit is refused when the module is first used, naming the place."""
    module: Module[Any] = Module("wrong", version=1)

    @module.state
    class One(State):
        n: int

    @module.state(terminal=True)
    class Two(State):
        n: int

    number = module.signal("number", int)

    with raises(DefinitionError) as lines:
        match kind:
            case "no return":

                @module.on(One, number)
                def handler(tx: Transaction, state: One, got: int):  # type: ignore[no-untyped-def]
                    return Two(1)

            case "wrong state":

                @module.on(One, number)
                def handler(tx: Transaction, state: One, got: int) -> Begun:
                    return Begun(1)

            case "two parameters":

                @module.on(One, number)  # type: ignore[arg-type]
                def handler(tx: Transaction, state: One) -> Two:
                    return Two(1)

            case _:

                @module.on(One, number)  # type: ignore[arg-type]
                def handler(tx: Transaction, state: One, got: str) -> Two:
                    return Two(1)

        module.resolve()
    assert "test_store_errors.py:" in lines[0]
    assert "handler" in lines[0]


def test_a_state_of_two_instances(play: Play) -> None:
    """A state whose module is registered twice is refused unless it is said which is meant; the error names both."""
    local = play(left=plain, right=plain)
    with raises(AmbiguousModule) as lines:
        local.executor.add_state_machines([StateMachine("op", Begun(1))])
    assert "left" in lines[0]
    assert "right" in lines[0]
    local.add("op", Begun(1), module="left")
    assert not local.executor.contains_active_state(StateMachine("op", Begun(1), "right"))


def test_a_state_registered_with_two_modules() -> None:
    """One class cannot be a state of two modules; the error names both, and where it was registered first."""
    second: Module[Any] = Module("second", version=1)
    with raises(DefinitionError) as lines:
        second.state(Begun)
    assert "plain" in lines[0]
    assert "second" in lines[0]
    assert lines[0].count("test_store_errors.py:") == 2

"""The Redis functions: what redis-cli or a gateway does with one command, and what it is told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis

from smqueue import Module, State, StateMachine, Transaction
from smqueue.cli import run
from smqueue.embedded import EmbeddedServer
from smqueue.keys import Keys, shard_of
from smqueue.protocols.bounds import REQUESTS_KEPT
from smqueue.protocols.requests import ANSWER_S
from smqueue.states import MAX_OPERATION_ID_BYTES
from tests.brokers import redis_server
from tests.docs.pages import ROOT
from tests.inprocess import Local

shop = Module("shop")


@shop.state
class Awaiting(State):
    total: int


@shop.state(terminal=True)
class Paid(State):
    amount: int


@dataclass(frozen=True)
class Payment:
    amount: int
    note: str = ""


payment = shop.signal("payment", Payment)


@shop.on(Awaiting, payment)
def paid(tx: Transaction, state: Awaiting, received: Payment) -> Paid | None:
    tx.rpush("notes", received.note)
    return Paid(received.amount) if received.amount >= state.total else None


@pytest.fixture(scope="module")
def loaded(server: EmbeddedServer) -> EmbeddedServer:
    """The server with the functions, loaded by the command."""
    assert run(["functions", "load", "--url", server.url]) == 0
    return server


class Gateway:
    """Calls functions, and takes answers, of one shard."""

    def __init__(self, client: redis.Redis, local: Local, shard: int = 0) -> None:
        self.client, self.local, self.keys = client, local, Keys(local.namespace, shard)

    def call(self, function: str, *args: str | bytes | int) -> str:
        """FCALL; returns the key of the answer."""
        reply: Any = self.client.execute_command("FCALL", f"smqueue_{function}", 1, self.keys.requests, *args)
        return reply.decode()

    def answer(self, function: str, *args: str | bytes | int) -> dict[str, Any]:
        """FCALL, a worker's turn, BLPOP."""
        reply = self.call(function, *args)
        self.local.drain(self.keys.shard)
        taken: Any = self.client.blpop([reply], 10)
        assert taken is not None
        return json.loads(taken[1])

    def refused(self, function: str, *args: str | bytes | int) -> str:
        """The error of FCALL; nothing is left behind."""
        before = self.local.everything()
        with pytest.raises(redis.ResponseError) as caught:
            self.call(function, *args)
        assert self.local.everything() == before
        return str(caught.value)


@pytest.fixture(params=["valkey", "redis"])
def gateway(request: pytest.FixtureRequest, namespace: str, tmp_path: Path) -> Iterator[Gateway]:
    """On both kinds of server."""
    if request.param == "valkey":
        url = request.getfixturevalue("loaded").url
        with redis.Redis.from_url(url) as client:
            yield Gateway(client, started(url, namespace))
        return
    if (binary := shutil.which("redis-server")) is None:
        pytest.skip("there is no redis-server on the PATH")
    with redis_server(binary, tmp_path) as url, redis.Redis.from_url(url) as client:
        assert run(["functions", "load", "--url", url]) == 0
        yield Gateway(client, started(url, namespace))


def started(url: str, namespace: str, shards: int = 1) -> Local:
    """A worker that has connected: its namespace is known."""
    local = Local(url, namespace, {"shop": shop}, shards=shards)
    assert list(local.executor.get_active_operations()) == []
    return local


def test_add_and_signal(gateway: Gateway) -> None:
    """One command starts an order, one pays it, and each is answered as Client is; an id makes a repetition a
    duplicate; text of any kind arrives as it was sent."""
    note = '"\\ \n größe € 😀 \u2028'
    (machine,) = gateway.answer("add", "o-1", "shop", "Awaiting", '{"total": 300}')["value"]
    assert isinstance(machine, str)
    assert gateway.answer("add", "o-1", "", "Awaiting", '{"total": 300}', "exist_ok", 1) == {"value": [machine]}
    payload = json.dumps({"amount": 299, "note": note}, ensure_ascii=False)
    options = ("id", "p-1", "module", "shop", "machine", machine)
    assert gateway.answer("signal", "o-1", "payment", payload, *options) == {"value": "DELIVERED"}
    assert gateway.answer("signal", "o-1", "payment", payload, *options) == {"value": "DUPLICATE"}
    assert gateway.answer("signal", "o-1", "payment", '{"amount": 300}') == {"value": "DELIVERED"}
    gateway.local.settle("o-1")
    assert gateway.local.executor.contains_inactive_state(StateMachine("o-1", Paid(300)))
    assert gateway.local.listed("shop", "notes") == [note.encode(), b""]


def test_what_a_worker_refuses_is_said_in_words(gateway: Gateway) -> None:
    """What only machine code can refuse is the answer: its type, its data, and a sentence; nothing was done."""
    assert gateway.answer("add", "o-1", "shop", "Awaiting", '{"total": "much"}') == {
        "error": "InvalidState",
        "args": ["Awaiting.total", "expected int, got str"],
        "message": "The state does not fit its schema. Awaiting.total: expected int, got str",
    }
    for function, args, error in (
        ("signal", ("o-1", "payment", '{"amount": "300"}'), "InvalidPayload"),
        ("signal", ("o-1", "payment", "[[]"), None),
        ("signal", ("o-1", "payment", '{"amount": NaN}'), "InvalidInput"),
        ("signal", ("o-1", "payment", '{"amount": 3, "note": "\n"}'), "InvalidInput"),
        ("signal", ("o-1", "payment", '{"amount": 0x10}'), "InvalidInput"),
        ("signal", ("o-1", "paymnet", "1"), "UnknownSignal"),
        ("signal", ("o-1", "payment", "1", "module", "shoop"), "UnknownModule"),
        ("add", ("o-1", "shop", "Awaitin", "{}"), "NotRegistered"),
        ("add", ("o-1", "shop", "Paid", '{"amount": 3}'), "StateAlreadyTerminal"),
    ):
        if error is None:
            assert gateway.refused(function, *args).startswith("InvalidInput payload: not JSON")
        else:
            answer = gateway.answer(function, *args)
            assert answer["error"] == error
            assert len(answer["message"]) > 20
    assert not gateway.local.executor.has_active_states("o-1")


def test_what_can_be_seen_at_once_is_an_error_of_the_command(gateway: Gateway) -> None:
    """It begins with the error's type, says which argument is wrong, and nothing is left for a worker."""
    long = "x" * (MAX_OPERATION_ID_BYTES + 1)
    for args, error in (
        (("o-1", "payment"), "InvalidInput payload: missing"),
        (("o-1",), "InvalidInput signal: missing"),
        ((), "InvalidInput operation_id: missing"),
        (("", "payment", "1"), "InvalidInput operation_id: expected text, got none"),
        (("o-1", "payment", "{amount: 3}"), "InvalidInput payload: not JSON"),
        (("o-1", "payment", b'"\xff"'), "InvalidInput payload: not UTF-8"),
        ((b"\xed\xa0\x80", "payment", "1"), "InvalidInput operation_id: not UTF-8"),
        (("o-1", "payment", "1", "idd", "x"), "InvalidInput idd: no such option: id, machine, module"),
        (("o-1", "payment", "1", "id"), "InvalidInput id: missing"),
        ((long, "payment", "1"), f"TooLarge The operation_id has {len(long)} bytes; the limit is {len(long) - 1}."),
        (("o-1", "payment", '"' + "x" * 1024 * 1024 + '"'), "TooLarge The payload has 1048578 bytes"),
    ):
        assert gateway.refused("signal", *args).startswith(error)
    assert gateway.refused("add", "o-1", "shop", "Awaiting", "{").startswith("InvalidInput state: not JSON")
    for key in ("{%s.0}:schedule", "%s", "{%s.0}:requests:x", "{%s}:requests"):
        with pytest.raises(redis.ResponseError, match=r"InvalidInput key: expected one, \{namespace.shard\}:requests"):
            gateway.client.fcall("smqueue_signal", 1, key % gateway.local.namespace, "o-1", "payment", "1")
    with pytest.raises(redis.ResponseError, match="InvalidInput key: there is no namespace nobody's yet"):
        gateway.client.fcall("smqueue_signal", 1, "{nobody's.0}:requests", "o-1", "payment", "1")
    assert not gateway.client.exists("{nobody's.0}:requests")


def test_nobody_comes(gateway: Gateway) -> None:
    """As many requests may wait as of clients; then the command is refused, and nothing is added."""
    key = gateway.keys.requests
    gateway.client.rpush(key, *["{}"] * (REQUESTS_KEPT - 1))
    gateway.call("signal", "o-1", "payment", '{"amount": 1}')
    assert gateway.refused("signal", "o-1", "payment", '{"amount": 1}').startswith("OutboxFull 10000 requests wait")
    gateway.client.delete(key)


def test_two_at_one_time_are_two(gateway: Gateway) -> None:
    """The same command in one and the same instant of Redis's clock is asked twice, and answered twice."""
    call = ("FCALL", "smqueue_signal", 1, gateway.keys.requests, "o-1", "payment", '{"amount": 1}')
    with gateway.client.pipeline() as pipe:  # within one EXEC the clock may stand still
        for _ in range(20):
            pipe.execute_command(*call)
        replies = pipe.execute()
    assert len(set(replies)) == 20
    gateway.local.drain()
    assert all(gateway.client.llen(reply) == 1 for reply in replies)
    assert [one.count for one in gateway.local.executor.explain("o-1").buffered] == [20]


@pytest.mark.parametrize("shards", [2, 8])
def test_each_operation_has_its_shard(loaded: EmbeddedServer, namespace: str, redis_client: Any, shards: int) -> None:
    """``smqueue_key`` says which key an operation needs, as the workers reckon, for any text; with another key the
    command is refused, with the right one in words."""
    local = started(loaded.url, namespace, shards)
    gateway = Gateway(redis_client, local)
    for op in ("o-1", "o-2", "o-3", "größe 😀", "{tag}x", "x" * 300):
        key = redis_client.fcall_ro("smqueue_key", 1, gateway.keys.meta, op).decode()
        there = shard_of(op, shards)
        assert key == Keys(namespace, there).requests
        right, wrong = (Gateway(redis_client, local, shard) for shard in (there, (there + 1) % shards))
        assert wrong.refused("signal", op, "payment", '{"amount": 1}').endswith(f"in another shard: call with {key}")
        assert right.answer("signal", op, "payment", '{"amount": 1}') == {"value": "BUFFERED"}


def test_a_worker_refuses_another_shards_operation(loaded: EmbeddedServer, namespace: str, redis_client: Any) -> None:
    """Where the function cannot know how many shards there are, on another node of a cluster, a worker knows."""
    local = started(loaded.url, namespace, 2)
    op = next(f"o-{n}" for n in range(99) if shard_of(f"o-{n}", 2) == 0)
    asked = {"id": "0" * 40, "kind": "client-signal", "operation_id": op, "signal": "payment", "text": '{"amount": 1}'}
    adding = {**asked, "id": "1" * 40, "kind": "client-add", "type": "Awaiting", "text": '{"total": 1}'}
    keys = Keys(namespace, 1)
    for one in (asked, adding):
        redis_client.rpush(keys.requests, json.dumps({**one, "due": 0}))
        redis_client.zadd(keys.schedule, {"~requests": 0})
        local.drain(1)
        answer = json.loads(redis_client.lpop(keys.reply(one["id"])))
        assert answer["message"] == f"key: operation {op} is in another shard: call with {Keys(namespace).requests}"


def test_the_library_counts_as_we_do() -> None:
    """The figures that stand in the library are those of the protocols."""
    text = (ROOT / "smqueue/functions.lua").read_text()
    assert f"local KEPT_S = {ANSWER_S} " in text
    assert f"local WAITING = {REQUESTS_KEPT} " in text
    assert f"local LONGEST_NAME = {MAX_OPERATION_ID_BYTES} " in text


def test_the_commands(capfd: pytest.CaptureFixture[str]) -> None:
    """``show`` prints what FUNCTION LOAD takes; ``load`` and ``remove``, which leaves nothing, may be repeated."""
    with EmbeddedServer() as own, redis.Redis.from_url(own.url) as client:
        assert run(["functions", "show"]) == 0
        client.function_load(capfd.readouterr().out)
        for what, left in (("load", 1), ("load", 1), ("remove", 0), ("remove", 0)):
            assert run(["functions", what, "--url", own.url]) == 0
            assert len(client.function_list()) == left
        assert capfd.readouterr().out == f"{own.url}\n" * 3
        assert client.keys() == []

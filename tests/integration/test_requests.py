"""What clients ask of workers is done once, and one bad request keeps no other waiting."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from smqueue import Client, Delivery, Module, State, Transaction, Transition
from smqueue.errors import RequestFailed
from smqueue.roundtrip import Call, RoundTrip
from tests.inprocess import Crash, Local, Play
from tests.waiting import wait_until

asked = Module("asked")
word = asked.signal("word", str)


@asked.state
class Waiting(State):
    n: int


@asked.state(terminal=True)
class Told(State):
    n: int


@asked.state
class Odd(State):
    n: int

    def transitions(self, context: Any, global_context: Any) -> Sequence[Transition]:
        raise RuntimeError(f"not {self.n}")


@asked.on(Waiting, word)
def told(tx: Transaction, state: Waiting, got: str) -> Told:
    return Told(state.n)


@pytest.fixture
def local(play: Play) -> Local:
    return play(asked=asked)


def _ask(local: Local, what: Callable[[Client], object]) -> tuple[list[object], threading.Thread]:
    """A client's call on a thread of its own; its request is there."""
    client, got = Client(local.settings.url, local.namespace), list[object]()
    thread = threading.Thread(target=lambda: got.append(what(client)))
    thread.start()
    wait_until(lambda: local.redis.llen(local.keys().requests), "the request")
    return got, thread


def test_a_signal_whose_worker_died_before_it_answered_is_not_doubled(local: Local) -> None:
    """However long no worker is there between the signal and its answer, it is given once. (semantics 5)"""
    local.add("op", Waiting(1), Waiting(2))
    got, thread = _ask(local, lambda client: client.signal("op", "word", "x", timeout=20))

    def die(request: RoundTrip) -> None:
        if isinstance(request, Call) and request.script == "answer":
            raise Crash

    with pytest.raises(Crash), local.around_trips(before=die):
        local.drain()
    markers = [key for key in local.redis.scan_iter(match=f"{local.keys().prefix}marker:*") if b"ask" not in key]
    assert [local.redis.ttl(key) > 86_400 for key in markers] == [True]
    local.expire_leases()
    local.until(lambda: got, "the answer")
    thread.join()
    assert got == [Delivery.DELIVERED]
    assert len(local.active("op")) == 1
    assert not local.redis.exists(*markers)


def test_a_request_that_was_answered_meanwhile_is_not_done_again(local: Local) -> None:
    """Of two workers that have taken one request, the one that comes after the answer does nothing. (semantics 5)"""
    other = local.another()
    local.add("op", Waiting(1), Waiting(2))
    _, thread = _ask(local, lambda client: client.signal("op", "word", "x", timeout=20))
    first = iter([True])

    def meddle(request: RoundTrip) -> None:
        if isinstance(request, Call) and request.script == "signal" and next(first, False):
            other.expire_leases()
            other.run()

    with local.around_trips(before=meddle):
        local.drain()
    thread.join()
    local.run()
    assert len(local.active("op")) == 1


def test_a_request_nested_too_deeply_keeps_no_other_waiting(local: Local) -> None:
    """One that a worker cannot even parse is left out; those behind it are done. (semantics 32)"""
    local.add("op", Waiting(1))
    local.redis.rpush(local.keys().requests, b'{"id":"x","kind":"client-signal","due":0,"payload":' + b"[" * 100_000)
    local.redis.rpush(local.keys().requests, b'{"x":' + b"[" * 20_000 + b"]" * 20_000 + b"}")
    got, thread = _ask(local, lambda client: client.signal("op", "word", "x", timeout=20))
    local.until(lambda: got, "the answer")
    thread.join()
    assert got == [Delivery.DELIVERED]


def test_a_worker_that_fails_says_so(local: Local, caplog: pytest.LogCaptureFixture) -> None:
    """An error of a module's own code, on the way to an answer, is the answer, with its text: the request is not tried
    for ever while its client waits in vain. The worker's log has where it comes from."""
    odd = {"operation_id": "op", "module": "asked", "type": "Odd", "state": {"n": 7}}

    def add(client: Client) -> str:
        with pytest.raises(RequestFailed) as caught:
            client.add([odd], timeout=20)
        return caught.value.problem

    got, thread = _ask(local, add)
    local.until(lambda: got, "the answer")
    thread.join()
    assert got == ["RuntimeError: not 7"]
    assert local.redis.llen(local.keys().requests) == 0
    assert [record.exc_info is not None for record in caplog.records if "not 7" in record.getMessage()] == [True]


@pytest.mark.parametrize("kind", ["NewerError", "Any", "T"])
def test_an_error_that_a_client_does_not_know(local: Local, kind: str) -> None:
    """What only a newer worker can name is told with its name and text."""

    def ask(client: Client) -> str:
        with pytest.raises(RequestFailed) as caught:
            client.signal("op", "word", "x", timeout=20)
        return caught.value.problem

    got, thread = _ask(local, ask)
    id = json.loads(local.redis.lpop(local.keys().requests))["id"]
    answer = {"error": kind, "args": [1], "message": "there is no more room"}
    local.redis.rpush(local.keys().reply(id), json.dumps(answer))
    thread.join(20)
    assert got == [f"{kind}: there is no more room"]


def test_what_the_server_refuses_of_one_keeps_no_other_waiting(local: Local) -> None:
    """A request that the server refuses again and again is tried later; those behind it are done. (semantics 32)"""
    local.redis.set(local.keys().inbox("odd", "asked", "word"), "no list")
    local.add("op", Waiting(1))
    refused: dict[str, Any] = {"id": "x" * 16, "kind": "client-signal", "operation_id": "odd", "module": "asked"}
    refused |= {"signal": "word", "payload": "x", "due": 0}
    local.redis.rpush(local.keys().requests, json.dumps(refused))
    got, thread = _ask(local, lambda client: client.signal("op", "word", "x", timeout=20))
    local.until(lambda: got, "the answer")
    thread.join()
    assert got == [Delivery.DELIVERED]
    (kept,) = local.redis.lrange(local.keys().requests, 0, -1)
    assert json.loads(kept)["tries"] >= 1

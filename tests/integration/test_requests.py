"""What clients ask of workers is done once, and one bad request keeps no other waiting."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from smqueue import Client, Delivery, Module, State, Transaction
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

"""Connections that wait for their next user: who takes one, and when another is made."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from smqueue import Module
from smqueue.drivers.nodes import Node
from smqueue.errors import StoreUnavailable
from smqueue.roundtrip import over, single
from tests.inprocess import Local, Play

empty = Module("empty", version=1)


@pytest.fixture
def local(play: Play) -> Local:
    return play(empty=empty)


def node_of(local: Local) -> Node:
    """The one server."""
    return local.driver.nodes().node(None)


def test_one_is_used_again_and_again(local: Local) -> None:
    """Who comes after another takes the connection that was given back."""
    node = node_of(local)
    first = node.connect()
    node.release(first)
    for _ in range(3):
        assert node.connect() is first
        assert node.in_use == 1
        node.release(first)
    assert node.in_use == 0


def test_two_users_never_share_one(local: Local) -> None:
    """What many threads have at the same time are as many connections."""
    node = node_of(local)
    taken: list[Any] = []
    everybody = threading.Barrier(8, timeout=30)

    def use() -> None:
        for _ in range(20):
            everybody.wait()
            connection = node.connect()
            taken.append(connection)
            everybody.wait()
            node.release(connection)

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(taken) == 160
    assert all(len(set(taken[at : at + 8])) == 8 for at in range(0, 160, 8))
    assert node.in_use == 0


def test_what_the_server_has_closed_is_not_used(local: Local) -> None:
    """A server that has restarted or hung up meanwhile costs no request: a new connection is made. (semantics 5)"""
    local.driver.command("TIME")
    for _ in range(3):
        local.redis.client_kill_filter(_type="normal", skipme=True)
        assert local.driver.command("TIME")
    assert node_of(local).in_use == 0


def test_after_a_renewal_all_are_new(local: Local) -> None:
    """Neither those that waited nor those in use then are used again: they may lead to another server by now."""
    node = node_of(local)
    used, waits = node.connect(), node.connect()
    node.release(waits)
    node.renew()
    node.release(used)
    assert used._sock is None
    assert waits._sock is None
    assert node.connect() not in {used, waits}
    assert node.in_use == 1


def test_closing_closes_those_in_use_too(local: Local) -> None:
    """And what is asked for after that connects anew."""
    node = node_of(local)
    used, waits = node.connect(), node.connect()
    node.release(waits)
    local.driver.close()
    assert used._sock is None
    assert waits._sock is None
    node.release(used)
    assert local.driver.command("TIME")
    assert node.in_use == 0


def test_once_another_primary_is_named_those_to_the_one_before_are_not_used(
    local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An old primary that still answers may take writes that nobody will know of: neither what waits nor what is in use
    then is used again. The pool of the sentinels' connections tells which they are."""
    node = node_of(local)
    used, waits = node.connect(), node.connect()
    node.release(waits)
    monkeypatch.setattr(node.pool, "owns_connection", lambda connection: connection not in {used, waits})
    node.release(used)
    assert used._sock is None
    assert node.connect() not in {used, waits}
    assert waits._sock is None
    assert node.in_use == 1


class Dead:
    """A socket whose other side is gone without a word: quiet, until something is sent."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)

    def sendall(self, data: bytes) -> None:
        raise ConnectionResetError


def test_dead_ones_cost_one_try_however_many_they_are(local: Local) -> None:
    """Whose server was gone for a moment, without closing anything, is not asked over one after another until the call
    fails: after the first lost reply all are made anew. (semantics 5)"""
    node = node_of(local)
    all_of_them = [node.connect() for _ in range(8)]
    for connection in all_of_them:
        connection._sock = Dead(connection._sock)
        node.release(connection)
    assert local.driver.run(over(lambda: single("TIME")))
    assert node.in_use == 0
    assert [connection._sock for connection in all_of_them] == [None] * 8


def test_a_time_limit_that_strikes_while_one_is_taken_leaves_none_behind(local: Local) -> None:
    """What is raised while a connection is looked at, anywhere, closes it."""
    node = node_of(local)
    taken: Any = node.connect()
    node.release(taken)

    def strikes(timeout: float) -> bool:
        raise KeyboardInterrupt

    taken.can_read = strikes
    with pytest.raises(KeyboardInterrupt):
        node.connect()
    assert taken._sock is None
    assert node.in_use == 0


def test_the_url_bounds_how_many_there_are(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    """As redis-py's pool would."""
    node = node_of(local)
    monkeypatch.setattr(node.pool, "max_connections", 2)
    two = [node.connect_now(), node.connect_now()]
    with pytest.raises(StoreUnavailable, match="max_connections"):
        node.connect_now()
    node.release(two[0])
    assert node.connect_now() is two[0]

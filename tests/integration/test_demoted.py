"""A primary that has become a replica while its connections live on: the name leads to another server by now."""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from smqueue import (
    Client,
    Delivery,
    Executor,
    Module,
    SignalFor,
    SmqueueError,
    State,
    StateMachine,
    StoreRefused,
    Transaction,
)
from smqueue.embedded import EmbeddedServer
from tests.deployments import client_of
from tests.inprocess import Local, Play
from tests.proxy import Proxy
from tests.waiting import wait_until

WAIT_S = 60
moving = Module("moving", version=1)
word = moving.signal("word", str)


@moving.state
class Here(State):
    n: int


@moving.state(terminal=True)
class Gone(State):
    n: int


@moving.on(Here, word)
def left(tx: Transaction, state: Here, got: str) -> Gone:
    return Gone(state.n)


class Moved(NamedTuple):
    """A process that knows a first server by a name.

    Attributes:
        local: The process, connected.
        demote: The first server becomes a replica, and its connections live on.
        lead: From here on new connections lead to the other server.
        first: A client of the first server.
        second: A process that is connected to the other one.
        url: The name.
    """

    local: Local
    demote: Callable[[], object]
    lead: Callable[[], object]
    first: Any
    second: Local
    url: str


@pytest.fixture
def moved(play: Play, server: EmbeddedServer) -> Iterator[Moved]:
    with (
        tempfile.TemporaryDirectory(prefix="smq") as data,
        EmbeddedServer(Path(data)) as first,
        Proxy(first.socket_path) as proxy,
    ):
        local, second, redis = play(url=proxy.url, moving=moving), play(moving=moving), client_of(first.url)
        local.add("before", Here(1))

        def lead() -> None:
            proxy._upstream = str(server.socket_path)  # pyright: ignore[reportPrivateUsage]

        yield Moved(local, lambda: redis.replicaof("127.0.0.1", 1), lead, redis, second, proxy.url)


CALLS: dict[str, Callable[[Executor], Any]] = {
    "add": lambda executor: executor.add_state_machines([StateMachine("op", Here(1))]),
    "autocommit": lambda executor: executor.autocommit(lambda tx: tx.incrby("n", 1)),
    "a commit without a look": lambda executor: executor.pause("op"),
    "signal": lambda executor: executor.signal("op", word, "go"),
    "signal_many": lambda executor: all_given(executor, [SignalFor("op", word, str(n)) for n in range(5)]),
}


def all_given(executor: Executor, signals: list[SignalFor]) -> list[Delivery]:
    """A batch; each has its own error."""
    found: list[Delivery] = []
    for one in executor.signal_many(signals):
        if isinstance(one, SmqueueError):
            raise one
        found.append(one)
    return found


@pytest.mark.parametrize("call", list(CALLS))
def test_the_server_that_took_over_is_asked(moved: Moved, call: str) -> None:
    """What a demoted server refuses over a connection of before is asked of the server that the name leads to now: the
    caller notices nothing, and it is done once. (semantics 5)"""
    moved.demote()
    moved.lead()
    found = CALLS[call](moved.local.executor)
    keys, redis = moved.second.keys("op"), moved.second.redis
    match call:
        case "add":
            assert moved.second.active("op") == [Here(1)]
        case "autocommit":
            (key,) = redis.scan_iter(match=f"{keys.prefix}data:*")
            assert redis.get(key) == b"1"
        case "signal":
            assert (found, redis.llen(keys.inbox("op", "moving", "word"))) == (Delivery.BUFFERED, 1)
        case "signal_many":
            assert (found, redis.llen(keys.inbox("op", "moving", "word"))) == ([Delivery.BUFFERED] * 5, 5)
        case _:
            assert moved.second.executor.paused()


@pytest.mark.parametrize("call", list(CALLS))
def test_a_name_that_leads_to_a_replica_is_refused(moved: Moved, call: str) -> None:
    """Where a new connection leads to a replica, too, the caller is told which address to give."""
    moved.demote()
    with pytest.raises(StoreRefused, match="give the primary's address"):
        CALLS[call](moved.local.executor)


def test_an_answer_is_waited_for_at_the_server_that_took_over(moved: Moved) -> None:
    """A client that waits for its answer while the server is demoted waits on at the other one."""
    found: list[Any] = []
    with Client(moved.url, moved.local.namespace) as client:
        machine = {"operation_id": "op", "module": "moving", "type": "Here", "state": {"n": 1}}
        asking = threading.Thread(target=lambda: found.extend(client.add([machine], timeout=WAIT_S)))
        asking.start()
        requests = moved.local.keys().requests
        wait_until(lambda: moved.first.info("clients")["blocked_clients"], "it to wait for the answer", WAIT_S)
        id = json.loads(moved.first.lindex(requests, 0))["id"]
        moved.lead()
        moved.demote()
        moved.second.redis.rpush(moved.second.keys().reply(id), json.dumps({"value": ["the-machine"]}))
        asking.join(WAIT_S)
    assert found == ["the-machine"]

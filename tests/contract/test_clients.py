"""One suite for whatever produces, waits and follows: ``Client`` and ``AsyncClient``, which need no machine code, and
the executor and its ``async_client()``, called as those are; and Celery's own messages."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from smqueue import (
    AsyncClient,
    AwaitTimeout,
    Client,
    Delivery,
    InvalidInput,
    InvalidPayload,
    InvalidState,
    OperationFinished,
    SmqueueError,
    StateAlreadyExists,
    StateMachine,
    UnknownModule,
    UnknownSignal,
)
from smqueue.async_client import TypedAsyncClient
from tests.contract.clients import WITH_CODE, WITHOUT_CODE, opened
from tests.contract.deployed import WAIT_S, Deployed
from tests.contract.machines import End, Here

ASKS = pytest.mark.real("a client asks workers")
KINDS = [*[pytest.param(kind, marks=ASKS) for kind in WITHOUT_CODE], *WITH_CODE]


@pytest.fixture(params=KINDS, scope="session")
def client(request: pytest.FixtureRequest, shop: Deployed) -> Iterator[Any]:
    """Each kind, called as ``Client`` is."""
    with opened(request.param, shop) as client:
        yield client


def here(op: str, name: str = "x", kind: str = "Here") -> dict[str, Any]:
    """A machine as JSON."""
    return {"operation_id": op, "module": "walk", "type": kind, "state": {"name": name}}


def told(machine: dict[str, Any]) -> dict[str, Any]:
    """What an update says of it."""
    return {"type": machine["type"], "state": machine["state"]}


def test_a_client_adds_and_signals(shop: Deployed, client: Any, op: str) -> None:
    """JSON in, the same machines: added, signalled, awaited and followed."""
    (machine,) = client.add([here(op)])
    assert client.await_active_state(here(op), WAIT_S).machine_id == machine
    assert client.signal(op, "go", "end y") is Delivery.DELIVERED
    client.await_operation(op, WAIT_S)
    assert client.await_inactive_state(here(op), WAIT_S).won == "gone"
    assert shop.ends(op) == [End("y")]
    with client.subscribe(op, timeout=WAIT_S) as updates:
        assert [next(updates).state for _ in range(2)] == [told(here(op)), told(here(op, "y", "End"))]


def test_a_client_repeats_itself(client: Any, op: str) -> None:
    """``exist_ok``, and ids of signals, work as for the executor; nothing added is nothing."""
    ids = client.add([here(op)])
    assert client.add([here(op)], exist_ok=True) == ids
    assert client.add([]) == []
    client.signal(op, "payment", {"amount": 1, "card": ""}, id="one")
    assert client.signal(op, "payment", {"amount": 1, "card": ""}, id="one") is Delivery.DUPLICATE


def test_a_batch_and_an_early_signal(shop: Deployed, client: Any, op: str) -> None:
    """Many machines in one call get their ids in the order given; a signal may come before its machine, or be for one
    of them only."""
    assert client.signal(f"{op}/early", "go", "end early", module="walk") is Delivery.BUFFERED
    machines = client.add([here(op, "a"), here(op, "b"), here(f"{op}/early")])
    assert len(set(machines)) == 3
    assert shop.ends(f"{op}/early") == [End("early")]
    client.signal(op, "go", "end second", machine=machines[1])
    assert client.await_inactive_state(here(op, "b"), WAIT_S).machine_id == machines[1]
    assert shop.active(op) == [Here("a")]


REFUSED: dict[str, tuple[Callable[[Any, str], object], type[SmqueueError]]] = {
    "exists": (lambda client, op: client.add([here(op, "new"), here(op)]), StateAlreadyExists),
    "no such module": (lambda client, op: client.add([here(op, "new"), here(op) | {"module": "no"}]), UnknownModule),
    "a wrong state": (
        lambda client, op: client.add([here(op, "new"), here(op) | {"state": {"name": 1}}]),
        InvalidState,
    ),
    "no such operation id": (lambda client, op: client.add([here("")]), InvalidInput),
    "a wrong payload": (lambda client, op: client.signal(op, "go", 1), InvalidPayload),
    "no such signal": (lambda client, op: client.signal(op, "no-such"), UnknownSignal),
    "no operation": (lambda client, op: client.await_operation(None), InvalidInput),
    "a time in words": (lambda client, op: client.await_operation(op, "5"), InvalidInput),
    "a time that never comes": (lambda client, op: client.await_operation(op, float("nan")), InvalidInput),
    "no sequence": (lambda client, op: client.subscribe(op, after=-3), InvalidInput),
    "a sequence in words": (lambda client, op: client.subscribe(op, after="1"), InvalidInput),
    "following in words": (lambda client, op: client.subscribe_all(timeout="5"), InvalidInput),
    "not yet over": (lambda client, op: client.await_operation(op, 0.01), AwaitTimeout),
    "not yet left": (lambda client, op: client.await_inactive_state(here(op), 0.01), AwaitTimeout),
    "never there": (
        lambda client, op: client.await_active_state(here(op, "no"), timedelta(milliseconds=10)),
        AwaitTimeout,
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_errors_come_back_typed(shop: Deployed, client: Any, op: str, what: str) -> None:
    """What is refused, and what does not come in time, is the executor's error with its attributes; nothing is
    written."""
    ask, error = REFUSED[what]
    shop.add(op, Here("x"))
    with pytest.raises(error) as caught:
        ask(client, op)
    assert caught.value.args
    assert type(caught.value) is error
    if isinstance(caught.value, AwaitTimeout):
        assert caught.value.seconds == 0.01
    assert shop.active(op) == [Here("x")]
    assert shop.executor.explain(op).buffered == ()


def test_a_finished_operation_takes_no_signal(shop: Deployed, client: Any, op: str) -> None:
    """The error says which operation and which signal. (semantics 34)"""
    client.add([here(op)])
    client.signal(op, "go", "end y")
    client.await_operation(op, WAIT_S)
    with pytest.raises(OperationFinished) as caught:
        client.signal(op, "go", "end z")
    assert (caught.value.operation_id, caught.value.signal) == (op, "go")


@pytest.mark.real("time passes while somebody else waits")
def test_what_comes_during_a_wait_ends_it(client: Any, op: str) -> None:
    """Who waits before it is so is told when it is. (semantics 35)"""
    ended: list[Any] = []

    def wait() -> None:
        ended.append(client.await_active_state(here(op), WAIT_S).step)
        ended.append(client.await_inactive_state(here(op, "y", "End"), WAIT_S).terminal)
        client.await_operation(op, WAIT_S)
        ended.append("over")

    waiting = threading.Thread(target=wait)
    waiting.start()
    client.add([here(op)])
    client.signal(op, "go", "end y")
    waiting.join(WAIT_S)
    assert ended == [1, True, "over"]


def test_following_one(client: Any, op: str) -> None:
    """History, then live, in order and once; ``after`` resumes; it ends when it is quiet. (semantics 36)"""
    client.add([here(op, "a")])
    with client.subscribe(op, timeout=WAIT_S) as updates:
        found = [next(updates)]
        for to in ("there b", "here c", "end d"):
            client.signal(op, "go", to)
            found.append(next(updates))
    path = [told(here(op, "a")), told(here(op, "b", "There")), told(here(op, "c")), told(here(op, "d", "End"))]
    assert [one.state for one in found] == path
    assert [one.sequence for one in found] == [0, 1, 2, 3]
    with client.subscribe(op, after=1, timeout=0.02) as updates:
        assert [one.sequence for one in updates] == [2, 3]
    assert list(client.subscribe(op, module="left", timeout=0)) == []


def test_a_subscription_that_was_closed_has_ended(client: Any, op: str) -> None:
    """Whoever iterates on after its end, or after it was closed, is told the end, whatever happens meanwhile."""
    client.add([here(op, "a")])
    quiet = client.subscribe(op, timeout=0)
    assert len(list(quiet)) == 1
    with client.subscribe(op, timeout=WAIT_S) as closed:
        next(closed)
    client.signal(op, "go", "there b")
    assert list(quiet) == []
    assert list(closed) == []


def test_following_all(client: Any, op: str) -> None:
    """All operations, from where it is entered. (semantics 37)"""
    client.add([here(op, "before")])
    with client.subscribe_all(module="walk", timeout=WAIT_S) as updates:
        client.add([here(f"{op}/1", "a")])
        client.signal(op, "go", "end z")
        found = [next(updates)]
        while found[-1].state != told(here(op, "z", "End")):
            found.append(next(updates))
    mine = [(one.operation_id, one.sequence, one.state) for one in found if one.operation_id.startswith(op)]
    assert mine == [(f"{op}/1", 0, told(here(op, "a"))), (op, 1, told(here(op, "z", "End")))]


def test_the_clients_have_the_same_calls() -> None:
    """What ``Client`` has ``AsyncClient`` has, with the same arguments; and a typed one lacks only what is about a
    worker's answer."""
    closing = {"close": "aclose", "__enter__": "__aenter__", "__exit__": "__aexit__"}
    public = [name for name in vars(Client) if not name.startswith("_") or name in {"__init__", *closing}]
    assert len(public) == 11
    for name in public:
        ours, theirs = (inspect.signature(getattr(kind, it)) for kind, it in [
            (Client, name), (AsyncClient, closing.get(name, name)),
        ])  # fmt: skip
        assert list(theirs.parameters.values()) == list(ours.parameters.values()), name
        if name != "__init__":
            typed = inspect.signature(getattr(TypedAsyncClient, closing.get(name, name)))
            assert [*typed.parameters] == [it for it in ours.parameters if name[:5] == "await" or it != "timeout" or
                                           name.startswith("subscribe")], name  # fmt: skip


@ASKS
def test_celery_messages_are_producers(shop: Deployed, op: str) -> None:
    """``smqueue.add`` and ``smqueue.signal`` take plain JSON from anything that speaks Celery's protocol."""
    assert shop.app is not None
    shop.app.send_task("smqueue.add", kwargs={"machines": [here(op)]})
    shop.executor.await_active_state(StateMachine(op, Here("x")), WAIT_S)
    shop.app.send_task("smqueue.signal", args=[op, "go", "end y"])
    assert shop.ends(op) == [End("y")]

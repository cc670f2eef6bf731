"""Producers without machine code: ``Client``, and Celery's own messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from smqueue import (
    AwaitTimeout,
    Client,
    Delivery,
    InvalidPayload,
    InvalidState,
    SmqueueError,
    StateAlreadyExists,
    StateMachine,
    UnknownModule,
    UnknownSignal,
)  # fmt: skip
from tests.contract.deployed import WAIT_S, Deployed
from tests.contract.machines import End, Here

pytestmark = pytest.mark.real("a client asks workers")


def here(op: str, name: str = "x") -> dict[str, Any]:
    """A machine as JSON."""
    return {"operation_id": op, "module": "walk", "type": "Here", "state": {"name": name}}


def test_a_client_adds_and_signals(shop: Deployed, op: str) -> None:
    """JSON in, the same machines: added, signalled, awaited and followed."""
    client = shop.client()
    (machine,) = client.add([here(op)])
    assert client.await_active_state(here(op), WAIT_S).machine_id == machine
    assert client.signal(op, "go", "end y") is Delivery.DELIVERED
    client.await_operation(op, WAIT_S)
    assert client.await_inactive_state(here(op), WAIT_S).won == "gone"
    assert shop.ends(op) == [End("y")]
    with client.subscribe(op, timeout=WAIT_S) as updates:
        assert [next(updates).state for _ in range(2)] == [
            {"type": "Here", "state": {"name": "x"}}, {"type": "End", "state": {"name": "y"}},
        ]  # fmt: skip


def test_a_client_repeats_itself(shop: Deployed, op: str) -> None:
    """``exist_ok``, and ids of signals, work as for the executor."""
    client = shop.client()
    ids = client.add([here(op)])
    assert client.add([here(op)], exist_ok=True) == ids
    client.signal(op, "payment", {"amount": 1, "card": ""}, id="one")
    assert client.signal(op, "payment", {"amount": 1, "card": ""}, id="one") is Delivery.DUPLICATE


REFUSED: dict[str, tuple[Callable[[Client, str], object], type[SmqueueError]]] = {
    "exists": (lambda client, op: client.add([here(op, "new"), here(op)]), StateAlreadyExists),
    "no such module": (lambda client, op: client.add([here(op, "new"), here(op) | {"module": "no"}]), UnknownModule),
    "a wrong state": (
        lambda client, op: client.add([here(op, "new"), here(op) | {"state": {"name": 1}}]),
        InvalidState,
    ),
    "a wrong payload": (lambda client, op: client.signal(op, "go", 1), InvalidPayload),
    "no such signal": (lambda client, op: client.signal(op, "no-such"), UnknownSignal),
    "in vain": (lambda client, op: client.await_operation(op, 0.01), AwaitTimeout),
}


@pytest.mark.parametrize("what", REFUSED)
def test_errors_come_back_typed(shop: Deployed, op: str, what: str) -> None:
    """What a worker refuses is the same error as the executor's, with its attributes; nothing is written."""
    ask, error = REFUSED[what]
    shop.add(op, Here("x"))
    with pytest.raises(error) as caught:
        ask(shop.client(), op)
    assert caught.value.args
    assert shop.active(op) == [Here("x")]
    assert shop.executor.explain(op).buffered == ()


def test_celery_messages_are_producers(shop: Deployed, op: str) -> None:
    """``smqueue.add`` and ``smqueue.signal`` take plain JSON from anything that speaks Celery's protocol."""
    assert shop.app is not None
    shop.app.send_task("smqueue.add", kwargs={"machines": [here(op)]})
    shop.executor.await_active_state(StateMachine(op, Here("x")), WAIT_S)
    shop.app.send_task("smqueue.signal", args=[op, "go", "end y"])
    assert shop.ends(op) == [End("y")]

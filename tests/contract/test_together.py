"""What many ask for at the same time: ``signal_many`` and the client for event loops."""

from __future__ import annotations

import asyncio

import pytest

from smqueue import Delivery, InvalidPayload, OperationFinished, SignalFor, StateAlreadyExists, StateMachine
from tests.contract.deployed import Deployed
from tests.contract.machines import Done, End, Here, Instant, Payment, go, payment


def test_each_of_a_batch_is_told(shop: Deployed, op: str) -> None:
    """``signal_many`` answers in the order given, whatever became of each: one that is refused keeps none of the others
    away."""
    waiting, over, early = f"{op}-a", f"{op}-b", f"{op}-c"
    shop.add(waiting, Here("x"))
    shop.add(over, Instant(0))
    assert shop.ends(over) == [Done("instant")]
    told = shop.executor.signal_many(
        [
            SignalFor(early, go, "end c", id="1"),
            SignalFor(over, "go", "end b"),
            SignalFor(waiting, go, "end a", module="walk"),
            SignalFor(early, go, "end c", id="1"),
        ]
    )
    assert told[0] is Delivery.BUFFERED
    assert isinstance(told[1], OperationFinished)
    assert told[2:] == [Delivery.DELIVERED, Delivery.DUPLICATE]
    assert shop.ends(waiting) == [End("a")]


def test_signals_of_a_batch_keep_their_order(shop: Deployed, op: str) -> None:
    """Those for one operation are accepted in the order in which they were given."""
    path = [f"here {n}" for n in range(20)] + ["end last"]
    assert set(shop.executor.signal_many([SignalFor(op, go, to) for to in path])) == {Delivery.BUFFERED}
    shop.add(op, Here("first"))
    assert shop.ends(op) == [End("last")]


def test_nothing_of_a_batch_is_sent_when_one_does_not_fit(shop: Deployed, op: str) -> None:
    """All of a batch is checked before the first is sent."""
    with pytest.raises(InvalidPayload) as caught:
        shop.executor.signal_many([SignalFor(op, go, "end a"), SignalFor(op, payment, Payment("much"))])  # pyright: ignore[reportArgumentType]
    assert caught.value.field == "payment.amount"
    assert shop.executor.explain(op).buffered == ()


def test_many_tasks_add_and_signal(shop: Deployed, op: str) -> None:
    """Each of a hundred tasks of an event loop gets its own answer, and one that is refused fails alone."""
    shop.add(f"{op}-7", Here("x"))

    async def one(number: int) -> object:
        client, name = shop.executor.async_client(), f"{op}-{number}"
        try:
            (machine,) = await client.add([StateMachine(name, Here("x"))])
        except StateAlreadyExists as error:
            return error.operation_id
        return machine, await client.signal(name, go, f"end {number}")

    async def all_of_them() -> list[object]:
        return await asyncio.gather(*[one(number) for number in range(100)])

    told = asyncio.run(all_of_them())
    assert told.pop(7) == f"{op}-7"
    assert {delivery for _, delivery in told} == {Delivery.DELIVERED}  # pyright: ignore[reportGeneralTypeIssues]
    assert len({machine for machine, _ in told}) == 99  # pyright: ignore[reportGeneralTypeIssues]
    for number in (0, 50, 99):
        assert shop.ends(f"{op}-{number}") == [End(str(number))]


def test_an_error_of_a_task_is_its_own(shop: Deployed, op: str) -> None:
    """What does not fit is refused where it is asked for, before anything is sent."""
    client = shop.executor.async_client()
    with pytest.raises(InvalidPayload):
        asyncio.run(client.signal(op, "go", 5))
    assert asyncio.run(client.add([])) == []

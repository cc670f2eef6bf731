"""Signals: who gets them, in which order, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from smqueue import (
    AmbiguousModule,
    Delivery,
    InboxFull,
    InvalidPayload,
    OperationFinished,
    SmqueueError,
    StateMachine,
    UnknownModule,
    UnknownSignal,
)  # fmt: skip
from tests.contract.deployed import Deployed
from tests.contract.machines import (
    Awaiting,
    Cancelled,
    Done,
    End,
    Here,
    Idle,
    Instant,
    Packing,
    Payment,
    Shipped,
    Told,
    go,
    hail,
    payment,
)  # fmt: skip


def test_a_waiting_machine_gets_it(shop: Deployed, op: str) -> None:
    """A signal to a machine that waits for it is delivered, and moves it."""
    shop.add(op, Here("x"))
    assert shop.executor.signal(op, go, "end y") is Delivery.DELIVERED
    assert shop.ends(op) == [End("y")]


def test_an_early_one_is_kept(shop: Deployed, op: str) -> None:
    """One that nobody waits for yet is kept, and shown; an operation may not even have begun."""
    assert shop.executor.signal(op, go, "here b") is Delivery.BUFFERED
    assert shop.executor.signal(op, go, "end c") is Delivery.BUFFERED
    (kept,) = shop.executor.explain(op).buffered
    assert (kept.module, kept.signal, kept.count) == ("walk", "go", 2)
    shop.add(op, Here("a"))
    assert shop.ends(op) == [End("c")]
    assert {machine.state for machine, _ in shop.executor.get_inactive_states(op)} == {Here("a"), Here("b"), End("c")}


def test_they_are_consumed_in_order(shop: Deployed, op: str) -> None:
    """Signals of one name are taken in the order in which they were accepted."""
    path = [f"here {n}" for n in range(20)] + ["end last"]
    for to in path[:10]:
        shop.executor.signal(op, go, to)
    shop.add(op, Here("start"))
    for to in path[10:]:
        shop.executor.signal(op, go, to)
    assert shop.ends(op) == [End("last")]
    with shop.executor.notifier.subscribe(op, timeout=30) as updates:
        seen = [next(updates).state for _ in range(22)]
    assert seen == [Here("start"), *[Here(str(n)) for n in range(20)], End("last")]


def test_the_one_that_has_waited_longest_gets_it(shop: Deployed, op: str) -> None:
    """Each is consumed by exactly one machine, the one that has waited longest; one that stays keeps its turn."""
    for name in ("a", "b", "c"):
        shop.add(op, Here(name))
        shop.pass_time()
    for n in range(3):
        shop.executor.signal(op, go, f"end {n}")
    assert shop.ends(op) == [End("0"), End("1"), End("2")]
    won = {update.machine_id: update.state for update in shop.executor.notifier.history(op) if update.terminal}
    order = [update.machine_id for update in shop.executor.notifier.history(op) if update.step == 1]
    assert [won[machine] for machine in order] == [End("0"), End("1"), End("2")]


def test_one_machine_can_be_named(shop: Deployed, op: str) -> None:
    """``machine=`` reaches that machine although others have waited longer."""
    shop.add(op, Here("a"))
    shop.pass_time()
    (machine,) = shop.add(op, Here("b"))
    assert shop.executor.signal(op, go, "end b", machine=machine) is Delivery.DELIVERED
    shop.executor.await_inactive_state(StateMachine(op, Here("b")), 30)
    assert shop.active(op) == [Here("a")]


def test_an_id_counts_once(shop: Deployed, op: str) -> None:
    """The second of one id is a duplicate and does nothing; another id is another signal."""
    shop.add(op, Awaiting(op, 100))
    told = [shop.executor.signal(op, payment, Payment(1), id=id) for id in ("one", "one", "two", "one")]
    assert (told[1], told[3]) == (Delivery.DUPLICATE, Delivery.DUPLICATE)
    assert Delivery.DUPLICATE not in (told[0], told[2])
    shop.executor.signal(op, payment, Payment(100))
    shop.enters(op, Packing(op))
    assert shop.read("orders", f"received:{op}") == "102"


@pytest.mark.parametrize(
    "given", [(payment, Payment(7)), ("payment", {"amount": 7, "card": ""})], ids=["typed", "json"]
)
def test_a_signal_or_its_name(shop: Deployed, op: str, given: tuple[Any, Any]) -> None:
    """A ``Signal`` takes its payload's type, a name takes JSON."""
    shop.add(op, Awaiting(op, 7))
    assert shop.executor.signal(op, *given) is Delivery.DELIVERED
    shop.executor.signal(op, "packed")
    assert shop.ends(op) == [Shipped(op)]


REFUSED: dict[str, tuple[tuple[Any, ...], dict[str, Any], type[SmqueueError], str]] = {
    "no such signal": (("no-such", 1), {}, UnknownSignal, "no-such"),
    "not of that module": (("payment", {"amount": 1}), {"module": "walk"}, UnknownSignal, "walk"),
    "no such module": ((go, "x"), {"module": "nowhere"}, UnknownModule, "nowhere"),
    "of two instances": ((hail, "x"), {}, AmbiguousModule, "left"),
    "a wrong payload": ((go, 1), {}, InvalidPayload, "int"),
    "a wrong field": (("payment", {"amount": "1"}), {}, InvalidPayload, "amount"),
    "a missing field": (("payment", {}), {}, InvalidPayload, "amount"),
    "a field too many": (("payment", {"amount": 1, "tip": 1}), {}, InvalidPayload, "tip"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused(shop: Deployed, op: str, what: str) -> None:
    """A signal that fits nobody is a typed error that says what is wrong; nothing is sent."""
    given, options, error, names = REFUSED[what]
    with pytest.raises(error, match=names):
        shop.executor.signal(op, *given, **options)
    assert shop.executor.explain(op).buffered == ()


def test_no_secret_is_shown(shop: Deployed, op: str) -> None:
    """An error never shows the value of a secret field."""
    with pytest.raises(InvalidPayload) as caught:
        shop.executor.signal(op, "payment", {"amount": "x", "card": "4711-0815"})
    assert "4711" not in f"{caught.value!r} {caught.value}"
    with pytest.raises(InvalidPayload) as caught:
        shop.executor.signal(op, "payment", {"amount": 1, "card": [47110815]})
    assert "4711" not in f"{caught.value!r} {caught.value}"
    assert "card" in str(caught.value)


def test_a_finished_operation_takes_none(shop: Deployed, op: str) -> None:
    """Where all has ended a signal is refused; one never begun takes it."""
    shop.add(op, Instant(0))
    assert shop.ends(op) == [Done("instant")]
    with pytest.raises(OperationFinished) as caught:
        shop.executor.signal(op, go, "x")
    assert (caught.value.operation_id, caught.value.signal) == (op, "go")


def test_the_inbox_is_bounded(shop: Deployed, op: str) -> None:
    """1,000 early signals of a name are kept, no more; another operation's are not counted."""
    for _ in range(1_000):
        shop.executor.signal(op, go, "stay")
    with pytest.raises(InboxFull) as caught:
        shop.executor.signal(op, go, "stay")
    assert caught.value.limit == 1_000
    assert shop.executor.signal(f"{op}/2", go, "stay") is Delivery.BUFFERED


def test_instances_have_signals_of_their_own(shop: Deployed, op: str) -> None:
    """A signal to one instance does not reach the other. (semantics 38)"""
    shop.add(op, Idle("x"), module="left")
    shop.add(op, Idle("x"), module="right")
    shop.executor.signal(op, hail, "one", module="left")
    shop.enters(op, Told("on the left", f"left of {op}", "one"), "left")
    assert shop.executor.contains_active_state(StateMachine(op, Idle("x"), "right"))
    assert not shop.executor.contains_active_state(StateMachine(op, Idle("x"), "left"))
    shop.executor.signal(op, hail, "two", module="right")
    assert {type(one) for one in shop.ends(op)} == {Told}


def test_a_late_payment(shop: Deployed, op: str) -> None:
    """What comes after the state was left waits for a machine that wants it, and is nothing to the others."""
    from datetime import timedelta

    shop.add(op, Awaiting(op, 1, timedelta(milliseconds=50)), Here("open"))
    shop.enters(op, Cancelled(op, "unpaid"))
    assert shop.executor.signal(op, payment, Payment(1)) is Delivery.BUFFERED
    shop.executor.signal(op, go, "end")
    assert shop.ends(op) == [Cancelled(op, "unpaid"), End("")]

"""Each kind of trigger, and the race of several."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from smqueue import Delivery, InactiveState, State, StateMachine
from tests.contract.deployed import Deployed
from tests.contract.machines import (
    Appointed,
    Awaiting,
    Brief,
    Calling,
    Cancelled,
    Done,
    First,
    Hosting,
    Idle,
    Instant,
    Joining,
    Listening,
    Mayfly,
    Ordered,
    Packing,
    Parcel,
    Payment,
    Polling,
    Sent,
    Shipped,
    Tasking,
    Told,
    Watching,
    early,
    hail,
    knock,
    other,
    packed,
    payment,
    release,
)  # fmt: skip
from tests.contract.versions import Versioned

ALONE: dict[str, tuple[State, str]] = {
    "poll": (Polling(3), "polled 3"),
    "call": (Calling(0), "called attempt 1"),
    "call, retried": (Calling(2), "called attempt 3"),
    "call, given up": (Calling(9), "failed ConnectionError: attempt 3 3"),
    "wait, given up": (Hosting(fails=True), "failed ConnectionError: gone 2"),
    "now": (Instant(3), "instant"),
    "after": (Brief(60), "over"),
    "at, passed": (Appointed(datetime(2020, 1, 1, tzinfo=UTC)), "kept"),
}


@pytest.mark.parametrize("kind", ALONE)
def test_each_kind_completes(shop: Deployed, op: str, kind: str) -> None:
    """A machine that waits on one trigger ends with its outcome, or with ``Failed``. (semantics 15)"""
    state, what = ALONE[kind]
    shop.add(op, state)
    assert shop.ends(op) == [Done(what)]


@pytest.mark.real("Celery runs the tasks")
@pytest.mark.parametrize(("n", "what"), [(2, "sum 3"), (-2, "failed ValueError: negative")])
def test_a_celery_task_completes(shop: Deployed, op: str, n: int, what: str) -> None:
    """``task`` brings the result of an existing Celery task, or ``Failed``; there is no result back end."""
    shop.add(op, Tasking(n))
    assert shop.ends(op) == [Done(what)]


def test_a_coroutine_completes(shop: Deployed, op: str) -> None:
    """``wait`` brings what its coroutine returns, which knows its operation."""
    shop.add(op, Hosting())
    assert shop.ends(op) == [Done(f"waited {op}")]


def test_an_appointment_is_kept(shop: Deployed, op: str) -> None:
    """``at`` completes at an instant, not before it, by Redis's clock. (semantics 22)"""
    when = shop.executor.autocommit(lambda tx: tx.now()) + timedelta(milliseconds=150)
    shop.add(op, Appointed(when))
    assert shop.ends(op) == [Done("kept")]
    found = past(shop, op)
    assert found[Appointed(when)].exited_at >= when - timedelta(milliseconds=1)  # deadlines count in ms


def test_a_message_on_a_channel_completes(shop: Deployed, op: str) -> None:
    """``channel`` takes the first message that its predicate lets pass."""
    shop.add(op, Listening(f"room-{op}"))
    shop.until(lambda: shop.executor.explain(op).active[0].triggers[0].running, f"{op} to listen")
    for message in ("no", "yes"):
        shop.executor.autocommit(lambda tx, message=message: tx.publish(f"room-{op}", f'"{message}"'))
    assert shop.ends(op) == [Done("heard yes")]


@pytest.mark.parametrize("before", [True, False], ids=["reached before", "reached later"])
def test_waiting_for_another_operation(shop: Deployed, op: str, before: bool) -> None:
    """``reached`` completes with the state that a machine elsewhere was ever in, ``finished`` when all there ended."""

    def watch() -> None:
        shop.add(f"{op}/watching", Watching(op))
        shop.add(f"{op}/joining", Joining(op))

    if not before:
        watch()
    shop.add(op, Awaiting(op, 1))
    shop.executor.signal(op, payment, Payment(1))
    shop.enters(op, Packing(op))
    if before:
        watch()
    assert shop.ends(f"{op}/watching") == [Done(f"saw Packing {op}")]
    assert shop.executor.has_active_states(f"{op}/joining")
    shop.executor.signal(op, packed)
    assert shop.ends(f"{op}/joining") == [Done("joined")]


def past(shop: Deployed, op: str) -> dict[State, InactiveState]:
    """The inactive states of an operation."""
    return {machine.state: found for machine, found in shop.executor.get_inactive_states(op)}


# --- the race ---


def test_the_first_wins(shop: Deployed, op: str) -> None:
    """The signal comes before the deadline and wins; who won, and what the loser was doing, is kept. (semantics 15)"""
    shop.add(op, Awaiting(op, 5))
    assert shop.executor.signal(op, payment, Payment(5)) is Delivery.DELIVERED
    shop.enters(op, Packing(op))
    found = past(shop, op)[Awaiting(op, 5)]
    assert found.won == "paid"
    assert found.losers is not None
    assert found.losers["expired"]["kind"] == "deadline"
    assert 1_000_000 < found.losers["expired"]["left_ms"] <= 1_800_001  # deadlines are whole ms, never early


@pytest.mark.parametrize("order", ["edn", "den", "ned", "nde", "oed", "dne"])
def test_what_is_ready_at_arming_wins_in_declaration_order(shop: Deployed, op: str, order: str) -> None:
    """Early signals, a passed deadline and ``now``: the first declared wins. (semantics 15)"""
    ends = {"e": "early 1", "o": "other 2", "d": "deadline", "n": "now"}
    for signal, value in ((other, 2), (early, 1)):
        assert shop.executor.signal(op, signal, value) is Delivery.BUFFERED
    shop.add(op, Ordered(order))
    assert shop.ends(op) == [First(ends[order[0]])]


def test_after_arming_the_first_recorded_wins(shop: Deployed, op: str) -> None:
    """Of two signals that come while the machine is held, the first wins, whatever was declared first; the other is
    kept. (semantics 15)"""
    shop.executor.pause(op)
    shop.add(op, Ordered("eo"))
    assert shop.executor.signal(op, other, 1) is Delivery.DELIVERED
    assert shop.executor.signal(op, early, 2) is Delivery.BUFFERED
    shop.executor.resume(op)
    assert shop.ends(op) == [First("other 1")]


def test_a_signal_after_the_deadline_does_not_win(shop: Deployed, op: str) -> None:
    """A deadline counts at its time, also when nothing has noticed it yet. (semantics 15)"""
    shop.executor.pause(op)
    shop.add(op, Brief(50))
    clock: Callable[[], datetime] = lambda: shop.executor.autocommit(lambda tx: tx.now())  # noqa: E731
    (deadline,) = [one.deadline for one in shop.executor.explain(op).active[0].triggers if one.kind == "deadline"]
    assert deadline is not None
    shop.until(lambda: clock() > deadline + timedelta(milliseconds=2), "the deadline to pass")
    assert shop.executor.signal(op, knock) is Delivery.BUFFERED
    shop.executor.resume(op)
    assert shop.ends(op) == [Done("over")]


def test_what_was_recorded_stands(shop: Deployed, op: str) -> None:
    """An outcome is recorded at once and applied later, when its machine is let go; what has come since is kept for the
    next one. (semantics 15, 17)"""
    shop.executor.pause(op)
    shop.add(op, Awaiting(op, 1))
    assert shop.executor.signal(op, payment, Payment(1)) is Delivery.DELIVERED
    assert shop.executor.signal(op, payment, Payment(2)) is Delivery.BUFFERED
    (held,) = shop.executor.explain(op).active
    assert (held.status, held.won) == ("paused", "paid")
    shop.executor.resume(op)
    shop.enters(op, Packing(op))
    assert shop.read("orders", f"revenue:{op}") == "1"


# --- handlers that stay ---


def test_none_consumes_and_waits_on(shop: Deployed, op: str) -> None:
    """``None``: the writes commit, the signal is consumed, the deadline stays where it was."""
    shop.add(op, Awaiting(op, 10))
    (before,) = shop.executor.explain(op).active
    for amount in (3, 4, 10):
        shop.executor.signal(op, payment, Payment(amount))
        if amount != 10:
            shop.until(lambda: shop.executor.explain(op).active[0].status == "waiting", "it to wait again")
            (during,) = shop.executor.explain(op).active
            assert [one.deadline for one in during.triggers] == [one.deadline for one in before.triggers]
            assert during.step == 1
    shop.enters(op, Packing(op))
    assert shop.read("orders", f"received:{op}") == "17"
    assert shop.read("orders", f"revenue:{op}") == "10"


def test_an_expired_order(shop: Deployed, op: str) -> None:
    """A deadline fires after a signal that was not enough."""
    shop.add(op, Awaiting(op, 10, timedelta(seconds=2)))
    shop.executor.signal(op, payment, Payment(3))
    assert shop.ends(op) == [Cancelled(op, "unpaid")]


# --- contexts, versions, retention ---


@pytest.mark.parametrize("side", ["left", "right"])
def test_contexts(shop: Deployed, op: str, side: str) -> None:
    """A handler gets its instance's context, as a value or made by a function, and the global one, made for
    instance and operation. (semantics 4)"""
    shop.add(op, Idle("x"), module=side)
    shop.executor.signal(op, hail, "hi", module=side)
    assert shop.ends(op) == [Told(f"on the {side}", f"{side} of {op}", "hi")]
    assert [shop.read(module, f"word:{op}") for module in (side, "walk")] == ["hi", None]


def test_what_has_ended_is_forgotten(shop: Deployed, op: str) -> None:
    """After ``keep`` a finished operation is forgotten, and its state can be added again. (semantics 7)"""
    shop.add(op, Mayfly(1))
    shop.until(lambda: not list(shop.executor.get_operation_states(op)), f"{op} to be forgotten")
    shop.add(op, Mayfly(1))


@pytest.mark.real("one process has one version")
def test_older_records_are_migrated(shop: Deployed, op: str, older: Versioned) -> None:
    """A record of version 1 is migrated when it is loaded; identity is compared after that. (semantics 32)"""
    older.executor.add_state_machines([StateMachine(op, older.parcel(kilos=2))])
    assert shop.active(op) == [Parcel(2000)]
    assert shop.executor.contains_active_state(StateMachine(op, Parcel(2000)))
    shop.executor.signal(op, release)
    assert shop.ends(op) == [Sent(2000)]


@pytest.mark.real("one process has one version")
def test_newer_records_are_left_alone(shop: Deployed, op: str, newer: Versioned) -> None:
    """A record of version 3 is left for newer workers; others go on. (semantics 32)"""
    newer.executor.add_state_machines([StateMachine(op, newer.parcel(kilos=2))])
    newer.executor.signal(op, "release")
    shop.add(f"{op}/2", Instant(1))
    assert shop.ends(f"{op}/2") == [Done("instant")]
    assert [machine.state for machine, _ in newer.executor.get_active_states(op)] == [newer.parcel(kilos=2)]


def test_the_whole_example(shop: Deployed, op: str) -> None:
    """The contract's example, from its adding to its end. (semantics 5, 18, 23)"""
    (machine,) = shop.add(op, Awaiting(op, 5))
    assert shop.executor.signal(op, packed) is Delivery.BUFFERED
    shop.executor.signal(op, payment, Payment(5))
    assert shop.ends(op) == [Shipped(op)]
    found = past(shop, op)
    assert [found[one].step for one in (Awaiting(op, 5), Packing(op), Shipped(op))] == [1, 2, 3]
    assert {one.machine_id for one in found.values()} == {machine}
    assert [found[one].terminal for one in (Awaiting(op, 5), Packing(op), Shipped(op))] == [False, False, True]
    assert found[Awaiting(op, 5)].exited_at <= found[Packing(op)].created_at
    assert found[Shipped(op)].created_at == found[Shipped(op)].exited_at

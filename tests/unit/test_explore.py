"""``explore``: what users get wrong is found, and told as a short story; what they get right is explored to its end."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from smqueue import Context, Module, State, Transaction, after, call, now, poll, wait
from smqueue.roundtrip import Commit, LostReply, Steps
from smqueue.testing import Counterexample, World, explore
from smqueue.testing.choices import Chooser, runs
from smqueue.testing.faults import Died, Faulty
from smqueue.testing.store import Store


@dataclass(frozen=True)
class Payment:
    amount: int


def shop(name: str) -> Any:
    """A module whose handlers each test adds: orders that await a payment."""
    module = Module(name)

    @module.state
    class Awaiting(State):
        order: str
        total: int

    @module.state(terminal=True)
    class Shipped(State):
        order: str

    @module.state(terminal=True)
    class Cancelled(State):
        order: str

    class Shop:
        orders = module
        payment = module.signal("payment", Payment)

    Shop.Awaiting, Shop.Shipped, Shop.Cancelled = Awaiting, Shipped, Cancelled  # type: ignore[attr-defined]
    return Shop


def failing(modules: Any, scenario: Any, **options: Any) -> Counterexample:
    with pytest.raises(Counterexample) as caught:
        explore(modules, scenario, **options)
    return caught.value


# --- what users get wrong --------------------------------------------------------------------------------------------


def test_a_forgotten_race_is_found() -> None:
    """A deadline that gives the money back, though part of it was never paid: the late payment is the story."""
    s = shop("forgotten")

    @s.orders.on(s.Awaiting, s.payment)
    def paid(tx: Transaction, state: s.Awaiting, got: Payment) -> s.Shipped | None:
        tx.incrby("held", got.amount)
        return s.Shipped(state.order) if got.amount >= state.total else None

    @s.orders.on(s.Awaiting, after(minutes=30))
    def expired(tx: Transaction, state: s.Awaiting, _: None) -> s.Cancelled:
        tx.incrby("held", -state.total)  # forgets that it may have been paid in part, or not at all
        return s.Cancelled(state.order)

    def scenario(world: World) -> None:
        world.add("o1", s.Awaiting("o1", 3))
        world.signal("o1", s.payment, Payment(1))
        world.signal("o1", s.payment, Payment(3))
        world.always(lambda w: _at_least(int(w.executor.data("held") or 0), 0))

    found = failing(s.orders, scenario)
    assert found.story == [
        "o1 is added in Awaiting(order='o1', total=3)",
        "30 minutes pass",
        "expired runs: o1 goes to Cancelled(order='o1')",
    ]
    assert str(found).endswith("→ AssertionError: -3 < 0")


def _at_least(value: int, least: int) -> None:
    if value < least:
        raise AssertionError(f"{value} < {least}")


def test_a_double_refund_is_found() -> None:
    """Two machines that each refund what they see in a shared counter: it needs the money of both orders."""
    s = shop("refunds")

    @s.orders.on(s.Awaiting, s.payment)
    def paid(tx: Transaction, state: s.Awaiting, got: Payment) -> s.Shipped | None:
        tx.shared.incrby("purse", got.amount)
        return None

    @s.orders.on(s.Awaiting, after(minutes=30))
    def expired(tx: Transaction, state: s.Awaiting, _: None) -> s.Cancelled:
        tx.shared.incrby("purse", -state.total)
        return s.Cancelled(state.order)

    def scenario(world: World) -> None:
        world.add("o1", s.Awaiting("o1", 3))
        world.add("o2", s.Awaiting("o2", 3))
        world.signal("o1", s.payment, Payment(3))
        world.always(lambda w: _at_least(int(w.executor.shared_data("purse") or 0), 0))

    found = failing(s.orders, scenario)
    assert [line for line in found.story if " runs: " in line][-1].startswith("expired runs")
    assert len(found.story) <= 5, found


def test_an_effect_outside_of_the_transaction_is_found() -> None:
    """A handler that counts by itself: it takes a worker that dies before its commit to see it counted twice."""
    s = shop("outside")

    class Ledger:
        booked = 0

    @s.orders.on(s.Awaiting, s.payment)
    def paid(tx: Transaction, state: s.Awaiting, got: Payment, context: Context[Ledger]) -> s.Shipped:
        context.module.booked += got.amount
        return s.Shipped(state.order)

    ledgers: list[Ledger] = []

    def ledger() -> Ledger:
        ledgers.append(Ledger())
        return ledgers[-1]

    def scenario(world: World) -> None:
        world.add("o1", s.Awaiting("o1", 3))
        world.signal("o1", s.payment, Payment(3))

        def booked_once(w: World) -> None:
            assert ledgers[-1].booked == 3, f"{ledgers[-1].booked} booked, 3 paid"

        world.after_all(booked_once)

    found = failing(s.orders, scenario, context=ledger)
    assert found.story == [
        "o1 is added in Awaiting(order='o1', total=3)",
        "signal payment Payment(amount=3) is sent to o1: DELIVERED",
        "paid runs: o1 goes to Shipped(order='o1')",
        "the worker dies before this is committed: it is done again",
        "4 seconds pass",
        "paid runs: o1 goes to Shipped(order='o1')",
    ]
    assert explore(s.orders, scenario, context=ledger, crashes=0).complete


def test_a_handler_that_does_not_repeat_itself_is_found() -> None:
    """A handler that draws lots decides otherwise when it is run again; no check of the user's is needed."""
    s = shop("lots")

    @s.orders.on(s.Awaiting, s.payment)
    def paid(tx: Transaction, state: s.Awaiting, got: Payment) -> s.Shipped:
        tx.set("winner", random.randrange(10**9))
        return s.Shipped(state.order)

    def scenario(world: World) -> None:
        world.add("o1", s.Awaiting("o1", 3))
        world.signal("o1", s.payment, Payment(3))

    found = failing(s.orders, scenario)
    assert "decided otherwise" in str(found.error)
    assert any("dies before" in line for line in found.story)


def test_a_machine_with_nothing_left_to_wait_for_is_found() -> None:
    """A deadline whose handler keeps the machine, after which nothing can ever happen: quarantined, and reported."""
    s = shop("stuck")

    @s.orders.on(s.Awaiting, after(minutes=30))
    def expired(tx: Transaction, state: s.Awaiting, _: None) -> s.Cancelled | None:
        return s.Cancelled(state.order) if tx.exists("strict") else None

    def scenario(world: World) -> None:
        world.add("o1", s.Awaiting("o1", 3))

    found = failing(s.orders, scenario)
    assert "quarantined: NothingToWaitFor" in str(found)
    assert found.story[:3] == [
        "o1 is added in Awaiting(order='o1', total=3)",
        "30 minutes pass",
        "expired runs: o1 stays in Awaiting(order='o1', total=3)",
    ]
    assert explore(s.orders, scenario, quarantine=True).complete


def test_code_that_runs_twice_is_found() -> None:
    """A call that is not idempotent: its worker dies after the call and before its outcome is recorded."""
    module = Module("charging")

    @module.state
    class Charging(State):
        card: str

    @module.state(terminal=True)
    class Charged(State):
        card: str

    class Bank:
        charged = 0

    def charge(state: Charging, context: Context[Bank]) -> int:
        context.module.charged += 1
        return context.module.charged

    @module.on(Charging, call(charge))
    def charged(tx: Transaction, state: Charging, times: Any) -> Charged:
        return Charged(state.card)

    banks: list[Bank] = []

    def bank() -> Bank:
        banks.append(Bank())
        return banks[-1]

    def scenario(world: World) -> None:
        world.add("c1", Charging("c1"))

        def charged_once(w: World) -> None:
            assert banks[-1].charged == 1

        world.after_all(charged_once)

    found = failing(module, scenario, context=bank)
    assert any("dies before" in line for line in found.story)
    assert len(found.story) <= 6, found


def test_an_event_that_does_not_matter_is_left_out() -> None:
    """The story has only what is needed to fail."""
    s = shop("needless")

    @s.orders.on(s.Awaiting, s.payment)
    def paid(tx: Transaction, state: s.Awaiting, got: Payment) -> s.Shipped | None:
        return s.Shipped(state.order) if got.amount == 13 else None

    def scenario(world: World) -> None:
        world.add("o1", s.Awaiting("o1", 3))
        for amount in (1, 13, 2):
            world.signal("o1", s.payment, Payment(amount))
        world.always(lambda w: _never(w.states("o1"), s.Shipped))

    found = failing(s.orders, scenario, crashes=0)
    assert found.story == [
        "o1 is added in Awaiting(order='o1', total=3)",
        "signal payment Payment(amount=13) is sent to o1: DELIVERED",
        "paid runs: o1 goes to Shipped(order='o1')",
    ]


def _never(states: Sequence[State], kind: type[State]) -> None:
    assert not any(isinstance(state, kind) for state in states)


# --- what they get right ---------------------------------------------------------------------------------------------


def test_every_order_is_tried() -> None:
    """A payment and a deadline: the order ends in either, and both are seen; so is a refused late payment."""
    s = shop("sound")

    @s.orders.on(s.Awaiting, s.payment)
    def paid(tx: Transaction, state: s.Awaiting, got: Payment) -> s.Shipped:
        tx.incrby("revenue", got.amount)
        return s.Shipped(state.order)

    @s.orders.on(s.Awaiting, after(minutes=30))
    def expired(tx: Transaction, state: s.Awaiting, _: None) -> s.Cancelled:
        return s.Cancelled(state.order)

    late: list[str] = []

    def scenario(world: World) -> None:
        world.add("o1", s.Awaiting("o1", 3))
        world.signal("o1", s.payment, Payment(3))

        def paid_means_shipped(w: World) -> None:
            (state,) = w.states("o1")
            assert (w.executor.data("revenue") == "3") == isinstance(state, s.Shipped)
            late.extend(line for line in w.story if "refused" in line)

        world.after_all(paid_means_shipped)

    explored = explore(s.orders, scenario)
    assert explored.complete
    assert set(explored.ends) == {("Shipped",), ("Cancelled",)}
    assert explored.states > 10
    assert late
    assert str(explored).startswith(f"{explored.runs} runs came by {explored.states} states; nothing was left out.")
    again = explore(s.orders, scenario)
    assert (again.runs, again.ends) == (explored.runs, explored.ends)  # the same every time
    assert not explore(s.orders, scenario, max_runs=3).complete
    assert not explore(s.orders, scenario, max_events=1).complete


def test_every_crash_and_duplicate_happens() -> None:
    """Each way for a worker to die, a lost answer, a signal sent again and a message delivered twice: all are tried."""
    module = Module("surprises")

    @module.state
    class Asking(State):
        n: int

    @module.state(terminal=True)
    class Asked(State):
        n: int

    again = module.signal("again", int)

    def ask(state: Asking, context: object) -> str:
        return "yes"

    @module.on(Asking, call(ask))
    def asked(tx: Transaction, state: Asking, _: Any) -> Asked:
        return Asked(state.n)

    @module.on(Asking, again)
    def stays(tx: Transaction, state: Asking, _: int) -> None:
        return None

    told: set[str] = set()

    def scenario(world: World) -> None:
        world.add("o", Asking(1))
        world.signal("o", again, 1)
        world.after_all(lambda w: told.update(w.story))

    explored = explore(module, scenario)
    assert explored.complete
    assert set(explored.ends) == {("Asked",)}
    for surprise in (
        "the worker dies before this is committed: it is done again",
        "it is committed, and the worker dies right after that",
        "it is committed, and the answer to that is lost",
        "it is sent again under the same id: DUPLICATE",
        "the next message is delivered twice",
        "signal again 1 is sent to o: DELIVERED",
        "signal again 1 is sent to o: refused, OperationFinished",
    ):
        assert surprise in told, surprise
    told.clear()
    explore(module, scenario, crashes=0, duplicates=0)
    assert not any("dies" in line or "again under" in line or "twice" in line for line in told)


@pytest.mark.parametrize(
    ("what", "key", "problem"),
    [
        ("HDEL", "active", "is lost"),
        ("DEL", "machine", "nothing will ever look at it"),
        ("DEL", "schedule", "nothing will ever look at it"),
    ],
)
def test_a_machine_that_vanishes_is_told_of(what: str, key: str, problem: str) -> None:
    """Our own checks see a record that was taken away behind smqueue's back; no check of the scenario's is needed."""
    s = shop("vanishing")

    @s.orders.on(s.Awaiting, s.payment)
    def paid(tx: Transaction, state: s.Awaiting, got: Payment) -> s.Shipped:
        return s.Shipped(state.order)

    def vanish(executor: Any) -> None:
        (one,) = executor.waiting("o1")
        names = {
            "active": (one.keys.active("o1"), one.armed.machine.field),
            "machine": (one.keys.machine(one.armed.machine.record),),
            "schedule": (one.keys.schedule,),
        }
        executor.deployment.driver.command(what, *names[key])

    def scenario(world: World) -> None:
        world.add("o1", s.Awaiting("o1", 3))
        world.may("a record vanishes", vanish)

    found = failing(s.orders, scenario)
    assert problem in str(found.error)
    assert found.story[-1] == "a record vanishes"


def test_outcomes_are_given_by_the_scenario() -> None:
    """A trigger whose outcomes the scenario names never runs its code; of two outcomes the first to come counts."""
    module = Module("verdicts")

    @module.state
    class Submitted(State):
        n: int

    @module.state(terminal=True)
    class Accepted(State):
        n: int

    @module.state(terminal=True)
    class Rejected(State):
        n: int

    def ask(state: Submitted, context: object) -> bool:
        raise AssertionError("is not to be run")

    async def sign(state: Submitted, context: object) -> bool:
        raise AssertionError("is not to be run")

    @module.on(Submitted, poll(ask, every=timedelta(seconds=1)))
    def judged(tx: Transaction, state: Submitted, yes: bool) -> Accepted | Rejected:
        return Accepted(state.n) if yes else Rejected(state.n)

    @module.on(Submitted, wait(sign))
    def signed(tx: Transaction, state: Submitted, yes: Any) -> Accepted:
        return Accepted(state.n)

    def scenario(world: World) -> None:
        world.add("t", Submitted(1))
        world.complete(judged, True)
        world.complete("judged", False, "t")
        world.complete(signed, True)

    explored = explore(module, scenario)
    assert set(explored.ends) == {("Accepted",), ("Rejected",)}


def test_other_events_may_happen() -> None:
    """Cancelling, or anything else that the executor can do, is one more event."""
    module = Module("cancelling")

    @module.state
    class Start(State):
        n: int

    @module.state
    class Going(State):
        n: int

    @module.state(terminal=True)
    class Done(State):
        n: int

    @module.on(Start, now())
    def started(tx: Transaction, state: Start, _: None) -> Going:
        return Going(state.n)

    @module.on(Going, after(seconds=1))
    def done(tx: Transaction, state: Going, _: None) -> Done:
        return Done(state.n)

    def scenario(world: World) -> None:
        world.add("o", Start(1))
        world.may("o is cancelled", lambda executor: executor.cancel("o"))

    assert set(explore(module, scenario).ends) == {("Start",), ("Going",), ("Done",)}


def test_cancel_handlers_are_explored() -> None:
    """A cancel handler races with what its machine waits for, in a worker that may die before and after its commit: it
    runs for what was cancelled, once, and one that decides otherwise when it runs again is found. (semantics 5)"""
    s = shop("undone")

    @s.orders.on(s.Awaiting, s.payment)
    def paid(tx: Transaction, state: s.Awaiting, got: Payment) -> s.Shipped:
        return s.Shipped(state.order)

    draws = random.Random(1)

    @s.orders.on_cancel(s.Awaiting)
    def undo(tx: Transaction, state: s.Awaiting, reason: str | None) -> None:
        tx.rpush("undone", f"{state.order} {reason}")
        if state.order == "moody":
            tx.set("draw", str(draws.random()))

    def scenario(order: str) -> Any:
        def told(world: World) -> None:
            world.add("o1", s.Awaiting(order, 3))
            world.signal("o1", s.payment, Payment(3))
            world.cancel("o1", "why")
            world.after_all(undone)

        def undone(world: World) -> None:
            ended = [type(state).__name__ for state in world.states("o1")]
            assert (world.executor.data("undone") or []) == ([f"{order} why"] if ended == ["Awaiting"] else [])

        return told

    explored = explore(s.orders, scenario("plain"))
    assert explored.complete
    assert set(explored.ends) == {("Awaiting",), ("Shipped",)}
    found = failing(s.orders, scenario("moody"))
    assert "undo was run again with all the same" in str(found)
    assert any("undo runs: o1 ends in" in line for line in found.story)


def test_a_scenario_that_does_not_fit_fails_at_once() -> None:
    """A payload that the signal would refuse is no story, but an error of the scenario's."""
    s = shop("misfit")

    @s.orders.on(s.Awaiting, s.payment)
    def paid(tx: Transaction, state: s.Awaiting, got: Payment) -> s.Shipped:
        return s.Shipped(state.order)

    found = failing(s.orders, lambda world: world.signal("o1", s.payment, "three"))
    assert type(found.error).__name__ == "InvalidPayload"


def test_faults_are_real() -> None:
    """Who dies before a commit has written nothing, and after it all; a lost answer leaves its asker in doubt."""
    driver = Faulty(Store())

    def counting() -> Steps[str]:
        try:
            yield Commit((("INCRBY", "n", 1),))
        except LostReply:
            return "lost"
        return "answered"

    driver.fault = lambda options: "before"
    with pytest.raises(Died):
        driver.run(counting())
    assert driver.command("GET", "n") is None
    driver.fault = lambda options: "after"
    with pytest.raises(Died):
        driver.run(counting())
    assert driver.command("GET", "n") == b"1"
    driver.fault = lambda options: "lost"
    assert (driver.run(counting()), driver.command("GET", "n")) == ("lost", b"2")
    driver.fault = lambda options: "none"
    assert (driver.run(counting()), driver.command("GET", "n")) == ("answered", b"3")


def test_what_comes_to_the_same_is_tried_once() -> None:
    """From a state that another run was in, a run goes on with the first options only."""

    def run(chooser: Chooser) -> tuple[int, ...]:
        return tuple(chooser.choose([0, 1], depth) for depth in range(3))

    assert list(runs(run)) == [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]


def test_all_sequences_are_tried_once() -> None:
    """Without states in common, every sequence of choices is run exactly once, plain ones first."""

    def run(chooser: Chooser) -> tuple[int, ...]:
        chosen: list[int] = []
        for _ in range(3):
            chosen.append(chooser.choose([0, 1, 2][: 2 + len(chosen) % 2], tuple(chosen)))
        return tuple(chosen)

    found = list(runs(run))
    assert found[0] == (0, 0, 0)
    assert sorted(found) == [(a, b, c) for a in range(2) for b in range(3) for c in range(2)]
    deviations = [sum(choice > 0 for choice in one) for one in found]
    assert deviations == sorted(deviations)

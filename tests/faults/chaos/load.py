"""What is fed, and what must become of it: orders, cases of an event log, errands; the same for the same seed."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from smqueue import StateMachine
from smqueue.demo.plan import PlannedOrder, PlannedSignal, expected, make_plan
from smqueue.demo.replay import machine_of, replay, signals_of
from smqueue.demo.xes import Case, Event
from tests.faults.chaos.errands import ANSWERS, Asking, Following, errands, followers
from tests.faults.replaying import cases

CASES = 1_500
ORDERS_EACH, CASES_EACH, ERRANDS_EACH = 12, 6, 3
"""Of a chunk."""


@dataclass(frozen=True)
class Fed:
    """One operation: what is sent to it, and what must become of it.

    Attributes:
        machine: What is added.
        early: Signals sent before it is added.
        signals: Signals sent after, in this order.
        paths: By module: what its one machine there passes, in order: names of states, or activities of a case.
        steps: How often each handler commits; ``…/kept`` where it returns ``None``.
        revenue: What it adds to the orders' counter, in cents.
        refunded: What it adds to the refunds' counter, in cents.
    """

    machine: StateMachine
    early: tuple[PlannedSignal, ...]
    signals: tuple[PlannedSignal, ...]
    paths: dict[str, tuple[str, ...]]
    steps: Counter[str]
    revenue: int = 0
    refunded: int = 0

    @property
    def operation_id(self) -> str:
        """Its operation."""
        return self.machine.operation_id

    @property
    def signal_ids(self) -> set[str]:
        """The ids of all signals to it."""
        return {signal.id for signal in (*self.early, *self.signals)}


def write_cases(path: Path) -> None:
    """Put the cases into a file that each producer reads soon."""
    path.write_text(json.dumps([[case.name, [it.activity for it in case.events]] for case in cases(CASES)]))


class Load:
    """The chunks of one run.

    Args:
        seed: Of the run.
        path: What ``write_cases`` wrote.
    """

    def __init__(self, seed: int, path: Path) -> None:
        self._seed, self._cases = seed, json.loads(path.read_text())

    def chunk(self, producer: int, number: int) -> list[Fed]:
        """The operations of one producer's chunk."""
        rng = random.Random(f"{self._seed}/{producer}/{number}")
        mark = f"{producer}.{number}"
        fed = [order(planned, mark) for planned in make_plan(ORDERS_EACH, rng.getrandbits(48))]
        fed += [case(Case(f"{name} {mark}.{i}", [Event(it, None) for it in activities]))
                for i, (name, activities) in enumerate(rng.sample(self._cases, CASES_EACH))]  # fmt: skip
        for number in range(ERRANDS_EACH):
            fed += errand(f"errand-{number} {mark}")
        rng.shuffle(fed)
        return fed


def order(planned: PlannedOrder, mark: str) -> Fed:
    """An order of the demo, under an id of its own."""
    state = replace(planned.state, order_id=f"{planned.state.order_id}-{mark}")
    planned = replace(planned, state=state)
    wanted = expected(planned)
    steps = Counter[str]()
    paid = len({signal.id for signal in planned.signals if signal.name == "payment"})
    if wanted.finals["orders"] == "Cancelled":
        steps.update({"orders.expired": 1, "orders.paid/kept": paid})
    elif state.bank_polls:
        steps.update({"orders.settled": 1, "orders.settled/kept": state.bank_polls - 1})
    else:
        steps.update({"orders.paid": 1, "orders.paid/kept": paid - 1})
    if "parcels" in wanted.paths:
        steps.update(["parcels.handed_over", "parcels.fetched" if state.pickup else "parcels.brought"])
    if "refunds" in wanted.paths:
        steps.update(["refunds.paid_back"])
    return Fed(
        planned.machine,
        tuple(signal for signal in planned.signals if signal.early),
        tuple(signal for signal in planned.signals if not signal.early),
        dict(wanted.paths),
        +steps,
        wanted.revenue,
        wanted.refunded,
    )


def case(given: Case) -> Fed:
    """A case of an event log: one signal an event."""
    signals = tuple(
        PlannedSignal(replay.name, "event", {"activity": it.activity, "index": it.index}, f"event-{it.index}")
        for it in signals_of(given)
    )
    path = tuple(it.activity for it in given.events)
    return Fed(machine_of(given), (), signals, {replay.name: path}, Counter({"replay.moved": len(path)}))


def errand(op: str) -> list[Fed]:
    """An errand, and the operation that follows it."""
    paths = {"errands": ("Asking", "Asked"), "listeners": (*["Listening"] * len(ANSWERS), "Heard")}
    steps = Counter({"errands.asked": 1, "listeners.heard": len(ANSWERS)})
    followed = Counter({"followers.followed": 1})
    return [
        Fed(StateMachine(op, Asking(op), errands.name), (), (), paths, steps),
        Fed(
            StateMachine(f"{op} followed", Following(op), followers.name),
            (),
            (),
            {"followers": ("Following", "Followed")},
            followed,
        ),
    ]


def again(fed: Fed) -> Fed:
    """The same under a fresh id."""
    op = f"{fed.operation_id}+"
    state: Any = fed.machine.state
    name = next(name for name in ("case", "order_id", "errand") if hasattr(state, name))
    return replace(fed, machine=StateMachine(op, replace(state, **{name: op}), fed.machine.module))


def by_turns(chunk: list[Fed]) -> Iterator[tuple[str, PlannedSignal]]:
    """The later signals of a chunk, as those of many operations come: by turns."""
    columns = zip_longest(*[[(fed.operation_id, signal) for signal in fed.signals] for fed in chunk])
    return (pair for column in columns for pair in column if pair is not None)

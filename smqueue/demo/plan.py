"""What the orders of ``smqueue demo`` do, and what must become of each: inputs by seed, ends by a model.

The model knows nothing of machines, signals or Redis. Races are decided by inputs: an order that is to expire is sent
too little or nothing, and one that is to be paid has ten minutes. What must be there in time is sent before the order
is added, and kept for it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, get_args

from smqueue.demo.machines import Awaiting, Payment, Refunded, collected, orders, parcels, payment, receipt_for
from smqueue.states import State, StateMachine

Kind = Literal["full", "early", "parts", "duplicate", "overpaid", "underpaid", "unpaid", "bank"]
"""How an order is paid.

full        by one signal
early       by one signal, sent before the order is added
parts       by two signals that add up
duplicate   by two signals that add up, the first of which is sent twice under one id
overpaid    by one signal with too much; the rest goes back
underpaid   too little, sent before the order is added; it expires and the money goes back
unpaid      not at all; it expires
bank        by a transfer that shows at the bank
"""

KINDS: tuple[Kind, ...] = get_args(Kind)
WEIGHTS = (30, 10, 15, 10, 10, 8, 9, 8)
PATIENT = timedelta(days=1)
"""Of those who pay: longer than any fault can hold up what they pay by, or the plan would not say how it ends."""


@dataclass(frozen=True)
class PlannedSignal:
    """A signal to be sent to an order.

    Attributes:
        module: The module instance that takes it.
        name: Of the signal.
        payload: JSON-ready; ``None`` for a signal without payload.
        id: Under which a second one is the same signal.
        early: To be sent before the order is added.
    """

    module: str
    name: str
    payload: dict[str, Any] | None
    id: str
    early: bool = False


@dataclass(frozen=True)
class PlannedOrder:
    """The inputs of one order.

    Attributes:
        kind: How it is paid.
        state: The state to add.
        signals: To be sent, in this order; the early ones before the state is added.
    """

    kind: Kind
    state: Awaiting
    signals: tuple[PlannedSignal, ...]

    @property
    def operation_id(self) -> str:
        """The operation of the order: its own id."""
        return self.state.order_id

    @property
    def machine(self) -> StateMachine:
        """The machine to add."""
        return StateMachine(self.operation_id, self.state, orders.name)


@dataclass(frozen=True)
class Expectation:
    """What must become of one order.

    Attributes:
        paths: By module: the names of the states that its one machine there passes, in order. Modules that are not
            named have no machine in the operation.
        revenue: What it adds to ``revenue``, in cents.
        refunded: What it adds to ``refunded``, in cents.
        receipt: The bank's receipt, where something was paid back.
    """

    paths: Mapping[str, tuple[str, ...]]
    revenue: int
    refunded: int
    receipt: str | None

    @property
    def finals(self) -> dict[str, str]:
        """By module: the name of the state that its machine ends in."""
        return {module: path[-1] for module, path in self.paths.items()}

    def fits(self, finals: Mapping[str, State]) -> bool:
        """Return whether these are the final states, by module, that the order must have."""
        receipts = {state.receipt for state in finals.values() if isinstance(state, Refunded)}
        named = {module: type(state).__name__ for module, state in finals.items()}
        return named == self.finals and receipts == ({self.receipt} - {None})


def make_plan(orders: int, seed: int) -> list[PlannedOrder]:
    """Return the inputs of ``orders`` orders; the same for the same seed. Of eight or more, every kind occurs.

    Args:
        orders: How many.
        seed: Of the random choices.
    """
    rng = random.Random(seed)
    kinds: list[Kind] = [*KINDS[:orders], *rng.choices(KINDS, WEIGHTS, k=max(orders - len(KINDS), 0))]
    rng.shuffle(kinds)
    return [_order(f"order-{number:06}", kind, rng) for number, kind in enumerate(kinds, 1)]


def expected(order: PlannedOrder) -> Expectation:
    """Return what must become of an order, by adding up what it is sent."""
    amounts = {s.id: int((s.payload or {})["amount"]) for s in order.signals if s.name == payment.name}
    revenue = sum(amounts.values()) + (order.state.total if order.state.bank_polls else 0)
    shipped = revenue >= order.state.total
    owed = revenue - order.state.total if shipped else revenue
    paths: dict[str, tuple[str, ...]] = {"orders": ("Awaiting", "Shipped" if shipped else "Cancelled")}
    if shipped:
        paths["parcels"] = ("Packed", "AtCounter" if order.state.pickup else "OnTheRoad", "Delivered")
    if owed:
        paths["refunds"] = ("Refunding", "Refunded")
    return Expectation(paths, revenue, owed, receipt_for(order.operation_id, owed) if owed else None)


def _order(order_id: str, kind: Kind, rng: random.Random) -> PlannedOrder:
    total = rng.randrange(500, 20_000)
    expires = kind in ("underpaid", "unpaid")
    state = Awaiting(
        order_id,
        total,
        patience=timedelta(milliseconds=rng.randrange(2000, 5000)) if expires else PATIENT,
        bank_polls=rng.randrange(1, 4) if kind == "bank" else 0,
        pickup=not expires and rng.random() < 0.3,
    )
    signals = [_paid(number, amount, kind) for number, amount in _amounts(kind, total, rng)]
    if state.pickup:
        signals.append(PlannedSignal(parcels.name, collected.name, None, "collected"))
    return PlannedOrder(kind, state, tuple(signals))


def _amounts(kind: Kind, total: int, rng: random.Random) -> list[tuple[int, int]]:
    """Payments as (number, cents); one that comes twice is the larger part, so that counting it twice would show."""
    part = total * 6 // 10
    match kind:
        case "full" | "early":
            return [(1, total)]
        case "parts":
            return [(1, part), (2, total - part)]
        case "duplicate":
            return [(1, part), (1, part), (2, total - part)]
        case "overpaid":
            return [(1, total + rng.randrange(1, total))]
        case "underpaid":
            return [(1, part)]
        case "unpaid" | "bank":
            return []


def _paid(number: int, amount: int, kind: Kind) -> PlannedSignal:
    payload = {"amount": Payment(amount).amount}
    early = kind in ("early", "underpaid")
    return PlannedSignal(orders.name, payment.name, payload, f"payment-{number}", early=early)

"""``Handler``: one racing trigger of a state, and what happens when it has won."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from smqueue.errors import UndeclaredTransition
from smqueue.schemas import Codec
from smqueue.states import Context, State, type_of
from smqueue.trigger_types import Trigger


@dataclass(frozen=True, eq=False)
class Handler:
    """What happens when one trigger of a state has won.

    Attributes:
        name: Unique within the state.
        trigger: What is waited for.
        fn: The user's function.
        where: Where it is defined, ``file:line``.
        outcome: Encodes, loads and checks the outcome of the trigger.
        declared: The states that it may return.
        may_stay: Whether it may return ``None``.
        takes_context: Whether it has the fourth parameter.
    """

    name: str
    trigger: Trigger[Any, Any]
    fn: Callable[..., State | None]
    where: str
    outcome: Codec[Any]
    declared: tuple[type[State], ...]
    may_stay: bool
    takes_context: bool

    def apply(self, tx: Any, state: State, outcome: Any, context: Context[Any, Any] | None) -> State | None:
        """Run the handler; a context is given to those that take one.

        Returns:
            The next state; or ``None`` to keep waiting.

        Raises:
            UndeclaredTransition: It returned what its annotation does not declare.
            Exception: Whatever the handler raises.
        """
        given = (tx, state, outcome, context) if self.takes_context else (tx, state, outcome)
        result = self.fn(*given)
        if type(result) in self.declared or (result is None and self.may_stay):
            return result
        known = type_of(type(state))
        label = self.name if known is None else self.label(known.module.name, known.name)
        names = [cls.__name__ for cls in self.declared] + ["None"] * self.may_stay
        returned = "None" if result is None else type(result).__name__
        raise UndeclaredTransition(label, returned, " | ".join(names))

    def label(self, instance_id: str, state_type_name: str) -> str:
        """Return the name of this trigger in Flower, ``why`` and logs, such as ``orders.Awaiting/paid``."""
        return f"{instance_id}.{state_type_name}/{self.name}"

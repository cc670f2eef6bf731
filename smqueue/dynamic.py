"""The dynamic form: from what an overridden ``State.transitions`` returns to handlers."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from smqueue.checks import defined_name
from smqueue.definitions import Registration, Resolver, check_trigger, signature_of
from smqueue.errors import DefinitionError, NoTransitions
from smqueue.handlers import Handler
from smqueue.places import function_of, place_of
from smqueue.states import StateType, Transition
from smqueue.trigger_types import Reached, Signal, Trigger

if TYPE_CHECKING:
    from smqueue.modules import Module


class DynamicForm:
    """Makes handlers of transitions; each function in the source is checked once, although it may be a closure.

    Args:
        module: A resolved module.
    """

    def __init__(self, module: Module[Any]) -> None:
        self.module = module
        self._checked: dict[object, Handler] = {}

    def handlers(self, known: StateType, given: Any) -> tuple[Handler, ...]:
        """Return the handlers of what ``transitions`` of a state returned.

        Raises:
            DefinitionError: It is unusable, or has one name twice.
            NoTransitions: It is empty.
        """
        where = place_of(known.cls.transitions)
        transitions = self._transitions(known, given, where)
        names = Counter(transition.name for transition in transitions)
        if twice := [transition for transition in transitions if names[transition.name] > 1]:
            places = " and ".join(transition.where for transition in twice)
            raise DefinitionError(
                f"{known.name}.transitions() returned two transitions named {twice[0].name} (at {places}): give "
                "Transition(…, name=…)",
                where,
            )
        return tuple(self._handler(known, transition) for transition in transitions)

    def _transitions(self, known: StateType, given: Any, where: str) -> Sequence[Transition[Any, Any]]:
        if not isinstance(given, Sequence):
            raise DefinitionError(f"{known.name}.transitions() returned {type(given).__name__}, not a list", where)
        for transition in cast("Sequence[Any]", given):
            if not isinstance(transition, Transition):
                found = type(transition).__name__
                raise DefinitionError(f"{known.name}.transitions() returned a {found}: give Transition(…)", where)
            check_trigger(self.module, transition.trigger, where)
            defined_name("name of a transition", transition.name, where)
        if not given:
            raise NoTransitions(f"this state {known.name} of module {self.module.name}", where)
        return cast("Sequence[Transition[Any, Any]]", given)

    def _handler(self, known: StateType, transition: Transition[Any, Any]) -> Handler:
        fn, trigger = transition.apply, transition.trigger
        key = (known.cls, *_source(fn, trigger))
        checked = self._checked.get(key)
        if checked is None:
            signature = signature_of(fn, transition.where, lenient=True)
            given = Registration((known,), trigger, fn, transition.name, transition.where, signature, {})
            checked = self._checked[key] = Resolver(self.module, given).handler()
        return replace(checked, name=transition.name, trigger=trigger, fn=fn)


def _source(fn: Any, trigger: Trigger[Any, Any]) -> tuple[object, ...]:
    """Return what decides the outcome of the checks, and is the same for each closure made of one piece of source."""
    bound = (len(fn.args), *fn.keywords) if isinstance(fn, functools.partial) else ()
    function = function_of(fn)
    of = trigger if isinstance(trigger, Signal) else trigger.states if isinstance(trigger, Reached) else None
    return getattr(function, "__code__", fn), type(fn), bound, trigger.kind, of, getattr(trigger, "payload_type", None)

"""What a module is given, checked before it takes it: classes of states, and the handlers of their triggers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from smqueue.checks import defined_name
from smqueue.definitions import Registration, Resolver, signature_of, text
from smqueue.errors import DefinitionError, NoTransitions
from smqueue.handlers import Handler
from smqueue.places import here, local_names, place_of
from smqueue.schemas import dataclass_codec
from smqueue.states import State, StateType, type_of
from smqueue.trigger_types import Cancel, Trigger

if TYPE_CHECKING:
    from smqueue.modules import Module


def state_type(module: Module[Any], cls: Any, schema: Any, name: str | None, terminal: bool) -> StateType:
    """What is known of a class that becomes a state of a module; raises DefinitionError, UnsupportedField."""
    where = here()
    if not isinstance(cls, type) or not issubclass(cls, State) or cls is State:
        raise DefinitionError(f"{text(cls)} is not a state: write class {text(cls)}(State)", where)
    if not cast("Any", cls).__dataclass_params__.frozen:
        raise DefinitionError(f"{cls.__name__} is not frozen: leave @dataclass away, State does it", where)
    stored = defined_name("stored name of a state", cls.__name__ if name is None else name, where)
    if (known := type_of(cls)) is not None:
        first = f"module {known.module.name} already (registered at {known.where})"
        raise DefinitionError(
            f"state {cls.__name__} belongs to {first}: give module {module.name} a class of its own", where
        )
    if stored in module.types:
        raise DefinitionError(
            f"module {module.name} has a state {stored} already (registered at {module.types[stored].where}): give one "
            "of them another name=",
            where,
        )
    return StateType(cls, stored, dataclass_codec(cls, identity=True, schema=schema), terminal, module, where)


def states_for(module: Module[Any], given: Any, what: str, where: str) -> tuple[StateType, ...]:
    """The states that a handler is registered for: one, or a tuple of them; raises DefinitionError."""
    classes: tuple[Any, ...] = cast("tuple[Any, ...]", given) if isinstance(given, tuple) else (given,)
    if not classes:
        raise DefinitionError(f"{what}(…) needs a state class, or a tuple of them", where)
    return tuple(state_for(module, cls, where) for cls in classes)


def state_for(module: Module[Any], cls: Any, where: str, *, terminal: bool = False) -> StateType:
    """A state of this module, a terminal one only if that may be; raises DefinitionError."""
    known = type_of(cls) if isinstance(cls, type) else None
    if known is None:
        raise DefinitionError(f"{text(cls)} is not a registered state: decorate it with @{module.name}.state", where)
    if known.module is not module:
        raise DefinitionError(
            f"state {known.name} belongs to module {known.module.name} (registered at {known.where}), not to "
            f"module {module.name} (defined at {module.where})",
            where,
        )
    if known.terminal and not terminal:
        raise DefinitionError(
            f"state {known.name} is terminal (registered at {known.where}): it waits for nothing", where
        )
    return known


def registration(
    others: Sequence[Registration], states: tuple[StateType, ...], trigger: Trigger[Any, Any], fn: Any
) -> Registration:
    """A handler of states, beside the others of its module; raises DefinitionError."""
    where = place_of(fn) if callable(fn) else here()
    signature = signature_of(fn, where)
    name = defined_name("name of a handler", getattr(fn, "__name__", ""), where)
    for state in states:
        for other in others:
            both = isinstance(trigger, Cancel) + isinstance(other.trigger, Cancel)
            if both == 2 and state in other.states:
                raise DefinitionError(
                    f"state {state.name} has a cancel handler already, {other.name} (defined at {other.where}): it "
                    "has one at most",
                    where,
                )
            if not both and other.name == name and state in other.states:
                raise DefinitionError(
                    f"state {state.name} has a handler {name} already (defined at {other.where}): a trigger is "
                    "named after its handler",
                    where,
                )
    return Registration(states, trigger, fn, name, where, signature, local_names())


def resolve_handlers(module: Module[Any], given: Sequence[Registration]) -> None:
    """Resolve all handlers, and give each state its own; raises DefinitionError, NoTransitions."""
    handlers: dict[str, list[Handler]] = {name: [] for name in module.types}
    undoing: dict[str, Handler] = {}
    for one in given:
        handler = Resolver(module, one).handler()
        for known in one.states:
            if isinstance(one.trigger, Cancel):
                undoing[known.name] = handler
            else:
                handlers[known.name].append(handler)
    for known in module.types.values():
        if not known.terminal and not known.dynamic and not handlers[known.name]:
            raise NoTransitions(f"state {known.name} of module {module.name}", known.where)
    for known in module.types.values():
        known.handlers = tuple(handlers[known.name])
        known.on_cancel = undoing.get(known.name)

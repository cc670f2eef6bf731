"""From a decorated function to a checked ``Handler``: its parameters, its annotations, its outcome's schema."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from marshmallow import Schema

from smqueue.errors import DefinitionError
from smqueue.handlers import Handler
from smqueue.outcomes import failed_or, state_of
from smqueue.places import function_of
from smqueue.retry import Failed
from smqueue.schemas import Codec, codec_for
from smqueue.states import Context, State, StateType, type_of
from smqueue.trigger_types import Cancel, Channel, Reached, Signal, Trigger

if TYPE_CHECKING:
    from smqueue.modules import Module

_ANYTHING = (Any, object, inspect.Parameter.empty)
_NOTHING = type(None)
_UNRESOLVED = (NameError, TypeError, AttributeError, SyntaxError)


@dataclass(frozen=True)
class Signature:
    """The parameters of a handler as written; nothing is resolved.

    Attributes:
        state: Annotation of the second parameter, or ``Parameter.empty``.
        outcome: Annotation of the third.
        outcome_name: Name of the third.
        context: Annotation of the fourth.
        returns: The return annotation.
        takes_context: Whether there is a fourth.
    """

    state: Any
    outcome: Any
    outcome_name: str
    context: Any
    returns: Any
    takes_context: bool


@dataclass(frozen=True)
class Registration:
    """A handler as it was registered, or found among transitions: nothing is resolved.

    Attributes:
        states: For which it is registered.
        locals: Names local to the function in which it was defined, for its annotations.
    """

    states: tuple[StateType, ...]
    trigger: Trigger[Any, Any]
    fn: Callable[..., Any]
    name: str
    where: str
    signature: Signature
    locals: Mapping[str, Any] = field(repr=False)


def check_trigger(module: Module[Any], trigger: object, where: str) -> None:
    """Check that something is a trigger, and if a signal, one of this module.

    Raises:
        DefinitionError: It is not; of another module's signal it names both places.
    """
    if not isinstance(trigger, Trigger):
        raise DefinitionError(f"{text(trigger)} is not a trigger: give a signal, after(…), poll(…) …", where)
    if isinstance(trigger, Signal) and trigger.module is not module:
        raise DefinitionError(
            f"signal {trigger.name} belongs to module {trigger.module.name} (declared at {trigger.where}), not to "
            f"module {module.name} (defined at {module.where})",
            where,
        )


def signature_of(fn: Any, where: str, *, lenient: bool = False) -> Signature:
    """Check what can be checked before annotations are resolved.

    Args:
        fn: The handler.
        where: Where it is defined.
        lenient: Whether it may do without a return annotation.

    Raises:
        DefinitionError: Not a plain function of three or four positional parameters that says what it returns.
    """
    if not callable(fn):
        raise DefinitionError(f"a handler is a function, not {type(fn).__name__}", where)
    name = getattr(fn, "__name__", type(fn).__name__)
    if inspect.iscoroutinefunction(function_of(fn)) or inspect.isgeneratorfunction(function_of(fn)):
        raise DefinitionError(
            f"handler {name} is async or a generator: write a plain def; what awaits belongs into call, poll or wait",
            where,
        )
    found = inspect.signature(fn)
    positional = [p for p in found.parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    others = [p for p in found.parameters.values() if p not in positional]
    if len(positional) not in (3, 4) or any(p.kind is p.KEYWORD_ONLY and p.default is p.empty for p in others):
        raise DefinitionError(
            f"handler {name}{found} must take three or four positional parameters: tx, state, outcome and, if it "
            "wants it, context",
            where,
        )
    if found.return_annotation is found.empty and not lenient:
        raise DefinitionError(
            f"handler {name} has no return annotation, which declares the states it may return: write -> Shipped, "
            "-> Shipped | None, or -> None if it only ever stays",
            where,
        )
    takes_context = len(positional) == 4
    return Signature(
        state=positional[1].annotation,
        outcome=positional[2].annotation,
        outcome_name=positional[2].name,
        context=positional[3].annotation if takes_context else inspect.Parameter.empty,
        returns=found.return_annotation,
        takes_context=takes_context,
    )


class Resolver:
    """Resolves and checks the annotations of one handler.

    Args:
        module: Whose states it may return, and whose names its annotations may use.
        given: What was registered.
    """

    def __init__(self, module: Module[Any], given: Registration) -> None:
        self.module = module
        self.given = given
        self.signature = given.signature
        self.names = _names(module, given)

    def handler(self) -> Handler:
        """Make the handler.

        Raises:
            DefinitionError: An annotation that cannot be resolved or does not fit; it names both places.
        """
        self._check_state(self.given.states)
        self._check_context()
        declared, may_stay = self._returns()
        return Handler(
            name=self.given.name,
            trigger=self.given.trigger,
            fn=self.given.fn,
            where=self.given.where,
            outcome=self._outcome(self.given.trigger),
            declared=declared,
            may_stay=may_stay,
            takes_context=self.signature.takes_context,
        )

    def _fail(self, problem: str) -> DefinitionError:
        return DefinitionError(f"handler {self.given.name}: {problem}", self.given.where)

    def _evaluate(self, annotation: Any, what: str) -> Any:
        if annotation is inspect.Parameter.empty:
            return annotation

        def holder() -> None: ...

        holder.__annotations__ = {"it": annotation}
        try:
            return typing.get_type_hints(holder, globalns=self.names, include_extras=True)["it"]
        except _UNRESOLVED as error:
            raise self._fail(f"the annotation {annotation!r} of its {what} cannot be resolved: {error}") from error

    def _check_state(self, states: tuple[StateType, ...]) -> None:
        hint = self._evaluate(self.signature.state, "second parameter, the state,")
        for state in states:
            if not fits(state.cls, hint):
                raise self._fail(
                    f"is registered for {state.name} (defined at {state.where}), but its second parameter is annotated "
                    f"{text(hint)}"
                )

    def _check_context(self) -> None:
        annotation = self.signature.context
        try:
            hint = self._evaluate(annotation, "fourth parameter, the context,")
        except DefinitionError as error:
            if isinstance(error.__cause__, NameError):  # perhaps imported for type checkers only; nothing depends on it
                return
            raise
        if hint not in _ANYTHING and typing.get_origin(hint) is not Context and hint is not Context:
            raise self._fail(f"its fourth parameter is the context: annotate it Context, not {text(hint)}")

    def _returns(self) -> tuple[tuple[type[State], ...], bool]:
        hint = self._evaluate(self.signature.returns, "return value")
        if isinstance(self.given.trigger, Cancel) and hint is not _NOTHING:
            raise self._fail(f"a cancel handler returns nothing, for its machine ends: write -> None, not {text(hint)}")
        if hint is inspect.Parameter.empty:
            return tuple(known.cls for known in self.module.types.values()), True
        declared: list[type[State]] = []
        for member in members(hint):
            if member is _NOTHING:
                continue
            if not (isinstance(member, type) and issubclass(member, State)) or member is State:
                raise self._fail(
                    f"its return annotation names {text(member)}: name the states of module {self.module.name} that it "
                    "may return, or None"
                )
            known = type_of(member)
            if known is None or known.module is not self.module:
                owner = "of no module" if known is None else f"of module {known.module.name} (defined at {known.where})"
                raise self._fail(
                    f"its return annotation names {member.__name__}, a state {owner}; it must be one of module "
                    f"{self.module.name}"
                )
            declared.append(member)
        return tuple(declared), _NOTHING in members(hint)

    def _outcome(self, trigger: Trigger[Any, Any]) -> Codec[Any]:
        hint = self._evaluate(self.signature.outcome, "third parameter, the outcome,")
        match trigger:
            case Signal():
                self._check_payload(hint, trigger.payload_type, f"signal {trigger.name}", trigger.where)
                return trigger.codec
            case Reached():
                return self._reached(hint, trigger)
            case Cancel():
                if not fits(str | None, hint):
                    raise self._fail(
                        f"its third parameter is the reason of the cancelling: annotate it str | None, not {text(hint)}"
                    )
                return codec_for(str | None, identity=False, where="reason")
            case Channel(codec=Codec() as codec):
                self._check_payload(hint, trigger.payload_type, trigger.text, trigger.where)
                return codec
            case _ if trigger.kind in ("deadline", "finished", "now"):
                if not fits(_NOTHING, hint):
                    raise self._fail(
                        f"the outcome of {trigger.text} (defined at {trigger.where}) is None, but its third parameter "
                        f"is annotated {text(hint)}"
                    )
                return codec_for(None, identity=False, where="outcome")
            case _ if hint is inspect.Parameter.empty:
                raise self._fail(
                    f"its third parameter {self.signature.outcome_name} has no annotation, which gives the schema of "
                    f"what {trigger.text} (defined at {trigger.where}) brings"
                )
            case _ if trigger.kind in ("call", "wait", "task"):
                return self._failing(hint, trigger)
            case _:
                return codec_for(Any if hint is object else hint, identity=False, where=self._outcome_path)

    @property
    def _outcome_path(self) -> str:
        return f"{self.given.name}.{self.signature.outcome_name}"

    def _check_payload(self, hint: Any, declared: Any, what: str, where: str) -> None:
        if not isinstance(declared, Schema) and not fits(_NOTHING if declared is None else declared, hint):
            raise self._fail(
                f"its third parameter is annotated {text(hint)}, but the payload of {what} (defined at {where}) is "
                f"{text(declared)}"
            )

    def _failing(self, hint: Any, trigger: Trigger[Any, Any]) -> Codec[Any]:
        if hint in _ANYTHING:
            return failed_or(Any, self._outcome_path)
        if Failed not in members(hint):
            raise self._fail(
                f"the outcome of {trigger.text} (defined at {trigger.where}) may be Failed: annotate its third "
                f"parameter {text(hint)} | Failed"
            )
        values = [member for member in members(hint) if member is not Failed] or [_NOTHING]
        value = Any if Any in values or object in values else typing.Union[tuple(values)]  # noqa: UP007 - made here
        return failed_or(value, self._outcome_path)

    def _reached(self, hint: Any, trigger: Reached[Any, Any]) -> Codec[Any]:
        known: list[StateType] = []
        for cls in trigger.states:
            state = type_of(cls)
            if state is None:
                raise self._fail(f"{trigger.text} (defined at {trigger.where}): {cls.__name__} is a state of no module")
            if not fits(cls, hint):
                raise self._fail(
                    f"the outcome of {trigger.text} (defined at {trigger.where}) may be {cls.__name__}, but its third "
                    f"parameter is annotated {text(hint)}"
                )
            known.append(state)
        return state_of(tuple(known), self._outcome_path)


def _names(module: Module[Any], given: Registration) -> dict[str, Any]:
    """What the annotations of a handler may name.

    States of the module and of the trigger come first where a function defines all of it: they may be defined after
    the handler. At module level the file's own names win: it may have imported another state of the same name.
    """
    function = function_of(given.fn)
    outer: dict[str, Any] = getattr(function, "__globals__", {})
    watched = given.trigger.states if isinstance(given.trigger, Reached) else ()
    states: dict[str, Any] = {cls.__name__: cls for cls in (*watched, *(known.cls for known in module.types.values()))}
    if "<locals>" not in getattr(function, "__qualname__", ""):
        return {**states, **outer}
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    enclosed = {name: cell.cell_contents for name, cell in cells.items() if _filled(cell)}
    return {**outer, **states, **given.locals, **enclosed}


def _filled(cell: types.CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def members(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the hint alone; aliases and ``Annotated`` taken off."""
    while not isinstance(hint, type) and hasattr(hint, "__value__"):  # type X = …
        hint = hint.__value__
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        return members(typing.get_args(hint)[0])
    if origin is typing.Union or origin is types.UnionType:
        return tuple(part for member in typing.get_args(hint) for part in members(member))
    return (hint,)


def fits(given: Any, hint: Any) -> bool:
    """Return whether a value of type ``given`` may be passed where ``hint`` stands; unknown forms get the benefit."""
    return all(any(_fits(part, wanted) for wanted in members(hint)) for part in members(given))


def _fits(given: Any, wanted: Any) -> bool:
    if wanted in _ANYTHING or given is Any or given == wanted or isinstance(wanted, typing.TypeVar):
        return True
    if isinstance(given, type) and issubclass(given, Schema):
        return True
    from_class, to_class = typing.get_origin(given) or given, typing.get_origin(wanted) or wanted
    if not isinstance(from_class, type) or not isinstance(to_class, type):
        return False
    arguments = typing.get_args(wanted)
    return issubclass(from_class, to_class) and (not arguments or arguments == typing.get_args(given))


def text(hint: Any) -> str:
    """Return a hint as a user would write it."""
    if hint is None or hint is _NOTHING:
        return "None"
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("typing.", "")

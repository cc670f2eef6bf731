"""States: what users subclass, what is added and looked up, and what the engine knows of a state's class."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, cast, dataclass_transform

from smqueue.checks import check_name
from smqueue.errors import InvalidInput, UndecodableRecord
from smqueue.places import place_of
from smqueue.schemas import HIDDEN, Codec, ValidationProblem, canonical
from smqueue.trigger_types import Trigger

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    from smqueue.handlers import Handler
    from smqueue.modules import Module
    from smqueue.transaction import Transaction

    M = TypeVar("M", default=Any)
    G = TypeVar("G", default=Any)
    S_contra = TypeVar("S_contra", contravariant=True, default=Any)
    Out = TypeVar("Out", default=Any)
else:  # defaults of type variables come with Python 3.13; only type checkers need them
    from typing import TypeVar

    M = TypeVar("M")
    G = TypeVar("G")
    S_contra = TypeVar("S_contra", contravariant=True)
    Out = TypeVar("Out")

MAX_OPERATION_ID_BYTES = 512

_TYPE = "__smqueue_type__"  # where a registered class keeps its StateType


def check_operation_id(value: object) -> str:
    """Check the id of an operation: any text of 1 to 512 bytes.

    Raises:
        InvalidInput: It is not.
    """
    return check_name("operation_id", value, MAX_OPERATION_ID_BYTES)


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
class State:
    """A state of a machine. Every subclass becomes a frozen dataclass; ``@module.state`` registers it.

    ``class Awaiting(State, kw_only=True)`` takes the options ``kw_only`` and ``order`` of dataclasses. Writing
    ``@dataclass(frozen=True)`` as well changes nothing.
    """

    def __init_subclass__(cls, *, kw_only: bool = False, order: bool = False, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__dataclass_fields__" in cls.__dict__:
            return  # dataclass(slots=True) copies a class that is one already
        specified = {name: value for name, value in vars(cls).items() if isinstance(value, dataclasses.Field)}
        if "__repr__" not in vars(cls):
            setattr(cls, "__repr__", State.__repr__)  # noqa: B010 - else dataclass makes one, which shows secrets
        dataclass(frozen=True, kw_only=kw_only, order=order)(cls)
        # A second @dataclass(frozen=True) must find what the first one found. It refuses a class that has these two
        # (State's own do their work), and would miss defaults that the first one has taken off the class.
        del cls.__setattr__, cls.__delattr__
        for name, value in cast("dict[str, dataclasses.Field[Any]]", specified).items():
            if name not in vars(cls):
                setattr(cls, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}: states do not change")

    def __delattr__(self, name: str) -> None:
        raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}: states do not change")

    def __repr__(self) -> str:
        known, shown = type_of(type(self)), list[str]()
        secret = {path.partition(".")[0] for path in known.codec.secret_fields} if known is not None else set[str]()
        for one in dataclasses.fields(cast("Any", self)):
            if one.repr:
                value = HIDDEN if one.name in secret else repr(getattr(self, one.name, None))
                shown.append(f"{one.name}={value}")
        return f"{type(self).__qualname__}({', '.join(shown)})"

    def transitions(self, context: Any, global_context: Any) -> Sequence[Transition[Any, Any]]:  # noqa: ARG002 - for overrides
        """Return what this state waits for, in declaration order; by default what ``@module.on`` registered.

        Override it where the triggers depend on the state. It must be cheap and pure: it runs on each add, commit and
        load.

        Args:
            context: The context of the module instance.
            global_context: What ``global_context`` of ``build`` made for this module instance and operation.

        Returns:
            The racing transitions.
        """
        known = type_of(type(self))
        if known is None:
            return ()
        known.module.resolve()
        return [Transition(handler.trigger, handler.fn, name=handler.name) for handler in known.handlers]


class Transition(Generic[S_contra, Out]):
    """One racing trigger of a state and what to do when it has won.

    Attributes:
        trigger: What is waited for.
        apply: A plain function ``(tx, state, outcome)`` or ``(tx, state, outcome, context)`` that returns the next
            state, or ``None`` to keep waiting. Without annotations it may return any state of the module.
        name: Unique among the transitions of the state; the function's own name by default.
        where: The place in the user's code where ``apply`` is defined.
    """

    def __init__(
        self,
        trigger: Trigger[S_contra, Out],
        apply: Callable[[Transaction, S_contra, Out], State | None]
        | Callable[[Transaction, S_contra, Out, Context[Any, Any]], State | None],
        *,
        name: str | None = None,
    ) -> None:
        self.trigger = trigger
        self.apply = apply
        self.name = name or str(getattr(apply, "__name__", ""))
        self.where = place_of(apply)

    def __repr__(self) -> str:
        return f"Transition({self.trigger.text!r}, {self.name})"


@dataclass(frozen=True)
class Context(Generic[M, G]):
    """What a handler or a trigger's function may want to know about where it runs.

    Attributes:
        module: The context given to ``with_module``.
        global_context: What ``global_context`` of ``build`` made for this module instance and operation.
        operation_id: The operation of the machine.
        machine_id: The machine.
        attempt_id: The same for all attempts of one trigger of one arming: an idempotency key for other services.
    """

    module: M
    global_context: G
    operation_id: str
    machine_id: str
    attempt_id: str = ""

    if not TYPE_CHECKING:

        def __class_getitem__(cls, given: Any) -> Any:
            given = given if isinstance(given, tuple) else (given,)
            return super().__class_getitem__((*given, *[Any] * (2 - len(given))))  # the default of G


def check_machine(value: object) -> None:
    """Check that something is a machine; raises InvalidInput."""
    if not isinstance(value, StateMachine):
        raise InvalidInput("machines", f"expected StateMachine, got {type(value).__name__}")


@dataclass
class StateType:
    """A registered state class.

    Attributes:
        cls: The class.
        name: Under which its records are stored.
        codec: Encodes, loads and checks its states.
        terminal: Whether a machine ends in it.
        module: The module that registered it.
        where: The place in the user's code where it was registered.
        migrations: By version: what maps the fields of older records to that version's.
        handlers: What ``@module.on`` registered, in declaration order; filled when the module is resolved.
        on_cancel: What ``@module.on_cancel`` registered; filled with them.
    """

    cls: type[State]
    name: str
    codec: Codec[Any]
    terminal: bool
    module: Module[Any]
    where: str
    migrations: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = field(default_factory=dict)
    handlers: tuple[Handler, ...] = ()
    on_cancel: Handler | None = None

    @cached_property
    def dynamic(self) -> bool:
        """Whether the class decides by itself, when a state is entered, what it waits for."""
        return self.cls.transitions is not State.transitions

    @cached_property
    def defaulted(self) -> bool:
        """Whether code without a field of it may have stored its states."""
        return any(_has_default(one) for one in dataclasses.fields(cast("Any", self.cls)))

    def older_forms(self, data: Any) -> list[dict[str, Any]]:
        """The forms in which code without its last defaulted fields stored the same state, newest first."""
        if not isinstance(data, dict) or not self.defaulted:
            return []
        form, found = dict(cast("dict[str, Any]", data)), list[dict[str, Any]]()
        for one in reversed(dataclasses.fields(cast("Any", self.cls))):
            if one.name not in form:
                continue
            if not _has_default(one):
                break
            made = cast("Callable[[], Any]", one.default_factory)
            default = one.default if one.default is not dataclasses.MISSING else made()
            if getattr(self.codec.load(data), one.name) != default:
                break
            del form[one.name]
            found.append(dict(form))
        return found

    def load(self, version: int, data: Any) -> State:
        """Load stored fields, by way of the migrations since their version.

        Raises:
            UndecodableRecord: A migration raised, or returned something else than a dict.
            ValidationProblem: The data do not fit the schema.
        """
        for since in sorted(self.migrations) if self.migrations else ():
            if version < since:
                step = f"the migration of {self.name} to version {since}"
                try:
                    data = self.migrations[since](data)
                except Exception as error:
                    raise UndecodableRecord(f"{step} raised {type(error).__name__}") from error
                if not isinstance(data, dict):
                    raise UndecodableRecord(f"{step} returned {type(data).__name__}, not a dict")
        return self.codec.load(data)


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def type_of(cls: type) -> StateType | None:
    """Return what is registered for exactly this class: a subclass of a registered state is another state."""
    return cls.__dict__.get(_TYPE)


def register(known: StateType) -> None:
    """Note on its class what is known of it."""
    setattr(known.cls, _TYPE, known)


@dataclass(frozen=True, eq=False)
class StateMachine:
    """A machine as it is added and looked up: an operation, a module instance and a state.

    Two are equal when operation, module and canonical state are: the same fields in the same stored form.

    Attributes:
        operation_id: Any text of 1 to 512 bytes.
        state: The state it is in.
        module: The id given to ``with_module``; may be left out when the state's class belongs to one instance only.

    Raises:
        InvalidInput: A field of the wrong type or length.
    """

    operation_id: str
    state: State
    module: str | None = None

    def __post_init__(self) -> None:
        check_operation_id(self.operation_id)
        given: Any = self.state
        if not isinstance(given, State):
            raise InvalidInput("state", f"expected a State, got {type(given).__name__}")
        if self.module is not None:
            check_name("module", self.module)

    @cached_property
    def _identity(self) -> tuple[object, ...]:
        known = type_of(type(self.state))
        if known is not None:
            try:
                stored = canonical(known.codec.dump(self.state))
            except ValidationProblem:
                pass  # no stored form: adding it says why, comparing it should not raise
            else:
                return self.operation_id, self.module, known.module.name, known.name, stored
        values = [getattr(self.state, one.name, None) for one in dataclasses.fields(cast("Any", self.state))]
        return self.operation_id, self.module, type(self.state), repr(values)

    def __eq__(self, other: object) -> bool:
        return self._identity == other._identity if isinstance(other, StateMachine) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._identity)

"""``Module``: where states, signals, handlers and migrations of one kind of machine are registered, and looked up."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, cast, overload

from smqueue.checks import defined_name, duration, whole
from smqueue.definitions import Registration, Resolver, check_trigger, signature_of, text
from smqueue.dynamic import DynamicForm
from smqueue.errors import (
    DefinitionError,
    NewerRecord,
    NoTransitions,
    NotRegistered,
    UndecodableRecord,
)
from smqueue.graph import Finding, Graph, graph_of
from smqueue.handlers import Handler
from smqueue.places import here, local_names, place_of
from smqueue.retry import Retry
from smqueue.schemas import codec_for, dataclass_codec
from smqueue.states import Context, State, StateType, register, type_of
from smqueue.trigger_types import Cancel, Signal, Trigger

if TYPE_CHECKING:
    from marshmallow import Schema
    from typing_extensions import TypeVar

    from smqueue.transaction import Transaction

    M = TypeVar("M", default=Any)
    S = TypeVar("S", bound=State)
    Out = TypeVar("Out")
    P = TypeVar("P")
    R = TypeVar("R", bound=State | None)
    A = TypeVar("A", bound=State)
    B = TypeVar("B", bound=State)
    C = TypeVar("C", bound=State)
    D = TypeVar("D", bound=State)
else:  # defaults of type variables come with Python 3.13; only type checkers need them
    from typing import TypeVar

    M = TypeVar("M")
    S = TypeVar("S")
    Out = TypeVar("Out")

Migration = Callable[[dict[str, Any]], dict[str, Any]]

HANDLER_RETRY = Retry(max_attempts=5, base=timedelta(milliseconds=500), cap=timedelta(minutes=1))


class On(Generic[S, Out, M]):
    """The decorator that ``Module.on`` returns. It returns the function unchanged, so one function may have several."""

    def __init__(self, module: Module[M], states: tuple[StateType, ...], trigger: Trigger[Any, Any]) -> None:
        self._module = module
        self._states = states
        self._trigger = trigger

    @overload
    def __call__(
        self, fn: Callable[[Transaction, S, Out, Context[M, Any]], R], /
    ) -> Callable[[Transaction, S, Out, Context[M, Any]], R]: ...
    @overload
    def __call__(self, fn: Callable[[Transaction, S, Out], R], /) -> Callable[[Transaction, S, Out], R]: ...
    def __call__(self, fn: Any, /) -> Any:
        """Register ``fn`` as the handler of the trigger, under its own name.

        Raises:
            DefinitionError: Not a plain function of three or four positional parameters with a return annotation; or a
                second handler of that name on one state.
        """
        self._module._handle(self._states, self._trigger, fn)  # pyright: ignore[reportPrivateUsage]
        return fn


class OnCancel(Generic[S, M]):
    """The decorator that ``Module.on_cancel`` returns. It returns the function unchanged."""

    def __init__(self, module: Module[M], states: tuple[StateType, ...], where: str) -> None:
        self._module = module
        self._states = states
        self._trigger = Cancel[Any](where)

    @overload
    def __call__(
        self, fn: Callable[[Transaction, S, str | None, Context[M, Any]], None], /
    ) -> Callable[[Transaction, S, str | None, Context[M, Any]], None]: ...
    @overload
    def __call__(
        self, fn: Callable[[Transaction, S, str | None], None], /
    ) -> Callable[[Transaction, S, str | None], None]: ...
    def __call__(self, fn: Any, /) -> Any:
        """Register ``fn`` as the cancel handler.

        Raises:
            DefinitionError: Not a plain function of three or four positional parameters that returns ``None``; or a
                second one for a state.
        """
        self._module._handle(self._states, self._trigger, fn)  # pyright: ignore[reportPrivateUsage]
        return fn


class Module(Generic[M]):
    """One kind of machine: its states, signals, handlers and migrations.

    ``Module[OrdersContext]("orders")`` tells type checkers what ``context.module`` is. Annotations of handlers are
    resolved when the module is first used, so they may name states that are defined later.

    Attributes:
        name: For errors and diagrams; instances have the ids given to ``with_module``.
        version: Of the schemas of its states, from 1; raise it when fields change incompatibly.
        keep: How long finished operations are kept; ``None``: for ever.
        retry: How often and how spaced a handler that raises is retried before its machine is quarantined.
        handler_timeout: What one run of a handler may take.
        types: Its states by stored name.
        signals: Its signals by name.

    Raises:
        DefinitionError: An argument of the wrong type or range.
    """

    def __init__(
        self,
        name: str,
        *,
        version: int = 1,
        keep: timedelta | None = None,
        retry: Retry = HANDLER_RETRY,
        handler_timeout: timedelta = timedelta(seconds=30),
    ) -> None:
        self.where = here()
        self.name = defined_name("module name", name, self.where)
        self.version = whole(version, "Module(version=…)", self.where, least=1)
        self.keep = None if keep is None else duration(keep, "Module(keep=…)", self.where)
        self.handler_timeout = duration(handler_timeout, "Module(handler_timeout=…)", self.where)
        given: Any = retry
        if not isinstance(given, Retry):
            raise DefinitionError(f"Module(retry=…) got {type(given).__name__}: give Retry(max_attempts=…)", self.where)
        self.retry = retry
        self.types: dict[str, StateType] = {}
        self.signals: dict[str, Signal[Any]] = {}
        self._registrations: list[Registration] = []
        self._dynamic = DynamicForm(self)
        self._resolved = False
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        return f"<Module {self.name} version {self.version}>"

    # --- defining ----------------------------------------------------------------------------------------------------

    @overload
    def state(self, cls: type[S], /) -> type[S]: ...
    @overload
    def state(
        self, /, *, schema: type[Schema] | Schema | None = None, name: str | None = None, terminal: bool = False
    ) -> Callable[[type[S]], type[S]]: ...
    def state(self, cls: Any = None, /, *, schema: Any = None, name: Any = None, terminal: bool = False) -> Any:
        """Register a state class and derive its schema.

        Args:
            cls: The class, when used without arguments.
            schema: A marshmallow schema instead of the derived one.
            name: A stored name other than the class's, so that the class can be renamed.
            terminal: A machine ends in it.

        Raises:
            DefinitionError: Not a subclass of ``State``; registered already, here or in another module; a name twice.
            UnsupportedField: A field that has no schema.
        """
        if cls is None:
            return lambda cls: self._register(cls, schema, name, terminal)  # pyright: ignore[reportUnknownLambdaType]
        return self._register(cls, schema, name, terminal)

    def _register(self, cls: Any, schema: Any, name: str | None, terminal: bool) -> Any:
        where = here()
        if not isinstance(cls, type) or not issubclass(cls, State) or cls is State:
            raise DefinitionError(f"{text(cls)} is not a state: write class {text(cls)}(State)", where)
        if not cast("Any", cls).__dataclass_params__.frozen:
            raise DefinitionError(f"{cls.__name__} is not frozen: leave @dataclass away, State does it", where)
        stored = defined_name("stored name of a state", cls.__name__ if name is None else name, where)
        if (known := type_of(cls)) is not None:
            first = f"module {known.module.name} already (registered at {known.where})"
            raise DefinitionError(
                f"state {cls.__name__} belongs to {first}: give module {self.name} a class of its own", where
            )
        if stored in self.types:
            raise DefinitionError(
                f"module {self.name} has a state {stored} already (registered at {self.types[stored].where}): give one "
                "of them another name=",
                where,
            )
        known = StateType(cls, stored, dataclass_codec(cls, identity=True, schema=schema), terminal, self, where)
        with self._lock:
            self.types[stored] = known
            self._resolved = False
        register(known)
        return cls

    @overload
    def signal(self, name: str) -> Signal[None]: ...
    @overload
    def signal(self, name: str, payload_type: type[Schema] | Schema) -> Signal[Any]: ...
    @overload
    def signal(self, name: str, payload_type: type[P]) -> Signal[P]: ...
    def signal(self, name: str, payload_type: Any = None) -> Any:
        """Declare a signal: a trigger, and what to send.

        Args:
            name: Unique in the module, 1 to 256 bytes.
            payload_type: A dataclass, a scalar, ``list[…]`` or another hint that has a schema, or a marshmallow schema;
                none: no payload.

        Raises:
            DefinitionError: A name twice, naming both places; a name that is empty or too long.
            UnsupportedField: A payload that has no schema.
        """
        where = here()
        defined_name("name of a signal", name, where)
        if name in self.signals:
            raise DefinitionError(
                f"module {self.name} has a signal {name} already (declared at {self.signals[name].where})", where
            )
        signal = Signal[Any](name, self, payload_type, codec_for(payload_type, identity=False, where=name), where)
        self.signals[name] = signal
        return signal

    @overload
    def on(self, state: type[S], trigger: Trigger[S, Out], /) -> On[S, Out, M]: ...
    @overload
    def on(self, state: tuple[type[A], type[B]], trigger: Trigger[A | B, Out], /) -> On[A | B, Out, M]: ...
    @overload
    def on(
        self, state: tuple[type[A], type[B], type[C]], trigger: Trigger[A | B | C, Out], /
    ) -> On[A | B | C, Out, M]: ...
    @overload
    def on(
        self, state: tuple[type[A], type[B], type[C], type[D]], trigger: Trigger[A | B | C | D, Out], /
    ) -> On[A | B | C | D, Out, M]: ...
    @overload
    def on(self, state: tuple[type[A], ...], trigger: Trigger[A, Out], /) -> On[A, Out, M]: ...
    def on(self, state: Any, trigger: Any, /) -> Any:
        """Register a handler: ``@orders.on(Awaiting, payment)``. One decorator is one racing trigger.

        Args:
            state: A state class of this module, or a tuple of them.
            trigger: What to wait for; of equal ones that are ready at once, the one declared first wins.

        Returns:
            The decorator.

        Raises:
            DefinitionError: Not a state of this module, a terminal one, or not a trigger.
        """
        where = here()
        classes: tuple[Any, ...] = cast("tuple[Any, ...]", state) if isinstance(state, tuple) else (state,)
        if not classes:
            raise DefinitionError("on(…) needs a state class, or a tuple of them", where)
        check_trigger(self, trigger, where)
        return On[Any, Any, Any](self, tuple(self._state_for(cls, where) for cls in classes), trigger)

    @overload
    def on_cancel(self, state: type[S], /) -> OnCancel[S, M]: ...
    @overload
    def on_cancel(self, state: tuple[type[A], type[B]], /) -> OnCancel[A | B, M]: ...
    @overload
    def on_cancel(self, state: tuple[type[A], type[B], type[C]], /) -> OnCancel[A | B | C, M]: ...
    @overload
    def on_cancel(self, state: tuple[type[A], type[B], type[C], type[D]], /) -> OnCancel[A | B | C | D, M]: ...
    @overload
    def on_cancel(self, state: tuple[type[A], ...], /) -> OnCancel[A, M]: ...
    def on_cancel(self, state: Any, /) -> Any:
        """Register what is to be undone when a machine is cancelled in a state: ``@orders.on_cancel(Awaiting)``.

        The function gets the transaction, the state and the reason (``None``: none was given); and, as a fourth
        parameter, the context. What it writes, sends and starts commits in the same EXEC that ends the machine, or not
        at all. It may run several times, like any handler. What it starts must be in another operation, for its own is
        ending, and is not cancelled with its ``children``.

        It runs in the process that cancels, if that has this module, else in a worker. When it raises, the machine
        stays, and a worker tries again with the module's ``retry``; when that is exhausted the machine is quarantined,
        until ``retry``, another ``cancel``, or ``cancel(force=True)``, which ends it without its handler; and so it is
        when its handler has killed two workers.

        A machine that has entered its state before that had a cancel handler is undone, too, by whoever has the code.
        A process without the module does not know of that, and ends it without: cancel those where the module is.

        Args:
            state: A state class of this module, or a tuple of them; each has at most one cancel handler.

        Returns:
            The decorator.

        Raises:
            DefinitionError: Not a state of this module, or a terminal one.
        """
        where = here()
        classes: tuple[Any, ...] = cast("tuple[Any, ...]", state) if isinstance(state, tuple) else (state,)
        if not classes:
            raise DefinitionError("on_cancel(…) needs a state class, or a tuple of them", where)
        return OnCancel[Any, Any](self, tuple(self._state_for(cls, where) for cls in classes), where)

    def migrate(self, state: type[State], *, since: int) -> Callable[[Migration], Migration]:
        """Register what maps the fields of older records, ``dict → dict``, to the form of version ``since``.

        Steps run in order: a record of version 1 passes those of 2 and 3. Identity is compared after migration. A step
        must change the form: if what a field holds comes to mean something else, give the field a new name, or a record
        of the old meaning and a state of the new one would be stored alike.

        Args:
            state: A state class of this module.
            since: The first version that has the new form: 2 up to the module's.

        Raises:
            DefinitionError: Not a state of this module; a version that is not; one twice, naming both places.
        """
        where = here()
        known = self._state_for(state, where, terminal=True)
        whole(since, "migrate(since=…)", where, least=2)
        if since > self.version:
            raise DefinitionError(
                f"migrate({known.name}, since={since}): module {self.name} has version {self.version} (defined at "
                f"{self.where}); raise it",
                where,
            )

        def decorate(fn: Migration) -> Migration:
            given: Any = fn
            if not callable(given):
                raise DefinitionError(f"a migration is a function dict → dict, not {type(given).__name__}", where)
            if since in known.migrations:
                first = place_of(known.migrations[since])
                raise DefinitionError(f"{known.name} has a migration to version {since} already (at {first})", where)
            known.migrations[since] = fn
            return fn

        return decorate

    def graph(self) -> Graph:
        """Return the states as nodes and the declared transitions as edges.

        Raises:
            DefinitionError: As at the first use of the module.
        """
        self.resolve()
        return graph_of(self.types.values())

    def mermaid(self) -> str:
        """Return the graph as a Mermaid state diagram."""
        return self.graph().mermaid()

    def check(self) -> list[Finding]:
        """Return terminal states that nothing enters, and states from which no terminal state can be reached."""
        return self.graph().check()

    # --- looking up --------------------------------------------------------------------------------------------------

    def resolve(self) -> None:
        """Resolve all annotations and check the definitions; at first use, and again after more was defined.

        Raises:
            DefinitionError: Something does not fit; it names the places.
            NoTransitions: A state has nothing to wait for and is not terminal.
        """
        if self._resolved:
            return
        with self._lock:
            handlers: dict[str, list[Handler]] = {name: [] for name in self.types}
            undoing: dict[str, Handler] = {}
            for given in self._registrations:
                handler = Resolver(self, given).handler()
                for known in given.states:
                    if isinstance(given.trigger, Cancel):
                        undoing[known.name] = handler
                    else:
                        handlers[known.name].append(handler)
            for known in self.types.values():
                if not known.terminal and not known.dynamic and not handlers[known.name]:
                    raise NoTransitions(f"state {known.name} of module {self.name}", known.where)
            for known in self.types.values():
                known.handlers = tuple(handlers[known.name])
                known.on_cancel = undoing.get(known.name)
            self._dynamic = DynamicForm(self)
            self._resolved = True

    def type_of(self, state: State) -> StateType:
        """Return what is known of the class of ``state``.

        Raises:
            NotRegistered: It is no state of this module.
            DefinitionError: As at the first use of the module.
        """
        self.resolve()
        known = type_of(type(state))
        if known is None or known.module is not self:
            raise NotRegistered(type(state).__name__)
        return known

    def handlers(self, state: State, context: Any, global_context: Any) -> tuple[Handler, ...]:
        """Return what ``state`` waits for, in declaration order; nothing for a terminal one.

        Raises:
            NotRegistered: It is no state of this module.
            DefinitionError: Its ``transitions`` returned something unusable, or one name twice.
            NoTransitions: Its ``transitions`` returned nothing.
            Exception: Whatever its ``transitions`` raises.
        """
        known = self.type_of(state)
        if known.terminal:
            return ()
        if not known.dynamic:
            return known.handlers
        return self._dynamic.handlers(known, state.transitions(context, global_context))

    def load(self, type_name: str, version: int, data: Any) -> State:
        """Load a stored state, by way of the migrations since its version.

        Args:
            type_name: The stored name of its class.
            version: The version of the module that stored it.
            data: JSON-ready fields.

        Raises:
            NewerRecord: Stored by newer code.
            UndecodableRecord: No such state here; or a migration failed.
            ValidationProblem: The data do not fit the schema.
        """
        self.resolve()
        known = self.types.get(type_name)
        if version > self.version:
            raise NewerRecord(self.name, version, self.version)
        if known is None:
            raise UndecodableRecord(f"module {self.name} has no state {type_name}")
        return known.load(version, data)

    # --- checks ------------------------------------------------------------------------------------------------------

    def _state_for(self, cls: Any, where: str, *, terminal: bool = False) -> StateType:
        known = type_of(cls) if isinstance(cls, type) else None
        if known is None:
            raise DefinitionError(f"{text(cls)} is not a registered state: decorate it with @{self.name}.state", where)
        if known.module is not self:
            raise DefinitionError(
                f"state {known.name} belongs to module {known.module.name} (registered at {known.where}), not to "
                f"module {self.name} (defined at {self.where})",
                where,
            )
        if known.terminal and not terminal:
            raise DefinitionError(
                f"state {known.name} is terminal (registered at {known.where}): it waits for nothing", where
            )
        return known

    def _handle(self, states: tuple[StateType, ...], trigger: Trigger[Any, Any], fn: Any) -> None:
        where = place_of(fn) if callable(fn) else here()
        signature = signature_of(fn, where)
        name = defined_name("name of a handler", getattr(fn, "__name__", ""), where)
        for state in states:
            for other in self._registrations:
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
        with self._lock:
            self._registrations.append(Registration(states, trigger, fn, name, where, signature, local_names()))
            self._resolved = False

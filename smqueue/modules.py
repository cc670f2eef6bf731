"""``Module``: where states, signals, handlers and migrations of one kind of machine are registered, and looked up."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, overload

from smqueue.checks import defined_name, duration, whole
from smqueue.decorators import On, OnCancel
from smqueue.definitions import Registration, check_trigger
from smqueue.dynamic import DynamicForm
from smqueue.errors import DefinitionError, NewerRecord, NotRegistered, UndecodableRecord
from smqueue.graph import Finding, Graph, graph_of
from smqueue.handlers import Handler
from smqueue.places import here, place_of
from smqueue.registering import registration, resolve_handlers, state_for, state_type, states_for
from smqueue.retry import Retry
from smqueue.schemas import codec_for
from smqueue.states import State, StateType, register, type_of
from smqueue.trigger_types import Cancel, Signal, Trigger

if TYPE_CHECKING:
    from marshmallow import Schema
    from typing_extensions import TypeVar

    M = TypeVar("M", default=Any)
    S = TypeVar("S", bound=State)
    Out = TypeVar("Out")
    P = TypeVar("P")
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

        def decorate(cls: Any) -> Any:
            known = state_type(self, cls, schema, name, terminal)
            with self._lock:
                self.types[known.name] = known
                self._resolved = False
            register(known)
            return cls

        return decorate if cls is None else decorate(cls)

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
        check_trigger(self, trigger, where)
        return On[Any, Any, Any](partial(self._handle, states_for(self, state, "on", where), trigger))

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
        states = states_for(self, state, "on_cancel", where)
        return OnCancel[Any, Any](partial(self._handle, states, Cancel[Any](where)))

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
        known = state_for(self, state, where, terminal=True)
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

    def _handle(self, states: tuple[StateType, ...], trigger: Trigger[Any, Any], fn: Any) -> None:
        with self._lock:
            self._registrations.append(registration(self._registrations, states, trigger, fn))
            self._resolved = False

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
            resolve_handlers(self, self._registrations)
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

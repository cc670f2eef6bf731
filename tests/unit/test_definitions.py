"""Defining machines: what is refused and where, what the engine gets, versions, the graph, and values."""

from __future__ import annotations

import functools
import pickle
import threading
from collections.abc import Callable, Sequence
from dataclasses import FrozenInstanceError, dataclass, field, fields, is_dataclass
from datetime import UTC, datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Annotated, Any

import marshmallow
import pytest

from smqueue import (
    Context,
    Failed,
    Module,
    Retry,
    Secret,
    State,
    StateMachine,
    Transition,
    after,
    at,
    call,
    channel,
    finished,
    now,
    poll,
    reached,
    task,
    triggers,
    wait,
)
from smqueue.errors import (
    DefinitionError,
    InvalidInput,
    InvalidOutcome,
    NewerRecord,
    NoTransitions,
    NotRegistered,
    UndeclaredTransition,
    UndecodableRecord,
    UnsupportedField,
)
from smqueue.handlers import Handler
from smqueue.schemas import ValidationProblem
from smqueue.states import check_operation_id, type_of

CONTEXT: Any = Context("the module's", "the global", "o-1", "m-1", "a-1")


@dataclass(frozen=True)
class Payment:
    amount: int


@dataclass(frozen=True)
class Card:
    number: Annotated[str, Secret]


class Shop:
    """The contract's example, made anew for each test, so that a test may add to it."""

    def __init__(self, **options: Any) -> None:
        self.module = module = Module[Any]("orders", **options)

        @module.state
        class Awaiting(State):
            order_id: str
            total: int
            patience: timedelta = timedelta(minutes=3)

        @module.state(terminal=True)
        class Shipped(State):
            order_id: str

        @module.state(terminal=True)
        class Cancelled(State):
            order_id: str
            why: str = "unpaid"

        self.Awaiting, self.Shipped, self.Cancelled = Awaiting, Shipped, Cancelled
        self.payment = module.signal("payment", Payment)
        self.nudge = module.signal("nudge")

    def only(self, trigger: Any, fn: Callable[..., Any], state: Any = None) -> Handler:
        """Register one handler and return it, checked."""
        state = state or self.Awaiting
        self.module.on(state, trigger)(fn)
        self.module.resolve()
        known = type_of(state)
        assert known is not None
        return known.handlers[-1]


@pytest.fixture
def shop() -> Shop:
    return Shop()


def line(text: str) -> str:
    return f"{__file__}:{text}"


def refused(*words: str) -> Any:
    """A DefinitionError whose text holds all words, and whose place is this file."""
    return pytest.raises(DefinitionError, match="(?s)" + "".join(f"(?=.*{word})" for word in words))


# --- states


def test_a_state_shows_no_secret() -> None:
    """The repr of a state hides fields that are secret, or have a secret in them, and leaves out what is not shown."""
    module = Module("hidden")

    @module.state(terminal=True)
    class Paid(State):
        order_id: str
        pin: Annotated[str, Secret]
        card: Card
        note: str = field(default="quiet", repr=False)

    state = Paid("o-1", "1234", Card("4111"))
    assert repr(state).endswith("Paid(order_id='o-1', pin=***, card=***)")
    assert repr(StateMachine("op", state)).count("***") == 2

    @module.state(terminal=True)
    @dataclass(frozen=True)
    class Again(State):
        pin: Annotated[str, Secret]

    assert repr(Again("1234")).endswith("Again(pin=***)")

    @module.state(terminal=True)
    class Own(State):
        n: int

        def __repr__(self) -> str:
            return "its own"

    assert repr(Own(1)) == "its own"


def test_every_subclass_of_state_is_a_frozen_dataclass() -> None:
    """A state, and a state's subclass, is a frozen dataclass without being decorated as one."""

    class Base(State):
        a: int

    class Derived(Base):
        b: int = 2

    assert [f.name for f in fields(Derived)] == ["a", "b"]
    assert Derived(1) == Derived(1, 2) != Base(1)
    assert hash(Derived(1)) == hash(Derived(1, 2))
    assert repr(Derived(1)).endswith("Derived(a=1, b=2)")
    with pytest.raises(FrozenInstanceError):
        Derived(1).b = 3  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        del Derived(1).b


@pytest.mark.parametrize("options", [{}, {"slots": True}, {"order": True}])
def test_decorating_a_state_as_a_dataclass_too_changes_nothing(options: dict[str, Any]) -> None:
    """``@dataclass(frozen=True)``, with slots or without, keeps defaults, factories and what a field says of itself."""

    @dataclass(frozen=True, **options)
    class Twice(State):
        a: int
        b: list[int] = field(default_factory=list, metadata={"unit": "s"})
        c: str = "c"

    assert Twice(1) == Twice(1, [], "c")
    assert {f.name: f.metadata.get("unit") for f in fields(Twice)} == {"a": None, "b": "s", "c": None}
    with pytest.raises((FrozenInstanceError, TypeError)):  # Python 3.11 has TypeError for slots (its issue 90562)
        Twice(1).a = 2  # type: ignore[misc]
    module = Module[Any]("twice")
    assert module.state(terminal=True)(Twice) is Twice
    assert module.load("Twice", 1, {"a": 1, "b": [2]}) == Twice(1, [2])


def test_states_take_options_of_dataclasses_as_class_keywords() -> None:
    """``kw_only`` and ``order`` go into the class statement."""

    class Keyword(State, kw_only=True, order=True):
        a: int = 0
        b: int

    assert Keyword(b=1) < Keyword(b=2)
    with pytest.raises(TypeError):
        Keyword(1)  # type: ignore[misc, call-arg]


def test_a_state_pickles() -> None:
    """A frozen state can be sent to another process."""
    assert pickle.loads(pickle.dumps(Plain(3))) == Plain(3)


class Plain(State):
    n: int


@dataclass
class Unfrozen(State):
    n: int


def test_what_is_no_state_is_refused(shop: Shop) -> None:
    """Only frozen subclasses of State are registered."""
    with refused("int is not a state", "class int\\(State\\)"):
        shop.module.state(int)  # type: ignore[type-var]
    with refused("State is not a state"):
        shop.module.state(State)
    with refused("Unfrozen is not frozen"):
        shop.module.state(Unfrozen)


def test_a_field_without_schema_is_refused_where_the_state_is_defined(shop: Shop) -> None:
    """A type that has no schema is ``UnsupportedField`` naming type and field, at definition."""
    with pytest.raises(UnsupportedField) as caught:

        @shop.module.state
        class Odd(State):
            tags: set[str]

    assert (caught.value.type, caught.value.field) == ("set[str]", "Odd.tags")


def test_a_state_used_by_two_modules_is_refused_naming_both_places(shop: Shop) -> None:
    """One class belongs to one module; the second registration names the first."""
    other = Module[Any]("other")
    with refused("Awaiting", "module orders", "registered at .*test_definitions.py:\\d+", "defined at .*py:\\d+"):
        other.state(shop.Awaiting)
    with refused("belongs to module orders already"):
        shop.module.state(shop.Awaiting)


def test_two_states_of_one_stored_name_are_refused_naming_both_places(shop: Shop) -> None:
    """A stored name is unique in its module; ``name=`` gives another."""

    class Awaiting(State):
        n: int

    with refused("has a state Awaiting already", "registered at .*py:\\d+", "name="):
        shop.module.state(Awaiting)
    assert shop.module.state(name="waiting 2", terminal=True)(Awaiting) is Awaiting
    assert shop.module.types["waiting 2"].cls is Awaiting


def test_a_state_takes_a_schema_of_its_own(shop: Shop) -> None:
    """``schema=`` replaces the derived schema."""

    class Upper(marshmallow.Schema):
        code = marshmallow.fields.String(required=True, data_key="CODE")

    @shop.module.state(schema=Upper, terminal=True)
    class Coded(State):
        code: str

    assert shop.module.types["Coded"].codec.dump(Coded("x")) == {"CODE": "x"}


@pytest.mark.parametrize("name", ["", "n" * 257, 3, "\ud800"])
def test_names_are_bounded(shop: Shop, name: Any) -> None:
    """Names of modules, signals and states are text of 1 to 256 bytes."""
    with pytest.raises(DefinitionError):
        Module(name)
    with pytest.raises(DefinitionError):
        shop.module.signal(name)
    with pytest.raises(DefinitionError):
        shop.module.state(name=name)(Plain)


@pytest.mark.parametrize(
    "options",
    [
        {"version": 0},
        {"version": True},
        {"version": "1"},
        {"keep": 30},
        {"keep": timedelta(0)},
        {"handler_timeout": 3},
        {"retry": 3},
    ],
)
def test_arguments_of_a_module_are_checked(options: dict[str, Any]) -> None:
    """A duration without a unit, a version that is no number, a retry that is no Retry: refused at the call."""
    with pytest.raises(DefinitionError, match=next(iter(options))):
        Module("m", **options)


def test_defaults_of_a_module() -> None:
    """Version 1, kept for ever, a handler tried five times and for 30 s at most."""
    module = Module[Any]("m")
    assert (module.version, module.keep, module.handler_timeout) == (1, None, timedelta(seconds=30))
    assert module.retry == Retry(5, timedelta(milliseconds=500), timedelta(minutes=1))


# --- signals


def test_two_signals_of_one_name_are_refused_naming_both_places(shop: Shop) -> None:
    """Names of signals are unique in a module."""
    with refused("has a signal payment already", "declared at .*py:\\d+"):
        shop.module.signal("payment", int)


def test_payloads_of_every_kind(shop: Shop) -> None:
    """A payload is a dataclass, a scalar, a list, a marshmallow schema, or nothing."""

    class Amount(marshmallow.Schema):
        amount = marshmallow.fields.Integer(required=True)

    assert shop.payment.codec.dump(Payment(3)) == {"amount": 3}
    assert shop.nudge.codec.load(None) is None
    assert shop.module.signal("count", int).codec.load(3) == 3
    assert shop.module.signal("counts", list[int]).codec.load([3]) == [3]
    assert shop.module.signal("raw", Amount).codec.load({"amount": 3}) == {"amount": 3}
    with pytest.raises(ValidationProblem):
        shop.nudge.codec.dump(3)
    with pytest.raises(UnsupportedField):
        shop.module.signal("odd", set)


def test_a_signal_of_another_module_is_refused_naming_both(shop: Shop) -> None:
    """A state waits for signals of its own module only."""
    foreign = Module[Any]("parcels").signal("scan")
    with refused("signal scan belongs to module parcels", "declared at .*py:\\d+", "module orders"):
        shop.module.on(shop.Awaiting, foreign)


# --- handlers: at decoration


def test_a_handler_says_what_it_returns(shop: Shop) -> None:
    """A missing return annotation is refused at decoration, with what to write."""

    def silent(tx: Any, state: Any, outcome: Any):  # type: ignore[no-untyped-def]
        return None

    with refused("handler silent has no return annotation", "-> None", "defined at .*test_definitions.py:\\d+"):
        shop.module.on(shop.Awaiting, shop.nudge)(silent)  # type: ignore[call-overload]


def two(tx: Any, state: Any) -> None: ...
def five(tx: Any, state: Any, outcome: Any, context: Any, more: Any) -> None: ...
def starred(*args: Any) -> None: ...
def keyword(tx: Any, state: Any, outcome: Any, *, more: Any) -> None: ...


@pytest.mark.parametrize("fn", [two, five, starred, keyword])
def test_a_handler_takes_three_or_four_parameters(shop: Shop, fn: Any) -> None:
    """Another number of positional parameters is refused at decoration."""
    with refused(f"handler {fn.__name__}", "three or four positional parameters"):
        shop.module.on(shop.Awaiting, shop.nudge)(fn)


async def awaiting(tx: Any, state: Any, outcome: Any) -> None: ...
def generating(tx: Any, state: Any, outcome: Any) -> None:  # type: ignore[misc]
    yield


@pytest.mark.parametrize("fn", [awaiting, generating, functools.partial(awaiting)])
def test_an_async_handler_is_refused(shop: Shop, fn: Any) -> None:
    """Handlers are plain functions; what awaits is a trigger."""
    with refused("plain def"):
        shop.module.on(shop.Awaiting, shop.nudge)(fn)


def test_what_is_no_function_is_no_handler(shop: Shop) -> None:
    """Something else than a function is refused at decoration; so is a function without a name."""
    with refused("a handler is a function, not int"):
        shop.module.on(shop.Awaiting, shop.nudge)(3)  # type: ignore[call-overload]

    def named(tx: Any, state: Any, outcome: Any) -> None: ...

    with refused("name of a handler"):
        shop.module.on(shop.Awaiting, shop.nudge)(functools.partial(named))


def test_two_handlers_of_one_name_on_one_state_are_refused_naming_both_places(shop: Shop) -> None:
    """A trigger is named after its handler, so names are unique within a state; the same function may serve two."""

    def handle(tx: Any, state: Any, outcome: None) -> None: ...

    shop.module.on(shop.Awaiting, shop.nudge)(handle)
    with refused("Awaiting has a handler handle already", "defined at .*py:\\d+.*defined at .*py:\\d+"):
        shop.module.on(shop.Awaiting, now())(handle)

    @shop.module.state
    class Other(State): ...

    shop.module.on(Other, now())(handle)
    assert [h.name for h in shop.module.handlers(Other(), None, None)] == ["handle"]


def test_a_terminal_state_waits_for_nothing(shop: Shop) -> None:
    """A handler on a terminal state is refused."""
    with refused("Shipped is terminal", "registered at .*py:\\d+"):
        shop.module.on(shop.Shipped, shop.nudge)


def test_on_takes_states_of_this_module_and_triggers(shop: Shop) -> None:
    """Anything else is refused at the call."""
    module = shop.module
    with refused("int is not a registered state"):
        module.on(int, shop.nudge)  # type: ignore[call-overload]
    with refused("Plain is not a registered state", "@orders.state"):
        module.on(Plain, shop.nudge)
    with refused("is not a trigger"):
        module.on(shop.Awaiting, "payment")  # type: ignore[call-overload]
    with refused("needs a state class"):
        module.on((), shop.nudge)  # type: ignore[call-overload]
    other = Module[Any]("other")
    with refused(
        "Awaiting belongs to module orders", "registered at .*py:\\d+", "module other", "defined at .*py:\\d+"
    ):
        other.on(shop.Awaiting, now())


# --- handlers: when the module is first used


def test_a_state_without_anything_to_wait_for_is_refused(shop: Shop) -> None:
    """No handler, no transitions of its own, not terminal: NoTransitions when the module is used. (semantics 21)"""
    with pytest.raises(NoTransitions, match=r"state Awaiting of module orders.*defined at .*py:\d+"):
        shop.module.resolve()
    with pytest.raises(NoTransitions):
        shop.module.graph()


def test_more_may_be_defined_after_the_first_use(shop: Shop) -> None:
    """A module is checked again after something was added to it."""
    with pytest.raises(NoTransitions):
        shop.module.handlers(shop.Awaiting("o", 1), None, None)

    @shop.module.on(shop.Awaiting, now())
    def go(tx: Any, state: Any, _: None) -> None: ...

    assert [h.name for h in shop.module.handlers(shop.Awaiting("o", 1), None, None)] == ["go"]


def test_annotations_may_name_what_is_defined_later() -> None:
    """Annotations are resolved when the module is first used, in functions too; states of the module are known."""
    module = Module[Any]("later")

    @module.state
    class First(State): ...

    @dataclass(frozen=True)
    class Local:
        n: int

    signal = module.signal("go", Local)

    @module.on(First, signal)
    def go(tx: Any, state: First, given: Local, context: Context) -> Second | None: ...

    @module.state(terminal=True)
    class Second(State): ...

    (handler,) = module.handlers(First(), None, None)
    assert (handler.declared, handler.may_stay, handler.takes_context) == ((Second,), True, True)


def test_an_annotation_that_cannot_be_resolved_is_refused(shop: Shop) -> None:
    """A name that does not exist is a definition error that says which."""

    def go(tx: Any, state: Any, _: None) -> Shiped: ...  # type: ignore[name-defined]  # noqa: F821

    with refused("handler go", "'Shiped' of its return value", "not defined", "py:\\d+"):
        shop.only(shop.nudge, go)


def returns_int(tx: Any, state: Any, _: Any) -> int: ...  # type: ignore[empty-body]
def returns_state(tx: Any, state: Any, _: Any) -> State: ...  # type: ignore[empty-body]
def returns_list(tx: Any, state: Any, _: Any) -> list[Plain]: ...  # type: ignore[empty-body]
def returns_mixed(tx: Any, state: Any, _: Any) -> Plain | str | None: ...


@pytest.mark.parametrize("fn", [returns_int, returns_state, returns_list])
def test_a_handler_returns_states(shop: Shop, fn: Any) -> None:
    """A return annotation that names anything else is refused."""
    with refused("its return annotation names", "module orders"):
        shop.only(shop.nudge, fn)


def test_a_handler_returns_states_of_its_own_module(shop: Shop) -> None:
    """A state of no module, or of another, is refused; of another it names both places."""
    with refused("returns_mixed", "names Plain, a state of no module"):
        shop.only(shop.nudge, returns_mixed)
    foreign = Shop()

    def cross(tx: Any, state: Any, _: Any) -> None: ...

    cross.__annotations__["return"] = foreign.Shipped
    with refused("cross", "names Shipped, a state of module orders", "defined at .*py:\\d+.*defined at .*py:\\d+"):
        Shop().only(now(), cross)


def test_a_handler_may_only_stay(shop: Shop) -> None:
    """``-> None`` alone is allowed: the handler never leaves the state."""

    def note(tx: Any, state: Any, _: None) -> None: ...

    handler = shop.only(shop.nudge, note)
    assert (handler.declared, handler.may_stay) == ((), True)


def payment_as_int(tx: Any, state: Any, payment: int) -> None: ...
def payment_as_list(tx: Any, state: Any, payment: list[Payment]) -> None: ...
def payment_as_none(tx: Any, state: Any, payment: None) -> None: ...
def payment_as_payment(tx: Any, state: Any, payment: Payment) -> None: ...
def payment_or_none(tx: Any, state: Any, payment: Payment | None) -> None: ...
def payment_as_any(tx: Any, state: Any, payment: Any) -> None: ...
def payment_as_object(tx: Any, state: Any, payment: object) -> None: ...
def payment_unsaid(tx: Any, state: Any, payment) -> None: ...  # type: ignore[no-untyped-def]


@pytest.mark.parametrize("fn", [payment_as_int, payment_as_list, payment_as_none])
def test_a_handler_takes_the_payload_that_its_signal_declares(shop: Shop, fn: Any) -> None:
    """Another annotation is refused, naming the handler's place and the signal's."""
    with refused("third parameter", "payload of signal payment", "py:\\d+.*py:\\d+", "is Payment"):
        shop.only(shop.payment, fn)


@pytest.mark.parametrize("fn", [payment_as_payment, payment_or_none, payment_as_any, payment_as_object, payment_unsaid])
def test_a_handler_may_take_more_than_the_payload(shop: Shop, fn: Any) -> None:
    """A wider annotation, or none, is fine: the signal says what the payload is."""
    assert shop.only(shop.payment, fn).outcome is shop.payment.codec


def test_a_handler_is_annotated_with_its_state(shop: Shop) -> None:
    """Registered for one state and written for another: refused, naming both places."""

    def shipped(tx: Any, state: Plain, _: None) -> None: ...

    with refused("registered for Awaiting", "annotated Plain", "py:\\d+.*py:\\d+"):
        shop.only(shop.nudge, shipped)


def test_the_fourth_parameter_is_the_context(shop: Shop) -> None:
    """Another annotation is refused; a Context with or without parameters is fine."""

    def odd(tx: Any, state: Any, _: None, context: int) -> None: ...
    def bare(tx: Any, state: Any, _: None, context: Context) -> None: ...
    def typed(tx: Any, state: Any, _: None, context: Context[str]) -> None: ...
    def hidden(tx: Any, state: Any, _: None, context: ForCheckersOnly) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    for fn in (bare, typed, hidden):
        assert shop.only(shop.nudge, fn).takes_context
    with refused("handler odd", "annotate it Context, not int"):
        shop.only(shop.nudge, odd)


def test_definition_errors_are_raised_at_each_use(shop: Shop) -> None:
    """A module that does not hold together never half works."""

    def go(tx: Any, state: Any, _: int) -> None: ...

    shop.module.on(shop.Awaiting, now())(go)
    for _ in range(2):
        with refused("the outcome of now", "is None, but its third parameter is annotated int"):
            shop.module.type_of(shop.Awaiting("o", 1))


def test_threads_may_use_a_module_first_at_once(shop: Shop) -> None:
    """The first use resolves once, whoever comes first."""

    def go(tx: Any, state: Any, _: None) -> None: ...

    shop.module.on(shop.Awaiting, now())(go)
    start, found = threading.Barrier(8), list[int]()

    def use() -> None:
        start.wait()
        found.append(id(shop.module.handlers(shop.Awaiting("o", 1), None, None)[0]))

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


# --- handlers: what the engine gets


def test_handlers_come_in_declaration_order(shop: Shop) -> None:
    """What is ready at arming is decided in declaration order, over tuples of states too. (semantics 15)"""

    @shop.module.state
    class Other(State): ...

    def first(tx: Any, state: Any, _: Any) -> None: ...
    def second(tx: Any, state: Any, _: Any) -> None: ...
    def third(tx: Any, state: Any, _: Any) -> None: ...

    shop.module.on(shop.Awaiting, after(seconds=1))(first)
    shop.module.on((Other, shop.Awaiting), now())(second)
    shop.module.on(shop.Awaiting, shop.payment)(third)
    names = [h.name for h in shop.module.handlers(shop.Awaiting("o", 1), None, None)]
    assert names == ["first", "second", "third"]
    assert [h.name for h in shop.module.handlers(Other(), None, None)] == ["second"]
    assert shop.module.handlers(shop.Shipped("o"), None, None) == ()


def test_a_state_of_no_module_is_not_registered(shop: Shop) -> None:
    """A class that was never decorated, or belongs elsewhere, is refused."""

    def go(tx: Any, state: Any, _: None) -> None: ...

    shop.module.on(shop.Awaiting, now())(go)
    for state in (Plain(1), Shop().Awaiting("o", 1)):
        with pytest.raises(NotRegistered):
            shop.module.type_of(state)


def test_apply_calls_the_handler_with_what_it_takes(shop: Shop) -> None:
    """Three or four positional arguments, and the context is the fourth."""
    seen = list[Any]()

    def three(tx: Any, state: Any, outcome: Payment) -> None:
        seen.append((tx, state, outcome))

    def four(tx: Any, state: Any, outcome: Payment, context: Context) -> None:
        seen.append((tx, state, outcome, context))

    state = shop.Awaiting("o", 1)
    for fn in (three, four):
        assert shop.only(shop.payment, fn).apply("tx", state, Payment(1), CONTEXT) is None
    assert seen == [("tx", state, Payment(1)), ("tx", state, Payment(1), CONTEXT)]


def test_an_undeclared_return_is_refused(shop: Shop) -> None:
    """A handler that returns what it did not declare raises, naming itself, what it returned and what it declared."""
    Awaiting, Shipped, Cancelled = shop.Awaiting, shop.Shipped, shop.Cancelled  # noqa: N806
    results = iter([Shipped("o"), Cancelled("o"), None, 3])

    def go(tx: Any, state: Any, _: None) -> Awaiting | Shipped:  # type: ignore[valid-type]
        return next(results)

    handler = shop.only(shop.nudge, go)
    assert handler.apply(None, Awaiting("o", 1), None, CONTEXT) == Shipped("o")
    for returned in ("Cancelled", "None", "int"):
        with pytest.raises(UndeclaredTransition) as caught:
            handler.apply(None, Awaiting("o", 1), None, CONTEXT)
        assert caught.value.args == ("orders.Awaiting/go", returned, "Awaiting | Shipped")


def test_a_cancel_handler_is_registered_for_its_states(shop: Shop) -> None:
    """It may be of several states, and does not race: it is no trigger, no edge of the graph, and what a state waits
    for it still needs. (semantics 21)"""

    def undo(tx: Any, state: Any, reason: str | None, context: Context) -> None: ...

    assert shop.module.on_cancel((shop.Awaiting,))(undo) is undo
    with pytest.raises(NoTransitions):
        shop.module.resolve()
    shop.only(shop.nudge, lambda_handler(shop))
    known = type_of(shop.Awaiting)
    assert known is not None
    assert known.on_cancel is not None
    assert (known.on_cancel.fn, known.on_cancel.takes_context) == (undo, True)
    assert [handler.name for handler in known.handlers] == ["nudged"]
    assert [edge.handler for edge in shop.module.graph().edges] == ["nudged"]


def lambda_handler(shop: Shop) -> Callable[..., Any]:
    Shipped = shop.Shipped  # noqa: N806

    def nudged(tx: Any, state: Any, _: None) -> Shipped:  # type: ignore[valid-type]
        return Shipped("o")

    return nudged


def test_a_cancel_handler_returns_nothing(shop: Shop) -> None:
    """Its annotation says so; one that returns something all the same raises, naming itself."""
    Cancelled = shop.Cancelled  # noqa: N806

    def wrong(tx: Any, state: Any, reason: str | None) -> Cancelled:  # type: ignore[valid-type]
        return Cancelled("o")

    shop.module.on_cancel(shop.Awaiting)(wrong)
    with refused("wrong", "returns nothing", "-> None"):
        shop.module.resolve()
    shop = Shop()

    def right(tx: Any, state: Any, reason: str | None) -> None:
        return state  # type: ignore[no-any-return]

    shop.module.on_cancel(shop.Awaiting)(right)
    shop.only(shop.nudge, lambda_handler(shop))
    known = type_of(shop.Awaiting)
    assert known is not None
    assert known.on_cancel is not None
    with pytest.raises(UndeclaredTransition, match=r"orders\.Awaiting/right"):
        known.on_cancel.apply(None, shop.Awaiting("o", 1), None, CONTEXT)


def _says_int(tx: Any, state: Any, reason: int) -> None: ...


def _needs_a_reason(tx: Any, state: Any, reason: str) -> None: ...


def _of_another(tx: Any, state: Payment, reason: str | None) -> None: ...


@pytest.mark.parametrize("fn", [_says_int, _needs_a_reason, _of_another])
def test_a_cancel_handler_takes_state_and_reason(shop: Shop, fn: Any) -> None:
    """The reason may be missing, so its annotation must allow for None."""
    shop.module.on_cancel(shop.Awaiting)(fn)
    with refused(fn.__name__):
        shop.module.resolve()


def test_what_is_no_cancel_handler_is_refused(shop: Shop) -> None:
    """Terminal and other modules' states, no state at all, a second one of a state, and what is no plain function."""

    def undo(tx: Any, state: Any, reason: str | None) -> None: ...

    with refused("Shipped", "terminal"):
        shop.module.on_cancel(shop.Shipped)
    with refused("orders"):
        Module[Any]("another").on_cancel(shop.Awaiting)
    with refused("state class"):
        shop.module.on_cancel(())
    with refused("two", "parameters"):
        shop.module.on_cancel(shop.Awaiting)(lambda two, parameters: None)
    shop.module.on_cancel(shop.Awaiting)(undo)
    with refused("Awaiting", "undo", "one at most"):
        shop.module.on_cancel(shop.Awaiting)(undo)


def test_the_label_names_instance_state_and_handler(shop: Shop) -> None:
    """What Flower and ``why`` show carries the id of the instance and the stored name of the state."""

    def paid(tx: Any, state: Any, _: Payment) -> None: ...

    assert shop.only(shop.payment, paid).label("shop-2", "Awaiting") == "shop-2.Awaiting/paid"


def test_a_handler_says_where_it_is(shop: Shop) -> None:
    """``where`` is file and line of the function."""

    def paid(tx: Any, state: Any, _: Payment) -> None: ...

    assert shop.only(shop.payment, paid).where == line(str(paid.__code__.co_firstlineno))


# --- outcomes


def fetch(state: Any, context: Any) -> Any: ...
async def fetch_async(state: Any, context: Any) -> Any: ...


SIGNATURE = {"task": "labels.print", "args": ["o"]}


def test_the_third_annotation_gives_the_schema_of_a_poll(shop: Shop) -> None:
    """A poll's value is encoded as annotated. (semantics 16)"""

    def found(tx: Any, state: Any, payment: Payment) -> None: ...

    outcome = shop.only(poll(fetch, every=timedelta(seconds=1)), found).outcome
    assert outcome.load(outcome.check(Payment(3))) == Payment(3)
    with pytest.raises(ValidationProblem):
        outcome.dump("3")


def test_an_outcome_that_has_no_schema_is_refused_at_definition(shop: Shop) -> None:
    """A missing or unusable third annotation is refused where a schema depends on it. (semantics 16)"""

    def unsaid(tx: Any, state: Any, value) -> None: ...  # type: ignore[no-untyped-def]
    def odd(tx: Any, state: Any, value: set[int]) -> None: ...

    with refused("third parameter value has no annotation", "poll fetch", "py:\\d+.*py:\\d+"):
        shop.only(poll(fetch, every=timedelta(seconds=1)), unsaid)
    with pytest.raises(UnsupportedField, match=r"odd\.value"):
        Shop().only(poll(fetch, every=timedelta(seconds=1)), odd)


@pytest.mark.parametrize("trigger", [call(fetch), wait(fetch_async), task(SIGNATURE)])  # type: ignore[arg-type, call-overload]
def test_what_may_fail_is_encoded_as_value_or_failed(trigger: Any) -> None:
    """The outcome of call, wait and task is the value or Failed, told apart even where the value looks like it."""

    def typed(tx: Any, state: Any, got: Payment | Failed) -> None: ...
    def free(tx: Any, state: Any, got: Any) -> None: ...
    def nothing(tx: Any, state: Any, got: Failed | None) -> None: ...
    def optional(tx: Any, state: Any, got: Payment | Failed | None) -> None: ...

    shop = Shop()
    failed = Failed("OSError: no route", 3)
    outcomes = {fn.__name__: shop.only(trigger, fn).outcome for fn in (typed, free, nothing, optional)}
    assert outcomes["typed"].dump(failed) == {"$failed": {"error": "OSError: no route", "attempts": 3}}
    assert outcomes["typed"].dump(Payment(3)) == {"amount": 3}
    lookalikes = [{"$failed": {"error": "x", "attempts": 1}}, {"$value": {"$value": 1}}, {"$failed": 1, "b": 2}]
    for name, values in {
        "typed": [Payment(1)],
        "free": [1, None, "x", *lookalikes],
        "nothing": [None],
        "optional": [Payment(1), None],
    }.items():
        for value in (*values, failed):
            assert outcomes[name].load(outcomes[name].check(value)) == value
    with pytest.raises(ValidationProblem):
        outcomes["typed"].load({"$failed": {"error": 3}})
    with pytest.raises(ValidationProblem):
        outcomes["typed"].dump(None)


def test_secrets_in_outcomes_are_hidden(shop: Shop) -> None:
    """A secret of a value, or of another machine's state, is never shown; what has another form is hidden whole."""

    @shop.module.state(terminal=True)
    class Charged(State):
        card: Card
        amount: int

    def charged(tx: Any, state: Any, got: Card | Failed) -> None: ...
    def other(tx: Any, state: Any, got: Charged) -> None: ...

    value = shop.only(call(fetch), charged).outcome
    assert value.redact(value.dump(Card("4111"))) == {"number": "***"}
    assert value.redact(value.dump(Failed("E: no", 1))) == {"$failed": {"error": "E: no", "attempts": 1}}
    assert value.redact({"$value": {"number": "4111"}}) == {"$value": {"number": "***"}}
    state = shop.only(reached("p", Charged), other).outcome
    assert state.redact(state.dump(Charged(Card("4111"), 3))) == {
        "module": "orders",
        "type": "Charged",
        "version": 1,
        "state": {"card": {"number": "***"}, "amount": 3},
    }
    assert state.redact(["4111"]) == "***"
    assert (value.secret_fields, state.secret_fields) == ({"number"}, {"state.card.number"})


def test_a_handler_that_forgets_failed_is_refused(shop: Shop) -> None:
    """A call may fail, so its handler must take Failed."""

    def forgot(tx: Any, state: Any, got: Payment) -> None: ...

    with refused("may be Failed: annotate its third parameter Payment \\| Failed", "call fetch", "py:\\d+.*py:\\d+"):
        shop.only(call(fetch), forgot)


def test_the_outcome_of_reached_is_a_state_of_any_module(shop: Shop) -> None:
    """It is encoded with module, type and version, and loaded by way of the migrations of its module."""
    parcels = Module[Any]("parcels", version=2)

    @parcels.state(terminal=True, name="done")
    class Delivered(State):
        parcel: str
        door: int

    @parcels.migrate(Delivered, since=2)
    def add_door(old: dict[str, Any]) -> dict[str, Any]:
        return {**old, "door": 1}

    def other(tx: Any, state: Any, got: Delivered | State) -> None: ...

    outcome = shop.only(reached("p-1", Delivered, shop.Shipped), other).outcome
    data = {"module": "parcels", "type": "done", "version": 2, "state": {"parcel": "p", "door": 7}}
    assert outcome.dump(Delivered("p", 7)) == data
    assert outcome.load(data) == Delivered("p", 7)
    assert outcome.load({**data, "version": 1, "state": {"parcel": "p"}}) == Delivered("p", 1)
    assert outcome.load(outcome.check(shop.Shipped("o"))) == shop.Shipped("o")
    for bad in (shop.Cancelled("o"), 3):
        with pytest.raises(ValidationProblem):
            outcome.dump(bad)
    for bad_data in ({**data, "type": "odd"}, {}, 3):
        with pytest.raises(ValidationProblem):
            outcome.load(bad_data)


def test_a_handler_takes_every_state_that_reached_names(shop: Shop) -> None:
    """A state that the handler does not take, or that no module has, is refused."""
    Shipped = shop.Shipped  # noqa: N806

    def only_one(tx: Any, state: Any, got: Shipped) -> None: ...  # type: ignore[valid-type]
    def anything(tx: Any, state: Any, got: State) -> None: ...

    with refused("reached p-1", "may be Cancelled", "annotated Shipped", "py:\\d+.*py:\\d+"):
        shop.only(reached("p-1", Shipped, shop.Cancelled), only_one)
    with refused("Plain is a state of no module"):
        Shop().only(reached("p-1", Plain), anything)


@pytest.mark.parametrize("trigger", [after(seconds=1), at(datetime(2030, 1, 1, tzinfo=UTC)), finished("x"), now()])
def test_deadlines_bring_nothing(trigger: Any) -> None:
    """The outcome of after, at, finished and now is None."""

    def go(tx: Any, state: Any, _: None) -> None: ...

    outcome = Shop().only(trigger, go).outcome
    assert outcome.load(outcome.check(None)) is None


def test_messages_of_a_channel(shop: Shop) -> None:
    """JSON of the annotated type, of ``payload_type``, or whatever ``decode`` makes of the bytes."""

    def free(tx: Any, state: Any, message: dict[str, Any]) -> None: ...
    def typed(tx: Any, state: Any, message: Payment) -> None: ...

    gate = channel("gate")
    assert gate.message(b'{"a": [1]}', shop.only(gate, free).outcome) == {"a": [1]}
    paid = channel("paid", payload_type=Payment)
    outcome = shop.only(paid, typed).outcome
    assert outcome is paid.codec
    assert paid.message(b'{"amount": 3}', outcome) == Payment(3)
    raw = channel("raw", decode=lambda data: Payment(data[0]))
    assert raw.message(b"\x07", outcome) == Payment(7)
    for bad in (b"nonsense", b'{"amount": "3"}', b"\xff"):
        with pytest.raises(InvalidOutcome):
            paid.message(bad, outcome)
    with refused("payload of channel paid", "is Payment", "py:\\d+.*py:\\d+"):
        Shop().only(channel("paid", payload_type=Payment), payment_as_int)


# --- triggers


def test_deadlines_are_fixed_when_the_state_is_entered(shop: Shop) -> None:
    """``after`` counts from the entry, ``at`` is the instant in any zone; both in µs. (semantics 24)"""
    state = shop.Awaiting("o", 1, patience=timedelta(seconds=2))
    noon = datetime(2030, 1, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    noon_us = int(datetime(2030, 1, 1, 10, tzinfo=UTC).timestamp()) * 1_000_000
    cases: list[tuple[Any, int]] = [
        (after(minutes=1, seconds=2, milliseconds=3), 62_003_000 + 5),
        (after(timedelta(microseconds=7)), 12),
        (after(timedelta()), 5),
        (after(lambda s: s.patience), 2_000_005),
        (at(noon), noon_us),
        (at(lambda s: noon), noon_us),
        (at(datetime(1900, 1, 1, tzinfo=UTC)), 0),
    ]
    for trigger, due_us in cases:
        assert trigger.due_us(state, 5) == due_us
    latest: Any = after(timedelta.max)
    latest_due = timedelta(microseconds=latest.due_us(state, 5))
    assert datetime(1970, 1, 1, tzinfo=UTC) + latest_due == datetime.max.replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: after(30), "after.*int.*timedelta"),  # type: ignore[call-overload]
        (lambda: after(), "how long"),
        (lambda: after(timedelta(1), seconds=1), "not both"),  # type: ignore[call-overload]
        (lambda: after(fortnights=1), "fortnights"),  # type: ignore[call-overload]
        (lambda: after(seconds=-1), "or more"),
        (lambda: at(timedelta(1)), "datetime"),  # type: ignore[call-overload]
        (lambda: at(datetime(2030, 1, 1)), "time zone"),
        (lambda: poll(fetch, every=3), "every.*timedelta"),  # type: ignore[call-overload]
        (lambda: poll(fetch, every=timedelta()), "or more"),
        (lambda: poll(3, every=timedelta(1)), "function"),  # type: ignore[call-overload]
        (lambda: poll(fetch, every=timedelta(1), backoff=0.5), "backoff"),
        (lambda: poll(fetch, every=timedelta(1), backoff=float("nan")), "backoff"),
        (lambda: poll(fetch, every=timedelta(1), timeout=0), "above zero"),
        (lambda: call(fetch, timeout="3"), "timeout"),  # type: ignore[call-overload]
        (lambda: call(fetch, retry=3), "Retry"),  # type: ignore[call-overload]
        (lambda: wait(3), "function"),  # type: ignore[arg-type]
        (lambda: channel(""), "empty"),
        (lambda: channel(3), "channel.*int"),  # type: ignore[call-overload]
        (lambda: channel("c", where=3), "where"),  # type: ignore[call-overload]
        (lambda: channel("c", payload_type=int, decode=bytes), "not both"),  # type: ignore[call-overload]
        (lambda: task(3), "signature"),  # type: ignore[call-overload]
        (lambda: task(SimpleNamespace(apply_async=print)), "add.s"),  # type: ignore[call-overload]
        (lambda: reached("o"), "which states"),  # type: ignore[call-overload]
        (lambda: reached("o", 3), "which states"),  # type: ignore[call-overload]
        (lambda: finished(""), "empty"),
        (lambda: Retry(0), "max_attempts"),
        (lambda: Retry(base=3), "base.*timedelta"),  # type: ignore[arg-type]
        (lambda: Retry(cap=timedelta()), "cap"),
        (lambda: Retry(on=OSError), "tuple"),  # type: ignore[arg-type]
    ],
)
def test_arguments_of_triggers_are_checked_at_the_call(make: Callable[[], Any], words: str) -> None:
    """A number without a unit, a naive datetime, the wrong kind of thing: refused with what to write, and where."""
    with pytest.raises(DefinitionError, match=words) as caught:
        make()
    assert caught.value.where.startswith(__file__)


def test_what_a_function_of_the_state_returns_is_checked_too(shop: Shop) -> None:
    """It is known only when the state is entered; the error names the trigger's place."""
    state = shop.Awaiting("o", 1)
    wrong: list[Callable[[], Any]] = [
        lambda: after(lambda s: 3).due_us(state, 0),  # type: ignore[arg-type, return-value, attr-defined]
        lambda: at(lambda s: datetime(2030, 1, 1)).due_us(state, 0),  # type: ignore[attr-defined]
        lambda: poll(fetch, every=lambda s: timedelta()).every_ms(state, 0),
        lambda: channel(lambda s: "").name_for(state),
        lambda: finished(lambda s: 3).operation_for(state),  # type: ignore[arg-type, return-value, attr-defined]
        lambda: reached(lambda s: "", Plain).operation_for(state),
        lambda: task(lambda s: 3).signature_for(state),  # type: ignore[arg-type, return-value, call-overload]
    ]
    for make in wrong:
        with pytest.raises(DefinitionError) as caught:
            make()
        assert caught.value.where.startswith(__file__)


def test_triggers_take_functions_of_the_state(shop: Shop) -> None:
    """Channel, operation id and signature may depend on the state."""
    state = shop.Awaiting("o", 1)
    follow: Any = finished(lambda s: f"parent-{s.order_id}")
    print_label: Any = task(lambda s: {"task": s.order_id})  # type: ignore[arg-type, return-value, call-overload]
    assert channel(lambda s: f"orders.{s.order_id}").name_for(state) == "orders.o"
    assert reached(lambda s: s.order_id, Plain).operation_for(state) == "o"
    assert follow.operation_for(state) == "parent-o"
    assert print_label.signature_for(state) == {"task": "o"}
    assert channel("c", where=lambda message, s: message == s.total).accepts(1, state)
    assert not channel("c", where=lambda message, s: message == s.total).accepts(2, state)


def test_polls_slow_down_by_backoff_to_a_day(shop: Shop) -> None:
    """The pause grows by the factor with each poll, up to a day; a longer one stays as it is."""
    state = shop.Awaiting("o", 1)
    steady = poll(fetch, every=timedelta(seconds=2))
    growing = poll(fetch, every=timedelta(seconds=2), backoff=1.5, timeout=timedelta(seconds=3))
    slow = poll(fetch, every=timedelta(days=2), backoff=2)
    assert [steady.every_ms(state, n) for n in (0, 1, 10**6)] == [2000] * 3
    assert [growing.every_ms(state, n) for n in (0, 1, 2)] == [2000, 3000, 4500]
    assert [growing.every_ms(state, n) for n in (100, 10**6)] == [86_400_000] * 2
    assert [slow.every_ms(state, n) for n in (0, 10**6)] == [2 * 86_400_000] * 2
    assert (steady.timeout_s, growing.timeout_s) == (None, 3.0)


def test_retries_double_up_to_the_cap() -> None:
    """Delays double from base to cap; jitter takes at most a half; other exceptions are final at once."""
    retry = Retry(max_attempts=4, base=timedelta(milliseconds=100), cap=timedelta(seconds=1), on=(OSError,))
    assert [retry.delay_ms(n) for n in (1, 2, 3, 4, 5, 10**9)] == [100, 200, 400, 800, 1000, 1000]
    assert {50 <= retry.jittered_ms(1) <= 100 for _ in range(100)} == {True}
    assert [retry.exhausted(TimeoutError(), n) for n in (1, 3, 4, 5)] == [False, False, True, True]
    assert retry.exhausted(ValueError(), 1)
    assert Retry(cap=timedelta.max).delay_ms(10**9) == timedelta.max // timedelta(milliseconds=1)


def test_triggers_describe_themselves(shop: Shop) -> None:
    """A few words for diagrams and ``explain``."""
    described: list[Any] = [
        (shop.payment, "signal payment"),
        (after(minutes=30), "after 30 min"),
        (at(datetime(2030, 1, 1, tzinfo=UTC)), "at 2030-01-01T00:00:00+00:00"),
        (poll(fetch, every=timedelta(seconds=1)), "poll fetch every 1 s"),
        (call(fetch), "call fetch"),
        (wait(fetch_async), "wait fetch_async"),
        (channel("gates"), "channel gates"),
        (task(SIGNATURE), "task labels.print"),  # type: ignore[arg-type, call-overload]
        (reached("o", shop.Shipped, shop.Cancelled), "reached o Shipped or Cancelled"),
        (finished("o"), "finished o"),
        (now(), "now"),
    ]
    assert [trigger.text for trigger, _ in described] == [words for _, words in described]
    assert triggers.wait is wait


# --- the dynamic form


def dynamic(module: Module[Any], transitions: Callable[..., Any]) -> Any:
    """A state of the module that decides by itself."""

    @module.state
    class Deciding(State):
        n: int

        def transitions(self, context: Any, global_context: Any) -> Any:
            return transitions(self, context, global_context)

    return Deciding


def test_a_state_may_decide_what_it_waits_for() -> None:
    """``transitions`` may depend on the state and both contexts; closures and lambdas without annotations do."""
    module = Module[Any]("dynamic")
    signal = module.signal("go", int)

    def decide(state: Any, context: Any, global_context: Any) -> Sequence[Any]:
        def annotated(tx: Any, state: Any, given: int, context: Context) -> Done:
            return Done(global_context + given)

        found: list[Any] = [Transition(signal, annotated)]
        if state.n:
            found.append(Transition(after(seconds=state.n), lambda tx, s, _: Done(context), name="late"))
        return found

    Deciding = dynamic(module, decide)  # noqa: N806

    @module.state(terminal=True)
    class Done(State):
        n: int

    (only,) = module.handlers(Deciding(0), 10, 20)
    assert (only.name, only.declared, only.may_stay, only.outcome) == ("annotated", (Done,), False, signal.codec)
    assert only.apply(None, Deciding(0), 1, CONTEXT) == Done(21)
    first, late = module.handlers(Deciding(3), 11, 22)
    assert (first.name, late.name) == ("annotated", "late")
    assert first.apply(None, Deciding(3), 1, CONTEXT) == Done(23), "each call has a closure of its own"
    assert late.apply(None, Deciding(3), None, CONTEXT) == Done(11)
    trigger: Any = late.trigger
    assert trigger.due_us(Deciding(3), 0) == 3_000_000
    assert (set(late.declared), late.may_stay) == ({Deciding, Done}, True)


def test_the_default_transitions_are_those_registered(shop: Shop) -> None:
    """``State.transitions`` returns what ``on`` registered, so an override may add to it."""

    @shop.module.state
    class More(State):
        def transitions(self, context: Any, global_context: Any) -> Sequence[Any]:
            return [
                *super().transitions(context, global_context),
                Transition(now(), lambda tx, s, _: None, name="at_once"),
            ]

    def go(tx: Any, state: Any, _: None) -> None: ...

    shop.module.on((shop.Awaiting, More), shop.nudge)(go)
    (registered,) = shop.Awaiting("o", 1).transitions(None, None)
    assert (registered.trigger, registered.apply, registered.name) == (shop.nudge, go, "go")
    assert [h.name for h in shop.module.handlers(More(), None, None)] == ["go", "at_once"]
    assert list(Plain(1).transitions(None, None)) == []


def stay(tx: Any, state: Any, outcome: None) -> None: ...


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (None, "returned NoneType, not a list"),
        ([3], "returned a int: give Transition"),
        ([Transition(now(), stay), Transition(after(seconds=1), stay)], "two transitions named stay.*py:\\d+ and .*py"),
        ([Transition(now(), two)], "three or four positional"),  # type: ignore[arg-type]
        ([Transition(now(), awaiting)], "plain def"),  # type: ignore[arg-type]
        ([Transition(now(), functools.partial(stay))], "name of a transition"),
        ([Transition("now", stay)], "is not a trigger"),  # type: ignore[arg-type]
        ([Transition(Module[Any]("other").signal("s"), stay)], "signal s belongs to module other"),
        ([Transition(poll(fetch, every=timedelta(1)), lambda tx, s, o: None)], "has no annotation"),
    ],
)
def test_unusable_transitions_are_refused(returned: Any, words: str) -> None:
    """What ``transitions`` returns is checked like what is decorated, when the state is entered."""
    module = Module[Any]("dynamic")
    Deciding = dynamic(module, lambda *_: returned)  # noqa: N806
    with pytest.raises(DefinitionError, match=words):
        module.handlers(Deciding(1), None, None)


def test_no_transitions_at_all_are_refused() -> None:
    """A state that is not terminal must wait for something. (semantics 21)"""
    module = Module[Any]("dynamic")
    Deciding = dynamic(module, lambda *_: [])  # noqa: N806
    with pytest.raises(NoTransitions, match="Deciding"):
        module.handlers(Deciding(1), None, None)


# --- versions


def versioned(version: int) -> tuple[Module[Any], Any]:
    module = Module[Any]("versions", version=version)

    @module.state(terminal=True)
    class Person(State):
        first: str
        last: str
        age: int = 0

    return module, Person


def test_old_records_pass_each_migration_in_order() -> None:
    """A record of version 1 passes the steps to 2 and to 3, one of version 2 the second only, whatever their order."""
    module, Person = versioned(3)  # noqa: N806

    @module.migrate(Person, since=3)
    def to_3(old: dict[str, Any]) -> dict[str, Any]:
        first, last = old["name"].split()
        return {"first": first, "last": last}

    @module.migrate(Person, since=2)
    def to_2(old: dict[str, Any]) -> dict[str, Any]:
        return {"name": old["n"]}

    assert module.load("Person", 1, {"n": "Ada Byron"}) == Person("Ada", "Byron")
    assert module.load("Person", 2, {"name": "Ada Byron"}) == Person("Ada", "Byron")
    assert module.load("Person", 3, {"first": "Ada", "last": "Byron", "age": 3}) == Person("Ada", "Byron", 3)


def test_a_new_field_with_a_default_needs_no_version() -> None:
    """Records without the field load with its default."""
    module, Person = versioned(1)  # noqa: N806
    assert module.load("Person", 1, {"first": "a", "last": "b"}) == Person("a", "b", 0)


def test_records_that_cannot_be_loaded() -> None:
    """Newer code, an unknown type, a failing migration, data of another form: each its typed error. (semantics 32)"""
    module, Person = versioned(2)  # noqa: N806
    with pytest.raises(NewerRecord) as newer:
        module.load("Nobody", 3, {})
    assert newer.value.args == ("versions", 3, 2)
    with pytest.raises(UndecodableRecord, match="no state Nobody"):
        module.load("Nobody", 2, {})
    with pytest.raises(ValidationProblem) as wrong:
        module.load("Person", 2, {"first": 3, "last": "b"})
    assert wrong.value.field == "first"

    @module.migrate(Person, since=2)
    def broken(old: dict[str, Any]) -> dict[str, Any]:
        return {"first": old["secret"]} if old else 3  # type: ignore[return-value]

    with pytest.raises(UndecodableRecord, match="to version 2 raised KeyError"):
        module.load("Person", 1, {"a": 1})
    with pytest.raises(UndecodableRecord, match="returned int"):
        module.load("Person", 1, {})


@pytest.mark.parametrize(("since", "words"), [(4, "version 3 .*py:\\d+"), (1, "2 or more"), ("2", "whole number")])
def test_migrations_lead_to_a_version_that_exists(since: Any, words: str) -> None:
    """A step to a version beyond the module's, or to the first, is refused."""
    module, Person = versioned(3)  # noqa: N806
    with pytest.raises(DefinitionError, match=words):
        module.migrate(Person, since=since)


def test_migrations_are_unique_functions_of_own_states() -> None:
    """Twice the same step names both places; another's state or something uncallable is refused."""
    module, Person = versioned(3)  # noqa: N806
    module.migrate(Person, since=2)(lambda old: old)
    with refused("has a migration to version 2 already", "py:\\d+.*py:\\d+"):
        module.migrate(Person, since=2)(lambda old: old)
    with refused("not int"):
        module.migrate(Person, since=3)(3)  # type: ignore[arg-type]
    with refused("not a registered state"):
        module.migrate(Plain, since=2)


# --- the graph


def drawn() -> Shop:
    shop = Shop()
    Awaiting, Shipped, Cancelled = shop.Awaiting, shop.Shipped, shop.Cancelled  # noqa: N806

    @shop.module.on(Awaiting, shop.payment)
    def paid(tx: Any, state: Any, _: Payment) -> Awaiting | Shipped | None: ...  # type: ignore[valid-type]

    @shop.module.on(Awaiting, after(minutes=30))
    def expired(tx: Any, state: Any, _: None) -> Cancelled: ...  # type: ignore[valid-type, empty-body]

    return shop


def test_the_graph_has_the_declared_transitions() -> None:
    """States are nodes, declared returns are edges; None is none."""
    graph = drawn().module.graph()
    assert graph.nodes == ("Awaiting", "Shipped", "Cancelled")
    assert [(e.source, e.target, e.handler, e.trigger_text) for e in graph.edges] == [
        ("Awaiting", "Awaiting", "paid", "signal payment"),
        ("Awaiting", "Shipped", "paid", "signal payment"),
        ("Awaiting", "Cancelled", "expired", "after 30 min"),
    ]
    assert graph.check() == drawn().module.check() == []


def test_the_diagram_is_mermaid() -> None:
    """Beginnings and ends are drawn as such; what Mermaid would read as syntax is taken out."""
    shop = drawn()

    @shop.module.state(name='on "hold"; 2', terminal=True)
    class Held(State): ...

    assert shop.module.mermaid().splitlines() == [
        "stateDiagram-v2",
        '    state "on hold 2" as s3',
        "    [*] --> Awaiting",
        "    s3",
        "    Awaiting --> Awaiting : paid (signal payment)",
        "    Awaiting --> Shipped : paid (signal payment)",
        "    Awaiting --> Cancelled : expired (after 30 min)",
        "    Shipped --> [*]",
        "    Cancelled --> [*]",
        "    s3 --> [*]",
    ]


def test_unreachable_and_trapped_states_are_found() -> None:
    """A terminal state that nothing enters, and states without a way to a terminal one."""
    shop = drawn()

    @shop.module.state(terminal=True)
    class Lost(State): ...

    @shop.module.state
    class Ping(State): ...

    @shop.module.state
    class Pong(State): ...

    @shop.module.on(Ping, now())
    def ping(tx: Any, state: Any, _: None) -> Pong: ...  # type: ignore[empty-body]

    @shop.module.on(Pong, now())
    def pong(tx: Any, state: Any, _: None) -> Ping: ...  # type: ignore[empty-body]

    found = shop.module.check()
    assert [(f.kind, f.state) for f in found] == [("unreachable", "Lost"), ("trapped", "Ping"), ("trapped", "Pong")]
    assert str(found[0]) == "Lost is terminal, but no handler returns it"
    assert "Ping" in str(found[1])


def test_a_state_that_decides_by_itself_may_lead_anywhere() -> None:
    """The graph knows that it does not know: nothing is called unreachable or trapped because of it."""
    module = Module[Any]("dynamic")
    dynamic(module, lambda *_: [])

    @module.state(terminal=True)
    class Done(State): ...

    assert module.graph().dynamic == {"Deciding"}
    assert module.check() == []
    assert "    Deciding : decides by itself" in module.mermaid().splitlines()


# --- machines


def test_machines_are_equal_by_operation_module_and_canonical_state(shop: Shop) -> None:
    """What is stored decides, not how the fields were spelled. (semantics 13, 14)"""
    module = Module[Any]("instants")

    @module.state(terminal=True)
    class Due(State):
        when: datetime

    @module.state(terminal=True)
    class Late(State):
        when: datetime

    noon = datetime(2030, 1, 1, 12, tzinfo=UTC)
    one = StateMachine("o", Due(noon))
    same = StateMachine("o", Due(noon.astimezone(timezone(timedelta(hours=5)))))
    assert one == same
    assert hash(one) == hash(same)
    others = [
        StateMachine("p", Due(noon)),
        StateMachine("o", Due(noon), module="a"),
        StateMachine("o", Late(noon)),
        StateMachine("o", Due(noon + timedelta(microseconds=1))),
        "o",
    ]
    assert one not in others
    assert len({one, same, *others}) == 6


def test_machines_of_unregistered_or_unfit_states_still_compare(shop: Shop) -> None:
    """Comparing never raises: what has no stored form is compared as it prints."""
    assert StateMachine("o", Plain(1)) == StateMachine("o", Plain(1)) != StateMachine("o", Plain(2))
    unfit = StateMachine("o", shop.Awaiting("o", "three"))  # type: ignore[arg-type]
    assert unfit == StateMachine("o", shop.Awaiting("o", "three"))  # type: ignore[arg-type]
    assert unfit != StateMachine("o", shop.Awaiting("o", 3))
    assert hash(unfit)


@pytest.mark.parametrize("operation_id", ["o", ":{}%\n\0 é😀", "x" * 512, "é" * 256])
def test_operation_ids_are_any_text(operation_id: str) -> None:
    """Any character, up to 512 bytes."""
    assert StateMachine(operation_id, Plain(1)).operation_id == operation_id
    assert check_operation_id(operation_id) == operation_id


@pytest.mark.parametrize(
    ("operation_id", "problem"),
    [
        ("", "0 bytes.*512"),
        ("x" * 513, "513 bytes.*512"),
        ("é" * 257, "514 bytes"),
        ("\ud800", "surrogate"),
        (3, "int"),
    ],
)
def test_operation_ids_have_limits(operation_id: Any, problem: str) -> None:
    """Empty, too long, unencodable or no text: an error that names the field and the limit."""
    with pytest.raises(InvalidInput, match=problem) as caught:
        StateMachine(operation_id, Plain(1))
    assert caught.value.field == "operation_id"


def test_fields_of_a_machine_are_checked() -> None:
    """The wrong kind of thing is named by its field."""
    for given, name in (((3,), "state"), ((Plain(1), 3), "module"), ((Plain(1), ""), "module")):
        with pytest.raises(InvalidInput) as caught:
            StateMachine("o", *given)
        assert caught.value.field == name


def test_a_machine_is_frozen() -> None:
    """A machine is a value."""
    with pytest.raises(FrozenInstanceError):
        StateMachine("o", Plain(1)).module = "m"  # type: ignore[misc]
    assert is_dataclass(StateMachine)

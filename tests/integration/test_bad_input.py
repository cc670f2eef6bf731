"""What bad input gets: rows 1 to 5 of the table "What bad input gets" of the issue; a section each."""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any, cast

import pytest
from celery.backends.base import Backend

from smqueue import (
    AmbiguousModule,
    Delivery,
    Failed,
    InboxFull,
    InvalidInput,
    InvalidPayload,
    InvalidState,
    Module,
    NotRegistered,
    Retry,
    Secret,
    SmqueueError,
    State,
    StateAlreadyExists,
    StateAlreadyTerminal,
    StateMachine,
    TooLarge,
    Transaction,
    UnknownModule,
    UnknownSignal,
    after,
    call,
    now,
)  # fmt: skip
from smqueue.cli import run
from smqueue.client import Client
from smqueue.embedded import EmbeddedServer
from smqueue.limits import time_limit
from tests.inprocess import Local, Play, machines

LIMIT = 64 * 1024
accounts = Module("accounts", retry=Retry(max_attempts=3, base=timedelta(milliseconds=1)))


@dataclass(frozen=True)
class Address:
    street: str
    number: int


@dataclass(frozen=True)
class Transfer:
    amount: int
    to: Address
    pin: Annotated[str, Secret] = "0000"


transfer = accounts.signal("transfer", Transfer)
note = accounts.signal("note", str)


@accounts.state
class Open(State):
    owner: str
    address: Address
    balance: int = 0


@accounts.state(terminal=True)
class Closed(State):
    owner: str


@accounts.on(Open, transfer)
def transferred(tx: Transaction, state: Open, got: Transfer) -> Closed:
    tx.incrby("transferred", got.amount)
    return Closed(state.owner)


@accounts.on(Open, note)
def noted(tx: Transaction, state: Open, got: str) -> Closed | None:
    tx.set("note", got)
    return Closed(state.owner) if got == "close" else None


HOME = Address("Lane", 1)


@pytest.fixture
def local(play: Play) -> Local:
    return play(accounts=accounts)


# --- the producers ----------------------------------------------------------------------------------------------------

Add = Callable[[Local, Sequence[dict[str, Any]]], object]


def by_executor(local: Local, given: Sequence[dict[str, Any]]) -> object:
    """With states as objects: nothing checks a dataclass's fields before."""
    types = {"Open": Open, "Closed": Closed}
    made: list[StateMachine] = []
    for one in given:
        fields = {k: Address(**v) if k == "address" and isinstance(v, dict) else v for k, v in one["state"].items()}
        made.append(StateMachine(one["operation_id"], cast("Any", types[one["type"]])(**fields), one.get("module")))
    return local.executor.add_state_machines(made)


def by_task(local: Local, given: Sequence[dict[str, Any]]) -> object:
    """The Celery task, run as a worker runs it: its failure is what a producer gets."""
    return _task(local, "smqueue.add", machines=list(given))


def by_client(local: Local, given: Sequence[dict[str, Any]]) -> object:
    """The client, while a worker answers."""
    return _with_client(local, lambda client: client.add(given, timeout=20))


def _task(local: Local, name: str, **given: Any) -> object:
    given = json.loads(json.dumps(given))  # what any producer of messages can send
    result = local.app.tasks[name].apply(kwargs=given)
    if result.state == "FAILURE":
        backend: Any = Backend(local.app)
        raise backend.exception_to_python(backend.prepare_exception(result.result, "json"))  # through a result back end
    return result.result


def _with_client(local: Local, ask: Callable[[Client], object]) -> object:
    answer: list[object] = []

    def produce() -> None:
        try:
            answer.append(ask(Client(local.executor.deployment.settings.url, local.namespace)))
        except Exception as error:
            answer.append(error)

    thread = threading.Thread(target=produce)
    thread.start()
    local.until(lambda: answer)
    thread.join()
    if isinstance(answer[0], Exception):
        raise answer[0]
    return answer[0]


producers = pytest.mark.parametrize("add", [by_executor, by_task, by_client], ids=["executor", "celery task", "client"])


def opened(op: str = "op", **state: Any) -> dict[str, Any]:
    """A machine in plain JSON."""
    fields = {"owner": "Ann", "address": {"street": "Lane", "number": 1}, **state}
    return {"operation_id": op, "module": "accounts", "type": "Open", "state": fields}


def written(local: Local) -> dict[bytes, bytes]:
    """All that is stored, but answers and marks of clients' calls."""
    keys = local.keys()
    passing = tuple(
        f"{keys.prefix}{kind}".encode() for kind in ("reply:", "marker:ask", "schedule", "watched", "roused", "workers")
    )
    found = {key: value for key, value in local.everything().items() if not key.startswith(passing)}
    return {key: value for key, value in found.items() if key != keys.watch.encode()}


# --- 1: unknown module, duplicate, terminal ---------------------------------------------------------------------------


@producers
@pytest.mark.parametrize(
    ("bad", "error"),
    [
        ({**opened(), "module": "nobody"}, UnknownModule),
        (opened("there"), StateAlreadyExists),
        (opened("op-1"), StateAlreadyExists),
        ({**opened(), "type": "Closed", "state": {"owner": "Ann"}}, StateAlreadyTerminal),
    ],
    ids=["unknown module", "exists", "twice in the batch", "terminal"],
)
def test_what_cannot_be_added_is_refused_with_its_batch(
    local: Local, add: Add, bad: dict[str, Any], error: type[SmqueueError]
) -> None:
    """Unknown module, duplicate, terminal state: a typed error for all producers, no batch (semantics 6)."""
    by_executor(local, [opened("there")])
    before = written(local)
    with pytest.raises(error) as caught:
        add(local, [opened("op-1"), bad, opened("op-2")])
    assert type(caught.value) is error
    assert caught.value.args
    assert written(local) == before


# --- 2: what fails its schema -----------------------------------------------------------------------------------------

WRONG_STATES: dict[str, tuple[dict[str, Any], str]] = {
    "a number for a text": (opened(owner=7), "Open.owner"),
    "a bool for a number": (opened(balance=True), "Open.balance"),
    "a float for a number": (opened(balance=3.9), "Open.balance"),
    "a text for a number": (opened(balance="3"), "Open.balance"),
    "nothing for a text": (opened(owner=None), "Open.owner"),
    "deep inside": (opened(address={"street": "Lane", "number": "1"}), "Open.address.number"),
    "a text for an object": (opened(address="Lane 1"), "Open.address"),
    "a lone surrogate": (opened(owner="\ud800"), "Open.owner"),
}


@producers
@pytest.mark.parametrize("case", WRONG_STATES)
def test_a_state_that_fails_its_schema_names_the_field(local: Local, add: Add, case: str) -> None:
    """A state that does not fit is refused, in the caller or as the task's failure, with the field's path."""
    bad, field = WRONG_STATES[case]
    with pytest.raises(InvalidState) as caught:
        add(local, [opened("good"), bad])
    assert caught.value.field == field
    assert field in str(caught.value)
    assert written(local) == {}


JSON_ONLY: dict[str, tuple[Any, type[SmqueueError], str]] = {
    "a field missing": ({**opened(), "state": {"owner": "Ann"}}, InvalidState, "Open.address"),
    "a field too many": (opened(colour="red"), InvalidState, "Open.colour"),
    "a state that is no object": ({**opened(), "state": ["Ann"]}, InvalidState, "Open"),
    "no state": ({k: v for k, v in opened().items() if k != "state"}, InvalidInput, "state"),
    "no type": ({k: v for k, v in opened().items() if k != "type"}, InvalidInput, "type"),
    "an unknown type": ({**opened(), "type": "Shut"}, NotRegistered, "Shut"),
    "a type that is no text": ({**opened(), "type": ["Open"]}, SmqueueError, "Open"),
    "a key too many": ({**opened(), "colour": "red"}, InvalidInput, "colour"),
    "a module that is no text": ({**opened(), "module": ["accounts"]}, SmqueueError, "module"),
    "a number as operation": ({**opened(), "operation_id": 7}, InvalidInput, "operation_id"),
}


@pytest.mark.parametrize("add", [by_task, by_client], ids=["celery task", "client"])
@pytest.mark.parametrize("case", JSON_ONLY)
def test_a_machine_that_is_malformed_names_what(local: Local, add: Add, case: str) -> None:
    """JSON by hand that lacks a part, or has one too many or of another kind, is a typed error that names it."""
    bad, error, named = JSON_ONLY[case]
    with pytest.raises(error) as caught:
        add(local, [opened("good"), bad])
    assert isinstance(caught.value, SmqueueError)
    assert named in str(caught.value)
    assert written(local) == {}


@pytest.mark.parametrize("given", [None, "Open", {"operation_id": "op"}, 7, [7], [None], [["op"]]])
def test_machines_that_are_none_are_refused(local: Local, given: object) -> None:
    """The task smqueue.add given no list of machines fails with a typed error."""
    with pytest.raises(SmqueueError):
        _task(local, "smqueue.add", machines=given)
    assert written(local) == {}


def test_the_executor_takes_state_machines_only(local: Local) -> None:
    """What is no StateMachine, or holds no State, is a typed error."""
    with pytest.raises(InvalidInput):
        local.executor.add_state_machines(cast("Any", [opened()]))
    with pytest.raises(InvalidInput, match="state"):
        StateMachine("op", cast("Any", {"owner": "Ann"}))
    with pytest.raises(InvalidInput, match="operation_id"):
        StateMachine(cast("Any", 7), Closed("Ann"))


WRONG_PAYLOADS: dict[str, tuple[dict[str, Any], str]] = {
    "a text for a number": ({"amount": "1", "to": {"street": "Lane", "number": 1}}, "transfer.amount"),
    "a bool for a number": ({"amount": True, "to": {"street": "Lane", "number": 1}}, "transfer.amount"),
    "deep inside": ({"amount": 1, "to": {"street": 5, "number": 1}}, "transfer.to.street"),
    "a field missing": ({"amount": 1}, "transfer.to"),
    "a field too many": ({"amount": 1, "to": {"street": "Lane", "number": 1}, "x": 1}, "transfer.x"),
}
Send = Callable[[Local, str, Any], object]


def signal_by_name(local: Local, name: str, payload: Any) -> object:
    return local.executor.signal("op", name, payload)


def signal_by_task(local: Local, name: str, payload: Any) -> object:
    return _task(local, "smqueue.signal", operation_id="op", signal=name, payload=payload)


def signal_by_client(local: Local, name: str, payload: Any) -> object:
    return _with_client(local, lambda client: client.signal("op", name, payload, timeout=20))


senders = pytest.mark.parametrize(
    "send", [signal_by_name, signal_by_task, signal_by_client], ids=["executor", "celery task", "client"]
)


@senders
@pytest.mark.parametrize("case", WRONG_PAYLOADS)
def test_a_payload_that_fails_its_schema_names_the_field(local: Local, send: Send, case: str) -> None:
    """A payload that does not fit is refused for every producer, with the field's path; nothing is recorded or kept."""
    by_executor(local, [opened()])
    before = written(local)
    payload, field = WRONG_PAYLOADS[case]
    with pytest.raises(InvalidPayload) as caught:
        send(local, "transfer", payload)
    assert caught.value.field == field
    assert field in str(caught.value)
    assert written(local) == before


@senders
@pytest.mark.parametrize("payload", [None, {}, [], 7, "text"])
def test_a_payload_of_another_kind_is_refused(local: Local, send: Send, payload: Any) -> None:
    """No payload, a list, a number, a text where an object is due: InvalidPayload that names the signal."""
    with pytest.raises(InvalidPayload) as caught:
        send(local, "transfer", payload)
    assert caught.value.field == ("transfer.amount" if payload == {} else "transfer")
    assert written(local) == {}


@senders
def test_the_limit_of_an_inbox_is_the_one_set(local: Local, send: Send) -> None:
    """Whoever sends, ``smqueue_inbox_limit`` counts, and not its default."""
    local.instances.inbox_limit = 2
    for _ in range(2):
        send(local, "note", "early")
    with pytest.raises(InboxFull) as caught:
        send(local, "note", "too many")
    assert (caught.value.signal, caught.value.limit) == ("note", 2)


def test_arguments_of_another_type_are_named(local: Local) -> None:
    """What is no machine, operation id or signal is InvalidInput that names the argument, wherever it is given."""
    executor: Any = local.executor
    calls: list[tuple[str, Callable[[], object]]] = [
        ("machines", lambda: executor.contains_active_state("op")),
        ("machines", lambda: executor.contains_inactive_state(None)),
        ("machines", lambda: executor.await_active_state("op", 1)),
        ("machines", lambda: executor.await_inactive_state("op", 1)),
        ("operation_id", lambda: executor.has_active_states(3)),
        ("operation_id", lambda: list(executor.get_operation_states(""))),
        ("operation_id", lambda: list(executor.get_inactive_states(3))),
        ("signal", lambda: executor.signal("op", 3, "x")),
    ]
    for field, ask in calls:
        with pytest.raises(InvalidInput) as caught:
            ask()
        assert caught.value.field == field


@pytest.mark.parametrize("given", [StateMachine("op", Open("Ann", HOME)), "op", 7, None])
def test_a_client_takes_objects_only(local: Local, given: Any) -> None:
    """What is no mapping is InvalidInput at once, naming what it is."""
    with pytest.raises(InvalidInput, match=f"machines: .*{type(given).__name__}"):
        Client(local.executor.deployment.settings.url, local.namespace).add([given])


@senders
def test_an_unknown_signal_is_refused(local: Local, send: Send) -> None:
    """A signal that no module declares is UnknownSignal, naming those there are."""
    with pytest.raises(UnknownSignal, match="note, transfer"):
        send(local, "nothing", None)
    assert written(local) == {}


def test_typed_payloads_are_checked_too(local: Local) -> None:
    """A payload object with a wrong field is refused like JSON, and never shows the value of a secret one."""
    with pytest.raises(InvalidPayload) as caught:
        local.executor.signal("op", transfer, Transfer(cast("Any", "1"), HOME))
    assert caught.value.field == "transfer.amount"
    with pytest.raises(InvalidPayload) as hidden:
        local.executor.signal("op", transfer, Transfer(1, HOME, cast("Any", ["hunter2"])))
    assert hidden.value.field == "transfer.pin"
    assert "hunter2" not in repr(hidden.value) + str(hidden.value) + repr(hidden.value.__context__)
    with pytest.raises(InvalidPayload):
        local.executor.signal("op", transfer, cast("Any", Address("Lane", 1)))
    assert written(local) == {}


def test_a_state_of_no_single_module_is_refused(play: Play) -> None:
    """A state of two instances, without saying which, is AmbiguousModule; of none, NotRegistered."""
    local = play(a=accounts, b=accounts)
    with pytest.raises(AmbiguousModule, match="a, b"):
        local.executor.add_state_machines(machines("op", Open("Ann", HOME)))

    class Stray(State):
        pass

    with pytest.raises(NotRegistered, match="Stray"):
        local.executor.add_state_machines(machines("op", Stray()))
    with pytest.raises(AmbiguousModule):
        _task(local, "smqueue.add", machines=[{k: v for k, v in opened().items() if k != "module"}])
    assert written(local) == {}


# --- 3: ids -----------------------------------------------------------------------------------------------------------

TOO_LONG = "é" * 257
REFUSED_IDS = {"empty": "", "513 bytes": "x" * 513, "514 bytes of 257 letters": TOO_LONG}


@pytest.mark.parametrize("case", REFUSED_IDS)
def test_an_id_that_is_empty_or_too_long_names_the_limit(local: Local, case: str) -> None:
    """An operation id of no or more than 512 bytes is refused wherever one is given, naming the limit; none written."""
    bad = REFUSED_IDS[case]
    uses: list[Callable[[], object]] = [
        lambda: StateMachine(bad, Open("Ann", HOME)),
        lambda: local.executor.signal(bad, note, "x"),
        lambda: local.executor.await_operation(bad, 0),
        lambda: local.executor.cancel(bad),
        lambda: local.executor.pause(bad),
        lambda: local.executor.retry(bad),
        lambda: local.executor.explain(bad),
        lambda: local.executor.operation(bad),
        lambda: _task(local, "smqueue.add", machines=[opened(bad)]),
        lambda: _task(local, "smqueue.signal", operation_id=bad, signal="note", payload="x"),
        lambda: Client(local.executor.deployment.settings.url, local.namespace).add([opened(bad)], timeout=1),
        lambda: local.executor.autocommit(lambda tx: tx.signal(bad, note, "x")),
    ]
    for use in uses:
        with pytest.raises(InvalidInput, match=r"operation_id.*512"):
            use()
    assert written(local) == {}


def test_a_lone_surrogate_is_no_id(local: Local) -> None:
    """An id that has no UTF-8 is refused with a typed error."""
    with pytest.raises(InvalidInput, match="surrogate"):
        StateMachine("\ud800", Open("Ann", HOME))


NASTY = [
    "a", "a:b", "a:b:c", "{x}", "}{", "a}b", "100%", "%3A", "a%3Ab", "line\nfeed", "nul\0byte", "\0", " ", "a b", "*",
    "[a]", "\\", '"', "'", "ключ", "密", "🗝️", "e\u0301", "é", "\u202e", "\x7f", "~requests", "module:accounts",
    "x" * 512, "é" * 256,
]  # fmt: skip


def test_all_other_ids_work_and_cannot_collide(local: Local) -> None:
    """Ids with ``:{}%``, newlines, NUL and any Unicode, up to 512 bytes: each its own operation, in all its uses."""
    other = [name for n, name in enumerate(NASTY) if n % 2]
    local.executor.add_state_machines([StateMachine(op, Open("Ann", HOME)) for op in NASTY])
    assert set(local.executor.get_active_operations()) == set(NASTY)
    for op in other:
        assert local.executor.signal(op, note, "close", id=op) is Delivery.DELIVERED
    local.run()
    for op in NASTY:
        assert local.executor.has_active_states(op) is (op not in other)
        states = {machine.state for machine, _ in local.executor.get_operation_states(op)}
        assert states == ({Open("Ann", HOME), Closed("Ann")} if op in other else {Open("Ann", HOME)})
        with local.executor.notifier.subscribe(op, timeout=0.01) as told:
            assert [update.operation_id for update in told] == [op] * (2 if op in other else 1)
    assert {machine.operation_id for machine, _ in local.executor.get_inactive_states()} == set(other)
    rest = [op for op in NASTY if op not in other]
    local.executor.pause(rest[0])
    assert local.executor.explain(rest[0]).active[0].status == "paused"
    assert {local.executor.explain(op).active[0].status for op in rest[1:]} == {"waiting"}
    local.executor.resume(rest[0])
    for op in rest:
        assert local.executor.cancel(op, reason=op) == 1
        assert not local.executor.has_active_states(op)
    assert list(local.executor.get_active_operations()) == []
    prefix = f"{{{local.namespace}.0}}:"
    for key in map(bytes.decode, local.everything()):
        assert re.fullmatch(re.escape(prefix) + r"[a-z]+(:[A-Za-z0-9_.~%=-]+)*", key), key


@pytest.mark.parametrize("op", ["a:b", "nul\0byte", "🗝️", "x" * 512, "%3A\n"])
def test_any_id_works_for_waiting_on_others_and_for_code(play: Play, op: str) -> None:
    """An operation of any id can be spawned, have its code run, and signal another by a transition."""
    module = Module("family")
    done = module.signal("done")

    @module.state
    class Parent(State):
        child: str

    @module.state
    class Child(State):
        pass

    @module.state(terminal=True)
    class End(State):
        said: str = ""

    def work(state: Child, context: Any) -> str:
        return str(context.operation_id)

    @module.on(Parent, now())
    def born(tx: Transaction, state: Parent, _: None) -> Parent | None:
        tx.add_state_machines(machines(state.child, Child()))
        tx.set(state.child, state.child)

    @module.on(Parent, done)
    def ended(tx: Transaction, state: Parent, _: None) -> End:
        return End(tx.get(state.child) or "")

    @module.on(Child, call(work))
    def worked(tx: Transaction, state: Child, got: str | Failed) -> End:
        tx.signal(f"parent {op}"[:512], done)
        return End(str(got))

    local = play(family=module)
    parent = f"parent {op}"[:512]
    local.executor.add_state_machines(machines(parent, Parent(op)))
    local.settle(parent)
    assert local.inactive(op) == [Child(), End(op)]
    assert local.inactive(parent) == [Parent(op), End(op)]


@pytest.mark.parametrize("field", ["module", "signal", "id", "machine"])
def test_other_ids_are_checked_or_harmless(local: Local, field: str) -> None:
    """Ids of modules, signals, calls and machines that hold anything are refused with a typed error, or do no harm."""
    by_executor(local, [opened()])
    for given in [*NASTY, "x" * 5000]:
        options = {"module": None, "machine": None, "id": None, field: given}
        name = options.pop("signal", "note")
        try:
            said = local.executor.signal("op", cast("str", name), "x", **cast("Any", options))
            assert said in {Delivery.BUFFERED, Delivery.DELIVERED, Delivery.DUPLICATE}
        except (UnknownModule, UnknownSignal, InvalidInput):
            pass
    assert local.executor.has_active_states("op")


# --- 4: too large -----------------------------------------------------------------------------------------------------


def _padded(size: int, make: Callable[[str], object], measure: Callable[[object], int]) -> object:
    """What encodes to exactly ``size`` bytes."""
    return make("x" * (size - measure(make(""))))


def _state_size(local: Local) -> Callable[[object], int]:
    return lambda state: len(
        local.instances.place(StateMachine("op", cast("State", state))).field.partition(" Open ")[2].encode()
    )


@pytest.mark.parametrize("over", [0, 1])
def test_a_state_over_the_limit_says_both_sizes(local: Local, over: int) -> None:
    """A state of 64 KiB is taken; one byte more is refused with its size and the limit, and nothing is written."""
    state = cast("State", _padded(LIMIT, lambda pad: Open(pad, HOME), _state_size(local)))
    assert isinstance(state, Open)
    given = Open(state.owner + "x" * over, HOME)
    if not over:
        local.executor.add_state_machines(machines("op", given))
        assert local.active("op") == [given]
        return
    for use in (
        lambda: local.executor.add_state_machines([*machines("good", Open("Ann", HOME)), *machines("op", given)]),
        lambda: by_task(local, [opened("good"), opened(owner=given.owner)]),
        lambda: local.executor.autocommit(lambda tx: tx.add_state_machines(machines("op", given))),
    ):
        with pytest.raises(TooLarge) as caught:
            use()
        assert (caught.value.size, caught.value.limit) == (LIMIT + 1, LIMIT)
        assert str(LIMIT + 1) in str(caught.value)
        assert str(LIMIT) in str(caught.value)
        assert "Open" in caught.value.what
    assert written(local) == {}


@pytest.mark.parametrize("letter", ["x", "é", "🗝"])
def test_a_payload_over_the_limit_says_both_sizes(local: Local, letter: str) -> None:
    """A payload of up to 64 KiB, in bytes as stored, is taken; a larger one is refused with both sizes."""
    fits = letter * ((LIMIT - 2) // len(letter.encode()))
    assert local.executor.signal("op", note, fits) is Delivery.BUFFERED
    before = written(local)
    for use in (
        lambda: local.executor.signal("op", note, fits + letter),
        lambda: local.executor.signal("op", "note", fits + letter),
        lambda: signal_by_task(local, "note", fits + letter),
        lambda: local.executor.autocommit(lambda tx: tx.signal("op", note, fits + letter)),
    ):
        with pytest.raises(TooLarge) as caught:
            use()
        assert caught.value.limit == LIMIT
        assert LIMIT < caught.value.size <= LIMIT + 4
        assert "note" in caught.value.what
    assert written(local) == before


def test_a_large_machine_works(local: Local) -> None:
    """A machine with the largest state and payload moves like any other."""
    state = cast("Open", _padded(LIMIT, lambda pad: Open(pad, HOME), _state_size(local)))
    local.executor.add_state_machines(machines("op", state))
    assert local.executor.signal("op", note, "x" * (LIMIT - 2)) is Delivery.DELIVERED
    local.executor.signal("op", note, "close")
    local.settle("op")
    assert local.inactive("op") == [state, Closed(state.owner)]


# --- 5: handlers that misbehave ---------------------------------------------------------------------------------------

runs: list[str] = []
misbehaving = Module(
    "misbehaving",
    retry=Retry(max_attempts=3, base=timedelta(milliseconds=1)),
    handler_timeout=timedelta(milliseconds=500),
)


@misbehaving.state
class Trying(State):
    how: str


@misbehaving.state
class Elsewhere(State):
    pass


@misbehaving.state(terminal=True)
class Fine(State):
    size: str = ""


@misbehaving.on(Elsewhere, after(days=1))
def stay(tx: Transaction, state: Elsewhere, _: None) -> Fine:
    return Fine()


@misbehaving.on(Trying, now())
def attempt(tx: Transaction, state: Trying, _: None) -> Fine | None:
    runs.append(state.how)
    tx.set(f"touched by {state.how}", "x")
    match state.how:
        case "raises":
            raise ValueError("on purpose")
        case "raises with braces":
            raise KeyError("{nothing} %s 🗝 \n second line")
        case "raises something unprintable":
            raise Unprintable
        case "raises what has no UTF-8":
            raise ValueError("\ud800")
        case "raises StopIteration":
            raise StopIteration
        case "exits":
            sys.exit("for good")
        case "interrupts":
            raise KeyboardInterrupt
        case "returns an undeclared state":
            return cast("Any", Elsewhere())
        case "returns no state":
            return cast("Any", "Fine")
        case "returns an invalid state":
            return Fine(cast("Any", 7))
        case "returns too large a state":
            return Fine("x" * (LIMIT + 1))
        case "never returns":
            while True:
                threading.Event().wait(0.01)  # in whatever call it waits
        case "waits for nothing":
            return None
        case _:
            return Fine()


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


MISBEHAVIOUR = {
    "raises": "ValueError: on purpose",
    "raises with braces": "KeyError: ",
    "raises something unprintable": "Unprintable",
    "raises what has no UTF-8": "ValueError: ",
    "raises StopIteration": "",
    "returns an undeclared state": "UndeclaredTransition: Handler misbehaving.Trying/attempt returned Elsewhere",
    "returns no state": "UndeclaredTransition: Handler misbehaving.Trying/attempt returned str",
    "returns an invalid state": "InvalidState: ",
    "returns too large a state": f"TooLarge: The state Fine has {LIMIT + 12} bytes",
    "never returns": "HandlerTimeout: ",
    "waits for nothing": "NothingToWaitFor: ",
}


@pytest.fixture
def silent() -> Iterator[None]:
    """No log: pytest-xdist cannot pass on what is no UTF-8."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("how", MISBEHAVIOUR)
def test_a_handler_that_misbehaves_sets_its_machine_aside(
    play: Play,
    server: EmbeddedServer,
    namespace: str,
    capsys: pytest.CaptureFixture[str],
    silent: None,
    how: str,
) -> None:
    """Its machine is retried, then quarantined with the error, which explain and the listing show. All others go on,
    and nothing that the handler wrote is there (semantics 20)."""
    local = play(misbehaving=misbehaving)
    local.instances.time_limit = time_limit
    runs.clear()
    local.executor.add_state_machines([*machines("bad", Trying(how)), *machines("good", Trying("is fine"))])

    def quarantined() -> bool:
        return local.executor.explain("bad").active[0].status == "quarantined"

    survived = False
    with suppress(UnicodeEncodeError):  # pytest-xdist cannot pass on that error
        local.until(quarantined)
        survived = True
    assert survived, "the text of a handler's error has ended the drain"
    assert runs.count(how) == 3
    ((explained),) = local.executor.explain("bad").active
    assert (explained.attempts, explained.won) == (3, "attempt")
    assert str(explained.last_error).startswith(MISBEHAVIOUR[how])
    assert local.active("bad") == [Trying(how)]
    assert local.inactive("bad") == []
    assert local.data("misbehaving", f"touched by {how}") is None
    assert local.inactive("good") == [Trying("is fine"), Fine()]
    assert run(["list", "--quarantined", "--json", "--url", server.url, "--namespace", namespace]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["operation_id"] == "bad"
    assert any(str(value).startswith(MISBEHAVIOUR[how]) for value in row.values())


@pytest.mark.parametrize("how", ["exits", "interrupts"])
def test_a_handler_that_ends_its_process_sets_its_machine_aside(play: Play, how: str) -> None:
    """A handler that ends its process is tried a few times, alone, then quarantined; others go on (semantics 20)."""
    local = play(misbehaving=misbehaving)
    local.executor.add_state_machines([*machines("bad", Trying(how)), *machines("good", Trying("is fine"))])
    for _ in range(6):
        worker = play(misbehaving=misbehaving)
        worker.expire_leases()
        try:
            worker.drain()
        except (SystemExit, KeyboardInterrupt):
            continue
        break
    ((explained),) = local.executor.explain("bad").active
    assert (explained.status, str(explained.last_error).partition(":")[0]) == ("quarantined", "WorkerKilled")
    assert local.data("misbehaving", f"touched by {how}") is None
    assert local.inactive("good") == [Trying("is fine"), Fine()]


def test_a_handler_that_recovers_is_not_set_aside(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler that fails twice and then succeeds moves its machine; its error is shown meanwhile (semantics 20)."""
    local, failures = play(misbehaving=misbehaving), iter(range(2))
    runs.clear()
    seen: list[str | None] = []

    class Flaky(list[str]):
        def append(self, how: str) -> None:
            super().append(how)
            ((explained),) = local.executor.explain("op").active
            seen.append(explained.last_error)
            if next(failures, None) is not None:
                raise ConnectionError("not yet")

    monkeypatch.setattr(sys.modules[__name__], "runs", Flaky())
    local.executor.add_state_machines(machines("op", Trying("is fine")))
    local.settle("op")
    assert seen == [None, "ConnectionError: not yet", "ConnectionError: not yet"]
    assert local.inactive("op") == [Trying("is fine"), Fine()]


def test_a_quarantined_machine_can_be_retried(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once its handler is mended, retry runs the recorded outcome again, and the machine goes on (semantics 20)."""
    local, broken = play(misbehaving=misbehaving), [True]

    class Mended(list[str]):
        def append(self, how: str) -> None:
            if broken[0]:
                raise ValueError("still broken")

    monkeypatch.setattr(sys.modules[__name__], "runs", Mended())
    local.executor.add_state_machines(machines("op", Trying("is fine")))
    local.until(lambda: local.executor.explain("op").active[0].status == "quarantined")
    local.run()  # nothing more is due
    broken[0] = False
    assert local.executor.retry("op") == 1
    local.settle("op")
    assert local.inactive("op") == [Trying("is fine"), Fine()]

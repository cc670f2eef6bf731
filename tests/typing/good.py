# pyright: strict
"""A parcel depot, written as a user would: every line here must satisfy pyright strict and mypy strict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, assert_type

from smqueue import (
    AsyncClient,
    Client,
    Context,
    Delivery,
    Edge,
    Executor,
    Failed,
    Finding,
    Module,
    Retry,
    Secret,
    Signal,
    State,
    StateMachine,
    Transition,
    TypedAsyncClient,
    Update,
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
from smqueue.testing import (
    Counterexample,
    Explored,
    FakeTransaction,
    LocalExecutor,
    SentSignal,
    SentTask,
    World,
    explore,
)

if TYPE_CHECKING:
    from smqueue.transaction import Transaction


@dataclass(frozen=True)
class Depot:
    city: str


@dataclass(frozen=True)
class Scan:
    gate: int


depot = Module[Depot]("depot", version=3, keep=timedelta(days=30), retry=Retry(max_attempts=3))
plain = Module("plain")


@depot.state
class Expected(State):
    parcel: str
    pin: Annotated[str, Secret]
    patience: timedelta = timedelta(days=2)
    deadline: datetime = datetime(2030, 1, 1, tzinfo=UTC)


@depot.state(name="on-shelf")
class Shelved(State):
    parcel: str
    shelf: int


@depot.state(terminal=True)
class Collected(State):
    parcel: str


@depot.state(terminal=True)
class Returned(State, kw_only=True):
    parcel: str
    reason: str = "unclaimed"


@depot.state
class Held(State):
    parcel: str


@depot.state
class Lost(State):
    parcel: str


@depot.state
class Found(State):
    parcel: str


arrival = depot.signal("arrival", payload_type=Scan)
recall = depot.signal("recall")
weights = depot.signal("weights", list[int])
assert_type(arrival, Signal[Scan])
assert_type(recall, Signal[None])
assert_type(weights, Signal[list[int]])


# --- signals and deadlines


@depot.on(Expected, arrival)
def arrived(tx: Transaction, state: Expected, scan: Scan) -> Shelved | None:
    if scan.gate < 0:
        return None
    tx.incrby("arrivals")
    return Shelved(state.parcel, shelf=scan.gate)


@depot.on((Expected, Shelved, Held, Lost, Found), recall)
def recalled_anywhere(tx: Transaction, state: State, _: None) -> Returned:
    tx.hset("recalled", mapping={"parcel": 1})
    tx.signal(operation_id="truck-7", signal=recall)
    return Returned(parcel="?")


@depot.on((Expected, Shelved), recall)
def recalled(tx: Transaction, state: Expected | Shelved, _: None) -> Returned:
    return Returned(parcel=state.parcel, reason="recalled")


@depot.on(Shelved, weights)
def weighed(tx: Transaction, state: Shelved, grams: list[int], context: Context[Depot]) -> Shelved:
    return Shelved(state.parcel, shelf=sum(grams) + len(context.module.city))


@depot.on_cancel(Expected)
def called_off(tx: Transaction, state: Expected, reason: str | None) -> None:
    tx.rpush("called-off", reason or state.parcel)


@depot.on_cancel((Shelved, Held))
def cleared(tx: Transaction, state: Shelved | Held, reason: str | None, context: Context[Depot]) -> None:
    tx.send_task("clear", args=[state.parcel, context.module.city, reason])


@depot.on((Expected, Shelved), after(timedelta(days=7)))
def abandoned(tx: Transaction, state: State, _: None) -> Returned:
    return Returned(parcel="?")


@depot.on(Expected, after(days=2, hours=1.5))
def forgotten(tx: Transaction, state: State, _: None) -> Returned:
    return Returned(parcel="?")


@depot.on(Expected, after(lambda state: state.patience))
def impatient(tx: Transaction, state: Expected, _: None, context: Context) -> Returned:
    return Returned(parcel=state.parcel, reason=context.operation_id)


@depot.on(Expected, at(lambda state: state.deadline))
@depot.on(Expected, at(datetime(2031, 1, 1, tzinfo=UTC)))
def too_late(tx: Transaction, state: Expected, _: None) -> None:
    tx.incrby("late")


# --- triggers with code


def find(state: Shelved, context: Context[Depot]) -> Scan | None:
    return Scan(3) if state.shelf else None


async def find_slowly(state: Shelved, context: Context) -> Scan | None:
    return find(state, context)


async def fetch(state: Shelved, context: Context[Depot]) -> int:
    return len(state.parcel)


def count(state: Shelved, context: Context) -> int:
    return state.shelf


@depot.on(Shelved, poll(find, every=timedelta(seconds=5), timeout=timedelta(seconds=1), backoff=2))
@depot.on(Shelved, poll(find_slowly, every=lambda state: timedelta(seconds=state.shelf), timeout=1.5))
def found(tx: Transaction, state: Shelved, scan: Scan) -> Collected:
    return Collected(state.parcel)


@depot.on(Shelved, call(count, retry=Retry(2, base=timedelta(seconds=1), cap=timedelta(minutes=1), on=(OSError,))))
@depot.on(Shelved, call(fetch, timeout=timedelta(seconds=3)))
@depot.on(Shelved, wait(fetch))
@depot.on(Shelved, triggers.wait(fetch, retry=Retry(max_attempts=2)))
def counted(tx: Transaction, state: Shelved, got: int | Failed) -> Collected | Returned:
    if isinstance(got, Failed):
        return Returned(parcel=state.parcel, reason=f"{got.error} after {got.attempts}")
    return Collected(state.parcel)


# --- channels, tasks, other machines


def unpack(raw: bytes) -> Scan:
    return Scan(raw[0])


def at_gate(scan: Scan, state: Shelved) -> bool:
    return scan.gate == state.shelf


@depot.on(Shelved, channel(name="gates"))
@depot.on(Shelved, channel("gates"))
@depot.on(Shelved, channel("gates", where=lambda message, state: message["gate"] == state.shelf))
def passed(tx: Transaction, state: Shelved, message: dict[str, Any]) -> Collected:
    return Collected(str(message["parcel"]))


@depot.on(Shelved, channel("gates", payload_type=Scan))
@depot.on(Shelved, channel("gates", at_gate, Scan))
@depot.on(Shelved, channel("gates", where=at_gate, decode=unpack))
@depot.on(Shelved, channel(lambda state: f"gate-{state.shelf}", payload_type=Scan))
@depot.on(Shelved, channel(lambda state: f"gate-{state.shelf}", where=at_gate, payload_type=Scan))
@depot.on(Shelved, channel(lambda state: f"gate-{state.shelf}", decode=unpack))
def scanned(tx: Transaction, state: Shelved, scan: Scan) -> Collected | None:
    return Collected(state.parcel) if scan.gate else None


class Signature(dict[str, Any]):
    """What a Celery signature looks like."""

    def __call__(self, *args: Any) -> Any: ...

    def apply_async(self, *args: Any, **kwargs: Any) -> Any: ...


def label_task(state: Shelved) -> Signature:
    return Signature(task="labels.print", args=[state.parcel])


@depot.on(Shelved, task(Signature(task="labels.print")))
@depot.on(Shelved, task(label_task))
def labelled(tx: Transaction, state: Shelved, label: str | Failed) -> Collected:
    return Collected(str(label))


@depot.on(Expected, reached("truck-7", Collected))
def followed(tx: Transaction, state: Expected, other: Collected) -> Collected:
    return Collected(other.parcel)


@depot.on(Expected, reached(lambda state: f"truck-{state.parcel}", Collected, Returned))
def ended(tx: Transaction, state: Expected, other: Collected | Returned) -> Collected:
    return Collected(other.parcel)


@depot.on(Expected, reached("truck-7", Collected, Returned, Held, Lost, Found))
def any_of_five(tx: Transaction, state: Expected, other: State) -> Collected:
    return Collected(str(other))


@depot.on(Expected, finished(operation_id="truck-7"))
@depot.on(Expected, finished("truck-7"))
@depot.on(Expected, finished(lambda state: state.parcel))
@depot.on(Expected, now())
def closed(tx: Transaction, state: Expected, _: None) -> Returned:
    return Returned(parcel=state.parcel)


# --- the dynamic form


@depot.state
class Sorting(State):
    parcel: str
    tries: int

    def transitions(self, context: Depot, global_context: object) -> Sequence[Transition]:
        return [
            Transition(arrival, sorted_in),
            Transition(after(minutes=self.tries), give_up, name="patience"),
            Transition(recall, partial(send_back, context.city)),
            *super().transitions(context, global_context),
        ]


def sorted_in(tx: Transaction, state: Sorting, scan: Scan) -> Shelved:
    return Shelved(state.parcel, scan.gate)


def give_up(tx: Transaction, state: Sorting, _: None, context: Context[Depot]) -> Returned:
    return Returned(parcel=state.parcel)


def send_back(city: str, tx: Transaction, state: Sorting, _: None) -> Returned:
    return Returned(parcel=state.parcel, reason=city)


@depot.migrate(Expected, since=2)
def add_pin(old: dict[str, Any]) -> dict[str, Any]:
    return {**old, "pin": "0000"}


# --- a module without a context, and values


@plain.state
class Here(State):
    n: int


@plain.on(Here, now())
def stay(tx: Transaction, state: Here, _: None, context: Context) -> Here:
    return Here(state.n + 1)


machine = StateMachine("parcel-1", Expected("p", "1234"), module="depot")
same = {machine: 1, StateMachine("parcel-1", Shelved("p", 3)): 2}
edges: tuple[Edge, ...] = depot.graph().edges
findings: list[Finding] = depot.check()
diagram: str = depot.mermaid() + depot.graph().mermaid()


def matched(state: State) -> str:
    match state:
        case Shelved(parcel=parcel, shelf=int()) | Collected(parcel):
            return parcel
        case _:
            return ""


# --- clients


async def from_a_loop(executor: Executor) -> None:
    client = executor.async_client()
    assert_type(client, TypedAsyncClient)
    await client.add([machine], exist_ok=True)
    assert_type(await client.signal("parcel-1", arrival, Scan(1), id="once"), Delivery)
    await client.signal("parcel-1", recall)
    await client.signal("parcel-1", "arrival", {"gate": 1}, module="depot")
    created: datetime = (await client.await_active_state(machine, timeout=3)).created_at
    won: str | None = (await client.await_inactive_state(machine, timeout=timedelta(seconds=3))).won
    await client.await_operation("parcel-1")
    async with client.subscribe("parcel-1", after=0, timeout=1.5) as updates:
        async for update in updates:
            assert_type(update, Update)
    await client.aclose()
    assert created
    assert won


async def without_code() -> None:
    async with AsyncClient("redis://localhost", "depot", shards=2) as client:
        ids: list[str] = [*await client.add([{"operation_id": "parcel-2", "type": "Held", "state": {"parcel": "p"}}])]
        assert_type(await client.signal("parcel-2", "recall", timeout=timedelta(seconds=3)), Delivery)
        async for update in client.subscribe_all("depot", timeout=1):
            assert_type(update.operation_id, str)
        assert ids


def blocking() -> None:
    with Client("redis://localhost") as client, client.subscribe("parcel-2", timeout=1) as updates:
        client.await_operation("parcel-2", timeout=1)
        assert [update.sequence for update in updates]


# --- smqueue.testing


def test_of_a_handler() -> None:
    tx = FakeTransaction({"shelves": 3, "map": {"x": 1}}, shared={"all": {"a"}}, module=depot)
    assert give_up(tx, Sorting("p", 1), None, Context(Depot("Bern"), None, "op", "machine")) == Returned(parcel="p")
    assert tx.data("shelves") == "3"
    assert_type(tx.get("shelves"), str | None)
    spawned: Sequence[StateMachine] = tx.spawned
    tasks: Sequence[SentTask] = tx.tasks
    signals: Sequence[SentSignal] = tx.signals
    assert not spawned and not tasks and not signals


def test_of_a_machine() -> None:
    local = LocalExecutor(depot, {"plain": plain}, contexts={"depot": Depot("Bern")}, start=datetime(2026, 1, 1, tzinfo=UTC))
    executor: Executor = local
    executor.add_state_machines([machine])
    local.advance(minutes=31)
    local.advance(timedelta(days=1), seconds=3)
    local.run_until_idle()
    assert_type(local.signal("parcel-1", arrival, Scan(1)), Delivery)
    assert_type(local.complete(arrival, Scan(1), "parcel-1"), bool)
    local.complete(give_up)
    local.complete("Sorting/patience", machine="id")
    assert_type(local.publish("news", {"plain": 1}), int)
    assert_type(local.now, datetime)
    states: Sequence[State] = local.states("parcel-1")
    assert states


def test_of_every_order() -> None:
    def scenario(world: World) -> None:
        world.add("parcel-1", Sorting("p", 1))
        world.signal("parcel-1", arrival, Scan(1))
        world.complete(give_up, None, "parcel-1")
        world.may("it is cancelled", lambda executor: executor.cancel("parcel-1"))
        world.always(lambda w: matched(w.states("parcel-1")[0]))
        world.after_all(over)

    def over(world: World) -> None:
        assert not world.executor.has_active_states("parcel-1")

    try:
        assert_type(explore([depot, plain], scenario, context=lambda: Depot("Bern"), max_runs=10), Explored)
    except Counterexample as found:
        assert_type(found.story, list[str])

"""``LocalExecutor``: machines as in production, in memory and in virtual time."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery

from smqueue import (
    AwaitTimeout,
    ClientClosed,
    Context,
    Delivery,
    DuplicateModule,
    Executor,
    Failed,
    InvalidInput,
    InvalidOutcome,
    Module,
    OperationFinished,
    Retry,
    State,
    StateMachine,
    Transaction,
    after,
    at,
    call,
    channel,
    finished,
    now,
    poll,
    reached,
    task,
    wait,
)
from smqueue.errors import AmbiguousTrigger, CancelUnfinished, MissingExtra, NeverIdle, NotArmed, NothingHappens
from smqueue.testing import LocalExecutor, SentTask
from smqueue.testing import lua as lua_scripts

shop = Module("shop", retry=Retry(max_attempts=3, base=timedelta(seconds=10)))


@shop.state
class Awaiting(State):
    order: str
    total: int


@shop.state(terminal=True)
class Shipped(State):
    order: str


@shop.state(terminal=True)
class Cancelled(State):
    order: str


@dataclass(frozen=True)
class Payment:
    amount: int


payment = shop.signal("payment", Payment)
OUTAGE = {"on": False}


@shop.on(Awaiting, payment)
def paid(tx: Transaction, state: Awaiting, got: Payment) -> Shipped | None:
    if OUTAGE["on"]:
        raise ConnectionError("the bank")
    if got.amount < state.total:
        return None
    tx.incrby("revenue", got.amount)
    tx.hset("orders", state.order, "paid")
    tx.shared.sadd("everybody", state.order)
    tx.send_task("labels.print", args=[state.order])
    tx.publish("news", '"shipped"')
    return Shipped(state.order)


@shop.on(Awaiting, after(minutes=30))
def expired(tx: Transaction, state: Awaiting, _: None) -> Cancelled:
    return Cancelled(state.order)


@pytest.fixture
def executor() -> Iterator[LocalExecutor]:
    with LocalExecutor(shop) as local:
        yield local


def start(executor: Executor, operation_id: str, *states: State) -> None:
    executor.add_state_machines([StateMachine(operation_id, state) for state in states])


def test_its_asynchronous_client_is_closed_as_any(executor: LocalExecutor) -> None:
    """Who still waits when it is closed gets ClientClosed, and so does every later call."""
    start(executor, "o1", Awaiting("o1", 3))

    async def main() -> None:
        client = executor.async_client()
        updates = client.subscribe("o1")
        assert (await anext(updates)).sequence == 0
        waiting = asyncio.create_task(client.await_operation("o1"))
        await asyncio.sleep(0)
        await client.aclose()
        late = (waiting, client.signal("o1", payment, Payment(3)), anext(updates), anext(client.subscribe_all()))
        for one in late:
            with pytest.raises(ClientClosed):
                await one

    asyncio.run(main())
    assert executor.states("o1") == [Awaiting("o1", 3)]


# --- time ------------------------------------------------------------------------------------------------------------


def test_it_is_an_executor(executor: LocalExecutor) -> None:
    """All methods of an executor are there; a payment ships an order, and all that its handler did can be seen."""
    assert isinstance(executor, Executor)
    start(executor, "o1", Awaiting("o1", 3))
    assert executor.states("o1") == [Awaiting("o1", 3)]
    assert executor.signal("o1", payment, Payment(3)) is Delivery.DELIVERED
    assert executor.has_active_states("o1")  # nothing runs by itself
    executor.run_until_idle()
    assert executor.states("o1") == [Shipped("o1")]
    assert (executor.data("revenue"), executor.data("orders")) == ("3", {"o1": "paid"})
    assert executor.shared_data("everybody") == {"o1"}
    assert executor.sent_tasks == [SentTask("labels.print", ("o1",))]
    assert executor.published == [("news", b'"shipped"')]
    assert [update.won for update in executor.notifier.history("o1")] == [None, "paid"]
    assert executor.contains_inactive_state(StateMachine("o1", Shipped("o1")))


def test_what_falls_due_runs_at_its_own_time(executor: LocalExecutor) -> None:
    """While a day passes, each deadline fires at its instant; a payment that comes after it is refused."""
    start(executor, "o1", Awaiting("o1", 3))
    executor.advance(minutes=10)
    start(executor, "o2", Awaiting("o2", 3))
    executor.advance(timedelta(minutes=19), seconds=59)
    assert executor.has_active_states("o1")
    executor.advance(hours=24)
    begun = datetime(2026, 1, 1, tzinfo=UTC)
    ends = [executor.notifier.history(op)[-1] for op in ("o1", "o2")]
    assert [(end.state, end.at - begun) for end in ends] == [
        (Cancelled("o1"), timedelta(minutes=30)),
        (Cancelled("o2"), timedelta(minutes=40)),
    ]
    assert executor.now == begun + timedelta(days=1, minutes=29, seconds=59)
    with pytest.raises(OperationFinished):
        executor.signal("o1", payment, Payment(3))
    with pytest.raises(InvalidInput, match="forward only"):
        executor.advance(seconds=-1)


def test_a_month_takes_no_time() -> None:
    """A machine polls every hour for 30 days, a coroutine sleeps for three, and no thread and no second is needed."""
    module = Module("month")
    seen: list[datetime] = []

    @module.state
    class Open(State):
        n: int

    @module.state(terminal=True)
    class Closed(State):
        n: int

    def ask(state: Open, context: object) -> str | None:
        seen.append(local.now)
        return None

    async def sleep(state: Open, context: object) -> str:
        await asyncio.sleep(3 * 86_400)
        return "rested"

    @module.on(Open, poll(ask, every=timedelta(hours=1)))
    def answered(tx: Transaction, state: Open, answer: str) -> Closed:
        return Closed(0)

    @module.on(Open, wait(sleep))
    def rested(tx: Transaction, state: Open, how: Any) -> Closed | None:
        tx.set("rested", str((tx.now() - begun).days))
        return None

    @module.on(Open, after(days=30))
    def closed(tx: Transaction, state: Open, _: None) -> Closed:
        return Closed(1)

    threads = threading.active_count()
    local = LocalExecutor(module)
    begun = local.now
    start(local, "o", Open(1))
    local.await_operation("o")
    assert local.states("o") == [Closed(1)]
    assert local.now == begun + timedelta(days=30)
    assert seen == [begun + timedelta(hours=hour) for hour in range(720)]
    assert local.data("rested") == "3"
    assert threading.active_count() == threads
    local.close()


def test_its_clock_starts_where_it_is_told() -> None:
    """An absolute deadline of the state is met by a clock that starts before it."""
    module = Module("absolute")

    @module.state
    class Until(State):
        when: datetime

    @module.state(terminal=True)
    class Over(State):
        when: datetime

    @module.on(Until, at(lambda state: state.when))
    def over(tx: Transaction, state: Until, _: None) -> Over:
        return Over(tx.now())

    when = datetime(2040, 2, 29, 12, tzinfo=UTC)
    local = LocalExecutor(module, start=when - timedelta(days=1))
    start(local, "o", Until(when))
    local.advance_to(when - timedelta(milliseconds=1))
    assert local.states("o") == [Until(when)]
    local.advance_to(when)
    assert local.states("o") == [Over(when)]


# --- waiting ---------------------------------------------------------------------------------------------------------


def test_waiting_lets_time_pass(executor: LocalExecutor) -> None:
    """A wait runs the machines, up to its timeout in virtual time and no further."""
    start(executor, "o1", Awaiting("o1", 3))
    begun = executor.now
    with pytest.raises(AwaitTimeout):
        executor.await_operation("o1", timeout=60)
    assert executor.now - begun == timedelta(minutes=1)
    executor.await_operation("o1")
    assert executor.now - begun == timedelta(minutes=30)
    assert executor.await_inactive_state(StateMachine("o1", Cancelled("o1")), timeout=1).terminal
    start(executor, "o2", Awaiting("o2", 3))
    with executor.notifier.subscribe("o2", timeout=timedelta(hours=1)) as updates:
        assert [update.state for update in updates] == [Awaiting("o2", 3), Cancelled("o2")]
    assert executor.now - begun == timedelta(hours=2)


def test_waiting_for_what_never_happens_is_an_error() -> None:
    """A wait without a timeout ends with an error that says what machines wait for, instead of hanging."""
    module = Module("never")
    go = module.signal("go")

    @module.state
    class Held(State):
        n: int

    @module.state
    class Asking(State):
        n: int

    @module.state(terminal=True)
    class Done(State):
        n: int

    @module.on((Held, Asking), go)
    def gone(tx: Transaction, state: Held | Asking, _: None) -> Done:
        return Done(state.n)

    def ask(state: Asking, context: object) -> str | None:
        return None

    @module.on(Asking, poll(ask, every=timedelta(days=1)))
    def answered(tx: Transaction, state: Asking, _: str) -> Done:
        return Done(state.n)

    local = LocalExecutor(module)
    start(local, "o", Held(1))
    with pytest.raises(NothingHappens, match=r"never\.Held/gone of operation o \(signal go\)"):
        local.await_operation("o")
    local.pause("o")
    with pytest.raises(NothingHappens):
        next(iter(local.notifier.subscribe("o", after=0)))
    start(local, "p", Asking(1))
    local.limit = 100
    with pytest.raises(NothingHappens, match="attempts have brought nothing"):
        local.await_operation("p")


def test_a_circle_is_an_error() -> None:
    """Two states that lead to each other at once would run for ever."""
    module = Module("circle")

    @module.state
    class Ping(State):
        n: int

    @module.state
    class Pong(State):
        n: int

    @module.on(Ping, now())
    def ping(tx: Transaction, state: Ping, _: None) -> Pong:
        return Pong(state.n + 1)

    @module.on(Pong, now())
    def pong(tx: Transaction, state: Pong, _: None) -> Ping:
        return Ping(state.n + 1)

    local = LocalExecutor(module)
    local.limit = 200
    start(local, "o", Ping(0))
    with pytest.raises(NeverIdle):
        local.run_until_idle()


# --- triggers --------------------------------------------------------------------------------------------------------

work = Module("work")


@work.state
class Working(State):
    n: int


@work.state(terminal=True)
class Worked(State):
    how: str


celery = Celery("work", broker="memory://", set_as_current=False)


@celery.task(name="work.render")
def render(n: int) -> str:
    raise AssertionError("is not run here")


class Bank:
    def __init__(self, *answers: object) -> None:
        self.answers, self.asked = list(answers), list[datetime]()


def answer(state: Working, context: Context[Bank]) -> str:
    bank = context.module
    bank.asked.append(CLOCK[0].now)
    said = bank.answers.pop(0)
    if isinstance(said, Exception):
        raise said
    return str(said)


CLOCK: list[LocalExecutor] = []


@work.on(Working, call(answer, retry=Retry(max_attempts=3, base=timedelta(seconds=8))))
def called(tx: Transaction, state: Working, said: str | Failed) -> Worked | None:
    return None if said == "stay" else Worked(f"called: {said}")


@work.on(Working, task(lambda state: render.s(state.n)))
def rendered(tx: Transaction, state: Working, page: str | Failed) -> Worked:
    return Worked(f"rendered: {page}")


@work.on(Working, channel(lambda state: f"news-{state.n}", where=lambda message, state: message.amount > state.n))
def heard(tx: Transaction, state: Working, message: Payment) -> Worked:
    return Worked(f"heard: {message.amount}")


def at_work(*answers: object) -> LocalExecutor:
    local = LocalExecutor(work, context=Bank(*answers))
    CLOCK[:] = [local]
    start(local, "w", Working(1))
    return local


def test_a_call_is_retried_and_given_up() -> None:
    """Back-off as in production, in virtual time, and jittered the same way every time; the last error is Failed."""

    def attempts() -> list[datetime]:
        local = at_work(*[OSError("down")] * 3)
        bank: Any = local.instances.get("work").context
        local.await_operation("w")
        assert local.states("w") == [Worked("called: Failed(error='OSError: down', attempts=3)")]
        return bank.asked

    first, second, third = attempts()
    assert timedelta(seconds=4) <= second - first <= timedelta(seconds=8)
    assert timedelta(seconds=8) <= third - second <= timedelta(seconds=16)
    assert attempts() == [first, second, third]


def test_a_task_is_noted_and_completed() -> None:
    """A task is sent under the name of its trigger, once; its end is what the test says, within or after a month."""
    local = at_work("stay")
    local.advance(days=30)
    (sent,) = local.sent_tasks
    assert (sent.name, sent.args, sent.trigger) == ("work.render", (1,), "work.Working/rendered")
    with pytest.raises(NothingHappens, match=r"nothing falls due; machines wait for .*/rendered of operation w"):
        local.await_operation("w")
    assert local.complete(rendered, Failed("ValueError: no page", 1))
    local.run_until_idle()
    assert local.states("w") == [Worked("rendered: Failed(error='ValueError: no page', attempts=1)")]


def test_a_message_is_published() -> None:
    """Who waits on a channel takes a message of its type that its predicate lets pass; garbage is left out."""
    local = at_work("stay")
    assert local.publish("news-2", Payment(5)) == 0
    assert local.publish("news-1", Payment(1)) == 0
    assert local.publish("news-1", b"garbage") == 0
    assert local.publish("news-1", {"amount": 7}) == 1
    assert local.publish("news-1", Payment(8)) == 0  # it listens no longer
    local.run_until_idle()
    assert local.states("w") == [Worked("heard: 7")]


def test_what_a_handler_publishes_is_heard() -> None:
    """A message that commits with one machine completes the channel of another."""
    module = Module("listening")

    @module.state
    class Listening(State):
        n: int

    @module.state(terminal=True)
    class Heard(State):
        text: str

    @module.on(Listening, channel("news"))
    def heard_it(tx: Transaction, state: Listening, text: str) -> Heard:
        return Heard(text)

    local = LocalExecutor(shop, listening=module)
    start(local, "l", Listening(1))
    start(local, "o", Awaiting("o", 3))
    local.run_until_idle()
    local.signal("o", payment, Payment(3))
    local.run_until_idle()
    assert local.states("l") == [Heard("shipped")]


def test_a_trigger_is_completed_by_its_name_handler_or_itself(executor: LocalExecutor) -> None:
    """Whatever names it; its outcome is checked; what is decided or late counts no more; the rest is told apart."""
    start(executor, "o1", Awaiting("o1", 3))
    start(executor, "o2", Awaiting("o2", 3))
    with pytest.raises(AmbiguousTrigger, match="operation o2"):
        executor.complete(payment, Payment(1))
    with pytest.raises(NotArmed, match=r"shop\.Awaiting/expired"):
        executor.complete("unpaid")
    with pytest.raises(InvalidOutcome):
        executor.complete("paid", "three", "o1")
    assert executor.complete("shop.Awaiting/paid", Payment(1), "o1")
    executor.run_until_idle()
    assert executor.complete(payment, Payment(3), "o1")
    with pytest.raises(NotArmed):
        executor.complete(expired, None, "o1")  # its race is decided
    assert executor.complete(expired, None, "o2")
    executor.run_until_idle()
    assert (executor.states("o1"), executor.states("o2")) == ([Shipped("o1")], [Cancelled("o2")])


def test_coroutines_run_in_virtual_time() -> None:
    """A coroutine goes on when the clock has come so far; the loser of its race is cancelled; awaits in calls end."""
    module = Module("coroutines")
    told: list[str] = []

    @module.state
    class Both(State):
        n: int

    @module.state
    class Slow(State):
        n: int

    @module.state(terminal=True)
    class Ended(State):
        how: str

    def sleeping(name: str, seconds: float) -> Any:
        async def sleep(state: State, context: object) -> str:
            try:
                await asyncio.sleep(seconds)
            except asyncio.CancelledError:
                told.append(f"{name} cancelled")
                raise
            return name

        return sleep

    @module.on(Both, wait(sleeping("long", 7_200)))
    def long(tx: Transaction, state: Both, name: Any) -> Ended:
        return Ended(name)

    @module.on(Both, wait(sleeping("short", 3_600)))
    def short(tx: Transaction, state: Both, name: Any) -> Slow:
        return Slow(1)

    @module.on(Slow, call(sleeping("bounded", 30 * 86_400), timeout=86_400, retry=Retry(max_attempts=1)))
    def bounded(tx: Transaction, state: Slow, name: str | Failed) -> Ended:
        return Ended(str(name))

    local = LocalExecutor(module)
    start(local, "o", Both(1))
    local.advance(minutes=59)
    assert local.states("o") == [Both(1)]
    local.advance(minutes=1)
    assert sorted(told) == ["bounded cancelled", "long cancelled"]
    (state,) = local.states("o")
    assert isinstance(state, Ended)
    assert "HandlerTimeout" in state.how


def test_a_test_may_be_a_coroutine() -> None:
    """Within a running event loop everything works the same."""

    async def inside() -> None:
        local = LocalExecutor(work, context=Bank(OSError("down"), "stay"))
        CLOCK[:] = [local]
        start(local, "w", Working(1))
        local.advance(hours=1)
        assert local.complete("rendered", "page")
        local.await_operation("w", timeout=1)
        assert asyncio.get_running_loop().is_running()

    asyncio.run(inside())


def test_operations_see_each_other() -> None:
    """``reached`` and ``finished`` complete when the other operation gets there, in another shard too."""
    module = Module("watching")

    @module.state
    class Watching(State):
        op: str

    @module.state
    class Still(State):
        op: str

    @module.state(terminal=True)
    class Seen(State):
        order: str

    @module.on(Watching, reached(lambda state: state.op, Shipped))
    def seen(tx: Transaction, state: Watching, shipped: Shipped) -> Still:
        return Still(state.op)

    @module.on(Still, finished(lambda state: state.op))
    def over(tx: Transaction, state: Still, _: None) -> Seen:
        return Seen(state.op)

    for shards in (1, 4):
        local = LocalExecutor({"shop": shop}, watching=module, shards=shards)
        for n in range(4):
            start(local, f"watch-{n}", Watching(f"o-{n}"))
            start(local, f"o-{n}", Awaiting(f"o-{n}", 3))
        local.advance(minutes=5)
        for n in range(4):
            local.signal(f"o-{n}", payment, Payment(3))
        local.advance(minutes=1)
        assert [local.states(f"watch-{n}") for n in range(4)] == [[Seen(f"o-{n}")] for n in range(4)]


# --- trouble ---------------------------------------------------------------------------------------------------------


def test_a_failing_handler_is_retried_and_set_aside(executor: LocalExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three attempts with back-off, then quarantine, as in production; ``retry`` goes on."""
    monkeypatch.setitem(OUTAGE, "on", True)
    start(executor, "o1", Awaiting("o1", 3))
    executor.signal("o1", payment, Payment(3))
    executor.run_until_idle()
    (machine,) = executor.explain("o1").active
    assert (machine.status, machine.attempts) == ("decided", 1)
    executor.advance(minutes=2)
    (machine,) = executor.explain("o1").active
    assert (machine.status, machine.last_error) == ("quarantined", "ConnectionError: the bank")
    with pytest.raises(NothingHappens, match="nothing falls due"):
        executor.await_operation("o1")
    OUTAGE["on"] = False
    assert executor.retry("o1") == 1
    executor.run_until_idle()
    assert executor.states("o1") == [Shipped("o1")]


def test_machines_are_steered(executor: LocalExecutor) -> None:
    """What falls due while an operation is paused fires at the resume; early and double signals; cancel."""
    assert executor.signal("o1", payment, Payment(1), id="a") is Delivery.BUFFERED
    assert executor.signal("o1", payment, Payment(1), id="a") is Delivery.DUPLICATE
    start(executor, "o1", Awaiting("o1", 3))
    executor.pause("o1")
    executor.advance(hours=2)
    assert executor.states("o1") == [Awaiting("o1", 3)]
    executor.resume("o1")
    executor.run_until_idle()
    assert executor.states("o1") == [Cancelled("o1")]
    start(executor, "o2", Awaiting("o2", 3))
    executor.pause("o2")
    executor.advance(hours=2)
    assert not executor.complete("paid", Payment(3), "o2")  # its deadline has passed, though nobody may act on it
    executor.resume("o2")
    assert executor.cancel("o2", "changed my mind") == 1
    assert not executor.has_active_states("o2")


def test_cancel_handlers_run_in_memory() -> None:
    """What is undone commits with the end; a handler that fails is tried again in virtual time."""
    module = Module("undone", retry=Retry(max_attempts=5, base=timedelta(minutes=1), cap=timedelta(minutes=1)))
    broken = [True, True]

    @module.state
    class Open(State):
        n: int

    @module.state(terminal=True)
    class Over(State):
        n: int

    @module.on(Open, after(hours=1))
    def late(tx: Transaction, state: Open, _: None) -> Over:
        return Over(state.n)

    @module.on_cancel(Open)
    def undo(tx: Transaction, state: Open, reason: str | None, context: Context) -> None:
        tx.send_task("refund", args=[state.n, reason])
        if broken and state.n == 2:
            broken.pop()
            raise OSError("not now")
        tx.rpush("undone", context.module)

    with LocalExecutor(module, context="shop") as executor:
        executor.add_state_machines([StateMachine("o", Open(1)), StateMachine("o", Open(2))])
        with pytest.raises(CancelUnfinished, match="OSError: not now"):
            executor.cancel("o", "why")
        assert executor.data("undone") == ["shop"]
        executor.advance(minutes=3)
        assert not executor.has_active_states("o")
        assert executor.data("undone") == ["shop", "shop"]
        assert [task.args for task in executor.sent_tasks] == [(1, "why"), (2, "why")]


def test_finished_operations_are_forgotten() -> None:
    """Retention runs in virtual time, too."""
    module = Module("kept", keep=timedelta(days=7))

    @module.state
    class Open(State):
        n: int

    @module.state(terminal=True)
    class Closed(State):
        n: int

    @module.on(Open, now())
    def closed(tx: Transaction, state: Open, _: None) -> Closed:
        return Closed(state.n)

    local = LocalExecutor(module)
    start(local, "o", Open(1))
    local.advance(days=6)
    assert local.states("o") == [Closed(1)]
    local.advance(days=2)
    assert local.states("o") == []


# --- building --------------------------------------------------------------------------------------------------------


def test_modules_have_ids_and_contexts() -> None:
    """One module under two ids, with contexts of their own, and a global one; the same id twice is refused."""
    told: list[tuple[Any, Any]] = []
    module = Module[str]("context")

    @module.state
    class Open(State):
        n: int

    @module.state(terminal=True)
    class Closed(State):
        n: int

    @module.on(Open, now())
    def closed(tx: Transaction, state: Open, _: None, context: Context[str]) -> Closed:
        told.append((context.module, context.global_context))
        return Closed(state.n)

    local = LocalExecutor(
        {"a": module, "b": module},
        context="all",
        contexts={"b": lambda: "own"},
        global_context=lambda module, op: f"{module} of {op}",
    )
    local.add_state_machines([StateMachine("o", Open(1), "a"), StateMachine("o", Open(1), "b")])
    local.run_until_idle()
    assert sorted(told) == [("all", "a of o"), ("own", "b of o")]
    with pytest.raises(DuplicateModule):
        LocalExecutor(module, module)
    with pytest.raises(InvalidInput, match="whose key"):
        local.data("key")


def test_without_lua_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing smqueue.testing needs no Lua; making an executor without it names the extra."""
    monkeypatch.setitem(sys.modules, "lupa", None)
    lua_scripts._lua.cache_clear()  # pyright: ignore
    with pytest.raises(MissingExtra, match=r"pip install 'smqueue\[testing\]'"):
        LocalExecutor(shop)

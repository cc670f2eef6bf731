"""Spans, on machines in memory: which there are, what each is a child of, and what is stored of them."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState

from smqueue import (
    Context,
    Failed,
    InvalidPayload,
    Module,
    OperationFinished,
    Retry,
    SignalFor,
    State,
    StateAlreadyExists,
    StateMachine,
    Transaction,
    after,
    call,
    poll,
    task,
    tracing,
    wait,
)
from smqueue.records import Item, Machine
from smqueue.testing import LocalExecutor
from smqueue.testing.memory import Memory
from tests.tracing import Recorder, recording

shop = Module("shop", retry=Retry(max_attempts=5, base=timedelta(seconds=1)))
runs: list[str] = []


def within(name: str) -> Any:
    """A span of the machines' own code."""
    runs.append(name)
    return trace.get_tracer("shop").start_as_current_span(name)


@shop.state
class Awaiting(State):
    order: str


@shop.state
class Polling(State):
    tries: int


@shop.state
class Calling(State):
    fails: int


@shop.state
class Hosting(State):
    seconds: int


@shop.state
class Tasking(State):
    n: int


@shop.state(terminal=True)
class Done(State):
    how: str


@dataclass(frozen=True)
class Payment:
    amount: int
    card: str = ""


paid = shop.signal("paid", Payment)
nudge = shop.signal("nudge")


@shop.on(Awaiting, paid)
def take(tx: Transaction, state: Awaiting, payment: Payment) -> Polling | Done | None:
    with within("taking"):
        match state.order:
            case "short":
                return None if payment.amount < 5 else Done("paid")
            case "fails" if len(runs) < 2:
                raise ValueError(f"card {payment.card} declined")
            case "reads":
                tx.get("rate")
            case "makes":
                tx.add_state_machines([StateMachine("made", Awaiting("made"))])
                tx.signal("other", nudge)
                tx.send_task("shop.mail", args=["o"])
            case _:
                pass
    return Polling(1)


@shop.on(Awaiting, nudge)
def nudged(tx: Transaction, state: Awaiting, _: None) -> Done:
    return Done("nudged")


@shop.on(Awaiting, after(timedelta(hours=1)))
def expired(tx: Transaction, state: Awaiting, _: None) -> Done:
    return Done("expired")


def look(state: Polling, context: Context) -> int | None:
    with within("looking"):
        if state.tries == 0:
            raise ConnectionError("away")
        return 1 if len(runs) >= state.tries else None


@shop.on(Polling, poll(look, every=timedelta(seconds=1)))
def looked(tx: Transaction, state: Polling, found: int) -> Done:
    return Done("found")


async def ring(state: Calling, context: Context) -> str:
    await asyncio.sleep(0)
    with within("ringing"):
        if len(runs) <= state.fails:
            raise ConnectionError("engaged")
        return "answered"


@shop.on(Calling, call(ring, retry=Retry(max_attempts=2, base=timedelta(seconds=1))))
def rung(tx: Transaction, state: Calling, got: str | Failed) -> Done:
    return Done("rung")


async def linger(state: Hosting, context: Context) -> str:
    with within("lingering"):
        await asyncio.sleep(state.seconds)
        return "done"


@shop.on(Hosting, wait(linger))
def lingered(tx: Transaction, state: Hosting, got: str | Failed) -> Done:
    return Done("lingered")


@shop.on(Hosting, after(timedelta(hours=1)))
def given_up(tx: Transaction, state: Hosting, _: None) -> Done:
    return Done("given up")


@shop.on(Tasking, task(lambda state: {"task": "shop.add", "args": (state.n,), "kwargs": {}, "options": {}}))
def tasked(tx: Transaction, state: Tasking, got: int | Failed) -> Done:
    return Done("tasked")


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    with recording() as recorder:
        yield recorder


@pytest.fixture
def executor() -> Iterator[LocalExecutor]:
    runs.clear()
    with LocalExecutor(shop=shop) as executor:
        yield executor


def machine(executor: LocalExecutor, operation: str = "o") -> Machine:
    """What its only machine is armed with, as it is stored."""
    (waiting, *_) = executor.waiting(operation)
    return waiting.armed.machine


# --- which there are -------------------------------------------------------------------------------------------------


def test_a_signal_that_wins_is_the_parent_and_the_adding_is_linked(executor: LocalExecutor, recorder: Recorder) -> None:
    """Adding and signal are spans of whoever does it; the transition is a child of the signal, linked to the adding,
    and the next one a child of the poll that won, linked to the first."""
    with recorder.span("order"):
        (id,) = executor.add_state_machines([StateMachine("o", Awaiting("x"))])
    with recorder.span("pay") as pay:
        executor.signal("o", paid, Payment(7))
    executor.run_until_idle()
    add, signal, trigger = recorder.one("smqueue.add"), recorder.one("smqueue.signal"), recorder.one("smqueue.trigger")
    first, second = recorder.named("smqueue.transition")
    assert (add.parent, signal.parent) == (recorder.one("order").id, pay.id)
    assert (first.parent, first.links) == (signal.id, (add.id,))
    assert recorder.one("taking").parent == first.id
    assert (trigger.parent, trigger.links) == (first.id, ())
    assert recorder.one("looking").parent == trigger.id
    assert (second.parent, second.links) == (trigger.id, (first.id,))
    assert {one.trace for one in (signal, first, trigger, second)} == {pay.trace} != {add.trace}
    common = {"messaging.system": "smqueue", "smqueue.operation_id": "o", "smqueue.module": "shop"}
    assert add.attributes == {
        **common, "messaging.operation.type": "send", "smqueue.machines": 1, "smqueue.machine_id": str(id),
        "smqueue.state.to": "Awaiting",
    }  # fmt: skip
    assert signal.attributes == {
        **common, "messaging.operation.type": "send", "smqueue.signal": "paid", "smqueue.delivery": "DELIVERED",
    }  # fmt: skip
    common |= {"messaging.operation.type": "process", "smqueue.machine_id": str(id), "smqueue.attempt": 1}
    assert first.attributes == {
        **common, "smqueue.state.from": "Awaiting", "smqueue.state.to": "Polling", "smqueue.trigger": "take",
        "smqueue.kind": "signal", "smqueue.outcome": "moved",
    }  # fmt: skip
    assert trigger.attributes == {
        **common, "smqueue.state.from": "Polling", "smqueue.trigger": "looked", "smqueue.kind": "poll",
        "smqueue.outcome": "RECORDED",
    }  # fmt: skip
    assert (add.kind, signal.kind) == ("PRODUCER", "PRODUCER")
    assert (first.kind, trigger.kind) == ("CONSUMER", "CONSUMER")
    assert {one.status for one in recorder.spans} == {"UNSET"}


def test_a_deadline_is_a_child_of_what_has_armed_it(executor: LocalExecutor, recorder: Recorder) -> None:
    """Nobody has sent a deadline: its transition is in the trace of the adding, and linked to nothing else."""
    executor.add_state_machines([StateMachine("o", Awaiting("x"))])
    executor.advance(hours=1)
    transition = recorder.one("smqueue.transition")
    assert (transition.parent, transition.links) == (recorder.one("smqueue.add").id, ())
    assert (transition["kind"], transition["state.to"]) == ("deadline", "Done")


@pytest.mark.parametrize("waits", [True, False], ids=["delivered", "early"])
def test_an_early_signal_keeps_its_span(executor: LocalExecutor, recorder: Recorder, waits: bool) -> None:
    """A signal is the parent of what it moves whether it was delivered or kept, and to one that is not alone, too."""
    if waits:
        executor.add_state_machines([StateMachine("o", Awaiting("x")), StateMachine("o", Calling(0))])
    executor.signal("o", nudge)
    if not waits:
        executor.add_state_machines([StateMachine("o", Awaiting("x"))])
    executor.run_until_idle()
    transition = next(one for one in recorder.named("smqueue.transition") if one["trigger"] == "nudged")
    assert transition.parent == recorder.one("smqueue.signal").id
    assert recorder.one("smqueue.signal")["delivery"] == ("DELIVERED" if waits else "BUFFERED")


def test_each_attempt_of_code_is_a_span(executor: LocalExecutor, recorder: Recorder) -> None:
    """Three polls are three spans in the trace of the adding; the one that brings something is the transition's
    parent."""
    executor.add_state_machines([StateMachine("o", Polling(3))])
    executor.advance(seconds=5)
    attempts = recorder.named("smqueue.trigger")
    assert [(one["attempt"], one["outcome"]) for one in attempts] == [(1, "AGAIN"), (2, "AGAIN"), (3, "RECORDED")]
    assert {one.parent for one in attempts} == {recorder.one("smqueue.add").id}
    assert recorder.one("smqueue.transition").parent == attempts[-1].id


def test_code_that_fails_says_so(executor: LocalExecutor, recorder: Recorder) -> None:
    """An attempt that raised is an error with its exception; so is the last of a call, whose handler is told."""
    executor.add_state_machines([StateMachine("p", Polling(0)), StateMachine("c", Calling(9))])
    executor.advance(milliseconds=100)
    executor.advance(seconds=30)
    polls = [one for one in recorder.named("smqueue.trigger") if one["kind"] == "poll"]
    calls = [one for one in recorder.named("smqueue.trigger") if one["kind"] == "call"]
    assert {one.status for one in (*polls, *calls)} == {"ERROR"}
    what = {"exception.type": "ConnectionError", "exception.message": "ConnectionError: engaged"}
    assert calls[0].events == [("exception", what)]
    assert [one["outcome"] for one in calls] == ["AGAIN", "RECORDED"]
    assert recorder.one("smqueue.transition").parent == calls[-1].id


def test_a_coroutine_is_a_span_for_as_long_as_it_waits(executor: LocalExecutor, recorder: Recorder) -> None:
    """The span of a ``wait`` ends with it: with its outcome, or when its race was lost."""
    executor.add_state_machines([StateMachine("o", Hosting(60)), StateMachine("late", Hosting(7_200))])
    executor.run_until_idle()
    assert not recorder.named("smqueue.trigger")
    executor.advance(hours=2)
    won, lost = recorder.named("smqueue.trigger")
    assert (won["operation_id"], won["outcome"]) == ("o", "RECORDED")
    assert (lost["operation_id"], lost["outcome"]) == ("late", None)
    assert [one.parent for one in recorder.named("lingering")] == [won.id, lost.id]
    assert recorder.named("smqueue.transition")[0].parent == won.id
    assert recorder.named("smqueue.transition")[1].parent == recorder.one("smqueue.add").id


def test_a_handler_that_fails_is_told_of_each_time(executor: LocalExecutor, recorder: Recorder) -> None:
    """A failed attempt of a handler is a span of its own, with the error; the next one is another child of the
    signal."""
    executor.add_state_machines([StateMachine("o", Awaiting("fails"))])
    executor.signal("o", paid, Payment(7, "visa"))
    executor.advance(seconds=10)
    failed, moved = [one for one in recorder.named("smqueue.transition") if one["trigger"] == "take"]
    assert (failed.status, failed["attempt"], failed["state.to"]) == ("ERROR", 1, None)
    assert failed.events[0][1]["exception.type"] == "ValueError"
    assert (moved.status, moved["attempt"], moved["state.to"]) == ("UNSET", 2, "Polling")
    assert failed.parent == moved.parent == recorder.one("smqueue.signal").id


def test_a_conflict_is_no_second_span(
    executor: LocalExecutor, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a handler has read changes under it: it runs again, in the same span, which notes the conflict."""
    executor.add_state_machines([StateMachine("o", Awaiting("reads"))])
    executor.signal("o", paid, Payment(7))
    driver, rate = executor.deployment.driver, executor.deployment.keys("o").data("shop", "rate")
    trip, changed = Memory._trip, list[str]()  # pyright: ignore[reportPrivateUsage]

    def interfering(self: Memory, connection: Any, request: Any) -> Any:
        if len(runs) == 2 and not changed:  # it has read
            changed.append(rate)
            driver.command("SET", rate, "2")
        return trip(self, connection, request)

    monkeypatch.setattr(Memory, "_trip", interfering)
    executor.run_until_idle()
    assert changed
    (transition,) = [one for one in recorder.named("smqueue.transition") if one["trigger"] == "take"]
    assert transition.events == [("smqueue.conflict", {})]
    assert len(recorder.named("taking")) == 4  # twice each time: it reads
    assert {one.parent for one in recorder.named("taking")} == {transition.id}


def test_what_a_transition_makes_is_in_its_trace(executor: LocalExecutor, recorder: Recorder) -> None:
    """A machine that it starts and a signal that it sends carry its span on, and so does a task that it sends."""
    executor.add_state_machines([StateMachine("o", Awaiting("makes")), StateMachine("other", Awaiting("x"))])
    executor.signal("o", paid, Payment(7))
    executor.run_until_idle()
    maker = next(one for one in recorder.named("smqueue.transition") if one["trigger"] == "take")
    nudged = next(one for one in recorder.named("smqueue.transition") if one["trigger"] == "nudged")
    assert nudged.parent == maker.id
    assert machine(executor, "made").trace.startswith(f"00-{maker.trace}-{maker.id}-")
    (sent,) = executor.sent_tasks
    assert sent.name == "shop.mail"


def test_a_machine_that_is_kept_forgets_what_has_kept_it(executor: LocalExecutor, recorder: Recorder) -> None:
    """After a handler's ``None`` the span of that signal is no parent of anything more."""
    executor.add_state_machines([StateMachine("o", Awaiting("short"))])
    executor.signal("o", paid, Payment(1))
    executor.run_until_idle()
    executor.advance(hours=1)
    kept, over = recorder.named("smqueue.transition")
    assert (kept["outcome"], kept["state.to"]) == ("kept", "Awaiting")
    assert kept.parent == recorder.one("smqueue.signal").id
    assert over.parent == recorder.one("smqueue.add").id


def test_many_signals_are_one_span(executor: LocalExecutor, recorder: Recorder) -> None:
    """``signal_many`` is one span, and the parent of all that it moves."""
    executor.add_state_machines([StateMachine(op, Awaiting("x")) for op in "ab"])
    executor.signal_many([SignalFor(op, nudge) for op in "ab"])
    executor.run_until_idle()
    signal = recorder.one("smqueue.signal")
    assert signal["signals"] == 2
    assert {one.parent for one in recorder.named("smqueue.transition")} == {signal.id}
    assert recorder.one("smqueue.add")["machines"] == 2


def test_autocommit_carries_on_the_span_that_it_is_called_in(executor: LocalExecutor, recorder: Recorder) -> None:
    """Machines of an ``autocommit`` are entered by the span of its caller: it has none of its own."""
    with recorder.span("import") as span:
        executor.autocommit(lambda tx: tx.add_state_machines([StateMachine("o", Awaiting("x"))]))
    executor.advance(hours=1)
    assert recorder.one("smqueue.transition").parent == span.id


def test_what_a_producer_is_refused_is_an_error(executor: LocalExecutor, recorder: Recorder) -> None:
    """The span of an adding or a signal that was refused says so; what is no signal at all has none."""
    executor.add_state_machines([StateMachine("o", Calling(0))])
    executor.run_until_idle()
    recorder.spans.clear()
    with pytest.raises(StateAlreadyExists):
        executor.add_state_machines([StateMachine("o", Calling(0))])
    with pytest.raises(OperationFinished):
        executor.signal("o", nudge)
    with pytest.raises(InvalidPayload):
        executor.signal("o", "paid", {"amount": "much"})
    assert [(one.name, one.status) for one in recorder.spans] == [
        ("smqueue.add", "ERROR"),
        ("smqueue.signal", "ERROR"),
    ]


def test_a_machine_armed_anew_keeps_its_span(executor: LocalExecutor, recorder: Recorder) -> None:
    """The span that has entered a state is that of its machine, even when ``retry`` arms it anew."""
    executor.add_state_machines([StateMachine("o", Awaiting("x"))])
    before, keys = machine(executor), executor.deployment.keys("o")
    aside = json.dumps({"error": "by hand", "op": "o", "entry": before.entry, "at": 1})
    executor.deployment.driver.command("HSET", keys.quarantine, before.record, aside)
    assert executor.retry("o") == 1
    after_it = machine(executor)
    assert after_it.arming != before.arming
    assert after_it.trace == before.trace != ""


# --- what is told, and what is stored --------------------------------------------------------------------------------


def test_no_payload_is_ever_told(executor: LocalExecutor, recorder: Recorder) -> None:
    """Neither payloads, nor what is in states, nor a traceback are in any span of ours; an error's text is."""
    executor.add_state_machines([StateMachine("o", Awaiting("fails")), StateMachine("q", Awaiting("s3cret"))])
    executor.signal("o", paid, Payment(7, "tok_411"))
    executor.advance(seconds=10)
    executor.signal("q", paid, Payment(7, "hush"))
    executor.run_until_idle()
    said = json.dumps([one.__dict__ for one in recorder.spans if one.name.startswith("smqueue.")])
    assert "s3cret" not in said
    assert "hush" not in said
    assert "Traceback" not in said
    assert said.count("tok_411") == 1


def test_a_trace_is_neither_needed_nor_left(executor: LocalExecutor) -> None:
    """Without a tracer provider nothing is stored, and what another process has stored is passed over."""
    with recording():
        executor.add_state_machines([StateMachine("traced", Awaiting("x"))])
    executor.add_state_machines([StateMachine("plain", Awaiting("x"))])
    assert machine(executor, "traced").trace
    assert json.loads(machine(executor, "plain").dump())[5:] == []
    executor.signal("plain", nudge)
    executor.signal("later", nudge)
    driver, keys = executor.deployment.driver, executor.deployment.keys("plain")
    race = driver.command("HGETALL", keys.race(machine(executor, "traced").record))
    assert race == []
    (early,) = driver.command("LRANGE", keys.inbox("later", "shop", "nudge"), 0, -1)
    assert set(json.loads(early)) == {"id", "payload", "at"}
    executor.advance(hours=1)
    assert [type(executor.states(op)[-1]) for op in ("traced", "plain")] == [Done, Done]


@pytest.mark.parametrize("garbage", ['"00-nothing"', f'"00-{"0" * 32}-{"0" * 16}-01"', "17", '["x"]', '"\\u00e9"'])
def test_a_malformed_header_is_no_parent(executor: LocalExecutor, recorder: Recorder, garbage: str) -> None:
    """What is no header, in a record or beside an outcome, is ignored: the machine moves, in a trace of its own."""
    executor.add_state_machines([StateMachine("o", Awaiting("x"))])
    executor.signal("o", nudge)
    driver, keys = executor.deployment.driver, executor.deployment.keys("o")
    record = executor.instances.place(StateMachine("o", Awaiting("x"))).record
    told = json.loads(driver.command("GET", keys.machine(record)))
    driver.command("SET", keys.machine(record), json.dumps([*told[:6], json.loads(garbage)]))
    driver.command("HSET", keys.race(record), "trace", garbage.strip('"'))
    executor.run_until_idle()
    transition = recorder.one("smqueue.transition")
    assert (transition.parent, transition.links) == (None, ())
    assert transition["state.to"] == "Done"


def test_an_early_signal_of_any_form_is_read() -> None:
    """The header of an early signal that is none is left out; without one there is none."""
    assert Item.parse(b'{"payload":1,"at":2}').trace == ""
    assert Item.parse(b'{"trace":7,"payload":1,"at":2}').trace == ""
    assert Item.parse(b'{"trace":"00-x","payload":1,"at":2}').trace == "00-x"


def test_what_is_not_sampled_stays_so(executor: LocalExecutor) -> None:
    """A trace that its beginning has left out is left out by workers, too; what they begin themselves is not."""
    with recording(ALWAYS_OFF) as producer:
        executor.add_state_machines([StateMachine("o", Awaiting("x"))])
    assert int(machine(executor).trace[-2:], 16) & TraceFlags.SAMPLED == 0
    executor.add_state_machines([StateMachine("plain", Awaiting("x"))])
    with recording(ParentBased(ALWAYS_ON)) as worker:
        executor.advance(hours=1)
    assert not producer.spans
    assert [one["operation_id"] for one in worker.named("smqueue.transition")] == ["plain"]


class Broken(Sampler, SpanProcessor):
    """The program's own part of a provider, which raises at one point."""

    def __init__(self, where: str) -> None:
        self.where, self.asked = where, 0

    def _at(self, where: str) -> None:
        if where == self.where:
            self.asked += 1
            raise RuntimeError("on purpose")

    def should_sample(self, *args: Any, **given: Any) -> Any:
        self._at("sampler")
        return ALWAYS_ON.should_sample(*args, **given)

    def get_description(self) -> str:
        return "broken"

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        self._at("start")

    def on_end(self, span: Any) -> None:
        self._at("end")


@pytest.mark.parametrize("where", ["sampler", "start", "end"])
def test_a_provider_that_raises_costs_spans_only(
    executor: LocalExecutor, where: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A sampler or a processor that raises keeps no machine from moving, in no process; it is logged, once."""
    monkeypatch.setattr(tracing, "_raised", False)
    broken = Broken(where)
    with recording(broken) as recorder:
        recorder.provider.add_span_processor(broken)
        for op in ("o", "p"):
            executor.add_state_machines([StateMachine(op, Awaiting("x"))])
            executor.signal(op, nudge)
        executor.run_until_idle()
    assert [executor.states(op) for op in ("o", "p")] == [[Done("nudged")]] * 2
    assert broken.asked > 4
    assert len([record for record in caplog.records if "on purpose" in record.getMessage()]) == 1


def caller(trace_id: int, state: TraceState | None = None) -> Any:
    """A span of another process is the current one."""
    context = SpanContext(trace_id, 9, is_remote=True, trace_flags=TraceFlags(1), trace_state=state)
    return trace.use_span(NonRecordingSpan(context))


def test_the_state_of_a_trace_travels_with_it(executor: LocalExecutor, recorder: Recorder) -> None:
    """W3C ``tracestate`` is handed on to the transition and to what that enters, with a signal too; one that holds a
    quote is left out, and its trace goes on."""
    with caller(7, TraceState([("a", "1 b"), ("c", "2")])):
        executor.signal("o", paid, Payment(1))
    executor.add_state_machines([StateMachine("o", Awaiting("makes"))])
    executor.run_until_idle()
    assert machine(executor, "made").trace.startswith(f"00-{7:032x}-")
    assert machine(executor, "made").trace.endswith(" a=1 b,c=2")
    with caller(8, TraceState([("a", '1"')])):
        executor.add_state_machines([StateMachine("q", Awaiting("x"))])
    assert machine(executor, "q").trace.startswith(f"00-{8:032x}-")
    assert " " not in machine(executor, "q").trace


def test_smqueue_can_be_left_out_of_a_programs_traces(
    executor: LocalExecutor, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``OTEL_PYTHON_DISABLED_INSTRUMENTATIONS`` with ``smqueue`` in it: no spans, and nothing stored of them."""
    monkeypatch.setenv("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "redis, smqueue")
    with recorder.span("order"):
        executor.add_state_machines([StateMachine("o", Awaiting("x"))])
    assert machine(executor).trace == ""
    assert [one.name for one in recorder.spans] == ["order"]


@pytest.mark.parametrize(
    "header", [None, 7, "", "x", "00-" + "a" * 32 + "-" + "b" * 16, f'00-{"a" * 32}-{"b" * 16}-01 a="1']
)
def test_clients_cannot_have_anything_stored_as_a_header(header: object) -> None:
    """What a request names as its trace is stored only if it is a header."""
    assert tracing.checked(header) == ""


WITHOUT = """
import sys
sys.modules["opentelemetry"] = None  # as if it were not installed
import tests.unit.test_local_executor as machines
from smqueue import tracing
from smqueue.testing import LocalExecutor
assert not tracing.on() and tracing.begin("x", "PRODUCER", {}) is None
assert tracing.current() == "" and tracing.injected() == {}
with tracing.apart(), tracing.under("00"), tracing.received(lambda name: name):
    tracing.without({})
executor = LocalExecutor(shop=machines.shop)
executor.add_state_machines([machines.StateMachine("o", machines.Awaiting("o", 1))])
executor.advance(days=1)
print([type(state).__name__ for state in executor.states("o")])
"""


def test_it_need_not_be_installed() -> None:
    """Without OpenTelemetry everything works, and nothing is traced."""
    run = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, timeout=60)
    assert run.stdout.strip() == "['Cancelled']", run.stderr


def test_imported_is_not_switched_on(executor: LocalExecutor) -> None:
    """With OpenTelemetry imported and no provider set, nothing is a span and nothing is stored."""
    assert "opentelemetry.trace" in sys.modules
    with caller(7):
        executor.add_state_machines([StateMachine("o", Awaiting("x"))])
    assert not tracing.on()
    assert machine(executor).trace == ""


def test_a_provider_is_seen_as_soon_as_it_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider is in use with the next call, wherever the API keeps it, and no longer than it is there."""
    assert not tracing.on()
    with recording() as recorder:
        assert tracing.on()
        assert trace.get_tracer_provider() is recorder.provider
    assert not tracing.on()
    monkeypatch.delattr(trace, "_TRACER_PROVIDER")
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: recorder.provider)
    assert tracing.on()


def test_an_outcomes_garbage_leaves_the_adding_its_parent(executor: LocalExecutor, recorder: Recorder) -> None:
    """A header beside an outcome that is none is passed over for that of what has entered the state."""
    executor.add_state_machines([StateMachine("o", Awaiting("x"))])
    executor.signal("o", nudge)
    record, keys = executor.instances.place(StateMachine("o", Awaiting("x"))).record, executor.deployment.keys("o")
    executor.deployment.driver.command("HSET", keys.race(record), "trace", "00-garbage")
    executor.run_until_idle()
    assert recorder.one("smqueue.transition").parent == recorder.one("smqueue.add").id

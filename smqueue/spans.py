"""The spans that there are, and what each is told. None of it is a payload, or a value of a state."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from smqueue import tracing
from smqueue.protocols.autocommit import Done
from smqueue.protocols.claim import Armed, Claimed
from smqueue.protocols.signal import Delivered
from smqueue.protocols.transition import Transitioned
from smqueue.records import kind_of
from smqueue.tracing import Attribute, Span

MOVING = frozenset({"moved", "merged", "kept"})
"""What has become of a machine when something was committed."""


def add_span(operations: Collection[str]) -> Span | None:
    """The adding of machines to these operations, one for each."""
    if not tracing.on():
        return None
    return tracing.begin("add", "PRODUCER", {"machines": len(operations), **_operation(operations)})


def added(done: Done[Any]) -> dict[str, Attribute]:
    """What the span of an adding is told; of several machines, what they have in common."""
    started = done.machines
    about = {
        "machine_id": {active.machine for _, active in started},
        "module": {placed.module for placed, _ in started},
        "state.to": {placed.type.name for placed, _ in started},
    }
    return {name: next(iter(values)) for name, values in about.items() if len(values) == 1}


def signal_span(operation_id: str, signal: str, module: str | None = None) -> Span | None:
    """The sending of a signal."""
    if not tracing.on():
        return None
    about = {"operation_id": operation_id, "signal": signal, **({"module": module} if module else {})}
    return tracing.begin("signal", "PRODUCER", about)


def signals_span(operations: Collection[str]) -> Span | None:
    """The sending of many signals at once, one for each of these operations."""
    if not tracing.on():
        return None
    return tracing.begin("signal", "PRODUCER", {"signals": len(operations), **_operation(operations)})


def signalled(done: Delivered | None) -> dict[str, Attribute]:
    """What the span of a signal is told."""
    return {} if done is None else {"delivery": done.delivery.value}


def trigger_span(armed: Armed) -> Span | None:
    """One attempt of a trigger's code: a child of what has entered the state."""
    if not tracing.on():
        return None
    about: dict[str, Attribute] = {
        "operation_id": armed.machine.op,
        "machine_id": armed.active.machine,
        "module": armed.placed.module,
        "state.from": armed.placed.type.name,
        "trigger": armed.trigger,
        "kind": armed.kind,
        "attempt": armed.tries + 1,
    }
    return tracing.begin("trigger", "CONSUMER", about, parent=armed.machine.trace)


def transition_span(one: Claimed) -> Span | None:
    """A transition: a child of what has won, linked to what has entered the state; a deadline's, a child of that."""
    if not tracing.on():
        return None
    about: dict[str, Attribute] = {
        "operation_id": one.machine.op,
        "machine_id": one.active.machine,
        "module": one.placed.module,
        "state.from": one.placed.type.name,
        "trigger": one.won,
        "kind": kind_of(one.machine.armed[one.won]) if one.won in one.machine.armed else "",
        "attempt": one.attempts + 1,
    }
    entered = one.machine.trace
    cause = tracing.checked(one.race.get("trace")) or entered
    return tracing.begin("transition", "CONSUMER", about, parent=cause, link=entered)


def transitioned(span: Span, one: Claimed, done: Transitioned) -> None:
    """End the span of a transition, unless there was none: then whoever moves the machine tells of it."""
    if done.kind == "torn":
        span.failed("UndecodableRecord", f"a command failed inside EXEC while the state moved: {done.detail}")
    elif done.kind not in MOVING:
        return
    to = one.placed if done.to is None else done.to.placed
    span.tell({"state.to": to.type.name, "outcome": done.kind})
    span.end()


def _operation(operations: Collection[str]) -> dict[str, Attribute]:
    ids = set(operations)
    return {"operation_id": ids.pop()} if len(ids) == 1 else {}

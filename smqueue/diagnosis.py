"""Why an operation is stuck: what is wrong with its machines, with what they call, or with who should move them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from smqueue.deployment import Deployment
from smqueue.explain import ArmedTrigger, Explanation, MachineExplanation, explain
from smqueue.instances import Instances
from smqueue.overview import Cause, Overview, overview
from smqueue.presence import Worker
from smqueue.records import Field, label_of

OF_ALL = frozenset({"store", "no_worker", "queue_without_worker", "behind"})
"""Causes that hold up every machine; others of the namespace may be of others."""
SENT = frozenset({"poll", "call", "task"})
"""Kinds of triggers whose code runs as a task of its own, in the queue of triggers."""
UNDECODABLE = ("UndecodableRecord", "NewerRecord")


@dataclass(frozen=True)
class Diagnosis:
    """An operation, and why it does not move.

    Attributes:
        explanation: All that is known of it.
        causes: Why its machines do not move, what holds up all of them first; a machine that waits for what has not
            come has a cause too, which is no fault.
        at: When it was looked at, by Redis's clock.
    """

    explanation: Explanation
    causes: tuple[Cause, ...]
    at: datetime


def diagnose(
    deployment: Deployment, instances: Instances, operation_id: str, *, past: int | None = None,
    active: int | None = None,
) -> Diagnosis:  # fmt: skip
    """Look at an operation and at its namespace; ``past`` and ``active`` bound the look, as in ``explain``."""
    found = explain(deployment, instances, operation_id, past=past, active=active)
    whole = overview(deployment, walked=0)
    causes: list[Cause] = []
    if found.active:
        causes += (cause for cause in whole.causes if _concerns(cause, whole, found.active))
    for one in found.active:
        causes += _causes(found.operation_id, one, whole.workers)
    return Diagnosis(found, tuple(causes), whole.at)


def _concerns(cause: Cause, whole: Overview, machines: Sequence[MachineExplanation]) -> bool:
    """Whether what is wrong with the namespace holds up one of these machines."""
    if cause.kind == "module_without_worker":
        return cause.subject in {_module(one) for one in machines}
    if cause.kind == "queue_without_worker" and cause.subject not in {
        w.transition_queue for w in whole.workers if w.alive
    }:
        return any(trigger.kind in SENT for one in machines if one.status != "decided" for trigger in one.triggers)
    return cause.kind in OF_ALL


def _module(one: MachineExplanation) -> str:
    try:
        return Field.parse(one.field).module
    except ValueError:
        return ""


def _causes(op: str, one: MachineExplanation, workers: Sequence[Worker]) -> Iterator[Cause]:
    """What is to be said of one machine."""
    label, error = label_of(one.field), one.last_error or "no error is known"
    undecodable = _undecodable(one, workers)
    if undecodable and one.status != "unreadable":
        remedy = f"deploy code that can read it{f', then smqueue retry {op}' if one.status == 'quarantined' else ''}"
        yield Cause("unreadable", f"{label} cannot be decoded: {undecodable}", remedy, op)
    match one.status:
        case "unreadable":
            remedy = f"smqueue verify {op} tells what is wrong with the record; smqueue cancel {op} ends it"
            yield Cause("unreadable", f"{label} cannot be read: {error}", remedy, op)
        case "quarantined" if undecodable:
            pass
        case "quarantined":
            yield Cause("quarantined", f"{label} is set aside: {error}", f"once mended: smqueue retry {op}", op)
        case "unscheduled":
            text = f"{label} has lost its entry in the schedule: nothing will look at it"
            yield Cause("unscheduled", text, f"smqueue verify {op} --repair", op)
        case "paused":
            text = f"{label} is paused: {' and '.join(one.held_by)}"
            yield Cause("paused", text, f"what falls due meanwhile fires at: {lifted_by(op, one)}", op)
        case "cancelling" if one.attempts:
            text = f"{label}: its cancel handler has failed {_times(one.attempts)}: {error}"
            remedy = f"it is tried again with back-off; mend it, or end it without: smqueue cancel {op} --force"
            yield Cause("handler_fails", text, remedy, op)
        case "decided" if one.attempts:
            text = f"{label}: the handler {one.won} has failed {_times(one.attempts)}: {error}"
            yield Cause("handler_fails", text, "it is tried again with back-off; mend it and restart the workers", op)
        case "waiting":
            yield from _waits(op, label, one)
        case _:
            pass


def _undecodable(one: MachineExplanation, workers: Sequence[Worker]) -> str | None:
    """Why workers cannot decode a record: as this process has found, or a worker has noted, or by its version."""
    module = _module(one)
    versions = [worker.modules[module] for worker in workers if worker.alive and module in worker.modules]
    if versions and one.version > max(versions):
        return f"version {one.version} of its module has stored it, and workers have version {max(versions)}"
    said = (text for text in (one.problem, one.last_error) if text)
    return next((text for text in said if text.startswith(UNDECODABLE)), None)


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"


def lifted_by(op: str, one: MachineExplanation) -> str:
    """The commands that resume a paused machine."""
    return " and ".join(pause.lifted_by for pause in one.pauses) or f"smqueue resume {op}"


def _waits(op: str, label: str, one: MachineExplanation) -> Iterator[Cause]:
    for trigger in one.triggers:
        name = trigger.name.rpartition("/")[2]
        if trigger.last_error:
            text = f"{label}: {trigger.kind} {name} has failed, {trigger.attempts} attempts: {trigger.last_error}"
            yield Cause("trigger_fails", text, "it is tried again with back-off; mend what it calls", op)
        elif trigger.elsewhere:
            text = f"{label} waits for {trigger.signal}, and {_sent(trigger)}"
            yield Cause(
                "signal_elsewhere", text, f"if it was meant for this one: smqueue signal {op} {trigger.signal}", op
            )
        elif trigger.signal:
            text = f"{label} waits for {trigger.signal}, and none has come"
            yield Cause("no_signal", text, f"whoever is to send it has not: smqueue signal {op} {trigger.signal}", op)


def _sent(trigger: ArmedTrigger) -> str:
    others = ", ".join(one.operation_id for one in trigger.elsewhere)
    return f"one was sent to {others}, where nobody waits for it"

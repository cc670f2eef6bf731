"""Why an operation is stuck: what is wrong with its machines, with what they call, or with who should move them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from smqueue.deployment import Deployment
from smqueue.explain import ArmedTrigger, Explanation, MachineExplanation, explain
from smqueue.instances import Instances
from smqueue.overview import Cause, overview
from smqueue.records import Field, label_of

OF_ALL = frozenset({"store", "no_worker", "queue_without_worker", "behind"})
"""Causes that hold up every machine; others of the namespace may be of others."""


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
    modules = {_module(one) for one in found.active}
    causes = [
        cause
        for cause in whole.causes
        if cause.kind in OF_ALL or (cause.kind == "module_without_worker" and cause.subject in modules)
    ]
    if not found.active:
        causes = []
    for one in found.active:
        causes += _causes(found.operation_id, one)
    return Diagnosis(found, tuple(causes), whole.at)


def _module(one: MachineExplanation) -> str:
    try:
        return Field.parse(one.field).module
    except ValueError:
        return ""


def _causes(op: str, one: MachineExplanation) -> Iterator[Cause]:
    """What is to be said of one machine."""
    label, error = label_of(one.field), one.last_error or "no error is known"
    match one.status:
        case "unreadable":
            remedy = "smqueue verify tells what is wrong with the record; smqueue cancel ends it"
            yield Cause("unreadable", f"{label} cannot be read: {error}", remedy, op)
        case "quarantined" if error.startswith("UndecodableRecord"):
            remedy = f"deploy code that can read it, then smqueue retry {op}"
            yield Cause("unreadable", f"{label} is set aside: {error}", remedy, op)
        case "quarantined":
            yield Cause("quarantined", f"{label} is set aside: {error}", f"once mended: smqueue retry {op}", op)
        case "unscheduled":
            text = f"{label} has lost its entry in the schedule: nothing will look at it"
            yield Cause("unscheduled", text, "smqueue verify --repair", op)
        case "paused":
            text = f"{label} is paused: {' and '.join(one.held_by)}"
            yield Cause("paused", text, f"what falls due meanwhile fires at: {_resume(op, one)}", op)
        case "decided" if one.attempts:
            text = f"{label}: the handler {one.won} has failed {one.attempts} times: {error}"
            yield Cause("handler_fails", text, "it is tried again with back-off; mend it and restart the workers", op)
        case "waiting":
            yield from _waits(op, label, one)
        case _:
            pass


def _resume(op: str, one: MachineExplanation) -> str:
    what = one.held_by[0] if one.held_by else ""
    if what.startswith("module "):
        return f"smqueue resume --module {what.removeprefix('module ')}"
    if what.startswith("state "):
        module, _, state = what.removeprefix("state ").rpartition(".")
        return f"smqueue resume --module {module} --state {state}"
    return f"smqueue resume {op}"


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

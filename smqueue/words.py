"""An explanation in sentences, and times as people say them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta

from smqueue.diagnosis import OF_ALL, lifted_by
from smqueue.explain import ArmedTrigger, Explanation, MachineExplanation, label_of
from smqueue.overview import Cause
from smqueue.pauses import Paused
from smqueue.queries import InactiveState


def span(duration: timedelta) -> str:
    """A duration in its two largest units: ``3 min 20 s``, ``2 d 4 h``, ``0.4 s``."""
    seconds = abs(duration.total_seconds())
    if seconds < 10:
        return f"{seconds:.1f} s"
    rest, parts = round(seconds), list[str]()
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        if rest >= size:
            parts.append(f"{rest // size} {unit}")
            rest %= size
    return " ".join(parts[:2])


def told(explanation: Explanation, now: datetime, causes: Iterable[Cause] = ()) -> list[str]:
    """Why an operation is where it is, a sentence a line; first what of the causes holds up others, too."""
    lines = [f"{cause.text[:1].upper()}{cause.text[1:]}. To do: {cause.remedy}." for cause in causes if _shared(cause)]
    for one in explanation.active:
        lines += _machine(explanation.operation_id, one, now)
    if explanation.more:
        lines.append(f"{_many(explanation.more, 'more machine is', 'more machines are')} active, and not told of here.")
    if explanation.paused and not explanation.active and not explanation.stored:
        pause = explanation.paused
        lines.append(
            f"Operation {pause.operation_id} has not started, and is paused{_held([pause], now)}: whatever begins "
            f"it waits for {pause.lifted_by}."
        )
    if not explanation.active and explanation.stored:
        ended = max(state.exited_at for _, state in explanation.stored)
        lines.append(
            f"Operation {explanation.operation_id} has finished, {span(now - ended)} ago: no machine is active."
        )
        lines += [f"{label_of(field)}: {_end(state)}." for field, state in explanation.stored if _is_end(state)]
    for signals in explanation.buffered:
        several = f"{signals.count} signals are" if signals.count > 1 else "1 signal is"
        since = f"the oldest for {span(now - signals.oldest)}" if signals.oldest else "the oldest unreadable"
        lines.append(f"{several} kept for which nobody waits: {signals.module}.{signals.signal}, {since}.")
    return lines


def _machine(operation: str, one: MachineExplanation, now: datetime) -> Iterator[str]:
    label, op = label_of(one.field), f"(machine {one.machine_id}, step {one.step})"
    since = f" for {span(now - one.since)}" if one.since else ""
    error = f": {one.last_error}" if one.last_error else ""
    match one.status:
        case "unscheduled":
            lost = f"{label} {op} has lost its entry in the schedule, and nothing looks at it"
            yield f"{lost}: smqueue verify {operation} --repair"
        case "quarantined":
            tries = f" after {_many(one.attempts, 'failed attempt', 'failed attempts')}" if one.attempts else ""
            yield f"{label} {op} is quarantined{tries}{error}. Nothing moves it until: smqueue retry {operation}"
        case "unreadable":
            yield f"{label} cannot be read here{error}."
        case "paused":
            until = lifted_by(operation, one)
            yield f"{label} {op} is paused{_held(one.pauses, now)}: what falls due waits for {until}."
        case "cancelling":
            failed = f"; its cancel handler has failed {_many(one.attempts, 'time', 'times')}{error}"
            tries = failed if one.attempts else ""
            yield f"{label} {op} is being cancelled{tries}."
        case "decided":
            tries = f"; its handler has failed {_many(one.attempts, 'time', 'times')}" if one.attempts else ""
            yield f"{label} {op} is decided: {one.won} has won, and a worker is to apply it{tries}{error}."
        case _:
            yield f"{label} {op} has been waiting{since}{f'; last error{error}' if error else ''}."
    if one.problem and one.problem != one.last_error:
        yield f"  it cannot be decoded here: {one.problem}"
    for trigger in one.triggers:
        yield f"  {_trigger(trigger, now, open_still=one.status == 'waiting')}"


def _held(pauses: Sequence[Paused], now: datetime) -> str:
    return f" ({' and '.join(_pause(pause, now) for pause in pauses)})" if pauses else ""


def _many(number: int, one: str, several: str) -> str:
    return f"{number:,} {one if number == 1 else several}"


def _pause(one: Paused, now: datetime) -> str:
    since = f" for {span(now - one.since)}" if one.since else ""
    return f"{one}{since}{f': {one.reason}' if one.reason else ''}"


def _trigger(one: ArmedTrigger, now: datetime, *, open_still: bool) -> str:
    text = f"{one.name} waits for {one.waits_for}, since {span(now - one.since)}"
    if one.signal and open_still:
        there = ", ".join(f"{early.operation_id} {span(now - early.latest)} ago" for early in one.elsewhere)
        text += f": none has come{f', but one was sent to {there}, where nobody waits for it' if there else ''}"
    if one.deadline is not None:
        text += (
            f", due in {span(one.deadline - now)}" if one.deadline > now else f", due {span(now - one.deadline)} ago"
        )
    if one.running:
        text += ", running now" if one.kind != "channel" else ", subscribed"
    elif one.next_run is not None and one.next_run > now and one.kind in {"poll", "call"}:
        text += f", next in {span(one.next_run - now)}"
    if one.attempts:
        text += f", {_many(one.attempts, 'attempt', 'attempts')} without an outcome"
    return text + (f"; last error: {one.last_error}." if one.last_error else ".")


def _shared(cause: Cause) -> bool:
    return cause.kind in OF_ALL or cause.kind == "module_without_worker"


def _is_end(state: InactiveState) -> bool:
    return state.terminal or state.cancelled is not None or state.merged_into is not None


def _end(state: InactiveState) -> str:
    if state.cancelled is not None:
        return f"cancelled{f' ({state.cancelled})' if state.cancelled else ''}"
    return f"merged into {state.merged_into}" if state.merged_into else "reached, and terminal"


def left(state: InactiveState) -> str:
    """How a past state was left, in a few words."""
    return f"won by {state.won}" if state.won and not _is_end(state) else _end(state)

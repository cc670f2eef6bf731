"""An operation as rows of JSON: what ``smqueue show --json`` prints, and Flower's ``/api/machines/<op>`` answers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from smqueue.explain import ArmedTrigger, Explanation
from smqueue.instances import Instances
from smqueue.keys import decode
from smqueue.records import Field
from smqueue.redacted import shown_state
from smqueue.words import left


def rows_of(found: Explanation, instances: Instances) -> Iterable[dict[str, Any]]:
    """Its active machines, its past states and its early signals, by ``kind``; secrets are hidden."""
    op = found.operation_id
    for one in found.active:
        record = {"kind": "active", **_record(instances, op, one.field, one.version)}
        record |= {"machine_id": one.machine_id, "step": one.step}
        record |= {"since": one.since.isoformat() if one.since else None, "status": one.status, "won": one.won}
        record |= {"attempts": one.attempts, "last_error": one.last_error}
        yield record | {"triggers": [_trigger(trigger) for trigger in one.triggers]}
    for field, state in found.stored:
        record = {"kind": "inactive", **_record(instances, op, field, state.version), "machine_id": state.machine_id}
        record |= {"step": state.step, "since": state.created_at.isoformat(), "until": state.exited_at.isoformat()}
        record |= {"status": left(state), "won": state.won, "visits": state.visits, "terminal": state.terminal}
        yield record | {"cancelled": state.cancelled, "merged_into": state.merged_into, "losers": state.losers}
    for signals in found.buffered:
        kept = {"kind": "buffered", "operation_id": op, "module": signals.module, "signal": signals.signal}
        yield kept | {"count": signals.count, "oldest": signals.oldest.isoformat() if signals.oldest else None}


def _record(instances: Instances, op: str, field: str, version: int) -> dict[str, Any]:
    """A record as code of that version has stored it."""
    try:
        module, type_name, _ = Field.parse(field)
        state = shown_state(instances, op, field, version)
    except ValueError:
        return {"operation_id": op, "module": "", "type": decode(field), "state": None}
    return {"operation_id": op, "module": module, "type": type_name, "state": state}


def _trigger(one: ArmedTrigger) -> dict[str, Any]:
    times = {"since": one.since, "deadline": one.deadline, "next_run": one.next_run}
    shown: dict[str, Any] = {"name": one.name, "kind": one.kind, "waits_for": one.waits_for}
    shown |= {name: at.isoformat() if at else None for name, at in times.items()}
    return shown | {"running": one.running, "attempts": one.attempts, "last_error": one.last_error}

"""The inactive records of states that were left or have ended, as they are stored. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Raw

from smqueue.protocols.claim import Claimed
from smqueue.records import compact_bytes, kind_of


def left_record(it: Claimed, before: Mapping[str, Any], now_us: int | Raw, commit_id: str, **more: Any) -> bytes:
    """The inactive record of a state that is left: first times kept, visits counted, who won, what the losers did."""
    active, race, won, at_ms = it.active, it.race, it.won, it.at_ms
    losers: dict[str, Any] = {}
    for name, wait in it.machine.armed.items():
        if name == won:
            continue
        loser: dict[str, Any] = {"kind": kind_of(wait)}
        losers[name] = loser
        if isinstance(wait, int):
            loser["left_ms"] = wait - at_ms
        if tries := race.get("tries:" + name):
            loser["tries"] = int(tries)
    at_us, version, visits = active.at_us, active.version, 0
    if before:
        at_us, version, visits = before.get("at", at_us), before.get("version", version), before.get("visits", 0)
    return compact_bytes(
        {
            "machine": active.machine,
            "step": active.step,
            "at": at_us,
            "exited": now_us,
            "version": version,
            "made": active.made,
            "by": commit_id,
            "visits": visits + 1,
            "won": won,
            "won_at": at_ms,
            "losers": losers,
            **more,
        }
    )


def ended_record(machine: str, step: int, version: int, now_us: int | Raw, commit_id: str) -> dict[str, Any]:
    """The inactive record of a terminal state, before its first visit is counted."""
    return {
        "machine": machine, "step": step, "at": now_us, "exited": now_us, "version": version,
        "made": commit_id, "by": commit_id, "visits": 0, "terminal": True,
    }  # fmt: skip

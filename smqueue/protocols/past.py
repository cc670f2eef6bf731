"""The inactive records of states that were left or have ended, as they are stored. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smqueue.protocols.claim import Claimed
from smqueue.records import compact, kind_of


def left_record(it: Claimed, before: Mapping[str, Any], now_us: int, commit_id: str, **more: Any) -> str:
    """The inactive record of a state that is left: first times kept, visits counted, who won, what the losers did."""
    losers: dict[str, Any] = {}
    for name, wait in it.machine.armed.items():
        if name != it.won:
            tries = it.race.get(f"tries:{name}")
            losers[name] = {"kind": kind_of(wait), **({"left_ms": wait - it.at_ms} if isinstance(wait, int) else {})}
            losers[name].update({"tries": int(tries)} if tries else {})
    return compact(
        {
            "machine": it.active.machine,
            "step": it.active.step,
            "at": before.get("at", it.active.at_us),
            "exited": now_us,
            "version": before.get("version", it.active.version),
            "made": it.active.made,
            "by": commit_id,
            "visits": before.get("visits", 0) + 1,
            "won": it.won,
            "won_at": it.at_ms,
            "losers": losers,
            **more,
        }
    )


def ended_record(machine: str, step: int, version: int, now_us: int, commit_id: str) -> dict[str, Any]:
    """The inactive record of a terminal state, before its first visit is counted."""
    return {
        "machine": machine, "step": step, "at": now_us, "exited": now_us, "version": version,
        "made": commit_id, "by": commit_id, "visits": 0, "terminal": True,
    }  # fmt: skip

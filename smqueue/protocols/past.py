"""The inactive records of states that were left or have ended, as they are stored. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Raw, Struct

from smqueue.protocols.claim import Claimed
from smqueue.records import compact_bytes, kind_of


class Left(Struct, omit_defaults=True, gc=False):
    """A state that was left, in the order in which it is stored."""

    machine: str
    step: int
    at: int
    exited: int | Raw
    version: int
    made: str
    by: str
    visits: int
    won: str
    won_at: int
    losers: dict[str, dict[str, Any]]
    to: str
    merged: str = ""


class Ended(Struct, gc=False):
    """A state in which a machine has ended, in the order in which it is stored."""

    machine: str
    step: int
    at: int | Raw
    exited: int | Raw
    version: int
    made: str
    by: str
    visits: int
    terminal: bool


def left_record(
    it: Claimed, before: Mapping[str, Any], now_us: int | Raw, commit_id: str, to: str, merged: str = ""
) -> bytes:
    """The inactive record of a state that is left: first times kept, visits counted, who won, what the losers did."""
    active, race, won, at_ms = it.active, it.race, it.won, it.at_ms
    losers: dict[str, dict[str, Any]] = {}
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
        Left(
            active.machine, active.step, at_us, now_us, version, active.made, commit_id, visits + 1, won, at_ms, losers,
            to, merged,
        )
    )  # fmt: skip


def ended_record(machine: str, step: int, version: int, now_us: int | Raw, commit_id: str) -> Ended:
    """The inactive record of a terminal state at its first visit."""
    return Ended(machine, step, now_us, now_us, version, commit_id, commit_id, 1, terminal=True)

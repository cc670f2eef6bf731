"""Signals that nobody waits for, over all operations: one that was meant for another is found among them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from smqueue.keys import Keys, decode
from smqueue.queries import moment
from smqueue.roundtrip import Steps, read

LOOKED_AT = 100
"""Of how many operations, those that were sent one last."""


@dataclass(frozen=True)
class EarlySignals:
    """Signals kept early for one operation, because nobody waits for them.

    Attributes:
        operation_id: The operation.
        module: The module instance.
        signal: Their name.
        count: How many.
        latest: When the last one came.
    """

    operation_id: str
    module: str
    signal: str
    count: int
    latest: datetime


def early_signals(keys: Keys) -> Steps[list[EarlySignals]]:
    """Those of a shard, the latest first; 2 round trips."""
    (flat,) = yield from read([], ("ZRANGE", keys.early, 0, LOOKED_AT - 1, "REV", "WITHSCORES"))
    if not isinstance(flat, list):  # a key of another type
        return []
    pairs = zip(flat[::2], flat[1::2], strict=True)
    noted = [(name, float(score) * 1000) for raw, score in pairs if (name := noted_name(raw)) is not None]
    counts = (yield from read([], *[("LLEN", keys.inbox(*name)) for name, _ in noted])) if noted else []
    return [
        EarlySignals(*name, count, moment(at_us))
        for (name, at_us), count in zip(noted, counts, strict=True)
        if isinstance(count, int) and count
    ]


def noted_name(raw: bytes) -> tuple[str, str, str] | None:
    """Operation, module and signal of a member of ``early``; ``None`` when it is none."""
    parts = raw.decode(errors="replace").split(" ")
    return (decode(parts[0]), decode(parts[1]), decode(parts[2])) if len(parts) == 3 else None

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
    noted = [(raw.decode(), int(float(score))) for raw, score in zip(flat[::2], flat[1::2], strict=True)]
    names = [(decode(op), decode(module), decode(signal)) for op, module, signal in (t.split(" ") for t, _ in noted)]
    counts = (yield from read([], *[("LLEN", keys.inbox(*name)) for name in names])) if names else []
    return [
        EarlySignals(*name, count, moment(at_ms * 1000))
        for name, (_, at_ms), count in zip(names, noted, counts, strict=True)
        if isinstance(count, int) and count
    ]

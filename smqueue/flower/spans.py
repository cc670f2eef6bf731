"""Spans of time as people write them: ``90s``, ``1.5h``, ``2d 4h``."""

from __future__ import annotations

import re
from datetime import timedelta
from decimal import Decimal

UNITS = {"d": 86_400_000_000, "h": 3_600_000_000, "min": 60_000_000, "s": 1_000_000}
"""In microseconds."""
LONGEST = 100
"""Characters."""
_PART = r"([0-9]+(?:\.[0-9]+)?) ?(s|min|h|d)"


def span_of(text: str) -> timedelta:
    """Read one; raises ValueError, whose text says what to write."""
    if len(text) > LONGEST or not re.fullmatch(rf"({_PART} ?)+", text.strip()):
        raise ValueError(f"{text[:LONGEST]!r} is no span of time: write 90s, 30min, 2h or 1d")
    try:
        return timedelta(microseconds=int(sum(Decimal(n) * UNITS[unit] for n, unit in re.findall(_PART, text))))
    except OverflowError:
        raise ValueError("too long") from None


def spelled(microseconds: int) -> str:
    """The shortest text that ``span_of`` reads as exactly so many: ``3h``, ``1d 30min``, ``0.25s``."""
    rest, parts = abs(microseconds), list[str]()
    for unit, size in UNITS.items():
        if unit != "s":
            count, rest = divmod(rest, size)
            parts += [f"{count}{unit}"] if count else []
    seconds = f"{Decimal(rest) / UNITS['s']:f}"
    parts += [f"{seconds}s"] if rest or not parts else []
    return ("-" if microseconds < 0 else "") + " ".join(parts)

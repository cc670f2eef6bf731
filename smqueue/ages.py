"""Since when the oldest machine of each state is in it, as far as a bounded look can tell.

Whoever belongs to an operation that began later than those that were looked at cannot be older than it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from smqueue.keys import Keys
from smqueue.records import Active, Field
from smqueue.roundtrip import Command, Steps, read

WALKED = 1_000
"""How many operations, the longest active first, are looked at for the oldest machine of each state."""
PAGE = 250


class Oldest(NamedTuple):
    """Since when, µs, the oldest machine of each state is in it, of the operations that were looked at."""

    since_us: Mapping[tuple[str, str], int]
    bound_us: float
    """What was not looked at is not older than this."""


def oldest(keys: Keys, walked: int) -> Steps[Oldest]:
    """The oldest machine of each state, among the operations that have been active longest."""
    since: dict[tuple[str, str], int] = {}
    bound_us = math.inf
    for start in range(0, walked, PAGE):
        (page,) = yield from read([], ("ZRANGE", keys.operations, start, start + PAGE - 1, "WITHSCORES"))
        names = [raw.decode(errors="replace") for raw in page[::2]]
        looks: list[Command] = [("HSCAN", keys.active(name), 0, "COUNT", 100) for name in names]
        for reply in (yield from read([], *looks)) if looks else []:
            for at_us, state in _entered(reply):
                since[state] = min(at_us, since.get(state, at_us))
        if len(page) < 2 * PAGE:
            return Oldest(since, math.inf)
        bound_us = float(page[-1]) * 1000  # whoever began later has no machine older than that
    return Oldest(since, bound_us)


def _entered(reply: Any) -> Iterator[tuple[int, tuple[str, str]]]:
    if isinstance(reply, Exception):
        return
    for name, value in zip(reply[1][::2], reply[1][1::2], strict=True):
        with suppress(ValueError):
            module, state, _ = Field.parse(name.decode())
            yield Active.parse(value).at_us, (module, state)

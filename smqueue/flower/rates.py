"""How fast machines come and go: the exact totals of commits, looked at every few seconds, for an hour."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from typing import NamedTuple

from smqueue.overview import Overview

EVERY_S = 5.0
KEPT_S = 3_600.0
OVER_S = 60.0
"""What a rate is the mean of."""

State = tuple[str, str]
"""Module and state."""


class Sample(NamedTuple):
    """Totals at one time."""

    at_s: float
    entered: Mapping[State, int]
    left: Mapping[State, int]
    transitions: int


class Rates:
    """Of one namespace."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque()

    def add(self, found: Overview) -> None:
        """Note the totals of an overview."""
        entered, left, transitions = Counter[State](), Counter[State](), 0
        for edge in found.edges:
            if edge.target is not None:
                entered[edge.module, edge.target] += edge.count
            if edge.source is not None:
                left[edge.module, edge.source] += edge.count
                transitions += edge.count
        at_s = found.at.timestamp()
        if self._samples and transitions < self._samples[-1].transitions:
            self._samples.clear()  # the namespace was emptied
        self._samples.append(Sample(at_s, entered, left, transitions))
        while at_s - self._samples[0].at_s > KEPT_S + EVERY_S:
            self._samples.popleft()

    @property
    def known_s(self) -> float:
        """For how long it has been looked at, in seconds."""
        return self._samples[-1].at_s - self._samples[0].at_s if self._samples else 0.0

    def per_minute(self, state: State) -> tuple[float, float] | None:
        """How many machines have come into a state and left it, a minute; ``None`` while it is not known."""
        if (pair := self._pair(OVER_S)) is None:
            return None
        now, then, minutes = pair
        come = now.entered.get(state, 0) - then.entered.get(state, 0)
        gone = now.left.get(state, 0) - then.left.get(state, 0)
        return come / minutes, gone / minutes

    @property
    def transitions(self) -> float | None:
        """Transitions a minute; ``None`` while it is not known."""
        if (pair := self._pair(OVER_S)) is None:
            return None
        now, then, minutes = pair
        return (now.transitions - then.transitions) / minutes

    def line(self, points: int = 60) -> list[float]:
        """Transitions a minute over the last hour, the oldest first; shorter while less is known."""
        if not self._samples:
            return []
        width, found = KEPT_S / points, list[float]()
        end, last = self._samples[-1].at_s, self._samples[-1]
        for sample in reversed(self._samples):
            if end - sample.at_s >= width:
                found.append((last.transitions - sample.transitions) / (last.at_s - sample.at_s) * 60)
                end, last = sample.at_s, sample
        return found[::-1]

    def _pair(self, over_s: float) -> tuple[Sample, Sample, float] | None:
        if len(self._samples) < 2:
            return None
        now = self._samples[-1]
        then = next((one for one in self._samples if now.at_s - one.at_s <= over_s), self._samples[0])
        if then is now:
            then = self._samples[-2]
        seconds = now.at_s - then.at_s
        return (now, then, seconds / 60) if seconds > 0 else None

"""A measured figure: its values, one a round, their median and spread; and what it is compared with."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


class Absent(Exception):
    """A figure cannot be had here; the text is the reason, in one line."""


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that so large a share of all is not above: ``quantile(v, 0.95)`` is their p95."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        unit: Such as ``cycles/s`` or ``ms``; ``times`` for a ratio.
        values: One a round, in order.
        least: What its median is meant to reach at least.
        most: What its median is meant not to exceed.
    """

    unit: str
    values: tuple[float, ...]
    least: float | None = None
    most: float | None = None

    @property
    def median(self) -> float:
        """Of the rounds."""
        return statistics.median(self.values)

    @property
    def met(self) -> bool | None:
        """Whether it is what it is meant to be; ``None``: nothing is said of it."""
        if self.least is None and self.most is None:
            return None
        return (self.least is None or self.median >= self.least) and (self.most is None or self.median <= self.most)

    def as_data(self) -> dict[str, Any]:
        """For the results' file."""
        data: dict[str, Any] = {"unit": self.unit, "median": self.median, "min": min(self.values)}
        data |= {"max": max(self.values), "values": list(self.values)}
        data |= {name: bound for name in ("least", "most", "met") if (bound := getattr(self, name)) is not None}
        return data

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Figure:
        """What ``as_data`` has made."""
        return cls(data["unit"], tuple(data["values"]), data.get("least"), data.get("most"))


def figure(unit: str, *values: float, least: float | None = None, most: float | None = None) -> Figure:
    """A figure of these rounds."""
    return Figure(unit, values, least, most)


def ratios(
    ours: Sequence[float], theirs: Sequence[float], least: float | None = None, most: float | None = None
) -> Figure:
    """How many times as much ours is, round by round: what slows a round down, slows both."""
    return Figure("times", tuple(a / b for a, b in zip(ours, theirs, strict=True)), least, most)


def latencies(samples: Sequence[Sequence[float]], most: Mapping[str, float] | None = None) -> dict[str, Figure]:
    """The p50, p95 and p99 of each round's samples, in ms; of no samples nothing."""
    shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
    bounds, filled = most or {}, [one for one in samples if one]
    return {
        name: figure("ms", *[quantile(one, share) for one in filled], most=bounds.get(name))
        for name, share in shares.items()
        if filled
    }


@dataclass
class Measured:
    """What one measure has found.

    Attributes:
        figures: By ``row.column``.
        titles: Of rows, for tables.
        absent: What could not be measured, and why.
        notes: What a reader of the figures has to know.
        versions: Of each system that took part.
    """

    figures: dict[str, Figure] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    versions: dict[str, dict[str, str]] = field(default_factory=dict)

    def as_data(self) -> dict[str, Any]:
        """For the results' file."""
        figures = {name: one.as_data() for name, one in self.figures.items()}
        return {
            "figures": figures, "titles": dict(self.titles), "absent": dict(self.absent), "notes": list(self.notes),
            "versions": dict(self.versions),
        }  # fmt: skip

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Measured:
        """What ``as_data`` has made."""
        figures = {name: Figure.from_data(one) for name, one in data["figures"].items()}
        return cls(figures, *(data[name] for name in ("titles", "absent", "notes", "versions")))

"""A picture of the cycles/s of all systems, as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

from benchmarks.figure import Measured
from benchmarks.report import short

WIDTH, LEFT, RIGHT, ROW, TOP, BAR = 860, 230, 190, 30, 64, 18
"""Pixels."""
OURS, THEIRS, FLOOR, INK, GRID = "#1b7f5c", "#8d99ae", "#d9a441", "#2b2d42", "#e3e6ea"
NOTHING = Measured().as_data()
FONT = f'font-family="sans-serif" fill="{INK}"'


@dataclass(frozen=True)
class Bar:
    """One system: what it is called, its rate and its spread, and what is said of it."""

    row: str
    title: str
    rate: float
    least: float
    most: float
    said: str
    colour: str


def bars(data: Mapping[str, Any]) -> list[Bar]:
    """Those of a document, the fastest first."""
    cycles, floor = (Measured.from_data(data["measures"].get(name, NOTHING)) for name in ("cycles", "floor"))
    found: list[Bar] = []
    for name, rate in (*cycles.figures.items(), *floor.figures.items()):
        row, _, column = name.partition(".")
        if column != "rate" or any(bar.row == row for bar in found):  # ours is in both
            continue
        said = ""
        if row == "ours" and (share := floor.figures.get("ours.of_the_floor")):
            said = f"{short(share.median)} of the floor"
        elif ratio := cycles.figures.get(f"{row}.ours_is"):
            said = f"ours is {short(ratio.median)} times that"
        colour = {"ours": OURS, "floor": FLOOR}.get(row, THEIRS)
        title = cycles.titles.get(row) or floor.titles.get(row, row)
        found.append(Bar(row, title, rate.median, min(rate.values), max(rate.values), said, colour))
    return sorted(found, key=lambda bar: -bar.rate)


def small(text: str) -> str:
    """A remark behind a figure."""
    return f'<tspan fill="#6b7280" font-size="11">{escape(text)}</tspan>'


def svg(shown: Sequence[Bar], caption: str) -> str:
    """Bars on a logarithmic scale, each with its spread."""
    low = 10 ** math.floor(math.log10(min(bar.least for bar in shown)))
    high = 10 ** math.ceil(math.log10(max(bar.most for bar in shown)))
    span = math.log10(high / low)

    def x(rate: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log10(rate / low) / span

    height = TOP + ROW * len(shown) + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-size="13" {FONT}>',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        '<text x="16" y="26" font-size="16" font-weight="bold">Full cycles per second</text>',
        f'<text x="16" y="46" font-size="11">{escape(caption)}</text>',
    ]
    for power in range(round(math.log10(low)), round(math.log10(high)) + 1):
        at = x(10**power)
        parts += [
            f'<line x1="{at:.1f}" y1="{TOP}" x2="{at:.1f}" y2="{height - 34}" stroke="{GRID}"/>',
            f'<text x="{at:.1f}" y="{height - 16}" text-anchor="middle" font-size="11">{10**power:,}</text>',
        ]
    for row, bar in enumerate(shown):
        y = TOP + ROW * row + 6
        middle = y + BAR / 2
        parts += [
            f'<text x="{LEFT - 8}" y="{middle + 4}" text-anchor="end">{escape(bar.title)}</text>',
            f'<rect x="{LEFT}" y="{y}" width="{max(1.0, x(bar.rate) - LEFT):.1f}" height="{BAR}" fill="{bar.colour}"/>',
            f'<line x1="{x(bar.least):.1f}" y1="{middle}" x2="{x(bar.most):.1f}" y2="{middle}" stroke="{INK}"/>',
            f'<text x="{x(bar.most) + 8:.1f}" y="{middle + 4}">{short(bar.rate)} {small(bar.said)}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])

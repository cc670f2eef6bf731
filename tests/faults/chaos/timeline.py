"""A run as a picture: one lane for each kind of fault, and what was committed below."""

from __future__ import annotations

from html import escape
from itertools import pairwise

from tests.faults.chaos.report import Report

LEFT, RIGHT, WIDTH, LANE, CURVE = 240, 20, 1200, 18, 120
"""Pixels."""


def svg(report: Report) -> str:
    """The picture."""
    data = report.as_data()
    kinds = list(data["by_kind"])
    last = max([report.seconds, *(one["until_s"] for one in data["injected"])], default=1.0)
    scale = (WIDTH - LEFT - RIGHT) / max(last, 1.0)
    top = 40 + LANE * len(kinds)
    height = top + CURVE + 40
    head = f"seed {report.seed}, appendfsync {report.fsync}: {report.operations:,} operations, {data['faults']} faults"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif">',
        '<style>text { font-size: 12px }</style><rect width="100%" height="100%" fill="white"/>',
        f'<text x="10" y="20">{head}, lost {report.lost}, doubled {report.doubled}</text>',
    ]
    for row, kind in enumerate(kinds):
        y = 34 + LANE * row
        parts.append(f'<text x="10" y="{y + 12}">{escape(kind)}</text>')
        parts.append(f'<line x1="{LEFT}" y1="{y + 8}" x2="{WIDTH - RIGHT}" y2="{y + 8}" stroke="#eee"/>')
    for one in data["injected"]:
        y = 34 + LANE * kinds.index(one["kind"])
        x, width = LEFT + one["at_s"] * scale, max(2.0, (one["until_s"] - one["at_s"]) * scale)
        told = escape(f"{one['at_s']:.1f} s: {one['kind']}, {one['detail']}; progress after {one['resumed_s']} s")
        parts.append(f'<rect x="{x:.1f}" y="{y + 2}" width="{width:.1f}" height="{LANE - 6}" fill="#b33" '
                     f'fill-opacity="0.6"><title>{told}</title></rect>')  # fmt: skip
    rates = [(at, (then - count) / (at - before)) for (before, count), (at, then) in pairwise(report.samples)
             if at > before and 0 <= at <= last and then >= count]  # fmt: skip
    most = max((rate for _, rate in rates), default=1.0) or 1.0
    points = " ".join(f"{LEFT + at * scale:.1f},{top + CURVE - rate / most * CURVE:.1f}" for at, rate in rates)
    parts.append(f'<polyline points="{points}" fill="none" stroke="#36c"/>')
    parts.append(f'<text x="10" y="{top + 14}">updates/s, up to {most:,.0f}</text>')
    parts += [f'<text x="{LEFT + at * scale:.0f}" y="{height - 12}">{at:.0f} s</text>'
              for at in (0.0, last / 4, last / 2, last * 3 / 4)]  # fmt: skip
    return "\n".join([*parts, "</svg>\n"])

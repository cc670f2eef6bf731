"""The document of a run, ``results/latest.json``, and its form for people, ``latest.md``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.figure import Figure, Measured
from benchmarks.surroundings import without_paths

RESULTS = Path(__file__).parent / "results"
DIGITS = 3
"""Significant ones: more than that no repetition would confirm."""


def document(about: Mapping[str, Any], measured: Mapping[str, Measured], what: Mapping[str, str]) -> dict[str, Any]:
    """Everything that a run has found.

    Args:
        about: The run: when, with what settings, in what surroundings.
        measured: By the name of the measure.
        what: What each of them measures: the docstring of its module.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, one in measured.items():
        absent = {title: without_paths(why) for title, why in one.absent.items()}
        found[name] = {"what": what[name], **one.as_data(), "absent": absent}
    return {**about, "measures": found}


def save(data: Mapping[str, Any], path: Path) -> None:
    """Write it, so that two runs can be compared line by line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def short(value: float) -> str:
    """A number as people read it: 12,345 and 0.0123 and 1.05."""
    if value == 0:
        return "0"
    if abs(value) >= 10 ** (DIGITS - 1):
        return f"{value:,.0f}"
    return f"{float(f'{value:.{DIGITS}g}'):g}"


def cell(one: Figure) -> str:
    """Median, spread, and whether it is what it should be."""
    low, high = short(min(one.values)), short(max(one.values))
    text = short(one.median) if low == high else f"{short(one.median)} ({low}–{high})"  # noqa: RUF001 - a range
    if one.met is None:
        return text
    bound = f"≥ {short(one.least)}" if one.least is not None else f"≤ {short(one.most or 0)}"
    return f"{text} {'✓' if one.met else '✗'} {bound}"


def table(measured: Measured) -> Iterator[str]:
    """The figures of one measure: a row for what is before the dot of a name, a column for what is behind it.

    Where most cells would be empty each figure has a row of its own.
    """
    columns: dict[str, str] = {}
    rows: dict[str, dict[str, Figure]] = {}
    for name, one in measured.figures.items():
        row, _, column = name.partition(".")
        rows.setdefault(row, {})[column] = one
        columns.setdefault(column, head(column, one.unit))
    titles = {row: measured.titles.get(row, row.replace("_", " ")) for row in rows}
    if 2 * len(measured.figures) < len(rows) * len(columns):
        yield "| | | |"
        yield "|---|---|---|"
        for row, figures in rows.items():
            for column, one in figures.items():
                yield f"| {titles[row]} | {head(column, one.unit)} | {cell(one)} |"
        return
    yield "| | " + " | ".join(columns.values()) + " |"
    yield "|---" * (len(columns) + 1) + "|"
    for row, figures in rows.items():
        cells = [cell(figures[column]) if column in figures else "" for column in columns]
        yield f"| {titles[row]} | " + " | ".join(cells) + " |"


def head(column: str, unit: str) -> str:
    """A column's head, with its unit unless that says the same."""
    name = column.replace("_", " ")
    return name if unit in ("", name) else f"{name}, {unit}"


def markdown(data: Mapping[str, Any], plot: str | None = None) -> str:
    """The whole document. ``plot`` is the file name of the picture beside it."""
    lines = ["# Benchmarks", ""]
    lines += [f"{data['at']}, {data['rounds']} rounds, {data['clients']} clients, {data['workers']}{data['note']}.", ""]
    lines += [f"- {name.replace('_', ' ')}: {value}" for name, value in data["surroundings"].items()]
    lines += ["", "Medians of the rounds, and in brackets the least and the most of them. ✓ and ✗: a goal, met or not."]
    if plot:
        lines += ["", f"![cycles/s of all systems]({plot})"]
    for name, one in data["measures"].items():
        measured = Measured.from_data(one)
        lines += ["", f"## {name}", "", one["what"], ""]
        if measured.figures:
            lines += table(measured)
        lines += ["", *[f"- {note}" for note in measured.notes]] if measured.notes else []
        if measured.absent:
            lines += ["", *[f"- **not measured: {title}**: {why}" for title, why in measured.absent.items()]]
        for system, versions in measured.versions.items():
            told = ", ".join(f"{package} {version}" for package, version in versions.items())
            lines += ["", f"- {system}: {told}"] if system == next(iter(measured.versions)) else [f"- {system}: {told}"]
    return "\n".join(lines) + "\n"

"""``python -m benchmarks.figures``: see ``--help``."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from benchmarks.model import model
from benchmarks.report import RESULTS, short

ROOT = Path(__file__).parents[1]
LATEST = RESULTS / "latest.json"
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
MARK = re.compile(r"<!-- figure: (?P<path>[^ ]+)(?: (?P<form>[^ ]+))? -->(?P<text>.*?)<!-- /figure -->")


class NoFigure(click.ClickException):
    """A page asks for a figure that there is not."""


def figure_at(data: Mapping[str, Any], path: str) -> Any:
    """The figure that a path names: ``measure.row.column.median``; of the document itself, ``surroundings.cpu``; or
    what ``model.py`` makes of them, ``model.nodes_1m``.

    Raises:
        NoFigure: There is none.
    """
    parts = path.split(".")
    known: Any = data
    if parts[0] == "model":
        known, parts = _modelled(data), parts[1:]
    elif parts[0] in data["measures"]:
        measure, name, field = parts[0], ".".join(parts[1:-1]), parts[-1]
        known, parts = data["measures"][measure]["figures"].get(name), [field]
    for part in parts:
        known = known.get(part) if isinstance(known, dict) else None
    if known is None or isinstance(known, dict | list):
        raise NoFigure(f"there is no figure {path} in the results")
    return known


def _modelled(data: Mapping[str, Any]) -> dict[str, float]:
    try:
        return model(data["measures"])
    except KeyError:  # a run of some of the measures
        return {}


def spelled(value: Any, form: str | None) -> str:
    """A figure as it stands in a page: three digits, or by a format such as ``,.0f``."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return str(value)
    return format(value, form) if form else short(value)


def copied(text: str, data: Mapping[str, Any]) -> str:
    """A page with its figures as the results have them.

    Raises:
        NoFigure: It asks for one that there is not.
    """

    def fresh(match: re.Match[str]) -> str:
        value = spelled(figure_at(data, match["path"]), match["form"])
        return match[0][: match.start("text") - match.start()] + value + "<!-- /figure -->"

    return MARK.sub(fresh, text)


@click.command(
    epilog="""\b
Examples:
  python -m benchmarks.figures           copy
  python -m benchmarks.figures --check   copy nothing; exit 1 when a page differs

A page has  <!-- figure: cycles.ours.rate.median -->1,234<!-- /figure -->  or, with a format of Python's,
<!-- figure: cycles.ours.rate.median ,.0f -->
"""
)
@click.option("--check", is_flag=True, help="Change nothing, and exit 1 when a page differs from the results.")
@click.option("--results", type=FILE, default=LATEST, help="benchmarks/results/latest.json unless given.")
@click.argument("pages", nargs=-1, type=FILE)
def main(check: bool, results: Path, pages: tuple[Path, ...]) -> None:
    """Copy figures from the results into PAGES: README.md and docs/*.md unless given."""
    data = json.loads(results.read_text())
    differs = False
    for page in pages or (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        before = page.read_text()
        after = copied(before, data)
        if after == before:
            continue
        differs = True
        if not check:
            page.write_text(after)
        click.echo(f"{page.name}: {'differs from the results' if check else 'copied'}")
    if check and differs:
        sys.exit(1)


if __name__ == "__main__":
    main()

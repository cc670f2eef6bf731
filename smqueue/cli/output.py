"""How commands print: tables and colors on a terminal, plain text elsewhere, and JSON where it is asked for."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table

COLORS = {"quarantined": "red", "unreadable": "red", "paused": "yellow", "cancelling": "yellow", "decided": "green"}
"""Of the statuses of machines."""


CONTROLS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f]")
"""Characters that a terminal may obey, C0 and C1, but the end of a line."""


def plain(text: str) -> str:
    """Text that a terminal only shows: ids and errors are others', and may hold what would move or recolor it."""
    return CONTROLS.sub("\ufffd", text)


def spelled(data: Any, indent: int | None = None) -> str:
    """JSON that a terminal only shows; the same to a program."""
    return CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(data, ensure_ascii=False, indent=indent))


class Screen(Console):
    """A console that colors, and lets through no control character of what it is given."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """What is printed."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else plain(text), style, control)


def print_array(items: Iterable[Any]) -> None:
    """Print one JSON array, an item a line, as they come."""
    separator = "["
    for item in items:
        sys.stdout.write(f"{separator}\n{spelled(item)}")
        separator = ","
    sys.stdout.write("[]\n" if separator == "[" else "\n]\n")


def table(*columns: str) -> Table:
    """A table without lines; names of columns that begin with ``>`` are of numbers."""
    made = Table(box=None, pad_edge=False)
    for column in columns:
        made.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left")
    return made


def brief(state: Any) -> str:
    """The fields of a state in one line."""
    if not isinstance(state, dict):
        return "" if state is None else json.dumps(state, ensure_ascii=False)
    return " ".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in state.items())


def colored(status: str, text: str) -> str:
    """Text in the color of a status, as rich's markup."""
    color = COLORS.get(status)
    return f"[{color}]{text}[/{color}]" if color else text


def out(what: Any) -> None:
    """Print on a terminal in its width; elsewhere plain, and no line is broken. Nothing that a terminal would obey."""
    console = Screen(highlight=False, soft_wrap=not sys.stdout.isatty())
    if not console.is_terminal:
        console = Screen(highlight=False, width=10_000)
        with console.capture() as captured:
            console.print(what)
        sys.stdout.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))
        return
    console.print(what)

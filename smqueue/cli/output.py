"""How commands print: tables and colors on a terminal, plain text elsewhere, and JSON where it is asked for."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table

COLORS = {"quarantined": "red", "unreadable": "red", "paused": "yellow", "cancelling": "yellow", "decided": "green"}
"""Of the statuses of machines."""


def print_array(items: Iterable[Any]) -> None:
    """Print one JSON array, an item a line, as they come."""
    separator = "["
    for item in items:
        sys.stdout.write(f"{separator}\n{json.dumps(item, ensure_ascii=False)}")
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
    """Print on a terminal in its width; elsewhere plain, and no line is broken."""
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    if not console.is_terminal:
        console = Console(highlight=False, width=10_000)
        with console.capture() as captured:
            console.print(what)
        sys.stdout.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))
        return
    console.print(what)

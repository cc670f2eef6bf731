"""Kinds of values on the command line, and how a shell completes them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

import click
from click.shell_completion import CompletionItem

UNITS = {"s": "seconds", "min": "minutes", "h": "hours", "d": "days"}
NUMBER = r"[0-9]+(?:\.[0-9]+)?"
PART = f"{NUMBER}(?:{'|'.join(UNITS)})"


class Span(click.ParamType[timedelta]):
    """A duration: ``90s``, ``1.5h``, ``2d4h``; a bare number is of seconds."""

    name = "span"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Read it."""
        if isinstance(value, timedelta):
            return value
        text = f"{value}s" if re.fullmatch(NUMBER, str(value)) else str(value).replace(" ", "")
        if not re.fullmatch(f"({PART})+", text):
            self.fail(f"{value!r} is no span of time: write 90s, 30min, 2h or 1d", param, ctx)
        parts = re.findall(f"({NUMBER})({'|'.join(UNITS)})", text)
        try:
            return sum((timedelta(**{UNITS[unit]: float(number)}) for number, unit in parts), timedelta())
        except OverflowError:
            self.fail(f"{value!r} is too long", param, ctx)


class Known(click.ParamType[str]):
    """A name that a deployment knows: any text, completed by a look at what there is.

    Args:
        name: What it names.
        look: The name of a function in ``smqueue.cli.completion``, imported when a shell asks.
    """

    def __init__(self, name: str, look: str) -> None:
        self.name, self._look = name, look

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:  # noqa: ARG002
        """Any text."""
        return str(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002
        """What there is that begins so; nothing when that cannot be found out at once."""
        from smqueue.cli import completion

        look: Callable[[click.Context, str], Iterable[str]] = getattr(completion, self._look)
        return [CompletionItem(value) for value in completion.quickly(lambda: look(ctx, incomplete), incomplete)]


SPAN = Span()
OPERATION = Known("operation", "operations")
MODULE = Known("module", "modules")
STATE = Known("state", "states")
SIGNAL = Known("signal", "signals")

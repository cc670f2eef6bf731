"""``--watch``: what a command shows, again whenever something has changed."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

import click
from rich.console import Group
from rich.live import Live
from rich.text import Text

from smqueue.cli.output import Screen, out, plain, spelled
from smqueue.errors import StoreUnavailable
from smqueue.executor import Executor

F = TypeVar("F", bound=Callable[..., Any])

SOONEST_S = 0.25
"""Between two looks at the least: a thousand transitions a second are not a thousand pictures."""
LATEST_S = 2.0
"""Between two looks at the most: not everything rings, and times pass."""


class View(NamedTuple):
    """What a command shows at one moment.

    Attributes:
        shown: For people: what rich prints.
        rows: For programs: JSON.
        facts: What must differ for a change; ``rows`` unless given. Not what merely passes with time.
        more: What was left out of the rows, in words; empty when nothing was.
    """

    shown: Any
    rows: Any
    facts: Any = None
    more: str = ""

    @property
    def told(self) -> str:
        """What is compared."""
        return json.dumps(self.rows if self.facts is None else self.facts, default=str)


def watch_option(command: F) -> F:
    """``--watch``, for commands that show something."""
    said = "Again whenever something changes, until Ctrl-C; elsewhere than on a terminal one line or block per change."
    return click.option("--watch", "watched", is_flag=True, help=said)(command)


def watch(look: Callable[[], View], executor: Executor, as_json: bool, operation: str | None = None) -> None:
    """Show something until Ctrl-C: at once, and again when what it shows may have changed.

    On a terminal it is redrawn, else printed once per change: with ``as_json`` as one line of JSON. A server that goes
    away is waited for.

    Args:
        look: Looks.
        executor: Its updates ring.
        as_json: Print JSON.
        operation: Only its updates.

    Raises:
        SmqueueError: From the first look; or, later on, what is no ``StoreUnavailable``.
    """
    deployment = executor.deployment
    keys = [deployment.keys(operation)] if operation is not None else deployment.all_keys()
    channels = [one.bell(operation) if operation is not None else one.bells for one in keys]
    with _until_interrupted(), deployment.driver.doorbell(*channels) as bell:
        view = look()
        with Picture() if sys.stdout.isatty() and not as_json else Lines(as_json) as shows:
            shows.show(view)
            while True:
                time.sleep(SOONEST_S)
                bell.wait(LATEST_S - SOONEST_S)
                try:
                    view = look()
                except StoreUnavailable as error:
                    shows.trouble(f"{type(error).__name__}: {error}")
                else:
                    shows.show(view)


@contextmanager
def _until_interrupted() -> Generator[None]:
    """Ctrl-C is how a watch ends, not how it fails; SIGTERM is taken likewise, so that the terminal is left whole."""
    before: Any = None
    try:
        if threading.current_thread() is threading.main_thread():
            before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        yield
    except KeyboardInterrupt:
        pass
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


class Picture:
    """On a terminal: one picture, drawn over; the last one stays."""

    def __init__(self) -> None:
        self._live = Live(console=Screen(highlight=False), auto_refresh=False, vertical_overflow="ellipsis")
        self._shown: Any = ""

    def __enter__(self) -> Picture:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, view: View) -> None:
        """Draw it."""
        self._shown = view.shown
        self._draw(Text(f"{_now()}  Ctrl-C ends it", style="dim"))

    def trouble(self, text: str) -> None:
        """Leave what was seen last, and say why it is no later."""
        self._draw(Text(f"{_now()}  {text}", style="red"))

    def _draw(self, head: Text) -> None:
        self._live.update(Group(head, self._shown), refresh=True)


class Lines:
    """Into a file or a pipe: what differs from the last time."""

    def __init__(self, as_json: bool) -> None:
        self._as_json, self._told, self._trouble = as_json, "", ""

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, view: View) -> None:
        """Print it, if it is another one."""
        self._trouble = ""
        if view.told == self._told:
            return
        first, self._told = not self._told, view.told
        if self._as_json:
            sys.stdout.write(spelled(view.rows) + "\n")
        else:
            sys.stdout.write("" if first else "\n")
            out(Text(_now()))
            out(view.shown)
        sys.stdout.flush()

    def trouble(self, text: str) -> None:
        """Say it once."""
        if not self._trouble:
            click.echo(plain(f"smqueue: {text}"), err=True)
        self._trouble = text


def _now() -> str:
    return datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")


def shown_once(view: View, as_json: bool) -> None:
    """Print a view; JSON as a program reads it."""
    if as_json:
        click.echo(spelled(view.rows, indent=1))
    else:
        out(view.shown)


__all__: Sequence[str] = ["View", "shown_once", "watch", "watch_option"]

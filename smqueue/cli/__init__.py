"""The command ``smqueue``: looking at machines, steering them, and running what runs them.

Every command exits 0; or 1 with one line on standard error that says what to do; or 2 when it was called wrongly; or
130 after Ctrl-C, quietly.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from smqueue.errors import AwaitTimeout, SmqueueError, StoreUnavailable


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit."""
    sys.exit(run(args))


def run(args: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit status.
    """
    from smqueue.cli.commands import smqueue

    try:
        code = smqueue.main(args, prog_name="smqueue", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except (click.Abort, KeyboardInterrupt):
        return 130
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "smqueue"
        return _failed(f"{error.format_message().rstrip('.')} (see {path} --help)", 2)
    except click.ClickException as error:
        return _failed(error.format_message(), 1)
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except SmqueueError as error:
        return _failed(f"{type(error).__name__}: {error}{_way_out(error)}", 1)
    except Exception as error:
        return _failed(f"{type(error).__name__}: {error}", 1)


def _way_out(error: SmqueueError) -> str:
    match error:
        case StoreUnavailable():
            return " (is it running? --url and SMQUEUE_URL say where it is)"
        case AwaitTimeout():
            return " (is a worker running? smqueue worker starts one)"
        case _:
            return ""


def _failed(text: str, code: int) -> int:
    """Say it in one line."""
    line = "; ".join(part for part in map(str.strip, text.splitlines()) if part)
    click.echo(click.style("smqueue: ", fg="red") + line, err=True)
    return code


__all__ = ["main", "run"]

"""The command ``smqueue``: looking at machines, steering them, and running what runs them.

Every command exits with an :class:`Exit`. Unless that is 0, or somebody has interrupted it, one line on standard error
says what to do; but ``verify`` and ``demo``, when they have found something wrong, have told it in their report.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any, NoReturn

import click

from smqueue.errors import AwaitTimeout, BrokerUnavailable, NoDeployment, SmqueueError, StoreRefused, StoreUnavailable


class Exit(IntEnum):
    """The exit statuses of all commands."""

    OK = 0
    """Done; also when there was nothing to show, and when a ``--watch`` was ended by Ctrl-C."""
    FAILED = 1
    """Refused, or failed; ``verify`` and ``demo``: something is wrong."""
    USAGE = 2
    """Called wrongly: an unknown option, JSON that is none, or nothing that says where the deployment is."""
    NO_SUCH_OPERATION = 3
    """The operation that was named has never been there, or is kept no longer."""
    UNAVAILABLE = 4
    """Redis, or the broker, does not answer or refuses."""
    TIMEOUT = 5
    """No worker has answered within ``--timeout``; what was asked for may still be done."""
    INTERRUPTED = 130
    """Ctrl-C, quietly."""


class NoSuchOperation(SmqueueError):
    """There is no operation {operation_id} in namespace {namespace}: smqueue list shows those that are active, and
    --namespace or SMQUEUE_NAMESPACE names another namespace."""

    fields = ("operation_id", "namespace")
    operation_id: str
    namespace: str


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit."""
    sys.exit(run(args))


def run(args: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit status.
    """
    from smqueue.cli.commands import smqueue

    return ended(lambda: smqueue.main(args, prog_name="smqueue", standalone_mode=False, color=colors()), "smqueue")


def ended(command: Callable[[], Any], path: str) -> int:
    """Call what runs a command, and say how it has ended when that is not well.

    Args:
        command: Returns the exit status, or anything that is no number for 0.
        path: How it was called.

    Returns:
        The exit status.
    """
    try:
        code = command()
        sys.stdout.flush()
        return code if isinstance(code, int) else Exit.OK
    except click.exceptions.Exit as end:  # --help
        return end.exit_code
    except (click.Abort, KeyboardInterrupt):
        return Exit.INTERRUPTED
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else path
        return _failed(f"{error.format_message().rstrip('.')} (see {path} --help)", Exit.USAGE)
    except click.ClickException as error:
        return _failed(error.format_message(), Exit.FAILED)
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.FAILED
    except SmqueueError as error:
        code, way_out = _meaning(error)
        return _failed(f"{type(error).__name__}: {error}{way_out}", code)
    except Exception as error:
        return _failed(f"{type(error).__name__}: {error}", Exit.FAILED)


def colors() -> bool | None:
    """Whether to color what is printed; ``None``: on a terminal. See https://no-color.org."""
    return False if os.getenv("NO_COLOR") else None


def _meaning(error: SmqueueError) -> tuple[Exit, str]:
    """The exit status, and what else to say."""
    match error:
        case NoSuchOperation():
            return Exit.NO_SUCH_OPERATION, ""
        case StoreUnavailable():
            return Exit.UNAVAILABLE, " (is it running? --url and SMQUEUE_URL say where it is)"
        case StoreRefused() | BrokerUnavailable():
            return Exit.UNAVAILABLE, ""
        case AwaitTimeout():
            return Exit.TIMEOUT, " (is a worker running? smqueue worker starts one)"
        case NoDeployment():
            return Exit.USAGE, ""
        case _:
            return Exit.FAILED, ""


def _failed(text: str, code: Exit) -> Exit:
    """Say it in one line."""
    from smqueue.cli.output import plain

    line = "; ".join(plain(part) for part in map(str.strip, text.splitlines()) if part)
    click.echo(click.style("smqueue: ", fg="red") + line, err=True, color=colors())
    return code


__all__ = ["Exit", "NoSuchOperation", "ended", "main", "run"]

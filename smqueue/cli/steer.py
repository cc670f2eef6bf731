"""Commands that steer: ``cancel``, ``pause``, ``resume``, ``retry``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from smqueue.cli.look import NoSuchOperation
from smqueue.cli.target import Target, deployment_options
from smqueue.executor import Executor

F = TypeVar("F", bound=Callable[..., Any])


@click.command(
    epilog="""\b
Examples:
  smqueue cancel order-1 --reason 'customer asked'
  smqueue cancel order-1 --children
"""
)
@click.argument("operation", metavar="OP")
@click.option("--reason", metavar="TEXT", help="Kept in the records.")
@click.option("--children", is_flag=True, help="Also the operations that its transitions have started.")
@deployment_options
def cancel(operation: str, reason: str | None, children: bool, target: Target) -> None:
    """End every active machine of an operation; prints how many."""
    executor = target.executor()
    _known(executor, operation)
    click.echo(f"{executor.cancel(operation, reason, children)} ended")


def scope(command: F) -> F:
    """What ``pause`` and ``resume`` are about."""
    command = click.option("--state", metavar="TYPE", help="One state of the module.")(command)
    command = click.option("--module", metavar="ID", help="A module, instead of an operation.")(command)
    return click.argument("operation", metavar="[OP]", required=False)(command)


@click.command(
    epilog="""\b
Examples:
  smqueue pause order-1
  smqueue pause --module orders --state Awaiting -A shop.app:executor
"""
)
@scope
@deployment_options
def pause(operation: str | None, module: str | None, state: str | None, target: Target) -> None:
    """Stop the transitions of an operation, or of a module or one of its states, until resume.

    Once this has returned nothing of it commits. Triggers and deadlines run on; what falls due fires at the resume.
    """
    executor = _executor(operation, module, state, target)
    executor.pause(operation, module=module, state=state)
    click.echo(f"{_named(operation, module, state)} paused")


@click.command(
    epilog="""\b
Examples:
  smqueue resume order-1
  smqueue resume --module orders --state Awaiting -A shop.app:executor
"""
)
@scope
@deployment_options
def resume(operation: str | None, module: str | None, state: str | None, target: Target) -> None:
    """Let go on what pause with the same arguments has stopped."""
    executor = _executor(operation, module, state, target)
    executor.resume(operation, module=module, state=state)
    click.echo(f"{_named(operation, module, state)} resumed")


@click.command(
    epilog="""\b
Examples:
  smqueue retry order-1 -A shop.app:executor
"""
)
@click.argument("operation", metavar="OP")
@deployment_options
def retry(operation: str, target: Target) -> None:
    """Take the machines of an operation out of quarantine; prints how many. Needs the modules."""
    executor = target.with_code("retry")
    _known(executor, operation)
    click.echo(f"{executor.retry(operation)} taken out of quarantine")


def _executor(operation: str | None, module: str | None, state: str | None, target: Target) -> Executor:
    if operation is not None:
        if module is not None or state is not None:
            raise click.UsageError("give an operation, or --module (and --state), not both")
        return target.executor()  # one that has not begun may be paused
    if module is None and state is None:
        raise click.UsageError("give an operation, or --module")
    return target.with_code("pausing a module")


def _named(operation: str | None, module: str | None, state: str | None) -> str:
    if operation is not None:
        return f"operation {operation}"
    return f"module {module}" + (f", state {state}" if state else "") if module else f"state {state}"


def _known(executor: Executor, operation: str) -> None:
    found = executor.explain(operation)
    if not (found.active or found.stored or found.buffered):
        raise NoSuchOperation(operation, executor.deployment.settings.namespace)

"""Commands that steer: ``cancel``, ``pause``, ``resume``, ``retry``."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import click

from smqueue.cli.arguments import MODULE, OPERATION, STATE
from smqueue.cli.known import must_exist
from smqueue.cli.target import Target, deployment_options
from smqueue.errors import AwaitTimeout, CancelUnfinished, InvalidInput
from smqueue.executor import Executor
from smqueue.overview import overview

F = TypeVar("F", bound=Callable[..., Any])
WITH_CODE = "with -A or --modules others are known, too"


@click.command(
    epilog="""\b
Examples:
  smqueue cancel order-1 --reason 'customer asked'
  smqueue cancel order-1 --children
  smqueue cancel order-1 --force   # where a cancel handler keeps failing
"""
)
@click.argument("operation", type=OPERATION, metavar="OP")
@click.option("--reason", metavar="TEXT", help="Kept in the records, and given to cancel handlers.")
@click.option("--children", is_flag=True, help="Also the operations that its transitions have started.")
@click.option("--force", is_flag=True, help="End all of them without their cancel handlers.")
@click.option(
    "--wait", "wait_s", type=click.FloatRange(0), default=10, show_default=True, metavar="SECONDS",
    help="For workers, where this command lacks the modules to run cancel handlers.",
)  # fmt: skip
@deployment_options
def cancel(operation: str, reason: str | None, children: bool, force: bool, wait_s: float, target: Target) -> None:
    """End every active machine of an operation; prints how many.

    Cancel handlers run here with the modules, and else in a worker. Those that fail keep their machines: workers try
    again, and this command exits with 1.
    """
    executor = target.executor()
    must_exist(executor.deployment, operation)
    try:
        ended = executor.cancel(operation, reason, children, force=force)
    except CancelUnfinished as unfinished:
        if target.has_modules or not _finished(executor, operation, wait_s):
            raise
        ended = unfinished.ended + unfinished.left
    click.echo(f"{ended} ended")


def _finished(executor: Executor, operation: str, wait_s: float) -> bool:
    """Whether workers finish what was left to them, within so many seconds."""
    with suppress(AwaitTimeout):
        executor.await_operation(operation, wait_s)
        return True
    return False


def scope(command: F) -> F:
    """What ``pause`` and ``resume`` are about."""
    command = click.option("--state", type=STATE, metavar="TYPE", help="One state of the module.")(command)
    command = click.option("--module", type=MODULE, metavar="ID", help="A module, instead of an operation.")(command)
    return click.argument("operation", type=OPERATION, metavar="[OP]", required=False)(command)


@click.command(
    epilog="""\b
Examples:
  smqueue pause order-1
  smqueue pause --module orders --state Awaiting --reason 'bank is down'
"""
)
@scope
@click.option("--reason", metavar="TEXT", help="For why, and whoever else looks.")
@deployment_options
def pause(operation: str | None, module: str | None, state: str | None, reason: str | None, target: Target) -> None:
    """Stop the transitions of an operation, or of a module or one of its states, until resume.

    Once this has returned nothing of it commits. Triggers and deadlines run on; what falls due fires at the resume.
    """
    executor = _executor(operation, module, state, target)
    executor.pause(operation, module=module, state=state, reason=reason)
    click.echo(f"{_named(operation, module, state)} paused")


@click.command(
    epilog="""\b
Examples:
  smqueue resume order-1
  smqueue resume --module orders --state Awaiting
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
  smqueue retry --module orders --state Awaiting -A shop.app:executor
  smqueue retry --all -A shop.app:executor
"""
)
@scope
@click.option("--all", "everything", is_flag=True, help="All of the namespace, after an incident.")
@deployment_options
def retry(operation: str | None, module: str | None, state: str | None, everything: bool, target: Target) -> None:
    """Take machines out of quarantine; prints how many. Needs the modules."""
    named = operation is not None or module is not None or state is not None
    if everything == named or (operation is not None and (module is not None or state is not None)):
        raise click.UsageError("give an operation, or --module (and --state), or --all")
    executor = target.with_code("retry")
    if operation is not None:
        must_exist(executor.deployment, operation)
    click.echo(f"{executor.retry(operation, module=module, state=state)} taken out of quarantine")


def _executor(operation: str | None, module: str | None, state: str | None, target: Target) -> Executor:
    if operation is not None:
        if module is not None or state is not None:
            raise click.UsageError("give an operation, or --module (and --state), not both")
        return target.executor()  # one that has not begun may be paused
    if module is None and state is None:
        raise click.UsageError("give an operation, or --module")
    if module is None and not target.has_modules:
        raise click.UsageError("give the --module of the state, too; only with -A or --modules is it looked for")
    executor = target.executor()
    if module is not None and not target.has_modules:
        _seen(executor, module, state)
    return executor


def _seen(executor: Executor, module: str, state: str | None) -> None:
    """Without its code a module is known by its machines: a typing error is not to be taken for a name."""
    found = overview(executor.deployment, walked=0)
    known = {(one.module, one.state) for one in found.states} | {(one.module, one.state) for one in found.paused}
    if module not in {name for name, _ in known}:
        names = ", ".join(sorted({str(name) for name, _ in known if name})) or "none"
        raise InvalidInput("module", f"no machine has been in a module {module} here, only in {names}; {WITH_CODE}")
    if state is not None and (module, state) not in known:
        names = ", ".join(sorted(str(name) for owner, name in known if owner == module and name))
        raise InvalidInput("state", f"no machine of module {module} has been in {state}, only in {names}; {WITH_CODE}")


def _named(operation: str | None, module: str | None, state: str | None) -> str:
    if operation is not None:
        return f"operation {operation}"
    return f"module {module}" + (f", state {state}" if state else "") if module else f"state {state}"

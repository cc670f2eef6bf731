"""``smqueue worker``: Celery's own worker, over the executor that is named or one made of modules."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import click

from smqueue.cli.target import Target, deployment_options, importing
from smqueue.imports import load_object
from smqueue.modules import Module
from smqueue.selection import select
from smqueue.worker.application import default_executor, load_executor


@click.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": ["--help"]},
    epilog="""\b
Examples:
  smqueue worker -A shop.app:executor
  smqueue worker --url redis://localhost:6379/0 --modules shop.machines:orders -c 4 -l INFO
  smqueue worker --modules shop.machines:orders --broker amqp://localhost -P threads
\b
All other options go to celery worker: celery worker --help lists them.
""",
)
@click.option(
    "--broker", metavar="URL", help="Of the message broker.  [env: CELERY_BROKER_URL; the Redis of the state]"
)
@click.argument("options", metavar="[CELERY OPTIONS]...", nargs=-1, type=click.UNPROCESSED)
@deployment_options
def worker(broker: str | None, options: tuple[str, ...], target: Target) -> None:
    """Run a Celery worker for the machines of an executor or of modules."""
    if not target.has_modules:
        raise click.UsageError("whose machines? Give -A package.module:executor, or --modules, or set SMQUEUE_MODULES")
    run_celery("worker", options, target, broker)


def run_celery(command: str, options: Sequence[str], target: Target, broker: str | None) -> None:
    """Run one of Celery's own commands on the application of a target, and exit as it does."""
    if broker:
        os.environ["CELERY_BROKER_URL"] = broker
    prepare(target)
    from celery.bin.celery import celery

    entry: Any = celery
    arguments = ["-A", "smqueue.worker.application:app", command, *options]
    status = entry.main(arguments, prog_name="celery", auto_envvar_prefix="CELERY", standalone_mode=False)
    raise SystemExit(status or 0)


def prepare(target: Target) -> None:
    """Import a target's code now, where its errors are one line, and leave it in the environment for Celery.

    Nothing is connected: a worker waits for a server that does not answer.
    """
    os.environ.update(target.environment())
    with importing(target.app or target.modules or ""):
        if target.app:
            load_executor(target.app)
            return
        for _, module in select(target.modules or ""):
            found = load_object(module, Module) if isinstance(module, str) else module
            found.resolve()
        default_executor(target.modules or "")

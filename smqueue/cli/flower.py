"""``smqueue flower``: Celery's own Flower, with machines in it."""

from __future__ import annotations

from importlib.util import find_spec

import click

from smqueue.cli.target import Target, deployment_options
from smqueue.cli.worker import run_celery
from smqueue.errors import MissingExtra


@click.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": ["--help"]},
    epilog="""\b
Examples:
  smqueue flower -A shop.app:executor
  smqueue flower --url redis://localhost:6379/0 --port=5556 --basic-auth=me:secret
  smqueue flower --modules shop.machines:orders --broker amqp://localhost
\b
All other options go to celery flower, written --option=value: celery flower --help lists them.
""",
)
@click.option(
    "--broker", metavar="URL", help="Of the message broker.  [env: CELERY_BROKER_URL; the Redis of the state]"
)
@click.argument("options", metavar="[FLOWER OPTIONS]...", nargs=-1, type=click.UNPROCESSED)
@deployment_options
def flower(broker: str | None, options: tuple[str, ...], target: Target) -> None:
    """Run Flower: Celery's workers and tasks in a browser, and the machines. It needs no modules to look at them."""
    if find_spec("flower") is None:
        raise MissingExtra("flower", "flower")
    if not target.app and not target.url:
        raise click.UsageError("where is it? Give -A package.module:executor, or --url, or set SMQUEUE_URL")
    run_celery("flower", options, target, broker)

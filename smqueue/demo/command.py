"""``smqueue demo``."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import click
from rich.console import Console

from smqueue.demo.run import run_log, run_orders
from smqueue.demo.stage import Stage

LEAST_ORDERS = 8


@click.command(
    epilog="""\b
Examples:
  smqueue demo                         2,000 orders on an embedded server
  smqueue demo --orders 500 --keep     leave it running, to look around in Flower
  smqueue demo --log helpdesk.xes.gz   replay an event log instead
  smqueue demo --url redis://localhost:6379/0
"""
)
@click.option("--orders", type=click.IntRange(LEAST_ORDERS), default=2000, show_default=True, help="How many orders.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the orders' inputs.")
@click.option("--url", help="A Redis to use, for state and broker, instead of an embedded server.")
@click.option("--keep", is_flag=True, help="Leave workers and Flower running until Ctrl-C.")
@click.option(
    "--log", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Replay an event log: .xes or .xes.gz."
)
def demo(orders: int, seed: int, url: str | None, keep: bool, log: Path | None) -> None:
    """Run machines through two real workers, kill one in the middle, and check that nothing was lost or doubled.

    Orders are paid by signal, seen at the bank by a poll, or expire at a deadline; parcels and refunds are spawned by
    transitions. In the middle one worker gets SIGKILL and the broker's queues are emptied. Exits non-zero when any
    check fails.
    """
    console = Console()
    with Stage(url) as stage:
        if stage.flower_url:
            console.print(f"Flower        {stage.flower_url}", highlight=False)
        else:
            console.print("Flower        not installed: pip install 'smqueue[flower]'", highlight=False)
        report = run_log(stage, log, console) if log else run_orders(stage, orders, seed, console)
        report.show(console)
        if report.problems:
            console.print(f"logs of the workers: {stage.logs}", highlight=False)
        if keep:
            _keep(stage, console)
    if report.problems:
        raise SystemExit(1)


def _keep(stage: Stage, console: Console) -> None:
    settings = stage.executor.deployment.settings
    console.print(f"running on: SMQUEUE_URL={settings.url} SMQUEUE_NAMESPACE={settings.namespace}", highlight=False)
    console.print(f"Flower at {stage.flower_url}; Ctrl-C ends it" if stage.flower_url else "Ctrl-C ends it")
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: stop.set())
    stop.wait()

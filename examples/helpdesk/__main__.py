"""Replay an event log: ``python -m examples.helpdesk LOG --limit 100``."""

from __future__ import annotations

from itertools import islice

import click

from examples.helpdesk import Closed, Event, Ticket, event
from examples.helpdesk.app import executor
from smqueue import StateMachine
from smqueue.demo.xes import Case, read_log
from smqueue.errors import SmqueueError


@click.command(help="Replay the cases of LOG, an event log in XES, plain or gzipped, and compare the paths with it.")
@click.argument("log", type=click.Path(exists=True, dir_okay=False))
@click.option("--limit", type=click.IntRange(min=1), help="Only the first LIMIT cases; without it, all.")
@click.option("--prefix", default="", help="Put before each case's name, so that a log can be replayed again.")
@click.option("--timeout", default=60.0, show_default=True, help="How long to wait for each case, in seconds.")
def main(log: str, limit: int | None, prefix: str, timeout: float) -> None:
    try:
        cases = [Case(prefix + case.name, case.events) for case in islice(read_log(log), limit) if case.events]
        for case in cases:
            send(case)
        different = [case.name for case in cases if path(case.name, timeout) != [e.activity for e in case.events]]
    except SmqueueError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{len(cases)} cases, {sum(len(case.events) for case in cases)} events, {len(different)} differ")
    if different:
        raise click.ClickException(f"the path differs from the log in {', '.join(different[:5])}")


def send(case: Case) -> None:
    """Open the ticket of a case and send its events; a worker takes them in this order."""
    executor.add_state_machines([StateMachine(case.name, Ticket(case.name, len(case.events)))])
    for index, happened in enumerate(case.events):
        executor.signal(case.name, event, Event(happened.activity), id=f"event-{index}")


def path(case: str, timeout: float) -> list[str]:
    """Return the activities that the history of a case has recorded, once it is closed."""
    executor.await_operation(case, timeout)
    activities: list[str] = []
    with executor.notifier.subscribe(case, timeout=timeout) as updates:
        for update in updates:
            if isinstance(update.state, Ticket | Closed) and update.state.last:
                activities.append(update.state.last)
            if update.terminal:
                break
    return activities


if __name__ == "__main__":
    main()

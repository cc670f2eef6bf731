"""``python -m tests.faults.chaos``: see ``--help``."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import click

from smqueue.errors import SmqueueError
from tests.faults.chaos.run import Plan, run
from tests.faults.chaos.strikes import KINDS
from tests.faults.chaos.timeline import svg

QUIET_S = 30.0
"""How often progress is told where there is no terminal."""


class Line:
    """One line on a terminal, rewritten; a line now and then elsewhere."""

    def __init__(self) -> None:
        self._told = 0.0

    def __call__(self, text: str) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\033[K{text[:150]}")
            sys.stderr.flush()
        elif text.endswith("\n") or time.monotonic() - self._told > QUIET_S:
            self._told = time.monotonic()
            sys.stderr.write(text.rstrip() + "\n")

    def end(self) -> None:
        """Leave the line."""
        if sys.stderr.isatty():
            sys.stderr.write("\r\033[K")


@click.command(
    epilog="""\b
Examples:
  python -m tests.faults.chaos --minutes 10 --seed 7
  python -m tests.faults.chaos --minutes 1 --fsync everysec --json > chaos.json
  python -m tests.faults.chaos --kind 'worker killed' --kind 'replies lost' --minutes 2
  python -m tests.faults.chaos --plan --seed 7        what would be done, and when
"""
)
@click.option("--minutes", type=click.FloatRange(0.1), default=10, show_default=True, help="For how long faults hit.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the load, and of the faults and their times.")
@click.option("--fsync", type=click.Choice(["always", "everysec"]), default="always", show_default=True,
              help="The server's appendfsync. Under everysec the server may lose a suffix.")  # fmt: skip
@click.option("--every", type=click.FloatRange(0.2), default=2.1, show_default=True, help="Seconds between faults.")
@click.option("--workers", type=click.IntRange(2), default=4, show_default=True, help="By turns prefork and threads.")
@click.option("--producers", type=click.IntRange(1), default=2, show_default=True, help="Processes that feed.")
@click.option("--ahead", type=click.IntRange(1), default=300, show_default=True, help="Operations active at a time.")
@click.option("--one-server", is_flag=True, help="The broker is the state's server: what hits one hits both.")
@click.option("--kind", "kinds", type=click.Choice(sorted(KINDS)), multiple=True, help="Only these faults. Repeatable.")
@click.option("--plan", "only_plan", is_flag=True, help="Show the faults of the seed, and run nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--timeline", type=click.Path(dir_okay=False, path_type=Path), help="Write a picture of the run: SVG.")
@click.option("--keep", is_flag=True, help="Keep data and logs even if all went well.")
def main(
    minutes: float, seed: int, only_plan: bool, as_json: bool, timeline: Path | None, every: float, **given: Any
) -> None:
    """Feed real workers while everything is killed, stopped, cut and starved; then compare with what must be.

    Producers add and signal orders and cases of an event log. Each commit is counted with it, so one that was lost or
    doubled shows. A seed gives the faults and their times; what is under way when one hits differs from run to run.
    Exits non-zero when anything was lost, doubled, unclean, not finished, or late to resume; data and logs are kept
    then.
    """
    plan = Plan(minutes * 60, seed, every_s=every, **given)
    if only_plan:
        for one in plan.schedule():
            click.echo(f"{one.number:4} {one.planned_s:7.1f} s  {one.kind}")
        return
    line = Line()
    try:
        report = run(plan, line)
    except (AssertionError, SmqueueError) as error:
        raise click.ClickException(str(error)) from error
    finally:
        line.end()
    if timeline is not None:
        timeline.write_text(svg(report))
    click.echo(json.dumps(report.as_data(), indent=2) if as_json else report.as_text())
    if report.problems:
        raise SystemExit(1)


if __name__ == "__main__":
    main()

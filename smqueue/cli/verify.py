"""``smqueue verify``: the audit of a live namespace."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

import click

from smqueue.audit import Problem, Report, audit
from smqueue.cli.arguments import OPERATION
from smqueue.cli.known import must_exist
from smqueue.cli.output import plain, spelled
from smqueue.cli.target import Target, deployment_options

TOLD_EVERY_S = 0.2


@click.command(
    epilog="""\b
Exits 0 when nothing is wrong (any more), 1 when something is.
\b
Examples:
  smqueue verify
  smqueue verify order-1 order-2 -A shop.app:executor
  smqueue verify --repair
  smqueue verify --json | jq '.problems[] | select(.kind == "lost-machine") | .operation'
"""
)
@click.argument("operations", type=OPERATION, metavar="[OP]...", nargs=-1)
@click.option("--repair", is_flag=True, help="Mend what can be mended, and say what was done.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@deployment_options
def verify(operations: Sequence[str], repair: bool, as_json: bool, target: Target) -> int:
    """Audit a live namespace, or some operations: records, schedules, histories, counters, and what nobody owns.

    Safe beside running workers, and in bounded batches. What seems wrong is looked at once more in one instant before
    it is reported. With modules, steps are compared with the transitions that they declare.
    """
    executor = target.executor()
    for one in operations:
        must_exist(executor.deployment, one)
    line = Line()
    try:
        found = audit(
            executor.deployment, executor.instances, operations=operations or None, repair=repair, progress=line.show
        )
    finally:
        line.clear()
    if as_json:
        click.echo(spelled(_as_json(found), indent=1))
    else:
        _tell(found, repair)
    return 0 if found.clean else 1


class Line:
    """Progress on a terminal: one line, written over."""

    def __init__(self) -> None:
        self._at, self._shown = time.monotonic(), False

    def show(self, so_far: Report) -> None:
        """Say how far it is, a few times a second."""
        if not sys.stderr.isatty() or time.monotonic() - self._at < TOLD_EVERY_S:
            return
        self._at, self._shown = time.monotonic(), True
        sys.stderr.write(f"\r\x1b[K{_counts(so_far)}"[:110])
        sys.stderr.flush()

    def clear(self) -> None:
        """Take the line away."""
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _tell(found: Report, repair: bool) -> None:
    for one in found.repaired:
        click.echo(f"{click.style('mended', fg='green')} {one.kind.value}: {_said(one.words, one.remedy)}")
    for one in found.problems:
        remedy = one.remedy if repair or not one.mendable else f"--repair: {one.remedy}"
        click.echo(f"{click.style('problem', fg='red')} {one.kind.value}: {_said(one.words, remedy)}")
    for one in found.notes:
        click.echo(f"note {one.kind.value}: {_said(one.words, one.remedy)}")
    if not found.edges_checked:
        click.echo("no modules were given: steps were not compared with declared transitions (-A or --modules)")
    click.echo(f"looked at {_counts(found) or 'nothing: the namespace is empty'}")
    mended = f", {len(found.repaired)} mended" if found.repaired else ""
    click.echo(f"{len(found.problems)} problems, {len(found.notes)} notes{mended}")


def _said(words: str, remedy: str) -> str:
    return plain(f"{words}\n  {remedy}")


def _counts(found: Report) -> str:
    return ", ".join(f"{n:,} {what}" for what, n in found.looked_at.items())


def _as_json(found: Report) -> dict[str, Any]:
    return {
        "clean": found.clean,
        "problems": [_problem(one) for one in found.problems],
        "notes": [_problem(one) for one in found.notes],
        "repaired": [_problem(one) for one in found.repaired],
        "looked_at": found.looked_at,
        "edges_checked": found.edges_checked,
        "seals_checked": found.seals_checked,
    }


def _problem(one: Problem) -> dict[str, Any]:
    told = {"kind": one.kind.value, "operation": one.operation, "record": one.record, "words": one.words}
    return {**told, "remedy": one.remedy, "mendable": one.mendable}

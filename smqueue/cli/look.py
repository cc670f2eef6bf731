"""Commands that only look: ``list``, ``show`` and ``why``. They need no modules."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

import click
from rich.console import Group
from rich.markup import escape
from rich.text import Text

from smqueue.cli import NoSuchOperation
from smqueue.cli.arguments import MODULE, OPERATION, SPAN, STATE
from smqueue.cli.live import View, watch, watch_option
from smqueue.cli.output import brief, colored, out, print_array, table
from smqueue.cli.target import Target, deployment_options
from smqueue.cli.words import span, told
from smqueue.diagnosis import diagnose
from smqueue.executor import Executor
from smqueue.explain import Explanation, explain
from smqueue.instances import Instances
from smqueue.listing import Listed, Wanted
from smqueue.rows import rows_of
from smqueue.search import active_machines, search
from smqueue.states import check_operation_id

SHOWN = 100
SOME = "At most so many machines, and states of the last so many steps; 0: all."
LOOK_S = 1.0
"""How long a look of ``list --watch`` may take."""


@click.command(
    "list",
    epilog="""\b
Examples:
  smqueue list
  smqueue list --module orders --state Awaiting --older 2h
  smqueue list --operation 'order-2026-*' --newest --limit 20
  smqueue list --quarantined --json | jq -r '.[].operation_id'
  smqueue list --state Awaiting --watch
""",
)
@click.option("--module", type=MODULE, metavar="ID", help="Only of this module.")
@click.option(
    "--operation",
    type=OPERATION,
    metavar="OP",
    help="Only of this operation, or with a * at the end of all that begin so.",
)
@click.option("--state", type=STATE, metavar="TYPE", help="Only in this state.")
@click.option("--older", type=SPAN, metavar="SPAN", help="Only those in their state for so long: 90s, 30min, 2h, 1d.")
@click.option("--quarantined", is_flag=True, help="Only those that were set aside.")
@click.option("--newest", is_flag=True, help="Operations that have become active last come first.")
@click.option(
    "--limit", type=click.IntRange(0), help=f"At most so many; 0: all.  [default: {SHOWN}; all with --json alone]"
)
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
@watch_option
@deployment_options
def list_(
    module: str | None,
    operation: str | None,
    state: str | None,
    older: timedelta | None,
    quarantined: bool,
    newest: bool,
    limit: int | None,
    as_json: bool,
    watched: bool,
    target: Target,
) -> None:
    """List active machines, the operations that are active longest first; paused and quarantined ones are active."""
    if operation is not None:
        check_operation_id(operation)
    older_s = older.total_seconds() if older is not None else None
    wanted = Wanted(operation, module, state, quarantined, older_s, newest)
    executor = target.executor()
    most = (0 if as_json and not watched else SHOWN) if limit is None else limit

    if watched:
        single = operation if operation is not None and not operation.endswith("*") else None
        watch(lambda: _page(executor, wanted, most or sys.maxsize), executor, as_json, single)
        return
    found = active_machines(executor.deployment, executor.instances, wanted)
    some = islice(found, most) if most else found
    if as_json:
        print_array(one._asdict() for one in some)
        return
    out(_table(list(some)))
    if most and next(found, None) is not None:
        click.echo(f"there are more: --limit 0 shows all, --limit N more than {most}", err=True)


def _page(executor: Executor, wanted: Wanted, most: int) -> View:
    """What is found in a second: of a million machines those that are wanted may be far between."""
    found = search(executor.deployment, executor.instances, wanted, limit=most, budget_s=LOOK_S)
    some = found.machines[:most]
    parts = [_table(some)]
    if found.cursor is not None and len(some) < most:
        parts.append(f"these are of the first {found.looked_at:,} operations: for more there is no time in a watch")
    return View(Group(*parts), [one._asdict() for one in some])


def _table(found: list[Listed]) -> Any:
    rows = table("operation", "module", "state", "fields", ">step", "since", "status")
    now = datetime.now(UTC)
    for one in found:
        since = span(now - datetime.fromisoformat(one.since)) if one.since else ""
        status = escape(one.status + (f" ({one.last_error})" if one.last_error else ""))
        names = map(escape, (one.operation_id, one.module, one.type, brief(one.state)))
        rows.add_row(*names, str(one.step), since, colored(one.status, status))
    return rows if found else "no active machines"


@click.command(
    epilog="""\b
Examples:
  smqueue show order-1
  smqueue show order-1 --watch
  smqueue show order-1 --json | jq '.[] | select(.kind == "active")'
"""
)
@click.argument("operation", type=OPERATION, metavar="OP")
@click.option("--limit", type=click.IntRange(0), help=f"{SOME}  [default: {SHOWN}; all with --json alone]")
@click.option("--json", "as_json", is_flag=True, help="One JSON array: active, inactive and buffered, by kind.")
@watch_option
@deployment_options
def show(operation: str, limit: int | None, as_json: bool, watched: bool, target: Target) -> None:
    """Show an operation: its active machines, its past states and who won there, and early signals."""
    executor, most = target.executor(), _most(0 if limit is None and as_json and not watched else limit)

    def look() -> View:
        found = explain(executor.deployment, executor.instances, operation, past=most, active=most)
        _known(found, executor)
        return _shown(found, executor.instances)

    if watched:
        watch(look, executor, as_json, operation)
        return
    view = look()
    if as_json:
        print_array(view.rows)
        if view.more:
            click.echo(view.more, err=True)
    else:
        out(view.shown)


def _shown(found: Explanation, instances: Instances) -> View:
    rows, now = list(rows_of(found, instances)), datetime.now(UTC)
    parts: list[Any] = [Text(f"operation {found.operation_id}: {_standing(found, now)}")]
    states = table("", "module", "state", "fields", ">step", "machine", "entered", "how")
    for row in rows:
        if row["kind"] == "buffered":
            continue
        entered = datetime.fromisoformat(row["since"]) if row["since"] else None
        how = row["status"] + (f" ({row['last_error']})" if row.get("last_error") else "")
        names = map(escape, (row["kind"], row["module"], row["type"], brief(row["state"])))
        when = f"{span(now - entered)} ago" if entered else ""
        states.add_row(*names, str(row["step"]), row["machine_id"], when, colored(row["status"], escape(how)))
    if states.row_count:
        parts.append(states)
    parts += [Text(f"kept early: {one.count} of {one.module}.{one.signal}") for one in found.buffered]
    if more := _more(found):
        parts.append(Text(more))
    return View(Group(*parts), rows, more=more)


def _standing(found: Explanation, now: datetime) -> str:
    standing = "active" if found.active else "finished" if found.stored or found.more_past else "not started"
    if (pause := found.paused) is None:
        return standing
    since = f" for {span(now - pause.since)}" if pause.since else ""
    return f"{standing}, paused{since}{f': {pause.reason}' if pause.reason else ''}"


def _more(found: Explanation) -> str:
    """What is not shown."""
    counts = (found.more, "more active"), (found.more_past, "more past")
    words = " and ".join(f"{number:,} {what}" for number, what in counts if number)
    return f"there are {words}: --limit 0 shows all" if words else ""


@click.command(
    epilog="""\b
Examples:
  smqueue why order-1
  smqueue why order-1 --watch
  smqueue why order-1 -A shop.app:executor
"""
)
@click.argument("operation", type=OPERATION, metavar="OP")
@click.option("--limit", type=click.IntRange(0), help=f"{SOME}  [default: {SHOWN}]")
@click.option("--json", "as_json", is_flag=True, help="One JSON array of sentences.")
@watch_option
@deployment_options
def why(operation: str, limit: int | None, as_json: bool, watched: bool, target: Target) -> None:
    """Say why an operation is where it is: what it waits for, since when, until when, and what has failed."""
    executor, most = target.executor(), _most(limit)

    def look() -> View:
        found = diagnose(executor.deployment, executor.instances, operation, past=most, active=most)
        _known(found.explanation, executor)
        lines = told(found.explanation, found.at, found.causes)
        facts = [list(rows_of(found.explanation, executor.instances)), [cause.kind for cause in found.causes]]
        return View(Text("\n".join(lines)), [line.strip() for line in lines], facts)

    if watched:
        watch(look, executor, as_json, operation)
    elif as_json:
        print_array(look().rows)
    else:
        out(look().shown)


# --- how -------------------------------------------------------------------------------------------------------------


def _most(limit: int | None) -> int | None:
    """How many machines and steps are looked at; ``None``: all."""
    return SHOWN if limit is None else limit or None


def _known(found: Explanation, executor: Executor) -> None:
    if not found.known:
        raise NoSuchOperation(found.operation_id, executor.deployment.settings.namespace)


__all__ = ["NoSuchOperation", "list_", "print_array", "show", "why"]

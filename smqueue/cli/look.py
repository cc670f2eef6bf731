"""Commands that only look: ``list``, ``show`` and ``why``. They need no modules."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from smqueue.cli.target import Target, deployment_options
from smqueue.cli.words import left, span, told
from smqueue.errors import SmqueueError
from smqueue.executor import Executor
from smqueue.explain import ArmedTrigger, Explanation
from smqueue.instances import Instances
from smqueue.keys import decode
from smqueue.records import Field
from smqueue.search import Wanted, active_machines, shown_state
from smqueue.states import check_operation_id

SHOWN = 100
COLORS = {"quarantined": "red", "unreadable": "red", "paused": "yellow", "cancelling": "yellow", "decided": "green"}


class NoSuchOperation(SmqueueError):
    """There is no operation {operation_id} in namespace {namespace}: smqueue list shows those that are active, and
    --namespace or SMQUEUE_NAMESPACE names another namespace."""

    fields = ("operation_id", "namespace")
    operation_id: str
    namespace: str


@click.command(
    "list",
    epilog="""\b
Examples:
  smqueue list
  smqueue list --module orders --state Awaiting --limit 20
  smqueue list --quarantined --json | jq -r '.[].operation_id'
""",
)
@click.option("--module", metavar="ID", help="Only of this module.")
@click.option("--operation", metavar="OP", help="Only of this operation.")
@click.option("--state", metavar="TYPE", help="Only in this state.")
@click.option("--quarantined", is_flag=True, help="Only those that were set aside.")
@click.option(
    "--limit", type=click.IntRange(0), help=f"At most so many; 0: all.  [default: {SHOWN}, or all with --json]"
)
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
@deployment_options
def list_(
    module: str | None,
    operation: str | None,
    state: str | None,
    quarantined: bool,
    limit: int | None,
    as_json: bool,
    target: Target,
) -> None:
    """List active machines, in no order; paused and quarantined ones are active."""
    if operation is not None:
        check_operation_id(operation)
    executor = target.executor()
    found = active_machines(executor.deployment, executor.instances, Wanted(operation, module, state, quarantined))
    most = (0 if as_json else SHOWN) if limit is None else limit
    some = islice(found, most) if most else found
    if as_json:
        print_array(one._asdict() for one in some)
        return
    table = Table("operation", "module", "state", "fields", "step", "since", "status", box=None, pad_edge=False)
    now = datetime.now(UTC)
    for one in some:
        since = span(now - datetime.fromisoformat(one.since)) if one.since else ""
        status = escape(one.status + (f" ({one.last_error})" if one.last_error else ""))
        names = map(escape, (one.operation_id, one.module, one.type, brief(one.state)))
        table.add_row(*names, str(one.step), since, colored(one.status, status))
    out(table if table.row_count else "no active machines")
    if most and next(found, None) is not None:
        click.echo(f"there are more: --limit 0 shows all, --limit N more than {most}", err=True)


@click.command(
    epilog="""\b
Examples:
  smqueue show order-1
  smqueue show order-1 --json | jq '.[] | select(.kind == "active")'
"""
)
@click.argument("operation", metavar="OP")
@click.option("--json", "as_json", is_flag=True, help="One JSON array: active, inactive and buffered, by kind.")
@deployment_options
def show(operation: str, as_json: bool, target: Target) -> None:
    """Show an operation: its active machines, its past states and who won there, and early signals."""
    executor, found = _explained(operation, target)
    instances = executor.instances
    if as_json:
        print_array(_rows(found, instances))
        return
    out(f"operation {escape(operation)}: {'active' if found.active else 'finished' if found.stored else 'not started'}")
    now = datetime.now(UTC)
    states = Table("", "module", "state", "fields", "step", "machine", "entered", "how", box=None, pad_edge=False)
    for row in _rows(found, instances):
        if row["kind"] == "buffered":
            continue
        entered = datetime.fromisoformat(row["since"]) if row["since"] else None
        how = row["status"] + (f" ({row['last_error']})" if row.get("last_error") else "")
        names = map(escape, (row["kind"], row["module"], row["type"], brief(row["state"])))
        when = f"{span(now - entered)} ago" if entered else ""
        states.add_row(*names, str(row["step"]), row["machine_id"], when, colored(row["status"], escape(how)))
    if states.row_count:
        out(states)
    for signals in found.buffered:
        out(escape(f"kept early: {signals.count} of {signals.module}.{signals.signal}"))


@click.command(
    epilog="""\b
Examples:
  smqueue why order-1
  smqueue why order-1 -A shop.app:executor
"""
)
@click.argument("operation", metavar="OP")
@click.option("--json", "as_json", is_flag=True, help="One JSON array of sentences.")
@deployment_options
def why(operation: str, as_json: bool, target: Target) -> None:
    """Say why an operation is where it is: what it waits for, since when, until when, and what has failed."""
    found = target.executor().diagnose(operation)
    lines = told(found.explanation, found.at, found.causes)
    if as_json:
        print_array(line.strip() for line in lines)
    else:
        for line in lines:
            click.echo(line)


# --- how -------------------------------------------------------------------------------------------------------------


def _explained(operation: str, target: Target) -> tuple[Executor, Explanation]:
    executor = target.executor()
    found = executor.explain(operation)
    if not (found.active or found.stored or found.buffered):
        raise NoSuchOperation(operation, executor.deployment.settings.namespace)
    return executor, found


def _rows(found: Explanation, instances: Instances) -> Iterable[dict[str, Any]]:
    op = found.operation_id
    for one in found.active:
        record = {"kind": "active", **_record(instances, op, one.field), "machine_id": one.machine_id, "step": one.step}
        record |= {"since": one.since.isoformat() if one.since else None, "status": one.status, "won": one.won}
        record |= {"attempts": one.attempts, "last_error": one.last_error}
        yield record | {"triggers": [_trigger(trigger) for trigger in one.triggers]}
    for field, state in found.stored:
        record = {"kind": "inactive", **_record(instances, op, field), "machine_id": state.machine_id}
        record |= {"step": state.step, "since": state.created_at.isoformat(), "until": state.exited_at.isoformat()}
        record |= {"status": left(state), "won": state.won, "visits": state.visits, "terminal": state.terminal}
        yield record | {"cancelled": state.cancelled, "merged_into": state.merged_into, "losers": state.losers}
    for signals in found.buffered:
        kept = {"kind": "buffered", "operation_id": op, "module": signals.module, "signal": signals.signal}
        yield kept | {"count": signals.count, "oldest": signals.oldest.isoformat() if signals.oldest else None}


def _record(instances: Instances, op: str, field: str) -> dict[str, Any]:
    try:
        module, type_name, _ = Field.parse(field)
        newest = instances.get(module).module.version if module in instances else 0
        state = shown_state(instances, op, field, newest)
    except ValueError:
        return {"operation_id": op, "module": "", "type": decode(field), "state": None}
    return {"operation_id": op, "module": module, "type": type_name, "state": state}


def _trigger(one: ArmedTrigger) -> dict[str, Any]:
    times = {"since": one.since, "deadline": one.deadline, "next_run": one.next_run}
    shown: dict[str, Any] = {"name": one.name, "kind": one.kind, "waits_for": one.waits_for}
    shown |= {name: at.isoformat() if at else None for name, at in times.items()}
    return shown | {"running": one.running, "attempts": one.attempts, "last_error": one.last_error}


def print_array(items: Iterable[Any]) -> None:
    """Print one JSON array, an item a line, as they come."""
    separator = "["
    for item in items:
        sys.stdout.write(f"{separator}\n{json.dumps(item, ensure_ascii=False)}")
        separator = ","
    sys.stdout.write("[]\n" if separator == "[" else "\n]\n")


def brief(state: Any) -> str:
    """The fields of a state in one line."""
    if not isinstance(state, dict):
        return "" if state is None else json.dumps(state, ensure_ascii=False)
    return " ".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in state.items())


def colored(status: str, text: str) -> str:
    """Text in the color of a status, as rich's markup."""
    color = COLORS.get(status)
    return f"[{color}]{text}[/{color}]" if color else text


def out(what: Any) -> None:
    """Print on a terminal in its width; elsewhere plain, and no line is broken."""
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    if not console.is_terminal:
        console = Console(highlight=False, width=10_000)
        with console.capture() as captured:
            console.print(what)
        sys.stdout.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))
        return
    console.print(what)

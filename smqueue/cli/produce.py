"""Commands that add and signal: through the executor where there are modules, else by asking the workers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TextIO

import click

from smqueue.cli.arguments import MODULE, OPERATION, SIGNAL, STATE
from smqueue.cli.output import print_array
from smqueue.cli.target import Target, deployment_options
from smqueue.client import Client
from smqueue.relay import machine_from_json

TIMEOUT_S = 30.0


def parsed(text: str, what: str) -> Any:
    """JSON from the command line.

    Raises:
        UsageError: It is none.
    """
    try:
        return json.loads(text)
    except ValueError as error:
        raise click.UsageError(
            f"{what} is not JSON ({error}): text needs quotes of its own, as in '\"text\"'"
        ) from None


def client_of(target: Target) -> Client:
    """A client of the workers of a deployment."""
    settings = target.executor().deployment.settings
    return Client(settings.url, settings.namespace, shards=settings.shards)


@click.command(
    epilog="""\b
Examples:
  smqueue signal order-1 payment '{"amount": 300}'
  smqueue signal order-1 packed
  smqueue signal order-1 payment '{"amount": 300}' --id payment-77    once, however often it is sent
"""
)
@click.argument("operation", type=OPERATION, metavar="OP")
@click.argument("name", type=SIGNAL)
@click.argument("payload", metavar="[JSON]", default="null")
@click.option("--module", type=MODULE, metavar="ID", help="Needed when several modules have a signal of that name.")
@click.option("--id", "signal_id", metavar="TEXT", help="A second signal of the same id is a duplicate.")
@click.option("--machine", metavar="ID", help="Only for this machine.")
@click.option(
    "--timeout", type=float, default=TIMEOUT_S, show_default=True, help="Seconds to wait for a worker, without modules."
)
@deployment_options
def signal(
    operation: str,
    name: str,
    payload: str,
    module: str | None,
    signal_id: str | None,
    machine: str | None,
    timeout: float,
    target: Target,
) -> None:
    """Send the signal NAME with a JSON payload to an operation.

    Prints DELIVERED (a machine waited for it), BUFFERED (it is kept for one) or DUPLICATE.
    """
    value = parsed(payload, "the payload")
    if target.has_modules:
        executor = target.executor()
        done = executor.signal(operation, name, value, module=module, machine=machine, id=signal_id)
    else:
        client = client_of(target)
        done = client.signal(operation, name, value, module=module, machine=machine, id=signal_id, timeout=timeout)
    click.echo(done.value)


@click.command(
    epilog="""\b
Examples:
  smqueue add order-1 orders Awaiting '{"order_id": "1", "total": 300}'
  smqueue add --file machines.json
  produce | smqueue add --file - --exist-ok
\b
A file holds one JSON array of {"operation_id": …, "module": …, "type": …, "state": {…}}.
"""
)
@click.argument("operation", metavar="OP", required=False)
@click.argument("module", type=MODULE, required=False)
@click.argument("type_name", type=STATE, metavar="TYPE", required=False)
@click.argument("state", metavar="JSON", required=False)
@click.option(
    "--file", "file", type=click.File("r", encoding="utf-8"), help="A JSON array instead; - for standard input."
)
@click.option("--exist-ok", is_flag=True, help="Leave out machines that exist already, instead of an error.")
@click.option(
    "--timeout", type=float, default=TIMEOUT_S, show_default=True, help="Seconds to wait for a worker, without modules."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON array of the ids.")
@deployment_options
def add(
    operation: str | None,
    module: str | None,
    type_name: str | None,
    state: str | None,
    file: TextIO | None,
    exist_ok: bool,
    timeout: float,
    as_json: bool,
    target: Target,
) -> None:
    """Start machines, all or none; prints their ids.

    One is given as OP MODULE TYPE JSON, several as a JSON array in a file.
    """
    if file is not None:
        if operation is not None:
            raise click.UsageError("give OP MODULE TYPE JSON, or --file, not both")
        given = parsed(file.read(), f"what {file.name} holds")
        if not isinstance(given, list):
            raise click.UsageError(f"what {file.name} holds is no JSON array of machines")
        machines: list[Any] = given
    elif state is None:
        raise click.UsageError("give OP MODULE TYPE JSON, or --file")
    else:
        fields = parsed(state, "the state")
        machines = [{"operation_id": operation, "module": module, "type": type_name, "state": fields}]
    if (bad := next((one for one in machines if not isinstance(one, Mapping)), None)) is not None:
        raise click.UsageError(f"a machine is a JSON object, not {json.dumps(bad)[:60]}")
    if target.has_modules:
        executor = target.executor()
        ids = executor.add_state_machines([machine_from_json(executor.instances, one) for one in machines], exist_ok)
    else:
        ids = client_of(target).add(machines, exist_ok, timeout=timeout)
    if as_json:
        print_array(ids)
    else:
        for machine_id in ids:
            click.echo(machine_id)

"""A producer: ``python -m examples.orders.produce --count 10`` adds orders, pays them and sees them delivered."""

from __future__ import annotations

import uuid

import click

from examples.orders import Awaiting, Payment, delivery, payment
from examples.orders.app import executor
from smqueue import StateMachine
from smqueue.errors import SmqueueError


@click.command(help="Add orders, pay them, deliver them, and wait until all of it is done.")
@click.option("--count", default=10, show_default=True, type=click.IntRange(min=1), help="How many orders.")
@click.option("--timeout", default=60.0, show_default=True, help="How long to wait for each, in seconds.")
def main(count: int, timeout: float) -> None:
    run = uuid.uuid4().hex[:8]
    states = [Awaiting(f"{run}-{number}", total=1000 + number) for number in range(count)]
    try:
        executor.add_state_machines([StateMachine(state.order_id, state) for state in states])
        for state in states:
            executor.signal(state.order_id, delivery, f"receipt of {state.order_id}")  # early: kept for the parcel
            executor.signal(state.order_id, payment, Payment(state.total), id="payment")
        for state in states:
            executor.await_operation(state.order_id, timeout)
            ends = sorted(repr(machine.state) for machine, _ in executor.get_inactive_states(state.order_id))
            click.echo(f"{state.order_id}: {', '.join(ends)}")
    except SmqueueError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()

"""Commands about code alone: ``graph`` and ``version``."""

from __future__ import annotations

import platform
from importlib.metadata import version as version_of

import click

from smqueue.cli.arguments import MODULE
from smqueue.cli.target import Target, deployment_options, importing
from smqueue.executor import Executor
from smqueue.graph import Counts, Here
from smqueue.imports import load_object
from smqueue.modules import Module
from smqueue.overview import overview


@click.command(
    epilog="""\b
Examples:
  smqueue graph shop.machines:orders
  smqueue graph shop.machines:orders --format svg > orders.svg
  smqueue graph shop.machines:orders --format dot | dot -Tpdf > orders.pdf
  smqueue graph orders -A shop.app:executor --counts
\b
svg needs: pip install 'smqueue[drawing]'
"""
)
@click.argument("module", type=MODULE)
@click.option("--format", "form", type=click.Choice(["mermaid", "dot", "svg"]), default="mermaid", show_default=True)
@click.option(
    "--counts", is_flag=True, help="How many machines are in each state, and how often each transition was made."
)
@deployment_options
def graph(module: str, form: str, counts: bool, target: Target) -> None:
    """Draw the states and transitions of MODULE: package.module:object, or the id of one that an executor has."""
    if ":" in module:
        with importing(module):
            found = load_object(module, Module)
            found.resolve()
        module_id = found.name
    else:
        found, module_id = target.with_code("the id of a module").instances.get(module).module, module
    drawn = found.graph()
    current, made = _counts(target.executor(), module_id) if counts else ({}, {})
    if form == "svg":
        from smqueue.drawing import svg

        click.echo(svg(drawn, current=current, counts=made if counts else None), nl=False)
    else:
        seen = drawn.with_seen(current, made)
        click.echo(seen.mermaid(current, made) if form == "mermaid" else seen.dot(current, made), nl=False)
    for finding in drawn.check():
        click.echo(f"note: {finding}", err=True)


def _counts(executor: Executor, module_id: str) -> tuple[Here, Counts]:
    found = overview(executor.deployment, walked=0)
    current = {one.state: one.active for one in found.states if one.module == module_id and one.active}
    made = {
        (one.source, one.target, one.trigger): one.count
        for one in found.edges
        if one.module == module_id and one.source and one.target and not one.trigger.startswith("+")
    }
    return current, made


@click.command(
    epilog="""\b
Examples:
  smqueue version
"""
)
def version() -> None:
    """Show the versions of smqueue and of what it stands on."""
    click.echo(f"smqueue {version_of('smqueue')}")
    parts = [f"{name} {version_of(name)}" for name in ("celery", "kombu", "redis")]
    click.echo(f"python {platform.python_version()}, {', '.join(parts)}")

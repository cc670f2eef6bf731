"""Commands about code alone: ``graph`` and ``version``."""

from __future__ import annotations

import platform
from importlib.metadata import version as version_of

import click

from smqueue.cli.target import Target, deployment_options, importing
from smqueue.graph import Graph
from smqueue.instances import load_object
from smqueue.modules import Module


@click.command(
    epilog="""\b
Examples:
  smqueue graph shop.machines:orders
  smqueue graph shop.machines:orders --format dot | dot -Tsvg > orders.svg
  smqueue graph orders -A shop.app:executor
"""
)
@click.argument("module")
@click.option("--format", "form", type=click.Choice(["mermaid", "dot"]), default="mermaid", show_default=True)
@deployment_options
def graph(module: str, form: str, target: Target) -> None:
    """Draw the states and transitions of MODULE: package.module:object, or the id of one that an executor has."""
    if ":" in module:
        with importing(module):
            found = load_object(module, Module)
            found.resolve()
    else:
        found = target.with_code("the id of a module").instances.get(module).module
    drawn = found.graph()
    click.echo(drawn.mermaid() if form == "mermaid" else dot(drawn), nl=False)
    for finding in drawn.check():
        click.echo(f"note: {finding}", err=True)


def dot(drawn: Graph) -> str:
    """The graph in Graphviz's language."""
    lines = ["digraph {", "    rankdir=LR; node [shape=box, style=rounded];"]
    for node in drawn.nodes:
        extra = " [peripheries=2]" if node in drawn.terminal else " [style=dashed]" if node in drawn.dynamic else ""
        lines.append(f"    {_quoted(node)}{extra};")
    for edge in drawn.edges:
        label = _quoted(f"{edge.handler} ({edge.trigger_text})")
        lines.append(f"    {_quoted(edge.source)} -> {_quoted(edge.target)} [label={label}];")
    return "\n".join([*lines, "}"]) + "\n"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


@click.command()
def version() -> None:
    """Show the versions of smqueue and of what it stands on."""
    click.echo(f"smqueue {version_of('smqueue')}")
    parts = [f"{name} {version_of(name)}" for name in ("celery", "kombu", "redis")]
    click.echo(f"python {platform.python_version()}, {', '.join(parts)}")

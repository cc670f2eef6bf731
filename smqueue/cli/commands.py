"""The group of all commands; each is imported when it is called, so that none waits for what it does not need."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click
from click.shell_completion import CompletionItem

COMMANDS = {
    "demo": "smqueue.demo.command:demo",
    "dev": "smqueue.cli.dev:dev",
    "worker": "smqueue.cli.worker:worker",
    "flower": "smqueue.cli.flower:flower",
    "list": "smqueue.cli.look:list_",
    "show": "smqueue.cli.look:show",
    "why": "smqueue.cli.look:why",
    "stats": "smqueue.cli.stats:stats",
    "metrics": "smqueue.cli.metrics:metrics",
    "verify": "smqueue.cli.verify:verify",
    "add": "smqueue.cli.produce:add",
    "signal": "smqueue.cli.produce:signal",
    "cancel": "smqueue.cli.steer:cancel",
    "pause": "smqueue.cli.steer:pause",
    "resume": "smqueue.cli.steer:resume",
    "retry": "smqueue.cli.steer:retry",
    "graph": "smqueue.cli.code:graph",
    "functions": "smqueue.cli.functions:functions",
    "completion": "smqueue.cli.completion:completion",
    "version": "smqueue.cli.code:version",
}
"""In the order in which they are listed."""


class Commands(click.Group):
    """Commands by name."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """All of them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import one."""
        if (place := COMMANDS.get(cmd_name)) is None:
            return None
        module, _, name = place.partition(":")
        found: Any = getattr(import_module(module), name)
        found.name = cmd_name
        return found

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Names alone: for their help texts all of them would have to be imported."""
        names = [CompletionItem(name) for name in COMMANDS if name.startswith(incomplete)]
        return names + click.Command.shell_complete(self, ctx, incomplete)


@click.command(
    cls=Commands,
    invoke_without_command=True,
    context_settings={"max_content_width": 110},
    epilog="""\b
Commands find the deployment by -A package.module:executor; or by --url, --namespace and --modules; or by
SMQUEUE_URL, SMQUEUE_NAMESPACE and SMQUEUE_MODULES. What only looks needs no modules.
\b
Examples:
  smqueue demo
  smqueue dev --modules shop.machines:orders
  smqueue list --url redis://localhost:6379/0 --quarantined
  smqueue why order-1
""",
)
@click.pass_context
def smqueue(ctx: click.Context) -> None:
    """Durable state machines on Celery and Redis."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())

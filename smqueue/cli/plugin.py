"""``celery -A … machines …``: the same commands, for the executor on the application that Celery has loaded.

Celery imports this for each of its commands, so that nothing is imported here that is not needed to be listed.
"""

from __future__ import annotations

import copy
import os
import re
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

from smqueue.cli.commands import COMMANDS
from smqueue.flower import plug

if TYPE_CHECKING:
    from smqueue.cli.target import Target

LEFT_OUT = frozenset({"completion", "demo", "dev", "flower", "version", "worker"})
"""What Celery has itself, and what is about no application."""
GIVEN = frozenset({"app", "url", "modules"})
"""Options that an application leaves no choice of."""

with suppress(ImportError):  # of a Flower that cannot be imported, which is another's to tell
    plug()  # Celery imports the command `flower` beside this one, for each of its commands, too


class Machines(click.Group):
    """The commands, each imported when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """All of them."""
        return [name for name in COMMANDS if name not in LEFT_OUT]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """One, without the options that an application leaves no choice of."""
        if cmd_name not in self.list_commands(ctx):
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        found: Any = copy.copy(getattr(import_module(module), name))
        found.name = cmd_name
        found.params = [_told(param) for param in found.params if param.name not in GIVEN]
        examples = re.sub(r" (-A|--url|--modules) \S+", "", found.epilog or "")
        found.epilog = re.sub(r"\bsmqueue (?=[a-z])", "celery -A shop.app machines ", examples)
        return found

    def invoke(self, ctx: click.Context) -> Any:
        """Run one; it ends as in ``smqueue``, with one line for an error."""
        from smqueue.cli import ended

        ctx.exit(ended(lambda: super(Machines, self).invoke(ctx), ctx.command_path))


def _told(param: click.Parameter) -> click.Parameter:
    """With what an option means here."""
    if param.name != "namespace":
        return param
    namespace: Any = copy.copy(param)
    namespace.help = "Which executor, if several were built on the application."
    return namespace


@click.command(
    cls=Machines,
    invoke_without_command=True,
    context_settings={"max_content_width": 110},
    epilog="""\b
They are about the executor that was built on the application; of several --namespace chooses.
\b
Examples:
  celery -A shop.app machines list --quarantined
  celery -A shop.app machines why order-1
  celery -A shop.app machines stats --watch
""",
)
@click.pass_context
def machines(ctx: click.Context) -> None:
    """State machines: look at them, steer them, feed them (smqueue)."""
    from smqueue.cli.target import INSTALLED

    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
    if getattr(ctx.obj, "no_color", False):
        os.environ.update(NO_COLOR="1")  # rich heeds it
        ctx.color = False

    def target(namespace: str | None) -> Target:
        from smqueue.cli.installed import Installed

        return Installed(None, None, namespace, None, ctx.obj.app)

    ctx.meta[INSTALLED] = target

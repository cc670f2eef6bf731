"""``smqueue completion``, and what is looked up when a shell asks.

A look is bounded in time and size, and silent: a tab that finds no server, or no code, completes nothing.
"""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from typing import Any

import click
from click.shell_completion import get_completion_class

from smqueue.cli.target import Target, target_of

LONGEST_S = 2.0
"""For how long a tab may take; to import an application is most of it."""
MOST = 100
"""How many are offered."""
WORD = r"""[^\s'"\\`$\x00-\x1f\x7f-\x9f]+"""
NEWEST = 1_000
"""How many operations are looked at in each shard: those that have become active last."""

MACHINES = 20
"""How many machines of an operation are looked at for what they wait for."""


@click.command(
    epilog="""\b
Examples:
  eval "$(smqueue completion bash)"                                      in ~/.bashrc
  eval "$(smqueue completion zsh)"                                       in ~/.zshrc
  smqueue completion fish > ~/.config/fish/completions/smqueue.fish
""",
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what makes a shell complete commands, options, operations, modules, states and signals.

    Names are looked up where SMQUEUE_URL, or the options before the cursor, say; for two seconds at most.
    """
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(click.Command("smqueue"), {}, "smqueue", "_SMQUEUE_COMPLETE").source())


def quickly(look: Callable[[], Iterable[str]], incomplete: str) -> list[str]:
    """What a look finds in time that begins so and is a word to a shell; what it prints or raises is lost."""
    found: list[str] = []

    def run() -> None:
        with suppress(BaseException):  # also that the user's code exits
            # One by one: what was found before the time ran out counts.
            found.extend(value for value in look() if value.startswith(incomplete) and re.fullmatch(WORD, value))

    thread = threading.Thread(target=run, daemon=True)
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        thread.start()
        thread.join(LONGEST_S)
    return list(dict.fromkeys(found))[:MOST]


def operations(ctx: click.Context, incomplete: str) -> Iterator[str]:
    """Active operations: of the newest; and when none of those begins so, of all, as far as there is time."""
    from smqueue.listing import Wanted
    from smqueue.search import search

    executor = _target(ctx).executor()
    deployment, found = executor.deployment, False
    for keys in deployment.all_keys():
        for raw in deployment.driver.command("ZRANGE", keys.operations, 0, NEWEST - 1, "REV"):
            name = raw.decode()
            if name.startswith(incomplete):
                found = True
                yield name
    if not found and incomplete:
        for one in search(deployment, executor.instances, Wanted(f"{incomplete}*"), limit=MOST).machines:
            yield one.operation_id


def modules(ctx: click.Context, incomplete: str) -> Iterator[str]:  # noqa: ARG001
    """Ids of modules."""
    target = _target(ctx)
    if target.has_modules:
        yield from target.executor().instances.ids()
    else:
        yield from (module for module, _ in _states(target))


def states(ctx: click.Context, incomplete: str) -> Iterator[str]:  # noqa: ARG001
    """Names of states, of the module that was given before."""
    target, wanted = _target(ctx), ctx.params.get("module")
    if target.has_modules:
        instances = target.executor().instances
        for module in [wanted] if wanted else instances.ids():
            yield from instances.get(module).module.graph().nodes
    else:
        yield from (state for module, state in _states(target) if wanted in {None, module})


def signals(ctx: click.Context, incomplete: str) -> Iterator[str]:  # noqa: ARG001
    """Names of signals: what the operation that was given waits for, then all that modules declare."""
    from smqueue.explain import explain

    executor, operation = _target(ctx).executor(), ctx.params.get("operation")
    if operation:
        for machine in explain(executor.deployment, executor.instances, operation, past=0, active=MACHINES).active:
            yield from (one.waits_for.removeprefix("signal ") for one in machine.triggers if one.kind == "signal")
    for module in executor.instances.ids():
        yield from executor.instances.get(module).module.signals


def _states(target: Target) -> list[tuple[str, str]]:
    """Modules and states that machines are or were in."""
    from smqueue.overview import overview

    return [(one.module, one.state) for one in overview(target.executor().deployment, walked=0).states]


def _target(ctx: click.Context) -> Target:
    given: dict[str, Any] = {name: ctx.params.get(name) for name in ("app", "url", "namespace", "modules")}
    return target_of(**given)

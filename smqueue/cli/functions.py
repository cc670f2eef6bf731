"""``smqueue functions``: the library by which redis-cli or a gateway produces with one command."""

from __future__ import annotations

import click

from smqueue.cli.target import Target, deployment_options


@click.command(
    epilog="""\b
Examples:
  smqueue functions load --url redis://localhost:6379/0
  smqueue functions show | redis-cli -x FUNCTION LOAD REPLACE
\b
And then, where there is no smqueue:
  redis-cli FCALL smqueue_signal 1 '{smqueue.0}:requests' order-1 payment '{"amount": 300}'
  redis-cli BLPOP WHAT-THAT-HAS-RETURNED 30
"""
)
@click.argument("what", type=click.Choice(["load", "remove", "show"]))
@deployment_options
def functions(what: str, target: Target) -> None:
    """Redis functions that add and signal, for producers without a library.

    "load" puts them on the server, or on each primary of a cluster, in place of earlier ones; they stay there over
    restarts. "remove" removes them. Both print where. "show" prints the functions.
    """
    from smqueue.drivers import functions as library

    if what == "show":
        click.echo(library.text(), nl=False)
        return
    # An executor would look at its namespace, which is none of the business of whoever may load functions.
    url = target.url if target.url and not target.app else target.executor().deployment.settings.url
    for server in (library.load if what == "load" else library.remove)(url):
        click.echo(server)

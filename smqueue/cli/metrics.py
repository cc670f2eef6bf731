"""``smqueue metrics``: a namespace for Prometheus, and what Grafana and Prometheus are to make of it."""

from __future__ import annotations

import signal
import threading
from importlib.util import find_spec

import click

from smqueue.cli.target import Target, deployment_options
from smqueue.errors import MissingExtra


@click.command(
    epilog="""\b
Examples:
  smqueue metrics                                                 on http://127.0.0.1:9109/metrics
  smqueue metrics --address 0.0.0.0 --port 9110
  smqueue metrics --once | grep smqueue_problem
  smqueue metrics --alerts > smqueue-alerts.yml                   under rule_files of prometheus.yml
  smqueue metrics --dashboard > smqueue-dashboard.json            to be imported into Grafana
\b
One is enough for a namespace, whatever the number of its workers. Flower has the same under its /metrics.
"""
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=9109, show_default=True, help="To listen on; 0: a free one."
)
@click.option("--address", default="127.0.0.1", show_default=True, help="To listen on; there is no login.")
@click.option("--once", is_flag=True, help="Print the metrics, and serve nothing.")
@click.option("--dashboard", is_flag=True, help="Print a dashboard for Grafana.")
@click.option("--alerts", is_flag=True, help="Print alert rules for Prometheus.")
@deployment_options
def metrics(port: int, address: str, once: bool, dashboard: bool, alerts: bool, target: Target) -> None:
    """Serve the metrics of a namespace to Prometheus, all workers together. Needs no modules."""
    if find_spec("prometheus_client") is None:
        raise MissingExtra("metrics", "prometheus_client")
    from prometheus_client import generate_latest, start_http_server

    from smqueue import metrics as served

    if sum((once, dashboard, alerts)) > 1:
        raise click.UsageError("give one of --once, --dashboard and --alerts")
    if dashboard or alerts:
        click.echo(served.dashboard() if dashboard else served.alerts(), nl=False)
        return
    registry = served.registry(target.executor())
    if once:
        click.echo(generate_latest(registry).decode(), nl=False)
        return
    try:
        server, thread = start_http_server(port, address, registry)
    except OSError as error:
        raise click.ClickException(
            f"cannot listen on {address}:{port}: {error.strerror}; --port and --address say where"
        ) from None
    click.echo(f"metrics: http://{address}:{server.server_port}/metrics (Ctrl-C ends)")
    ended = threading.Event()

    def end(_signal: int, _frame: object) -> None:
        ended.set()

    signal.signal(signal.SIGTERM, end)  # the first process of a container would not hear it
    try:
        ended.wait()
    finally:
        server.shutdown()
        thread.join()

"""A namespace in Prometheus' terms, as it stands in Redis: one scrape tells of all its workers and machines.

``pip install 'smqueue[metrics]'``; Flower brings what it takes. ``smqueue metrics`` serves it, Flower has it under its
``/metrics``, and :func:`registry` is for an endpoint of your own.
"""

from __future__ import annotations

from importlib.resources import files

from prometheus_client import REGISTRY, CollectorRegistry

from smqueue.executor import Executor
from smqueue.metrics.collector import MachineCollector

ON_A_LOOP_S = 0.25
"""How long an event loop may be kept waiting for a scrape; then it gets the one before."""

_registered: dict[CollectorRegistry, MachineCollector] = {}


def registry(executor: Executor) -> CollectorRegistry:
    """A registry with nothing in it but what is told of an executor's namespace.

    Args:
        executor: Whose; it needs no modules. Nothing is asked of Redis before the first scrape.

    Returns:
        What ``prometheus_client`` serves: ``generate_latest(registry(executor))``, ``make_asgi_app(…)``. Make it once:
        the round that looks for damaged machines goes on from scrape to scrape.

    Raises:
        NoDeployment: Nothing says where the namespace is.
    """
    made = CollectorRegistry()
    made.register(MachineCollector(executor))
    return made


def register(executor: Executor, to: CollectorRegistry = REGISTRY) -> MachineCollector:
    """Add an executor's namespace to a registry that an event loop serves, such as Flower's; again does nothing.

    The look at Redis is another thread's: a loop waits for it a quarter of a second at most, then it gets the last one.

    Args:
        executor: Whose namespace.
        to: The registry; default that which ``prometheus_client`` serves by itself.

    Returns:
        The collector, whose ``look()``, called on another thread before, spares the loop all waiting.

    Raises:
        NoDeployment: Nothing says where the executor's namespace is.
    """
    if (collector := _registered.get(to)) is None:
        collector = _registered[to] = MachineCollector(wait_s=ON_A_LOOP_S)
        to.register(collector)
    collector.add(executor)
    return collector


def dashboard() -> str:
    """A dashboard for Grafana, JSON: import it, and choose the data source that is Prometheus."""
    return _file("grafana-dashboard.json")


def alerts() -> str:
    """Rules for Prometheus, YAML: one alert for each cause of trouble, with what to do about it."""
    return _file("alerts.yml")


def _file(name: str) -> str:
    return files(__name__).joinpath(name).read_text(encoding="utf-8")


__all__ = ["alerts", "dashboard", "register", "registry"]

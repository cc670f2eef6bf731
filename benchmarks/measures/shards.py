"""Full cycles/s with 1, 2 and 4 shards on one server, and with three shards on a cluster of three nodes.

All of it shares this machine's cores, so what shards cost is seen here, and not what they bring. The cluster's nodes
are reached by TCP on loopback.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator

from benchmarks.figure import Absent, Measured, figure, ratios
from benchmarks.measures.cycles import without_samples
from benchmarks.settings import Settings
from benchmarks.systems.ours import Ours

SHARDS = (1, 2, 4)
NODES = 3


def measure(settings: Settings) -> Measured:
    """They take turns in each round."""
    settings = without_samples(settings)
    rates: dict[str, list[float]] = {}
    found = Measured()
    for number in range(settings.rounds):
        for shards in SHARDS:
            one_round(settings, Ours(settings, shards), f"shards_{shards}", rates)
        if "cluster" not in found.absent:
            try:
                with cluster(settings) as system:
                    one_round(settings, system, "cluster", rates)
            except (Absent, AssertionError, ImportError) as error:
                found.absent["cluster"] = str(error)
        settings.say(f"round {number + 1}: {', '.join(f'{name} {some[-1]:,.0f}/s' for name, some in rates.items())}")
    found.titles = {f"shards_{shards}": f"{shards} shard{'s' if shards > 1 else ''}, one server" for shards in SHARDS}
    found.titles["cluster"] = f"{NODES} shards, a cluster of {NODES} nodes"
    for name, some in rates.items():
        found.figures[f"{name}.rate"] = figure("cycles/s", *some)
        if name != "shards_1" and len(some) == settings.rounds:
            found.figures[f"{name}.of_one"] = ratios(some, rates["shards_1"])
    return found


def one_round(settings: Settings, system: Ours, name: str, rates: dict[str, list[float]]) -> None:
    """Add a round's cycles/s to those of this name."""
    took = system.round(settings)
    rates.setdefault(name, []).append(took["cycles"] / took["seconds"])


@contextlib.contextmanager
def cluster(settings: Settings) -> Generator[Ours]:
    """Three nodes, as durable as the single server is; the broker is a server of its own."""
    from tests.deployments import ValkeyCluster

    with ValkeyCluster() as nodes:
        for node in nodes.nodes:
            node.client.config_set("appendfsync", "everysec")
        yield Ours(settings, NODES, nodes.url)

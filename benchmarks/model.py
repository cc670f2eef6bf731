"""What a deployment needs, by what one machine has measured: the arithmetic behind ``docs/scaling.md``.

A cycle is an add, a signal and a transition. Its CPU time in the server, the workers and the producers is constant in
how much waits and in how long histories are, as the measures ``parked`` and ``history`` show. So each of the three is
so many cores for so many cycles a second, planned to be busy for a share of the time; and memory is bytes by machines.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

BUSY = 0.7
"""The share of a core that is planned for: queues grow without bound near 1, and a rewrite of the file wants some."""
NODE_GIB = 16
"""Data of one node, GiB: while its file is rewritten or a replica made anew it may need as much again."""
RATES = {"1k": 1_000, "100k": 100_000}
MACHINES = {"1m": 1_000_000, "100m": 100_000_000}
GIB = 1024**3


def model(measures: Mapping[str, Any]) -> dict[str, float]:
    """Cores, nodes and GiB, by name.

    Args:
        measures: Those of a document: ``cycles`` and ``parked`` at least.

    Returns:
        ``busy`` (share), ``most`` (cycles/s of these cores, if all of their time were used) and ``used`` (the share
        that was); for each rate ``servers_1k``, ``workers_1k``, ``producers_1k``: cores, each a process; for each count
        of machines ``gib_1m``, ``nodes_1m``; for each thousand idle workers ``idle_commands`` (commands/s).
    """
    cycles, parked = measures["cycles"]["figures"], measures["parked"]["figures"]
    spent_us = {who: float(cycles[f"ours.cpu_{who}"]["median"]) for who in ("server", "workers", "clients")}
    most = 2e6 / sum(spent_us.values())
    found = {"busy": BUSY, "most": most, "used": cycles["ours.rate"]["median"] / most}
    for name, rate in RATES.items():
        for who, key in (("servers", "server"), ("workers", "workers"), ("producers", "clients")):
            found[f"{who}_{name}"] = math.ceil(rate * spent_us[key] / 1e6 / BUSY)
    for name, count in MACHINES.items():
        found[f"gib_{name}"] = gib = count * parked["redis.bytes"]["median"] / GIB
        found[f"nodes_{name}"] = math.ceil(gib / NODE_GIB)
    found["idle_commands"] = 1_000 * parked["idle.commands"]["median"]
    return found

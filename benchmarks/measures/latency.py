"""Milliseconds from signal to commit: alone, and at 25, 50 and 75 % of what the system can do.

The loads are open: signals are meant to be sent at random instants (exponential gaps), whether or not earlier ones have
been answered, and each latency counts from that instant until a message that the commit publishes is read. So a stall
is felt by all that should have been sent meanwhile. Capacity is what signals and commits do in the same round, with all
clients busy. All clients are one process. What one exchange with the server takes on this machine stands beside it: a
signal alone has four of them in a row (the signal, the hint, the claim, the commit), and Celery's work. Steal is the
share of the processors' time that the hypervisor took meanwhile, for other machines: it tells on the latencies at once.
"""

from __future__ import annotations

from typing import Any

from benchmarks.figure import Measured, figure, latencies
from benchmarks.settings import Settings
from benchmarks.stage import Stage
from benchmarks.systems.ours import driver_of
from benchmarks.systems.ours_driver import SHARES
from benchmarks.systems.system import drive

ALONE = {"p50": 2.2, "p95": 3.0}
HALF = {"p95": 15.0}
"""Goals, in ms."""


def measure(settings: Settings) -> Measured:
    """One stage a round."""
    sizes = settings.sizes
    amount = {
        "cycles": sizes.machines, "clients": settings.clients, "samples": sizes.samples, "warm": sizes.warm,
        "seconds": sizes.open_s,
    }  # fmt: skip
    rounds: list[dict[str, Any]] = []
    for number in range(settings.rounds):
        with Stage(settings.workers) as stage:
            rounds.append(drive("latency", driver_of(stage), amount))
        settings.say(f"round {number + 1}: capacity {rounds[-1]['capacity']:,.0f} signals/s")
    found = Measured()
    for share in ("alone", *map(str, SHARES)):
        row = share if share == "alone" else f"{float(share):.0%}".replace("%", "_percent")
        goals = {"alone": ALONE, "0.5": HALF}.get(share)
        if share != "alone":
            found.titles[row] = f"at {float(share):.0%} of capacity"
            found.figures[f"{row}.rate"] = figure("signals/s", *[float(share) * one["capacity"] for one in rounds])
        for name, one in latencies([one[share] for one in rounds], goals).items():
            found.figures[f"{row}.{name}"] = one
        found.figures[f"{row}.steal"] = figure("%", *[one["steal"][share] for one in rounds])
    found.titles["ping"] = "a PING of the server, after a rest"
    found.figures |= {f"ping.{name}": one for name, one in latencies([one["ping"] for one in rounds]).items()}
    found.figures["capacity.rate"] = figure("signals/s", *[one["capacity"] for one in rounds])
    return found

"""Full cycles/s, ours and the peers', with 50 calls under way at a time; and the latency of one alone.

One cycle: start a machine that waits for a payment signal or a 30-minute timeout; signal; one step runs; it is seen
finished. Each round starts every system anew. Ours is run before each peer, and a ratio is between two neighbours, so
that a slow minute of the machine falls on both.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

from benchmarks.figure import Absent, Measured, figure, latencies, ratios
from benchmarks.settings import Settings
from benchmarks.systems import PEERS
from benchmarks.systems.ours import Ours
from benchmarks.systems.system import System
from smqueue.errors import SmqueueError

OURS = "ours"
P50_MS, P95_MS = 2.2, 3.0
"""What latency alone is meant to stay below."""


def measure(settings: Settings) -> Measured:
    """Run the systems in turns; one that fails in a round is tried again in the next."""
    found, taken = Measured(), Taken()
    ours = Ours(settings)
    found.versions[OURS] = ours.install(settings.cache)
    peers = list(_installed(settings, found))
    failed = Counter[str]()
    for number in range(settings.rounds):
        settings.say(f"round {number + 1} of {settings.rounds}")
        for at, peer in enumerate(peers or [None]):
            mine = _round(ours, settings if at == 0 else without_samples(settings), found)
            if mine is None:
                break
            taken.ours.append(mine)
            if peer is None:
                continue
            theirs = _round(peer, settings, found)
            if theirs is None:
                failed[peer.title] += 1
            else:
                taken.theirs[peer.name].append((theirs, rate(mine)))
    for peer in peers:
        if failed[peer.title] and taken.theirs[peer.name]:  # it has figures all the same, of fewer rounds
            why = found.absent.pop(peer.title)
            found.notes.append(f"{peer.title} failed in {failed[peer.title]} of {settings.rounds} rounds: {why}")
    taken.write(found, [ours, *peers])
    told = f"{settings.clients} calls are under way at a time. Ours come from {settings.client_processes} processes "
    told += "that share nothing; a peer's from one, for so its script is made, and with most its worker is in it. The "
    told += "clock runs from the first start in any process. The latency is of one process with one call at a time."
    found.notes.append(told)
    return found


class Taken:
    """What the rounds have brought."""

    def __init__(self) -> None:
        self.ours: list[dict[str, Any]] = []
        self.theirs: defaultdict[str, list[tuple[dict[str, Any], float]]] = defaultdict(list)
        """Of each peer: its rounds, each with our rate just before."""

    def write(self, found: Measured, systems: list[System]) -> None:
        """As figures."""
        for system in systems:
            rounds = self.ours if system.name == OURS else [one for one, _ in self.theirs[system.name]]
            if not rounds:
                continue
            found.titles[system.name] = system.title
            found.notes.append(f"{system.title}: {system.how}.")
            rates = [rate(one) for one in rounds]
            found.figures[f"{system.name}.rate"] = figure("cycles/s", *rates)
            if system.name == OURS:
                for name in rounds[0]["spent_us"]:
                    spent = figure("µs", *[one["spent_us"][name] for one in rounds])
                    found.figures[f"{system.name}.cpu_{name}"] = spent
            else:
                ours = [mine for _, mine in self.theirs[system.name]]
                found.figures[f"{system.name}.ours_is"] = ratios(ours, rates, least=system.ratio)
            bounds = {"p50": P50_MS, "p95": P95_MS} if system.name == OURS else None
            alone = latencies([one["latency_ms"] for one in rounds], bounds)
            found.figures |= {f"{system.name}.{name}": alone[name] for name in ("p50", "p95")}


def without_samples(settings: Settings) -> Settings:
    """Our latency alone is measured once a round."""
    return dataclasses.replace(settings, sizes=dataclasses.replace(settings.sizes, samples=0))


def rate(one: dict[str, Any]) -> float:
    """Cycles/s of a round."""
    return float(one["cycles"] / one["seconds"])


def _installed(settings: Settings, found: Measured) -> Iterator[System]:
    for peer in [kind() for kind in PEERS if kind.name in settings.peers]:
        settings.say(f"{peer.title}: install")
        try:
            found.versions[peer.name] = peer.install(settings.cache)
        except (Absent, OSError) as error:
            found.absent[peer.title] = str(error)
            settings.say(f"{peer.title}: {error}")
        else:
            yield peer


def _round(system: System, settings: Settings, found: Measured) -> dict[str, Any] | None:
    try:
        one = system.round(settings)
    except (Absent, SmqueueError, OSError) as error:
        found.absent[system.title] = str(error)
        settings.say(f"{system.title}: {error}")
        return None
    settings.say(f"{system.title}: {rate(one):,.0f} cycles/s")
    return one

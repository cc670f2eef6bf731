"""When which fault hits: the schedule of a seed, and what is known of each fault.

A seed gives the order of the kinds, the time of each and what it draws (which worker, how long). Processes are not
deterministic: what is under way when a fault hits differs from run to run.
"""

from __future__ import annotations

import random
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from itertools import chain, repeat


@dataclass
class Strike:
    """One fault.

    Attributes:
        number: In the order of the schedule.
        kind: Its name, as registered in ``strikes``.
        planned_s: When it is due, from the start of the schedule, in seconds.
        detail: What it drew and did.
        began: When it hit, seconds since the epoch; ``None``: not yet, or it found nothing to hit.
        measured_from: From when on progress is awaited: the hit, or the end of a server's outage.
        ended: When all was as before.
        resumed_s: How long after ``measured_from`` the next transition was committed, without other outages.
        failed: Why it could not be done or undone.
    """

    number: int
    kind: str
    planned_s: float
    detail: str = ""
    began: float | None = None
    measured_from: float | None = None
    ended: float | None = None
    resumed_s: float | None = None
    failed: str = ""

    def hits(self, detail: str, over: bool = True) -> None:
        """It hits now; progress is awaited from now on, unless it is not ``over`` at once."""
        self.began, self.detail = time.time(), detail
        if over:
            self.measured_from = self.began

    def is_over(self) -> float:
        """What it has disturbed may go on from now: progress is awaited. Returns when that was."""
        self.measured_from = time.time()
        return self.measured_from


def schedule(seed: int, seconds: float, every_s: float, weights: Mapping[str, int]) -> list[Strike]:
    """The faults of a seed: rounds of all these kinds, shuffled; in the first round each comes once.

    Args:
        seed: Of the run.
        seconds: How long it lasts.
        every_s: The mean time between two faults, in seconds.
        weights: Kind → how often it comes in a later round.
    """
    rng = random.Random(f"faults {seed}")
    first = list(weights)
    rng.shuffle(first)
    strikes, at = list[Strike](), 0.0
    for name in chain(first, chain.from_iterable(_rounds(rng, weights))):
        at += rng.uniform(0.4, 1.6) * every_s
        if at > seconds:
            break
        strikes.append(Strike(len(strikes) + 1, name, at))
    return strikes


def _rounds(rng: random.Random, weights: Mapping[str, int]) -> Generator[list[str]]:
    while True:
        once = [name for name, weight in weights.items() for _ in repeat(None, weight)]
        rng.shuffle(once)
        yield once

"""Seconds from starting a worker's process until the first transition that it commits is heard of.

A machine is due already. Nearly all of it is Python's and Celery's start.
"""

from __future__ import annotations

import dataclasses
import time

from benchmarks.feeding import Hearing, add_all
from benchmarks.figure import Measured, figure
from benchmarks.machines import Timed
from benchmarks.settings import Settings, Workers
from benchmarks.stage import Stage

LIMIT_S = 60


def measure(settings: Settings) -> Measured:
    """One stage a round."""
    seconds: list[float] = []
    for number in range(settings.rounds):
        with Stage(Workers(count=0)) as stage, Hearing(stage.plain) as hearing:
            names = add_all(stage.executor, "due", [Timed(1)])
            began = time.time()
            stage.spawn_worker(dataclasses.replace(settings.workers, count=1))
            hearing.wait(names, LIMIT_S)
            seconds.append(hearing.at[names[0]] - began)
        settings.say(f"round {number + 1}: {seconds[-1]:.2f} s")
    return Measured({"start.took": figure("s", *seconds)}, {"start": "one worker, cold"})

"""One transition that starts 1,000 machines, and one that waits until all of them have ended.

From adding the parent until the commit of its join is heard of. Each child has one step left; all are one operation.
"""

from __future__ import annotations

import time

from benchmarks.feeding import Hearing
from benchmarks.figure import Measured, figure
from benchmarks.machines import Fanning
from benchmarks.settings import Settings
from benchmarks.stage import Stage
from smqueue import StateMachine

LIMIT_S = 120
WARM = 10


def measure(settings: Settings) -> Measured:
    """One stage a round."""
    children = settings.sizes.children
    seconds: list[float] = []
    for number in range(settings.rounds):
        with Stage(settings.workers) as stage, Hearing(stage.plain) as hearing:
            for name, count in (("warm", WARM), ("parent", children)):
                began = time.time()
                stage.executor.add_state_machines([StateMachine(name, Fanning(f"{name}-children", count))])
                hearing.wait([name], LIMIT_S)
            seconds.append(hearing.at["parent"] - began)
        settings.say(f"round {number + 1}: {seconds[-1]:.3f} s")
    found = Measured(titles={"join": f"{children:,} children, and their join"})
    found.figures["join.took"] = figure("s", *seconds)
    found.figures["join.rate"] = figure("children/s", *[children / one for one in seconds])
    return found

"""1, 2 and 4 workers on machines that all fall due at one instant: with trivial handlers, and with such as take 5 ms.

No client runs meanwhile, so that on two cores the server and the workers have them. The clock runs from the instant
until the last end is counted.
"""

from __future__ import annotations

import dataclasses
import time

from benchmarks.feeding import add_all, await_count, count_of
from benchmarks.figure import Absent, Measured, figure, ratios
from benchmarks.machines import Working
from benchmarks.settings import Settings
from benchmarks.stage import Stage

COUNTS = (1, 2, 4)
SLEEP_MS = 5
ADDED_PER_S = 1_000
"""So many can be added a second on a slow machine."""
LIMIT_S = 180
WARM = 100
TIMES = {"trivial": 3, "sleeping": 1}
"""How often in each round: what takes a second or two falls into one moment of the machine, and others into another."""
LEAST = {("trivial", 2): 0.95, ("sleeping", 2): 1.9}
"""Goals: times as much as one worker does."""
US = 1_000_000


def measure(settings: Settings) -> Measured:
    """In each round all numbers of workers take turns."""
    amounts = {"trivial": (settings.sizes.machines, 0), "sleeping": (settings.sizes.sleeping, SLEEP_MS)}
    rates: dict[tuple[str, int], list[float]] = {(kind, count): [] for kind in amounts for count in COUNTS}
    for number in range(settings.rounds):
        for count in COUNTS:
            with Stage(dataclasses.replace(settings.workers, count=count)) as stage:
                drained(stage, "warm", WARM, 0)
                for kind, (machines, ms) in amounts.items():
                    for again in range(TIMES[kind]):
                        rates[kind, count].append(machines / drained(stage, f"{kind}{again}", machines, ms))
        told = [f"{kind} {count}: {some[-1]:,.0f}/s" for (kind, count), some in rates.items()]
        settings.say(f"round {number + 1}: {', '.join(told)}")
    found = Measured()
    for (kind, count), some in rates.items():
        row = f"{kind}_{count}"
        handlers = f"handlers of {SLEEP_MS} ms" if kind == "sleeping" else "trivial handlers"
        found.titles[row] = f"{count} worker{'s' if count > 1 else ''}, {handlers}"
        found.figures[f"{row}.rate"] = figure("transitions/s", *some)
        if count > 1:
            found.figures[f"{row}.of_one"] = ratios(some, rates[kind, 1], least=LEAST.get((kind, count)))
    return found


def drained(stage: Stage, prefix: str, machines: int, ms: int) -> float:
    """Seconds until so many, due at one instant, have ended."""
    executor = stage.executor
    before = count_of(executor)
    due = time.time() + 1 + machines / ADDED_PER_S
    add_all(executor, prefix, [Working(int(due * US), ms)] * machines)
    if time.time() > due:
        raise Absent("the machines could not be added before they fell due")
    return await_count(executor, before + machines, LIMIT_S) - due

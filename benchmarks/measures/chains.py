"""Chains of 10 states that are ready at once: transitions each second of many machines, and the time that one takes."""

from __future__ import annotations

import statistics
import time

from benchmarks.feeding import add_all, await_count, count_of
from benchmarks.figure import Measured, figure
from benchmarks.machines import LENGTH, Step
from benchmarks.settings import Settings
from benchmarks.stage import Stage
from smqueue import StateMachine

LIMIT_S = 120
ALONE = 20


def measure(settings: Settings) -> Measured:
    """One stage a round."""
    count = settings.sizes.chains
    rates: list[float] = []
    alone: list[float] = []
    for number in range(settings.rounds):
        with Stage(settings.workers) as stage:
            executor, took = stage.executor, list[float]()
            for one in range(ALONE):
                began = time.perf_counter()
                executor.add_state_machines([StateMachine(f"alone-{one}", Step(0, one))])
                executor.await_operation(f"alone-{one}", LIMIT_S)
                took.append((time.perf_counter() - began) * 1000)
            alone.append(statistics.median(took))
            before, began = count_of(executor), time.time()
            add_all(executor, "chain", [Step(0, one) for one in range(count)])
            rates.append(count * LENGTH / (await_count(executor, before + count, LIMIT_S) - began))
        settings.say(f"round {number + 1}: {rates[-1]:,.0f} transitions/s, one alone {alone[-1]:.1f} ms")
    found = Measured(titles={"chains": f"{count:,} machines, {LENGTH} states each", "alone": "one alone, until seen"})
    found.figures["chains.rate"] = figure("transitions/s", *rates)
    found.figures["alone.took"] = figure("ms", *alone)
    return found

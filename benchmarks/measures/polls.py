"""Polls each second: machines that ask again and again, more often than the workers can.

A poll runs as a Celery task of its own and does one round trip of I/O, by which it is counted.
"""

from __future__ import annotations

import time

from benchmarks.feeding import add_all, await_true
from benchmarks.figure import Measured, figure
from benchmarks.machines import POLLED, Polling
from benchmarks.settings import Settings
from benchmarks.stage import Stage

MACHINES, EVERY_MS = 200, 50
"""They ask for 4,000 polls/s."""
READY_S = 60


def measure(settings: Settings) -> Measured:
    """One stage a round."""
    rates: list[float] = []
    for number in range(settings.rounds):
        with Stage(settings.workers) as stage:
            state = stage.connect()
            add_all(stage.executor, "polling", [Polling(EVERY_MS)] * MACHINES)
            await_true(lambda state=state: int(state.get(POLLED) or 0) >= MACHINES, READY_S, "the first polls")
            before, began = int(state.get(POLLED)), time.perf_counter()
            time.sleep(settings.sizes.polls_s)
            rates.append((int(state.get(POLLED)) - before) / (time.perf_counter() - began))
        settings.say(f"round {number + 1}: {rates[-1]:,.0f} polls/s")
    titles = {"polls": f"{MACHINES} machines, every {EVERY_MS} ms"}
    return Measured({"polls.rate": figure("polls/s", *rates)}, titles)

"""10,000 timers that fall due within one second: how late each is, how many a second, none early, none lost.

Lateness counts from the instant that a timer was set for until a message that its commit publishes is read. A timer
would be early if its transition had begun before its instant, by Redis's clock, which stamps each state's end.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.feeding import Hearing, add_all
from benchmarks.figure import Absent, Measured, figure, latencies
from benchmarks.machines import Timed
from benchmarks.settings import Settings, Workers
from benchmarks.stage import Stage
from smqueue import Executor

COUNTS = (1, 2)
"""Of workers."""
ADDED_PER_S = 1_000
"""So many can be added a second on a slow machine: the timers are set so far ahead."""
LIMIT_S = 120
MOST_MS = 1_000
US = 1_000_000


def measure(settings: Settings) -> Measured:
    """In each round both numbers of workers take turns."""
    rows = {count: Timers([], [], []) for count in COUNTS}
    for number in range(settings.rounds):
        for count, row in rows.items():
            row.take(dataclasses.replace(settings.workers, count=count), settings.sizes.timers)
            told = f"{count} workers: {row.rates[-1]:,.0f}/s, the last {max(row.late_ms[-1]):,.0f} ms late"
            settings.say(f"round {number + 1}, {told}")
    found = Measured()
    for count, row in rows.items():
        name = f"due_{count}"
        found.titles[name] = (
            f"{settings.sizes.timers:,} due within one second, {count} worker{'s' if count > 1 else ''}"
        )
        found.figures[f"{name}.rate"] = figure("timers/s", *row.rates)
        late = latencies(row.late_ms, {"p99": MOST_MS})
        found.figures |= {f"{name}.late_{share}": one for share, one in late.items()}
        found.figures[f"{name}.early"] = figure("timers", *row.early, most=0)
    found.notes.append("None was lost: a round in which one is missing is not a figure. The last instant is 1 s after")
    found.notes[-1] += " the first, so that no more timers/s than were set are possible."
    return found


class Timers(NamedTuple):
    """What the rounds with so many workers have brought; of each round one."""

    late_ms: list[list[float]]
    rates: list[float]
    early: list[float]

    def take(self, workers: Workers, count: int) -> None:
        """One stage, and so many timers."""
        with Stage(workers) as stage, Hearing(stage.plain) as hearing:
            first_us = int((time.time() + 2 + count / ADDED_PER_S) * US)
            due_us = [first_us + offset * US // count for offset in range(count)]
            names = add_all(stage.executor, "timer", [Timed(one) for one in due_us])
            if time.time() * US > first_us:
                raise Absent("the timers could not be added before they fell due")
            hearing.wait(names, LIMIT_S)
            self.late_ms.append([(hearing.at[name] - us / US) * 1000 for name, us in zip(names, due_us, strict=True)])
            self.rates.append(count / (max(hearing.at.values()) - first_us / US))
            self.early.append(early_of(stage.executor, due_us))


def early_of(executor: Executor, due_us: Sequence[int]) -> int:
    """How many left their state before their instant; each of them has to have left it."""
    left = {
        machine.state.due_us: round(state.exited_at.timestamp() * US)
        for machine, state in executor.get_inactive_states(module="bench")
        if isinstance(machine.state, Timed)
    }
    if missing := set(due_us) - left.keys():
        raise Absent(f"{len(missing):,} timers are lost")
    return sum(at < due for due, at in left.items())

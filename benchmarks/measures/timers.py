"""10,000 timers that fall due within one second: how late each is, how many a second, none early, none lost.

Lateness counts from the instant that a timer was set for until a message that its commit publishes is read. A timer
would be early if its transition had begun before its instant, by Redis's clock, which stamps each state's end.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from benchmarks.feeding import Hearing, add_all
from benchmarks.figure import Absent, Measured, figure, latencies
from benchmarks.machines import Timed
from benchmarks.settings import Settings
from benchmarks.stage import Stage
from smqueue import Executor

ADDED_PER_S = 1_000
"""So many can be added a second on a slow machine: the timers are set so far ahead."""
LIMIT_S = 120
MOST_MS = 1_000
US = 1_000_000


def measure(settings: Settings) -> Measured:
    """One stage a round."""
    count = settings.sizes.timers
    late_ms: list[list[float]] = []
    rates: list[float] = []
    early: list[float] = []
    for number in range(settings.rounds):
        with Stage(settings.workers) as stage, Hearing(stage.plain) as hearing:
            first_us = int((time.time() + 2 + count / ADDED_PER_S) * US)
            due_us = [first_us + offset * US // count for offset in range(count)]
            names = add_all(stage.executor, "timer", [Timed(one) for one in due_us])
            if time.time() * US > first_us:
                raise Absent("the timers could not be added before they fell due")
            hearing.wait(names, LIMIT_S)
            late_ms.append([(hearing.at[name] - us / US) * 1000 for name, us in zip(names, due_us, strict=True)])
            rates.append(count / (max(hearing.at.values()) - first_us / US))
            early.append(early_of(stage.executor, due_us))
        settings.say(f"round {number + 1}: {rates[-1]:,.0f}/s, the last {max(late_ms[-1]):,.0f} ms late")
    found = Measured(titles={"due": f"{count:,} due within one second"})
    found.figures["due.rate"] = figure("timers/s", *rates)
    found.figures |= {f"due.late_{name}": one for name, one in latencies(late_ms, {"p99": MOST_MS}).items()}
    found.figures["due.early"] = figure("timers", *early, most=0)
    found.notes.append("None was lost: a round in which one is missing is not a figure. The last instant is 1 s after")
    found.notes[-1] += " the first, so that no more timers/s than were set are possible."
    return found


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

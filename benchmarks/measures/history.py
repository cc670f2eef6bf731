"""Whether a transition costs more the longer its operation's history is: the last of 10,000 steps to early ones."""

from __future__ import annotations

from benchmarks.figure import Measured, figure, ratios
from benchmarks.machines import Lap
from benchmarks.settings import Settings
from benchmarks.stage import Stage
from smqueue import StateMachine

LIMIT_S = 240
MOST = 1.2


def measure(settings: Settings) -> Measured:
    """One machine a round."""
    laps = settings.sizes.history
    first: list[float] = []
    last: list[float] = []
    for number in range(settings.rounds):
        with Stage(settings.workers) as stage:
            stage.executor.add_state_machines([StateMachine("lap", Lap(0, laps))])
            stage.executor.await_operation("lap", LIMIT_S)
            at = [update.at.timestamp() for update in stage.executor.notifier.history("lap")]
        tenth = laps // 10
        first.append((at[2 * tenth] - at[tenth]) / tenth * 1e6)  # of the first tenth the worker is not warm
        last.append((at[-1] - at[-1 - tenth]) / tenth * 1e6)
        settings.say(f"round {number + 1}: {first[-1]:,.0f} µs a step, then {last[-1]:,.0f} µs")
    found = Measured(titles={"early": "the second tenth of its steps", "late": "the last tenth"})
    found.figures["early.step"] = figure("µs", *first)
    found.figures["late.step"] = figure("µs", *last)
    found.figures["late.as_much"] = ratios(last, first, most=MOST)
    return found

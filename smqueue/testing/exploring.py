"""``explore``: every order, every duplicate, every crash; and of a failure the shortest story."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from smqueue.errors import error_text
from smqueue.modules import Module
from smqueue.testing.choices import Chooser, runs
from smqueue.testing.executor import GlobalContext
from smqueue.testing.store import Store
from smqueue.testing.world import Settings, World

SHRINKING_RUNS = 300
"""Runs for each attempt to make a story shorter."""

LOCALS = re.compile(r"\b[\w.]+\.<locals>\.")
"""How Python calls the classes that a test makes for itself."""

Scenario = Callable[[World], object]


@dataclass(frozen=True)
class Explored:
    """What was explored, and held.

    Attributes:
        runs: How many.
        states: How many different states of everything they have come by.
        complete: Whether that was all; else ``max_runs`` or ``max_events`` has cut it off.
        ends: How the runs have ended: state types of all machines → in how many runs.
    """

    runs: int
    states: int
    complete: bool
    ends: Mapping[tuple[str, ...], int]

    def __str__(self) -> str:
        ended = "; ".join(f"{' and '.join(names) or 'nothing'}: {count}" for names, count in self.ends.items())
        how = "nothing was left out" if self.complete else "cut off"
        return f"{self.runs} runs came by {self.states} states; {how}. Ends: {ended}"


class Counterexample(AssertionError):
    """A story in which something does not hold.

    Attributes:
        story: What happens, step by step.
        error: What was raised then; also its ``__cause__``.
        runs: How many were made until it was found.
    """

    def __init__(self, story: Sequence[str], error: Exception, runs: int) -> None:
        super().__init__(story, error, runs)
        self.story = [LOCALS.sub("", line) for line in story]
        self.error, self.runs = error, runs

    def __str__(self) -> str:
        lines = [f"  {number}. {line}" for number, line in enumerate(self.story, 1)]
        return "\n".join([f"after {self.runs} runs, this story fails:", *lines, f"  → {error_text(self.error)}"])


class _Ended(NamedTuple):
    world: World
    error: Exception | None


def explore(
    modules: Module[Any] | Mapping[str, Module[Any]] | Sequence[Module[Any]],
    scenario: Scenario,
    *,
    context: Any = None,
    contexts: Mapping[str, Any] | None = None,
    global_context: GlobalContext | None = None,
    crashes: int = 1,
    duplicates: int = 1,
    max_events: int = 60,
    max_runs: int = 1_000,
    quarantine: bool = False,
) -> Explored:
    """Let a scenario happen in every order, on the real protocols, with a worker that may die.

    Each run begins afresh: the scenario is called again, and a context that is given as a function is made again. Runs
    that deviate least from the plain one come first, so that what ``max_runs`` cuts off is the most involved. Nothing
    is left to chance: the same runs are made every time.

    Args:
        modules: As for ``LocalExecutor``.
        scenario: Adds machines to a ``World``, and says what may happen and what must be true.
        context: See ``LocalExecutor``; a function makes a fresh one for each run.
        contexts: See ``LocalExecutor``.
        global_context: See ``LocalExecutor``.
        crashes: How often in a run a worker may die before or after a commit, or not hear of it.
        duplicates: How often in a run a signal may be sent again under its id, or a message be delivered twice.
        max_events: How long a run may be.
        max_runs: How many are made at most.
        quarantine: Machines may be set aside; else that is a failure.

    Returns:
        How much was explored.

    Raises:
        Counterexample: A check of the scenario's, or of ours, has failed; its text is the shortest story found.
    """
    given = [modules] if isinstance(modules, Module | Mapping) else list(modules)
    settings = Settings(
        given, context, contexts or {}, global_context, crashes, duplicates, max_events, quarantine
    )  # fmt: skip
    exploration = _Exploration(settings, scenario)
    count, complete, ends, states = 0, True, Counter[tuple[str, ...]](), set[Hashable]()
    for ended in runs(exploration.run):
        count += 1
        if ended.error is not None:
            shortest = exploration.shortest(ended)
            error = shortest.error or ended.error
            raise Counterexample(shortest.world.story, error, count) from error
        complete = complete and not ended.world.cut
        states |= ended.world.seen
        ends[ended.world.ends()] += 1
        if count == max_runs:
            complete = False
            break
    return Explored(count, len(states), complete, dict(ends.most_common()))


class _Exploration:
    """Runs of one scenario."""

    def __init__(self, settings: Settings, scenario: Scenario) -> None:
        self._settings, self._scenario = settings, scenario
        self._store = Store()
        self._blank = self._store.snapshot()

    def run(self, chooser: Chooser, without: Collection[int] = ()) -> _Ended:
        """One run; Lua is started but once, for one store."""
        self._store.restore(self._blank)
        self._store.watchers.clear()
        world = World(self._settings, chooser, self._store, without)
        for module in world.executor.instances.ids():
            _ = world.executor.instances.get(module).context  # made now: a check may look at it before anything has run
        try:
            self._scenario(world)
            world.run()
        except Exception as error:
            return _Ended(world, error)
        finally:
            world.executor.close()
        return _Ended(world, None)

    def shortest(self, failed: _Ended) -> _Ended:
        """A shorter story of the same failure: leave out one event after the other, as long as it still fails."""
        without = set[int]()
        for place in range(len(failed.world.events)):
            if (shorter := self._fails(failed, {*without, place})) is not None:
                failed = shorter
                without.add(place)
        return failed

    def _fails(self, failed: _Ended, without: Collection[int]) -> _Ended | None:
        assert failed.error is not None
        for tried, ended in enumerate(runs(lambda chooser: self.run(chooser, without))):
            if ended.error is not None and _gist(ended.error) == _gist(failed.error):
                return ended if len(ended.world.story) <= len(failed.world.story) else None
            if tried == SHRINKING_RUNS:
                break
        return None


def _gist(error: Exception) -> str:
    """By what two failures are the same: the first line, without the addresses of objects."""
    return re.sub(r"0x[0-9a-f]+", "", error_text(error).partition("\n")[0])

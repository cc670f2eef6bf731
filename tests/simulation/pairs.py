"""Which actors can meet: those that share a key which one of them changes. Found by running each alone."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, NamedTuple

from smqueue.testing.memory import Connection
from tests.simulation.explorer import Did, Explorer
from tests.simulation.invariants import check, finish
from tests.simulation.processes import Actor, Live, repeatable
from tests.simulation.stages import ACTORS, HERE_ONLY, ONLY, STAGES, TOO_MANY, stage

CLOCK = "#clock"


class Trace(NamedTuple):
    """What an actor does when it is alone."""

    looked: frozenset[str]
    changed: frozenset[str]
    steps: int
    code: frozenset[str]
    """The functions of ``smqueue.protocols`` that it runs, and its scripts."""

    def meets(self, other: Trace) -> bool:
        """Whether the order of the two can matter."""
        return bool(self.changed & (other.looked | other.changed) or other.changed & self.looked)


@cache
def traces(name: str) -> dict[str, Trace]:
    """Actor → what it does alone from a stage."""
    store, start = stage(next(make for make in STAGES if make.__name__ == name))
    found: dict[str, Trace] = {}
    for actor in ACTORS:
        store.restore(start.snapshot)
        found[actor.__name__] = _alone(store, start, actor)
    return found


def _alone(store: Any, start: Any, actor: Actor) -> Trace:
    looked, changed, steps = set[str](), set[str](), 0
    with repeatable(), Calls() as code:
        connection, live = Connection(store), Live(0, actor, start.notes)
        while live.point.request is not None:
            store.looked, store.changed = set(), set()
            live.tell(live.told.then("go", connection.trip(live.point.request)))
            looked |= store.looked
            changed |= store.changed
            steps += 1
        connection.close()
    return Trace(frozenset(looked), frozenset(changed), steps, frozenset(code))


class Calls:
    """Note which functions of the protocols run."""

    def __enter__(self) -> set[str]:
        self._found = set[str]()
        sys.setprofile(self._note)
        return self._found

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _note(self, frame: Any, event: str, arg: object) -> None:
        if event == "call":
            module = frame.f_globals.get("__name__", "")
            if module.startswith("smqueue.protocols."):
                self._found.add(f"{module.rpartition('.')[2]}.{frame.f_code.co_name}")
            elif frame.f_code.co_qualname == "Scripts.run":
                self._found.add(f"{frame.f_locals['name']}.lua")


@cache
def pairs(name: str) -> tuple[tuple[Actor, Actor], ...]:
    """The pairs that can meet in a stage, each actor with itself included.

    Two that do the very same to the very same keys as in an earlier stage are explored there.
    """
    if name in ONLY:
        return tuple(ONLY[name])
    known = traces(name)
    earlier = [traces(make.__name__) for make in STAGES[: [make.__name__ for make in STAGES].index(name)]]
    found: list[tuple[Actor, Actor]] = []
    actors = [actor for actor in ACTORS if actor not in HERE_ONLY]
    for n, one in enumerate(actors):
        for other in actors[n:]:
            a, b = one.__name__, other.__name__
            if (name, a, b) in TOO_MANY:
                continue
            if known[a].meets(known[b]) and not any((known[a], known[b]) == (was[a], was[b]) for was in earlier):
                found.append((one, other))
    return tuple(found)


def explore(
    name: str, *actors: Actor, faults: int = 1, planted: Callable[[], AbstractContextManager[object]] = nullcontext
) -> Counter[str]:
    """Explore all schedules of some actors from a stage.

    Raises:
        Violated: With the schedule that broke something.
    """
    store, start = stage(next(make for make in STAGES if make.__name__ == name))
    with repeatable(), planted():
        return Explorer(store, start, actors, faults, check, finish).run()


__all__ = ["ACTORS", "STAGES", "Did", "explore", "pairs", "traces"]

"""Every sequence of choices, those nearest to the first ones first."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


class Chooser:
    """Makes the choices of one run: those of ``prefix``, then always the first.

    Args:
        prefix: Which option to take, by its place, at each point that has several.
    """

    def __init__(self, prefix: Sequence[int] = ()) -> None:
        self._prefix = prefix
        self.taken: list[int] = []
        self.widths: list[int] = []
        self.states: list[Hashable] = []

    def choose(self, options: Sequence[T], state: Hashable) -> T:
        """Take one of several.

        Args:
            options: What may be done.
            state: The same where all is the same and the options are, whatever came before.
        """
        if len(options) == 1:
            return options[0]
        at = len(self.taken)
        place = self._prefix[at] if at < len(self._prefix) else 0
        self.taken.append(place)
        self.widths.append(len(options))
        self.states.append(state)
        return options[place]


def runs(run: Callable[[Chooser], T]) -> Iterator[T]:
    """Run with each sequence of choices; those that deviate least from the first options come first.

    Where a run comes to a state in which another was before, it goes on with the first options only: what else may
    happen there was, or will be, tried from that other run.

    Args:
        run: Makes its choices by what it is given, and is otherwise the same every time.
    """
    waiting = deque[tuple[int, ...]]([()])
    known = set[Hashable]()
    while waiting:
        prefix = waiting.popleft()
        chooser = Chooser(prefix)
        yield run(chooser)
        for at in range(len(prefix), len(chooser.taken)):
            if (state := chooser.states[at]) in known:
                continue
            known.add(state)
            start = tuple(chooser.taken[:at])
            waiting.extend((*start, place) for place in range(1, chooser.widths[at]))

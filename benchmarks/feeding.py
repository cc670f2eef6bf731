"""What several measures do: feed many machines, hear their ends, count them."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable, Collection, Sequence
from types import TracebackType
from typing import Self

from benchmarks.ears import Ears
from benchmarks.figure import Absent
from benchmarks.machines import FINISHED
from smqueue import Executor, State, StateMachine

BATCH = 1_000
"""Machines in one call, where the calls are not what is measured."""
LOOK_EVERY_S = 0.005


def add_all(executor: Executor, prefix: str, states: Sequence[State], batch: int = BATCH) -> list[str]:
    """Add machines, each in an operation of its own, many at a time.

    Returns:
        The operations.
    """
    names = [f"{prefix}-{number}" for number in range(len(states))]
    machines = [StateMachine(name, state) for name, state in zip(names, states, strict=True)]
    for at in range(0, len(machines), batch):
        executor.add_state_machines(machines[at : at + batch])
    return names


def count_of(executor: Executor) -> int:
    """How many ends handlers have counted."""
    deployment = executor.deployment
    counters = [keys.data("bench", FINISHED) for keys in deployment.all_keys()]
    return sum(int(deployment.driver.command("GET", counter) or 0) for counter in counters)


def await_count(executor: Executor, wanted: int, limit_s: float) -> float:
    """Wait until so many ends are counted; returns when, by ``time.time()``.

    Raises:
        Absent: They are not, in time.
    """
    await_true(lambda: count_of(executor) >= wanted, limit_s, f"{wanted:,} machines to end")
    return time.time()


def await_true(ask: Callable[[], bool], limit_s: float, what: str) -> None:
    """Wait for a fact.

    Raises:
        Absent: It is not one in time.
    """
    until = time.monotonic() + limit_s
    while not ask():
        if time.monotonic() > until:
            raise Absent(f"waited {limit_s:g} s in vain for {what}")
        time.sleep(LOOK_EVERY_S)


class Hearing:
    """Hears the ends that commits publish, on a thread, while it is entered.

    Args:
        url: Of the server.
    """

    def __init__(self, url: str) -> None:
        self._ears = Ears(url)
        self._stopping = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.at: dict[str, float] = {}
        """Operation → when its end was heard of, by ``time.time()``."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping = True
        self._thread.join(5)
        self._ears.close()

    def wait(self, names: Collection[str], limit_s: float) -> None:
        """Until all of these have been heard of.

        Raises:
            Absent: They have not, in time; how many are missing is in the text.
        """
        wanted = set(names)
        try:
            await_true(lambda: self.at.keys() >= wanted, limit_s, "ends")
        except Absent:
            missing = len(wanted - self.at.keys())
            raise Absent(f"{missing:,} of {len(wanted):,} machines had not ended after {limit_s:g} s") from None

    def _run(self) -> None:
        while not self._stopping:
            if select.select([self._ears.socket], [], [], 0.2)[0]:
                self.at |= dict.fromkeys(self._ears.hear(), time.time())

"""Event loops in virtual time: nothing that sleeps on them takes any real time."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from typing import Any

RESOLUTION_S = 1e-5
"""Timers as close as this are due: as floats, instants are 2e-7 s apart, and the clocks here stand still."""


class _NeverSleeps(selectors.SelectSelector):
    """Looks what is ready, and tells the loop for how long it would have slept."""

    def __init__(self, idle: Callable[[float | None], bool]) -> None:
        super().__init__()
        self._idle = idle

    def select(self, timeout: float | None = None) -> list[Any]:
        ready: list[Any] = super().select(0)
        if ready or timeout == 0 or self._idle(timeout):
            return ready
        return super().select(timeout)


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop whose sleeps take no time: its clock jumps to the next timer.

    What waits for no timer, but for a thread or a socket, is waited for.
    """

    def __init__(self) -> None:
        self._at_s = 0.0
        super().__init__(_NeverSleeps(self._idle))
        self._clock_resolution = RESOLUTION_S

    def time(self) -> float:
        """Seconds, by its own clock."""
        return self._at_s

    def _idle(self, seconds: float | None) -> bool:
        if seconds is None:
            return False
        self._at_s += seconds
        return True


class HostingLoop(asyncio.SelectorEventLoop):
    """A loop that goes by somebody else's clock, and stops when only time could wake it.

    Args:
        clock: Seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.next_s: float | None = None
        """When the next timer is due, by its clock; ``None``: nothing on it waits for time."""
        super().__init__(_NeverSleeps(self._idle))
        self._clock_resolution = RESOLUTION_S

    def time(self) -> float:
        """Seconds, by the clock it was given."""
        return self._clock()

    def run_ready(self) -> None:
        """Run what can run now."""
        with no_loop_running():
            self.run_forever()

    def _idle(self, seconds: float | None) -> bool:
        self.next_s = None if seconds is None else self._clock() + seconds
        self.stop()
        return True


def run_virtually(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine to its end, in virtual time."""
    with no_loop_running(), asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)


@contextmanager
def no_loop_running() -> Generator[None]:
    """A test that is a coroutine itself has a loop running, which forbids others on its thread."""
    running = asyncio._get_running_loop()  # pyright: ignore[reportPrivateUsage, reportUnknownMemberType]
    asyncio._set_running_loop(None)  # pyright: ignore[reportPrivateUsage]
    try:
        yield
    finally:
        asyncio._set_running_loop(running)  # pyright: ignore[reportPrivateUsage]

"""A system under measurement: how it is had, started and driven through cycles."""

from __future__ import annotations

import json
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.figure import Absent
from benchmarks.settings import Settings
from smqueue.processes import Child

SCRIPTS = Path(__file__).parent / "scripts"
ROUND_S = 300
"""After so many seconds a round is given up."""
LEAST_CYCLES = 4


@dataclass(frozen=True)
class Driver:
    """The process that drives a system: its clients, and with most peers their worker too.

    Attributes:
        command: Without how much to do.
        env: Added to the environment.
        cwd: Where it runs.
    """

    command: list[str]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None


class System(ABC):
    """One system.

    Attributes:
        name: For options and figures.
        title: For tables.
        how: How it does the work, in one line.
        cycles: How many it does in one round at full size: some seconds' worth.
        ratio: How many times as many cycles/s we mean to do.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    how: str
    cycles: ClassVar[int]
    ratio: ClassVar[float | None] = None

    @abstractmethod
    def install(self, cache: Path) -> dict[str, str]:
        """Have it at hand; returns the versions of what it consists of.

        Raises:
            Absent: It cannot be had.
        """

    @abstractmethod
    def running(self, folder: Path) -> AbstractContextManager[Driver]:
        """Start its servers and workers, anew; they end with the block. ``folder`` is theirs, for data and logs."""

    def round(self, settings: Settings) -> dict[str, Any]:
        """Start it, drive it once, end it.

        Returns:
            What ``drive.py`` prints.

        Raises:
            Absent: It failed, or took too long.
        """
        with tempfile.TemporaryDirectory(prefix="bench-") as name, self.running(Path(name)) as driver:
            sizes, few = settings.sizes, self.cycles // 5  # of what is slow, fewer are run one by one, too
            amount = {
                "cycles": max(LEAST_CYCLES, round(self.cycles * sizes.share)), "clients": settings.clients,
                "samples": min(sizes.samples, few), "warm": max(LEAST_CYCLES, min(sizes.warm, few)),
            }  # fmt: skip
            return drive(self.title, driver, amount)


def drive(title: str, driver: Driver, amount: Mapping[str, float]) -> dict[str, Any]:
    """Run a driver to its end; returns the JSON that it prints last.

    Raises:
        Absent: It failed, or took too long.
    """
    said: list[str] = []
    options = [text for name, value in amount.items() for text in (f"--{name}", str(value))]
    child = Child(title, [*driver.command, *options], driver.env, said.append, driver.cwd)
    with child:
        try:
            status = child.wait(ROUND_S)
        except TimeoutError:
            child.kill()
            raise Absent(f"a round took more than {ROUND_S} s") from None
    for line in reversed(said):
        if line.startswith("{") and status <= 0:  # one that aborts when it has told all has done its work
            found: dict[str, Any] = json.loads(line)
            return found
    last = [line for line in said if line.strip()] or ["nothing was said"]
    raise Absent(f"its driver ended with status {status}: {last[-1].strip()[:200]}")

"""smqueue itself: an embedded server, Celery workers, and the processes of its clients."""

from __future__ import annotations

import contextlib
import platform
import sys
from collections.abc import Generator
from importlib.metadata import version
from pathlib import Path

from benchmarks.settings import Settings
from benchmarks.stage import ROOT, Stage
from benchmarks.systems.system import Driver, System

SHOWN = ("smqueue", "celery", "kombu", "redis", "hiredis")


class Ours(System):
    """What this suite is about.

    Args:
        settings: With which workers, and clients in how many processes.
        shards: Of the namespace.
        url: Of a state elsewhere, such as a cluster.
    """

    name, title, cycles = "ours", "smqueue", 10_000

    def __init__(self, settings: Settings, shards: int = 1, url: str | None = None) -> None:
        self._settings, self._shards, self._url = settings, shards, url
        clients, processes = settings.clients, settings.client_processes
        self.how = f"state machines; {clients} clients in {processes} processes, workers in others; "
        self.how += "the end is counted in the commit"

    def install(self, cache: Path) -> dict[str, str]:  # noqa: ARG002 - it is here already
        """It is this one."""
        return {"python": platform.python_version(), **{name: version(name) for name in SHOWN}}

    @contextlib.contextmanager
    def running(self, folder: Path) -> Generator[Driver]:  # noqa: ARG002 - its stage has one
        """A server and workers."""
        with Stage(self._settings.workers, shards=self._shards, url=self._url) as stage:
            yield driver_of(stage, self._settings.client_processes)


def driver_of(stage: Stage, processes: int = 1) -> Driver:
    """The clients, in so many processes. ``stage.plain`` is where one of them listens and leaves marks."""
    pids = ",".join(str(process.pid) for process in stage.processes())
    command = [sys.executable, "-m", "benchmarks.systems.ours_driver", stage.plain, "--processes", str(processes)]
    return Driver(command, {**stage.env, "BENCH_PIDS": pids}, ROOT)

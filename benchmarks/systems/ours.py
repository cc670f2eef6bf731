"""smqueue itself: an embedded server, Celery workers, and a process with its clients."""

from __future__ import annotations

import contextlib
import platform
import sys
from collections.abc import Generator
from importlib.metadata import version
from pathlib import Path

from benchmarks.settings import Workers
from benchmarks.stage import ROOT, Stage
from benchmarks.systems.system import Driver, System

SHOWN = ("smqueue", "celery", "kombu", "redis", "hiredis")


class Ours(System):
    """What this suite is about.

    Args:
        workers: Which run the machines.
        shards: Of the namespace.
        url: Of a state elsewhere, such as a cluster.
    """

    name, title, cycles = "ours", "smqueue", 10_000
    how = "state machines; workers and clients are processes of their own; the end is counted in the commit"

    def __init__(self, workers: Workers, shards: int = 1, url: str | None = None) -> None:
        self._workers, self._shards, self._url = workers, shards, url

    def install(self, cache: Path) -> dict[str, str]:  # noqa: ARG002 - it is here already
        """It is this one."""
        return {"python": platform.python_version(), **{name: version(name) for name in SHOWN}}

    @contextlib.contextmanager
    def running(self, folder: Path) -> Generator[Driver]:  # noqa: ARG002 - its stage has one
        """A server and workers."""
        with Stage(self._workers, shards=self._shards, url=self._url) as stage:
            yield driver_of(stage)


def driver_of(stage: Stage) -> Driver:
    """The process of the clients. ``stage.plain`` is where it counts, listens and leaves marks."""
    pids = ",".join(str(process.pid) for process in stage.processes())
    command = [sys.executable, "-m", "benchmarks.systems.ours_driver", stage.plain]
    return Driver(command, {**stage.env, "BENCH_PIDS": pids}, ROOT)

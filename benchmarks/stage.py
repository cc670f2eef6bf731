"""Our system, started for one measurement: a server of its own, workers, and an executor to feed them."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import psutil
import redis

from benchmarks.app import NAMESPACE, POLLED_VARIABLE, READY, SHARDS_VARIABLE, build
from benchmarks.figure import Absent
from benchmarks.settings import Workers
from smqueue import Executor
from smqueue.embedded import EmbeddedServer
from smqueue.processes import Child

ROOT = Path(__file__).parents[1]
READY_S = 60
REWRITE_S = 120
TAIL = 300


class Stage:
    """A server and its workers; all of it ends with the block.

    Args:
        workers: Which are started at once.
        shards: Of the namespace.
        url: Of the state, when it is a deployment of its own; the server is the broker then.
        server: The address of a server that runs already, instead of one started here.
        own_broker: Messages get a server of their own, so that what the state's server does is ours alone.
        namespace: Its name, and that of its queue.

    Attributes:
        plain: The address of the server.
        url: That of the state.
        broker: That of the messages, as Celery writes it.
        executor: Feeds the workers.
        workers: Those that run.
    """

    def __init__(
        self, workers: Workers, *, shards: int = 1, url: str | None = None, server: str | None = None,
        own_broker: bool = False, namespace: str = NAMESPACE,
    ) -> None:  # fmt: skip
        self._wanted, self._shards, self._own_broker = workers, shards, own_broker
        self._given_url, self._given_server = url, server
        self._stack = ExitStack()
        self._started = 0
        self.namespace = namespace
        self.workers: list[Child] = []
        self.executor: Executor

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def env(self) -> Mapping[str, str]:
        """What workers and drivers are told."""
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        return {
            "SMQUEUE_URL": self.url, "CELERY_BROKER_URL": self.broker, "SMQUEUE_NAMESPACE": self.namespace,
            SHARDS_VARIABLE: str(self._shards), POLLED_VARIABLE: self.plain, "PYTHONPATH": path,
        }  # fmt: skip

    def start_workers(self, workers: Workers, env: Mapping[str, str] | None = None) -> None:
        """Start more, and wait until they consume."""
        started = [self._spawn(workers, env or {}) for _ in range(workers.count)]
        for child, log in started:
            await_ready(child, log)

    def spawn_worker(self, workers: Workers) -> None:
        """Start one, and do not wait for it."""
        self._spawn(workers, {})

    def stop_workers(self) -> None:
        """End all of them."""
        while self.workers:
            self.workers.pop().stop()

    def connect(self) -> Any:
        """A client of the server."""
        return self._stack.enter_context(redis.Redis.from_url(self.plain, socket_timeout=60))

    def settled(self) -> None:
        """Wait until the server rewrites no file: that would slow down whatever is measured meanwhile."""
        until = time.monotonic() + REWRITE_S
        with redis.Redis.from_url(self.plain, socket_timeout=60) as client:
            while (info := client.info("persistence"))["aof_rewrite_in_progress"] or info["aof_rewrite_scheduled"]:
                if time.monotonic() > until:
                    raise Absent(f"the server still rewrites its file after {REWRITE_S} s")
                time.sleep(0.1)

    def processes(self) -> list[psutil.Process]:
        """The workers' processes, with their children; not their supervisors."""
        found = [psutil.Process(worker.pid) for worker in self.workers]
        return [process for one in found for process in (one, *one.children(recursive=True))]

    def _start(self) -> None:
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        if self._given_server is None:
            self.plain = self._stack.enter_context(EmbeddedServer(self._folder / "data")).url
        else:
            self.plain = self._given_server
        self.url = self._given_url or self.plain
        if self._own_broker:
            self.broker = self._stack.enter_context(EmbeddedServer(self._folder / "broker")).broker_url
        else:
            self.broker = beside(self.plain)
        _, self.executor = build(self.url, self.broker, self.namespace, self._shards)
        self._stack.callback(self.stop_workers)
        self.start_workers(self._wanted)

    def _spawn(self, workers: Workers, env: Mapping[str, str]) -> tuple[Child, Path]:
        self._started += 1
        name = f"{self.namespace}-{self._started}"
        command = [sys.executable, "-m", "celery", "-A", "benchmarks.app", "worker", "--hostname", f"{name}@localhost"]
        command += ["--pool", workers.pool, "--concurrency", str(workers.concurrency)]
        command += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        log = self._folder / f"{name}.log"
        child = Child(name, command, {**self.env, **env}, log, ROOT).start()
        self.workers.append(child)
        return child, log


def await_ready(worker: Child, log: Path) -> None:
    """Wait until a Celery worker says that it consumes.

    Raises:
        Absent: It does not.
    """
    until = time.monotonic() + READY_S
    while READY not in (said := log.read_text(errors="replace") if log.exists() else ""):
        if not worker.alive or time.monotonic() > until:
            last = (said.strip().splitlines() or ["nothing was said"])[-1]
            raise Absent(f"a worker did not start: {last.strip()[:TAIL]}")
        time.sleep(0.02)


def beside(url: str) -> str:
    """The database of the state, as Celery spells it."""
    parts = urlsplit(url)
    return f"redis+socket://{parts.path}?virtual_host={parts.query.removeprefix('db=')}"

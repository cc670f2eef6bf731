"""The processes of the demo: a server unless one is given, two workers, Flower; and the accident in the middle."""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from smqueue.embedded import EmbeddedServer
from smqueue.errors import SmqueueError
from smqueue.executor import Executor
from smqueue.keys import new_id
from smqueue.processes import Child

READY_S = 60.0


class StageFailed(SmqueueError):
    """{what}"""

    fields = ("what",)
    what: str


class Stage:
    """What a demo run needs, started on entering and stopped on leaving; the server last."""

    def __init__(self, url: str | None, flower: bool = True) -> None:
        self._url, self._with_flower = url, flower
        self._stack = ExitStack()
        self._env: Mapping[str, str] = {}
        self._started = 0
        self.workers: list[Child] = []
        self.flower_url: str | None = None
        self.logs = Path(tempfile.mkdtemp(prefix="smqueue-demo-"))
        self.executor: Executor

    def __enter__(self) -> Self:
        url, broker = self._url, self._url
        if url is None:
            server = self._stack.enter_context(EmbeddedServer())
            url, broker = server.url, server.broker_url
        name = f"demo-{new_id()[:6].replace('_', 'x').replace('-', 'x')}"
        self._env = {
            "SMQUEUE_DEMO_URL": url,
            "SMQUEUE_DEMO_BROKER": str(broker),
            "SMQUEUE_DEMO_NAMESPACE": name,
            "SMQUEUE_DEMO_QUEUE": name,
        }
        os.environ.update(self._env)
        from smqueue.demo import app

        self._app: Any = app.app
        self.executor = app.executor
        _ = self.executor.deployment.driver  # a server that does not answer is told before anything is started
        try:
            first, second = self.start_worker(), self.start_worker()
            if self._with_flower and importlib.util.find_spec("flower") is not None:
                self._start_flower()
            self._wait_ready(first, second)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def start_worker(self) -> Child:
        """Start one more Celery worker process."""
        self._started += 1
        options = ["worker", "--hostname", f"worker-{self._started}@demo", "--concurrency", "2", "--loglevel", "INFO"]
        child = self._child(f"worker-{self._started}", [*options, "--without-gossip", "--without-mingle"])
        self.workers.append(child)
        return child

    def accident(self) -> str:
        """Kill one worker with SIGKILL, empty the broker's queues, start a new worker; says what was done."""
        victim = self.workers.pop(0)
        pid = victim.pid
        victim.kill()
        purged = self._app.control.purge() or 0
        self.start_worker()
        return f"worker {pid} killed with SIGKILL, {purged} queued messages deleted, a new worker started"

    def _start_flower(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._child("flower", ["flower", "--address=127.0.0.1", f"--port={port}"])
        self.flower_url = f"http://127.0.0.1:{port}"

    def _child(self, name: str, arguments: list[str]) -> Child:
        command = [sys.executable, "-m", "celery", "-A", "smqueue.demo.app", *arguments]
        child = Child(name, command, env=dict(self._env), output=self.logs / f"{name}.log")
        child.start()
        self._stack.callback(child.stop)
        return child

    def _wait_ready(self, *workers: Child) -> None:
        until = time.monotonic() + READY_S
        for worker in workers:
            log = self.logs / f"{worker.name}.log"
            while " ready." not in (log.read_text(errors="replace") if log.exists() else ""):
                if not worker.alive or time.monotonic() > until:
                    tail = log.read_text(errors="replace")[-1000:] if log.exists() else ""
                    raise StageFailed(f"{worker.name} did not start; the end of its log:\n{tail}")
                time.sleep(0.05)

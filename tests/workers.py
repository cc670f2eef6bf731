"""Real Celery workers as child processes of a test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.waiting import wait_until

ROOT = Path(__file__).parent.parent


class Worker:
    """One worker process, and its children.

    Args:
        app: ``package.module:attribute`` of the Celery application.
        env: Added to the environment.
        options: More of ``celery worker``'s.
    """

    def __init__(self, app: str, env: dict[str, str], options: Sequence[str] = ()) -> None:
        self.app, self.env, self.options = app, env, list(options)
        self.log = Path(tempfile.mkstemp(prefix="worker-", suffix=".log")[1])
        self.name = f"w{os.urandom(3).hex()}@test"
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        command = [sys.executable, "-m", "celery", "-A", app, "worker", "--hostname", self.name, "--loglevel", "INFO"]
        command += ["--without-gossip", "--without-mingle", *self.options]
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env={**os.environ, **env, "PYTHONPATH": path}, stdin=subprocess.DEVNULL, stdout=out,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    @property
    def output(self) -> str:
        """What it has logged."""
        return self.log.read_text(errors="replace")

    def wait_ready(self) -> Worker:
        """Until it consumes."""

        def ready() -> bool:
            if self.process.poll() is not None:
                raise AssertionError(f"the worker ended: {self.output[-3000:]}")
            return " ready." in self.output

        wait_until(ready, f"worker {self.name} to be ready", timeout_s=60)
        return self

    def kill(self) -> None:
        """SIGKILL to the worker and all its children: its process group, which is its own."""
        self._signal(signal.SIGKILL)
        self.process.wait(10)

    def stop(self) -> None:
        """Warm shutdown, then harder."""
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(15)
        self._signal(signal.SIGKILL)
        if self.process.poll() is None:
            self.process.wait(10)
        self.log.unlink(missing_ok=True)

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


@contextmanager
def running(*workers: Worker) -> Generator[None]:
    """Stop workers at the end, and show what they said when the block fails."""
    try:
        yield
    except BaseException:
        for worker in workers:
            print(f"--- {worker.name}\n{worker.output[-4000:]}")
        raise
    finally:
        for worker in workers:
            worker.stop()

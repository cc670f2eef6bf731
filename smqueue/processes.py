"""Processes that smqueue starts beside itself (workers, Flower): each ends with this one, however this one ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from smqueue import supervisor

Output = Path | Callable[[str], None]


class Child:
    """One process, with all the processes that it starts itself: they are one group, and end together.

    It runs in a session of its own, so that Ctrl-C in a terminal reaches its parent only, which stops its children in
    order. When the parent is gone, even by SIGKILL, it gets SIGTERM, and is killed ``supervisor.GRACE_S`` s later.

    Args:
        name: For people.
        command: Program and arguments.
        env: Added to this process's environment.
        output: Where its output goes, both standard output and error: appended to a file, or line by line (without
            line ends) to a function, which is called on a thread of its own.
        cwd: Where it runs; here if ``None``.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        env: Mapping[str, str] | None = None,
        output: Output = Path(os.devnull),
        cwd: Path | None = None,
    ) -> None:
        self.name, self.command, self.output, self.cwd = name, list(command), output, cwd
        self.env = dict(env or {})
        self._process: subprocess.Popen[bytes] | None = None  # the supervisor
        self._pid = 0
        self._status: int | None = None
        self._reader: threading.Thread | None = None

    @property
    def pid(self) -> int:
        """The process id of the command itself; 0 before ``start``."""
        return self._pid

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def status(self) -> int | None:
        """Its exit status, minus the signal that ended it; ``None`` while it runs."""
        if not self.alive:
            self._wait(None)
        return self._status

    def start(self) -> Child:
        """Start it; returns when its process id is known, in some 50 ms.

        Raises:
            OSError: It cannot be run, or its output cannot be written.
        """
        assert not self.alive
        self._status = None
        if isinstance(self.output, Path):
            with self.output.open("ab") as sink:
                self._spawn(sink)
        else:
            receiving, sending = os.pipe()
            with os.fdopen(sending, "wb") as sink:
                self._reader = threading.Thread(target=_read, args=(receiving, self.output), daemon=True)
                self._reader.start()  # before the spawning: whoever fails to spawn says why
                self._spawn(sink)
        return self

    def kill(self) -> None:
        """Kill all of it with SIGKILL, at once, and wait until it is gone."""
        if self._process is None or self._process.poll() is not None:
            return
        # The supervisor leads the group and has not been waited for: no other group can have its number.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._wait(None)

    def stop(self, timeout_s: float = 20) -> int | None:
        """Ask it to end with SIGTERM (a worker finishes what it runs), and kill all of it after ``timeout_s`` seconds.

        Returns:
            Its exit status; ``None`` when it was never started.
        """
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()  # the supervisor hands it on
            try:
                self._wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.kill()
        return self.status

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Wait until it has ended.

        Returns:
            Its exit status.

        Raises:
            TimeoutError: It has not, within ``timeout_s`` seconds.
        """
        try:
            self._wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"{self.name} still runs after {timeout_s:g} s") from None
        return self.status

    def __enter__(self) -> Child:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    # --- how ---

    def _spawn(self, sink: IO[bytes]) -> None:
        ours = [sys.executable, "-I", "-S", supervisor.__file__, str(os.getpid()), "-1", ""]
        process = self._process = subprocess.Popen(  # noqa: S603  our own script
            [*ours, *self.command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=sink,
            start_new_session=True,
            env={**os.environ, **self.env},
            cwd=self.cwd,
        )
        self._pid = int(_stdout(process).readline() or 0)
        if not self._pid:
            process.wait()
            raise OSError(f"{self.command[0]} cannot be run; its output has more")

    def _wait(self, timeout_s: float | None) -> None:
        if self._process is not None:
            self._process.wait(timeout_s)
            if self._status is None:  # the supervisor's last line; if it was killed, so was the command
                with _stdout(self._process) as told:
                    self._status = int(told.readline() or -signal.SIGKILL)
        if self._reader is not None:
            self._reader.join(2)  # the last lines; not longer, for a process that left the group may hold the pipe


def _stdout(process: subprocess.Popen[bytes]) -> IO[bytes]:
    assert process.stdout is not None
    return process.stdout


def _read(receiving: int, line: Callable[[str], None]) -> None:
    with os.fdopen(receiving, encoding="utf-8", errors="replace") as stream:
        for text in stream:
            line(text.rstrip("\r\n"))

"""A shell that commands of pages are typed into, one line after another, as a reader types them."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from smqueue.embedded import find_binary
from tests.waiting import wait_until

OURS = re.compile(r"(SMQUEUE|CELERY|FLOWER|COV)_")
"""Variables that a reader's shell does not have yet."""


class Shell:
    """A bash that keeps its variables and background processes from one command to the next.

    Args:
        folder: Where it is.
        ports: Port in a page → the one that is typed instead.
        env: Added to its environment.
    """

    def __init__(self, folder: Path, ports: Mapping[str, int], env: Mapping[str, str] | None = None) -> None:
        self.folder, self.ports, self.env = folder, ports, dict(env or {})
        self.said = folder / "shell.out"
        inherited = {name: value for name, value in os.environ.items() if not OURS.match(name)}
        path = [part for part in inherited["PATH"].split(os.pathsep) if not (Path(part) / "smqueue").exists()]
        inherited |= {"PATH": os.pathsep.join(path), "COLUMNS": "200", "SMQUEUE_SERVER_BIN": str(find_binary().path)}
        with self.said.open("wb") as out:
            self.process = subprocess.Popen(
                [shutil.which("bash") or "bash", "--norc"], cwd=folder, env=inherited | self.env,
                stdin=subprocess.PIPE, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self.count = 0

    def run(self, command: str, timeout_s: float = 180) -> str:
        """Type one line, wait for its end, and return what it has printed.

        Raises:
            AssertionError: It failed.
        """
        self.count += 1
        mark = f"---{self.count}---"
        before = len(self.text())
        assert self.process.stdin is not None
        self.process.stdin.write(f"{self.typed(command)}\necho {mark}$?\n".encode())
        self.process.stdin.flush()
        wait_until(lambda: re.search(rf"{mark}\d+\n", self.text()[before:]), f"{command} to end", timeout_s)
        said, _, status = self.text()[before:].rpartition(mark)
        assert status.strip() == "0", f"{command}: status {status}{said}"
        return said

    def typed(self, command: str) -> str:
        """The command with ports that are free here."""
        for shown, port in self.ports.items():
            command = re.sub(rf"\b{shown}\b", str(port), command)
        return command

    def text(self) -> str:
        """All that was printed so far."""
        return self.said.read_text(errors="replace")

    def end(self) -> None:
        """End it with all that it has started: its process group, which is its own."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)


def offer_venv(folder: Path) -> None:
    """Put the environment that the tests run in where ``make venv`` leaves it."""
    (folder / ".venv").symlink_to(sys.prefix, target_is_directory=True)


def expect_said(command: str, expected: str, said: str) -> None:
    """Compare what a page says that a command prints, where ``…`` stands for anything, with what it has."""
    if not expected.strip():
        return
    pattern = ".*".join(map(re.escape, expected.strip().split("…")))
    spaced = re.sub(r"(\\ )+", r"\\s+", pattern)
    assert re.search(spaced, said, re.DOTALL), f"{command} said {said!r}, and not {expected!r}"

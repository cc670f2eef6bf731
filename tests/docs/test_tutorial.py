"""The tutorial, as a reader does it: its files written, its commands typed into one shell, what it prints compared."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from smqueue.embedded import find_binary
from tests.docs.pages import ROOT, Block, blocks
from tests.docs.test_blocks import FILE, TUTORIAL
from tests.waiting import wait_until

PORT = 6379
"""The server's in the page; here it gets one that is free."""


class Shell:
    """A bash that keeps its variables and background processes from one command to the next."""

    def __init__(self, folder: Path, port: int) -> None:
        self.port = port
        self.said = folder / "shell.out"
        away = {"SMQUEUE_URL", "SMQUEUE_NAMESPACE", "SMQUEUE_MODULES", "CELERY_BROKER_URL"}
        env = {name: value for name, value in os.environ.items() if name not in away and not name.startswith("COV_")}
        path = os.pathsep.join([str(Path(sys.executable).parent), env["PATH"]])  # as an activated .venv does
        env |= {"PATH": path, "COLUMNS": "200", "SMQUEUE_SERVER_BIN": str(find_binary().path)}
        with self.said.open("wb") as out:
            self.process = subprocess.Popen(
                ["bash", "--norc"], cwd=folder, env=env, stdin=subprocess.PIPE, stdout=out, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        self.count = 0

    def run(self, command: str) -> str:
        """Type one line, wait for its end, and return what it has printed.

        Raises:
            AssertionError: It failed.
        """
        self.count += 1
        mark = f"---{self.count}---"
        before = len(self.text())
        typed = command.replace(str(PORT), str(self.port))
        assert self.process.stdin is not None
        self.process.stdin.write(f"{typed}\necho {mark}$?\n".encode())
        self.process.stdin.flush()
        wait_until(lambda: re.search(rf"{mark}\d+\n", self.text()[before:]), f"{command} to end", timeout_s=180)
        said, _, status = self.text()[before:].rpartition(mark)
        assert status.strip() == "0", f"{command}: status {status}{said}"
        return said

    def text(self) -> str:
        """All that was printed so far."""
        return self.said.read_text(errors="replace")

    def end(self) -> None:
        """End it with all that it has started: its process group, which is its own."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """A shell in an empty folder, with a free port for the page's server."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    shell = Shell(tmp_path, port)
    try:
        yield shell
    finally:
        shell.end()


def test_the_tutorial_runs(shell: Shell, tmp_path: Path) -> None:
    """Each file can be written and each command typed, in the order of the page; each prints what the page says, and
    after a worker was killed with SIGKILL in the midst of it the sums are right."""
    done = 0
    for block in blocks(TUTORIAL):
        match block.language:
            case "python":
                name = FILE.match(block.text)
                assert name is not None, f"{TUTORIAL}:{block.line}: a file needs its name in the first line"
                (tmp_path / "shop" / f"{name[1]}.py").write_text(block.text)
            case "console":
                done += _type(shell, block)
            case _:
                pytest.fail(f"{TUTORIAL}:{block.line}: {block.language} is not run")
    assert done > 20
    assert "Traceback" not in shell.text()


def _type(shell: Shell, block: Block) -> int:
    """Type the commands of a block; returns how many."""
    commands = re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]
    for one in commands:
        command, _, expected = one.partition("\n")
        said = shell.run(command)
        if "--port" in command:
            wait_until(lambda: _answers(shell.port), "the server to answer")
        if expected.strip():
            pattern = ".*".join(map(re.escape, expected.strip().split("…")))
            spaced = re.sub(r"(\\ )+", r"\\s+", pattern)
            assert re.search(spaced, said, re.DOTALL), f"{command} said {said!r}, and not {expected!r}"
    return len(commands)


def _answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def test_the_tutorial_kills_a_worker() -> None:
    """It has what it promises: a SIGKILL of a worker by its process id, and the sums after it."""
    typed = "".join(block.text for block in blocks(TUTORIAL) if block.language == "console")
    assert "worker=$!" in typed
    assert "kill -9 $worker" in typed
    assert (ROOT / TUTORIAL).read_text().index("kill -9") < (ROOT / TUTORIAL).read_text().index("revenue: ")

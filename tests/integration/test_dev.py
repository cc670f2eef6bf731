"""``smqueue dev``: a server, a worker that reloads, Flower; and nothing of it left afterwards, however it ends."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from smqueue import Client
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
MACHINES = """
from smqueue import Module, State, Transaction, now

things = Module("things")

@things.state
class Asked(State):
    n: int

@things.state(terminal=True)
class Answered(State):
    text: str

@things.on(Asked, now())
def answered(tx: Transaction, state: Asked, _: None) -> Answered:
    return Answered("{answer}")
"""
APP = """
from celery import Celery
from smqueue import ExecutorBuilder
from machines import things

app = Celery("app")
executor = ExecutorBuilder().with_module("things", things).build(app{more})
"""


class Dev:
    """``smqueue dev`` in a directory of its own."""

    def __init__(self, cwd: Path, *args: str) -> None:
        self.cwd = cwd
        self.out = cwd / "out"
        unset = dict.fromkeys(("SMQUEUE_URL", "SMQUEUE_NAMESPACE", "SMQUEUE_MODULES", "CELERY_BROKER_URL"), "")
        with self.out.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "smqueue", "dev", *args], cwd=cwd, stdin=subprocess.DEVNULL, stdout=out,
                stderr=subprocess.STDOUT, env={**os.environ, **unset, "PYTHONPATH": str(ROOT)}, start_new_session=True,
            )  # fmt: skip

    @property
    def text(self) -> str:
        return self.out.read_text(errors="replace")

    def says(self, text: str, times: int = 1) -> None:
        """Wait until it has said something so often."""
        wait_until(
            lambda: self.text.count(text) >= times or self.process.poll() is not None, f"it says {text!r}", timeout_s=60
        )
        assert self.text.count(text) >= times, self.text

    @property
    def url(self) -> str:
        found = re.search(r"export SMQUEUE_URL='?([^'\s]+)", self.text)
        assert found, self.text
        return found[1]

    def answer(self, op: str) -> str:
        """Add a machine from this process; how it has ended."""
        client = Client(self.url)
        client.add([{"operation_id": op, "module": "things", "type": "Asked", "state": {"n": 1}}], timeout=30)
        client.await_operation(op, timeout=30)
        with client.subscribe(op, timeout=30) as updates:
            return next(update.state["state"]["text"] for update in updates if update.terminal)

    def descendants(self) -> set[int]:
        """Process ids of all that it has started, and that they have."""
        return {child.pid for child in psutil.Process(self.process.pid).children(recursive=True)}


def living(pids: set[int]) -> list[str]:
    """Those processes that still run, with their command lines."""
    found: list[str] = []
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(f"{pid} {' '.join(process.cmdline())}")
    return found


@pytest.fixture
def project(tmp_path: Path) -> Path:
    write(tmp_path, "one")
    return tmp_path


def write(project: Path, answer: str) -> None:
    (project / "machines.py").write_text(MACHINES.replace("{answer}", answer))


@pytest.fixture
def dev(project: Path, request: pytest.FixtureRequest) -> Iterator[Dev]:
    dev = Dev(project, *getattr(request, "param", ("--modules", "machines:things", "-c", "1")))
    try:
        yield dev
    finally:
        if dev.process.poll() is None:
            dev.process.kill()
            dev.process.wait()


def test_it_runs_reloads_and_stops(dev: Dev, project: Path) -> None:
    """A machine added elsewhere runs; a changed file reloads the worker; Ctrl-C stops all in order; data is kept."""
    dev.says(" ready.")
    assert dev.answer("first") == "one"
    write(project, "two and more")
    dev.says("machines.py changed")
    dev.says(" ready.", 2)
    assert dev.answer("second") == "two and more"
    (project / "machines.py").write_text("def broken(:\n")
    dev.says("it starts again after a change")
    assert "machines.py, line 1" in dev.text
    write(project, "three")
    dev.says(" ready.", 3)
    assert dev.answer("third") == "three"
    started = dev.descendants()
    assert len(started) >= 4
    dev.process.send_signal(signal.SIGINT)
    assert dev.process.wait(40) == 0
    assert living(started) == []
    assert "Traceback" not in dev.text
    log = (project / ".smqueue" / "dev.log").read_text()
    for name in ("dev   ", "worker", "server"):
        assert f"{name} | " in log
    assert (project / ".smqueue" / "appendonlydir").is_dir()


@pytest.mark.parametrize("dev", [("--modules", "machines:things", "-c", "1", "--data", "kept")], indirect=True)
def test_flower_runs_if_installed(dev: Dev) -> None:
    """Flower's address is printed, and answers."""
    pytest.importorskip("flower")
    dev.says("Flower: http")
    found = re.search(r"Flower: (http://\S+)", dev.text)
    assert found

    def answers() -> bool:
        try:
            with urllib.request.urlopen(found[1], timeout=5) as page:
                return page.status == 200
        except (urllib.error.URLError, OSError):
            return False

    wait_until(answers, "Flower answers", timeout_s=60)
    dev.process.terminate()
    assert dev.process.wait(40) == 0
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(found[1].rpartition(":")[2]))) != 0
    assert (dev.cwd / "kept" / "dev.log").exists()


def test_nothing_outlives_a_killed_dev(dev: Dev) -> None:
    """SIGKILL of ``smqueue dev`` ends the worker, its pool, Flower and the server."""
    dev.says(" ready.")
    started = dev.descendants()
    assert len(started) >= 4
    dev.process.kill()
    dev.process.wait()
    wait_until(lambda: not living(started), "all are gone", timeout_s=30)


def test_an_executor_of_ones_own(project: Path) -> None:
    """With -A the user's application runs, on this server, as long as it does not name another."""
    (project / "app.py").write_text(APP.replace("{more}", ""))
    dev = Dev(project, "-A", "app:executor", "--no-flower", "-c", "1")
    try:
        dev.says(" ready.")
        assert dev.answer("first") == "one"
        dev.process.send_signal(signal.SIGINT)
        assert dev.process.wait(40) == 0
    finally:
        dev.process.kill()


@pytest.mark.parametrize(
    ("app", "args", "says"),
    [
        (APP.replace("{more}", ', url="redis://127.0.0.1:1/0"'), ("-A", "app"), "127.0.0.1:1"),
        ("1 / 0\n", ("-A", "app"), "ZeroDivisionError"),
        ("", ("--modules", "app:things"), "things"),
    ],
)
def test_what_cannot_run(project: Path, app: str, args: tuple[str, ...], says: str) -> None:
    """An application with a server of its own, or that cannot be imported, is one line; nothing is left running."""
    (project / "app.py").write_text(app)
    dev = Dev(project, *args, "--no-flower")
    assert dev.process.wait(40) == 1
    assert says in dev.text
    assert "Traceback" not in dev.text

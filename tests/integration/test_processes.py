"""Processes started by smqueue: their output, their end, and that nothing of them outlives whoever started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from smqueue.processes import Child
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]

FAMILY = """
import os, signal, subprocess, sys, threading
if {stubborn}: signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import threading; threading.Event().wait(600)"])
print("child", child.pid, flush=True)
print(os.environ.get("GREETING", ""), file=sys.stderr, flush=True)
threading.Event().wait(600)
"""


def runs(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def family(*, stubborn: bool = False) -> list[str]:
    """A process with a child, that says the child's process id."""
    return [sys.executable, "-c", FAMILY.format(stubborn=stubborn)]


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def child(lines: list[str]) -> Iterator[Child]:
    child = Child("family", family(), {"GREETING": "hello"}, lines.append).start()
    try:
        yield child
    finally:
        child.kill()


def grandchild(lines: list[str]) -> int:
    wait_until(lambda: len(lines) == 2, "it has said both lines")
    return next(int(line.split()[1]) for line in lines if line.startswith("child"))


def test_output_goes_line_by_line_to_a_function(child: Child, lines: list[str]) -> None:
    """Standard output and error arrive without line ends; the environment is added to ours; the pid is its own."""
    other = grandchild(lines)
    assert "hello" in lines
    assert child.alive
    assert child.status is None
    assert runs(child.pid)
    assert runs(other)


def test_stop_ends_the_whole_group(child: Child, lines: list[str]) -> None:
    """SIGTERM reaches the command; what it leaves behind is killed; the status says which signal ended it."""
    other = grandchild(lines)
    assert child.stop() == -signal.SIGTERM
    assert not child.alive
    assert not runs(child.pid)
    wait_until(lambda: not runs(other), "the grandchild is gone")


def test_kill_ends_the_whole_group(child: Child, lines: list[str]) -> None:
    """After ``kill`` nothing of the group is left, and ``start`` starts it again."""
    other = grandchild(lines)
    child.kill()
    assert child.status == -signal.SIGKILL
    wait_until(lambda: not runs(child.pid) and not runs(other), "all of it is gone")
    lines.clear()
    child.start()
    assert runs(child.pid)
    grandchild(lines)


def test_who_does_not_stop_is_killed(lines: list[str]) -> None:
    """A process that ignores SIGTERM is killed when its time is over."""
    child = Child("stubborn", family(stubborn=True), output=lines.append).start()
    other = grandchild(lines)
    assert child.stop(timeout_s=0.2) == -signal.SIGKILL
    wait_until(lambda: not runs(child.pid) and not runs(other), "all of it is gone")


def test_its_end_is_told(tmp_path: Path) -> None:
    """The exit status arrives, and output is appended to a file."""
    log = tmp_path / "log"
    log.write_text("before\n")
    child = Child("brief", [sys.executable, "-c", "print('done'); raise SystemExit(3)"], output=log).start()
    assert child.wait(10) == 3
    assert not child.alive
    assert child.stop() == 3
    assert log.read_text() == "before\ndone\n"


def test_what_cannot_run_says_so(lines: list[str]) -> None:
    """A command that does not exist is an OSError, and its output says why."""
    child = Child("none", ["/nowhere/at/all"], output=lines.append)
    with pytest.raises(OSError, match="cannot be run"):
        child.start()
    assert not child.alive
    wait_until(lambda: lines, "it says why")
    assert "/nowhere/at/all cannot be run" in lines[0]


PARENT = """
import sys, threading
from smqueue.processes import Child
command = [sys.executable, "-c", {family!r}]
Child("family", command, output=lambda line: print(line, flush=True)).start()
threading.Event().wait()
"""


@pytest.mark.parametrize("stubborn", [False, True])
def test_nothing_outlives_a_killed_parent(stubborn: bool) -> None:
    """SIGKILL of the parent ends the child and the grandchild: by SIGTERM, or, if that is ignored, by SIGKILL."""
    script = PARENT.format(family=FAMILY.format(stubborn=stubborn))
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline().split()[1])
        group = os.getpgid(pid)
        parent.kill()
        parent.wait(10)
    wait_until(lambda: not _any_in_group(group), "the group is empty", timeout_s=20)


def _any_in_group(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True

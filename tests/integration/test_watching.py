"""``--watch``: real processes on a real server, into a pipe and on a terminal."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from smqueue import Module, State, Transaction, after
from smqueue.cli import Exit, run
from smqueue.cli.live import Lines, View
from smqueue.cli.stats import Rates, view_of
from smqueue.embedded import EmbeddedServer
from smqueue.overview import EdgeCount, Overview, StateCount, Store
from smqueue.presence import Worker
from tests.inprocess import Local, Play
from tests.waiting import wait_until
from tests.workers import ROOT

doors = Module("doors", version=1)
push = doors.signal("push", int)
ENDS_S = 30
"""How long the end of a process may take on a slow machine."""


@doors.state
class Closed(State):
    n: int


@doors.state(terminal=True)
class Open(State):
    n: int


@doors.on(Closed, push)
def pushed(tx: Transaction, state: Closed, times: int) -> Open | None:
    return Open(times) if times else None


@doors.on(Closed, after(hours=1))
def locked(tx: Transaction, state: Closed, _: None) -> Open:
    return Open(state.n)


class Watch:
    """A command that watches; what it prints is read as it comes.

    Args:
        arguments: Of ``smqueue``.
        local: Whose namespace.
        terminal: Whether it is on one.
        url: Of the state, unless that of ``local``.
    """

    def __init__(self, local: Local, arguments: Sequence[str], terminal: bool = False, url: str | None = None) -> None:
        self.out, self.err = "", ""
        where = ["--url", url or local.settings.url, "--namespace", local.namespace, "--watch"]
        environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40", "NO_COLOR": ""}
        environment["PYTHONPATH"] = str(ROOT)
        ours, theirs = pty.openpty() if terminal else (None, subprocess.PIPE)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "smqueue", *arguments, *where],
            stdin=subprocess.DEVNULL, stdout=theirs, stderr=subprocess.PIPE, env=environment,
        )  # fmt: skip
        if ours is None:
            assert self.process.stdout is not None
            ours = self.process.stdout.fileno()
        else:
            os.close(theirs)
        assert self.process.stderr is not None
        self._readers = [
            threading.Thread(target=self._read, args=(name, number), daemon=True)
            for name, number in (("out", ours), ("err", self.process.stderr.fileno()))
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, name: str, number: int) -> None:
        with suppress(OSError):  # a terminal whose other end is closed
            while some := os.read(number, 65_536):
                setattr(self, name, getattr(self, name) + some.decode())

    def says(self, text: str, times: int = 1) -> None:
        """Wait until it has printed something, so many times."""

        def said() -> bool:
            assert self.process.poll() is None, self.err
            return self.out.count(text) >= times

        wait_until(said, f"it prints {text!r} {times} times: {self.out[-500:]!r}", 60)

    def end(self, number: int = signal.SIGINT) -> int:
        """Send a signal; returns the exit status when all has been read."""
        self.process.send_signal(number)
        status = self.process.wait(ENDS_S)
        for reader in self._readers:
            reader.join(ENDS_S)
        return status


@contextmanager
def watching(local: Local, *arguments: str, terminal: bool = False, url: str | None = None) -> Generator[Watch]:
    """Run a command with ``--watch``."""
    found = Watch(local, arguments, terminal, url)
    try:
        yield found
    finally:
        if found.process.poll() is None:
            found.process.kill()
            found.process.wait()


@pytest.fixture
def local(play: Play) -> Local:
    """A namespace with one door."""
    made = play(doors=doors)
    made.add("front", Closed(1))
    return made


def test_a_change_is_one_line(local: Local) -> None:
    """Into a pipe, --json prints one answer a line: at once, and again when a machine moves; what has only grown older
    is none. Ctrl-C ends it with 0."""
    with watching(local, "list", "--json") as watch:
        watch.says("\n")
        local.add("back", Closed(2))
        watch.says("back")
        local.executor.signal("front", push, 7)
        local.settle("front")
        wait_until(lambda: '"front"' not in watch.out.splitlines()[-1], "front has gone")
        assert watch.end() == 0
    assert watch.err == ""
    answers: list[Any] = [json.loads(line) for line in watch.out.splitlines()]
    doors_seen = [{one["operation_id"] for one in answer} for answer in answers]
    assert doors_seen[0] == {"front"}
    assert doors_seen[-1] == {"back"}
    for one, other in pairwise(answers):
        assert one != other


def test_one_operation(local: Local) -> None:
    """Blocks for people, each with its time; they go on when the operation has ended. SIGTERM ends it too."""
    with watching(local, "why", "front") as watch:
        watch.says("push")
        local.executor.signal("front", push, 7)
        local.settle("front")
        watch.says("finished")
        assert watch.end(signal.SIGTERM) == 0
    blocks = watch.out.split("\n\n")
    assert len(blocks) >= 2
    assert all(block.startswith(f"{datetime.now().year}-") for block in blocks)
    assert "\x1b" not in watch.out


def test_a_terminal_is_drawn_over(local: Local) -> None:
    """On a terminal there is one picture, redrawn; at the end the last one stays and the cursor is there again."""
    with watching(local, "list", terminal=True) as watch:
        watch.says("front")
        local.add("back", Closed(2))
        watch.says("back")
        watch.says("Ctrl-C ends it", 3)
        assert watch.end() == 0
    assert "\x1b[2K" in watch.out
    assert watch.out.rstrip().endswith("\x1b[?25h")
    assert "back" in watch.out.rpartition("Ctrl-C ends it")[2]


def test_stats_have_rates(local: Local) -> None:
    """``stats --watch`` tells how often a transition is made, and that no worker runs."""
    with watching(local, "stats", "--json") as watch:
        watch.says("no_worker")
        for n in range(20):
            local.add(f"door-{n}", Closed(n))
        watch.says('"count": 21')
        assert watch.end() == 0
    last: Any = json.loads(next(line for line in watch.out.splitlines() if '"count": 21' in line))
    (added,) = last["transitions"]
    assert (added["module"], added["from"], added["to"], added["count"]) == ("doors", None, "Closed", 21)
    assert added["per_s"] > 0


def test_rates_are_an_average_of_ten_seconds() -> None:
    """A rate is what was made since the look that is ten seconds ago; the first look has nothing to compare with."""
    start = datetime(2026, 1, 1, tzinfo=UTC)
    rates = Rates()

    def rate(at_s: float, count: int) -> float:
        edge = EdgeCount("doors", "Closed", "Open", "pushed", count)
        found = rates.of(Overview("ns", start + timedelta(seconds=at_s), edges=(edge,)))
        return found["doors", "Closed", "Open", "pushed"]

    assert rate(0, 1_000) == 0
    assert rate(2, 1_020) == 10
    assert rate(10, 1_100) == 10
    assert rate(12, 1_100) == 8, "against the look at 2 s"
    assert rate(60, 1_100) == 0, "what is long ago is forgotten"


def test_what_passes_with_time_is_no_change() -> None:
    """The time, ages and signs of life are no change of ``stats``; a machine more is one, and a worker gone."""

    def told(at_s: float, active: int = 1, alive: bool = True) -> str:
        at = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=at_s)
        worker = Worker("w@h", ("q",), "q", "q", {"doors": 1}, at, alive)
        state = StateCount("doors", "Closed", active, oldest=datetime(2026, 1, 1, tzinfo=UTC))
        store = Store(used_bytes=round(at_s * 1000))
        found = Overview("ns", at, states=(state,), workers=(worker,), due=1, lag_s=at_s, stores=(store,))
        return view_of(found, None, None).told

    assert told(1) == told(2)
    assert told(1) != told(1, active=2)
    assert told(1) != told(1, alive=False)


def test_nothing_is_told_twice(capsys: pytest.CaptureFixture[str]) -> None:
    """Elsewhere than on a terminal: the same answer, the same trouble, is told once; after a trouble, trouble again."""
    lines = Lines(as_json=True)
    for rows in ([1], [1], [2], [2]):
        lines.show(View("", rows))
    lines.trouble("away")
    lines.trouble("away still")
    lines.show(View("", [2]))
    lines.trouble("away again")
    assert capsys.readouterr() == ("[1]\n[2]\n", "smqueue: away\nsmqueue: away again\n")


@pytest.mark.parametrize("command", ["show", "why"])
def test_what_is_not_there_is_an_error_at_once(local: Local, capsys: pytest.CaptureFixture[str], command: str) -> None:
    """The first look counts: an operation that is not there, a server that does not answer."""
    namespace = ["--namespace", local.namespace, "--watch"]
    assert run([command, "nobody", "--url", local.settings.url, *namespace]) == Exit.NO_SUCH_OPERATION
    assert run([command, "front", "--url", "redis://127.0.0.1:1/0", *namespace]) == Exit.UNAVAILABLE
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 2)


def test_a_server_that_goes_away_is_waited_for(tmp_path: Path, play: Play) -> None:
    """While there is no answer it says so once, and it goes on when there is one again."""
    with EmbeddedServer(tmp_path / "data") as server:
        local = play(url=server.url, doors=doors)
        local.add("front", Closed(1))
        with watching(local, "list", "--json", url=server.url) as watch:
            watch.says("front")
            server.stop()
            wait_until(lambda: "StoreUnavailable" in watch.err, "it says so", 60)
            assert watch.process.poll() is None
            server.start()
            local.add("back", Closed(2))
            watch.says("back")
            assert watch.end() == 0
        assert watch.err.count("\n") == 1

"""The benchmarks run, at tiny sizes: that they work and clean up, not how fast anything is."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from benchmarks.settings import Workers
from benchmarks.stage import Stage
from benchmarks.systems.clients import Crew, Orders
from benchmarks.systems.scripts import drive
from smqueue import Executor
from smqueue.errors import StateAlreadyExists
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
LIMIT_S = 240


def start(tmp_path: Path, *options: str) -> subprocess.Popen[bytes]:
    """The command, without peers, at tiny sizes."""
    command = [sys.executable, "-m", "benchmarks", "--tiny", "--no-peers", "--rounds", "1", *options]
    env = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    (tmp_path / "said").touch()
    with (tmp_path / "said").open("ab") as said:
        return subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=said, stderr=said, stdin=subprocess.DEVNULL, preexec_fn=_interruptible
        )


def _interruptible() -> None:
    """What is run in the background of a shell ignores Ctrl-C, and hands that on."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_a_run_writes_results_table_and_picture(tmp_path: Path) -> None:
    """Cycles, and the floor: a run recorded by a proxy, and played again bare. No path of the machine is kept."""
    results = tmp_path / "out" / "mine.json"
    run = start(tmp_path, "--only", "cycles,floor", "--json", str(results))
    assert run.wait(LIMIT_S) == 0, (tmp_path / "said").read_text()
    data = json.loads(results.read_text())
    cycles, floor = (data["measures"][name]["figures"] for name in ("cycles", "floor"))
    assert cycles["ours.rate"]["median"] > 0
    assert cycles["ours.p50"]["unit"] == "ms"
    assert floor["floor.rate"]["median"] > 0
    assert floor["floor.committed"]["met"], "what is played bare has to do the work"
    assert floor["stream.sent"]["median"] > 500, "a cycle is a state, a signal and a step"
    assert "of 2 client and 1 worker processes" in data["measures"]["floor"]["notes"][0]
    assert "50 clients in 2 processes" in data["measures"]["cycles"]["notes"][0]
    texts = [results.with_suffix(suffix).read_text() for suffix in (".json", ".md", ".svg")]
    assert "| smqueue |" in texts[1]
    assert "<svg" in texts[2]
    assert all(str(tmp_path) not in text and os.uname().nodename not in text for text in texts)
    assert [path for path in tmp_path.iterdir() if path.name not in {"said", "out"}] == []


def test_an_interrupted_run_leaves_no_process_and_no_file(tmp_path: Path) -> None:
    """Ctrl-C while a worker runs: server, worker, clients and their supervisors end, and their directories go."""
    run = start(tmp_path, "--only", "chains", "--json", str(tmp_path / "out" / "mine.json"))
    whole = psutil.Process(run.pid)

    def started() -> list[psutil.Process]:
        found = whole.children(recursive=True)
        with suppress(psutil.Error):  # one that has ended meanwhile
            return found if any("celery" in one.cmdline() for one in found) else []
        return []

    try:
        processes = wait_until(started, "a worker to be started", LIMIT_S)
        run.send_signal(signal.SIGINT)
        assert run.wait(LIMIT_S) == 130, (tmp_path / "said").read_text()
        wait_until(lambda: not any(one.is_running() for one in processes), "all processes to be gone", 60)
    finally:
        run.kill()
    assert [path for path in tmp_path.iterdir() if path.name != "said"] == []


def test_the_driver_starts_all_then_signals_all() -> None:
    """With no more calls under way than clients; the clock stops when the last is seen finished."""
    under_way, most, order = 0, 0, list[str]()
    seen = drive.Seen()

    class Subject:
        async def call(self, what: str, key: str) -> None:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            await asyncio.sleep(0)
            under_way -= 1
            order.append(what)
            if what == "signal":
                seen.add(key)

        async def start(self, key: str) -> None:
            await self.call("start", key)

        async def signal(self, key: str) -> None:
            await self.call("signal", key)

        async def finished(self, keys: Sequence[str]) -> None:
            await seen.all(keys)

    took = asyncio.run(drive.cycle(Subject(), [str(n) for n in range(20)], 3))
    assert most == 3
    assert order == ["start"] * 20 + ["signal"] * 20
    assert took["seconds"] >= took["start_s"] + took["finish_s"] - 1e-6


def test_all_client_processes_have_done_their_share_when_a_half_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each machine is started once, by one of three processes; so none is signalled before the last is started.

    What one of the others fails with is raised here.
    """

    async def run(crew: Crew, executor: Executor) -> None:
        orders = Orders(executor)
        for some in (names[:7], names[7:]):
            await crew.each(orders.start, some, 7)
            waiting = {machine.operation_id for machine, _ in executor.get_active_states(module="bench")}
            assert waiting == set(names[: names.index(some[-1]) + 1])
        with pytest.raises(StateAlreadyExists):
            await crew.each(orders.start, ["new", names[0]], 3)

    names = [f"m{number}" for number in range(20)]
    with Stage(Workers(count=0)) as stage:
        for name, value in stage.env.items():
            monkeypatch.setenv(name, value)
        with Crew(3) as crew:
            assert len(set(crew.pids)) == 3
            asyncio.run(run(crew, stage.executor))

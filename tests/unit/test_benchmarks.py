"""The logic of the benchmarks: figures, tables, the picture, what is copied into pages, and the recorded stream."""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ET
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks import __main__ as command
from benchmarks import figures
from benchmarks.figure import Absent, Figure, Measured, figure, latencies, quantile, ratios
from benchmarks.measures import MEASURES, cycles, load
from benchmarks.measures.cycles import Taken
from benchmarks.model import model
from benchmarks.plot import bars, svg
from benchmarks.recorder import Passed
from benchmarks.report import cell, document, markdown, short, table
from benchmarks.settings import Settings
from benchmarks.stream import stream_of
from benchmarks.surroundings import Steal, kernel, without_paths
from benchmarks.systems import PEERS, environments
from benchmarks.systems.system import Driver, drive


def test_a_quantile_is_a_value_that_was_measured() -> None:
    """The p95 of 100 values is the 95th, of 20 the 19th, of one that one; none is made up between two."""
    assert quantile(range(100, 0, -1), 0.95) == 95
    assert quantile([float(n) for n in range(20)], 0.95) == 18.0
    assert [quantile([7.0], share) for share in (0.5, 0.95, 0.99)] == [7.0] * 3


def test_a_ratio_is_taken_round_by_round() -> None:
    """A slow round slows both: 2 times in each is 2 times, though the medians of either say something else."""
    assert ratios([200, 20, 100], [100, 10, 50]).values == (2.0, 2.0, 2.0)
    with pytest.raises(ValueError, match="zip"):
        ratios([1, 2], [1])


@pytest.mark.parametrize(
    ("one", "met"),
    [
        (figure("ms", 1, 2, 9), None),
        (figure("ms", 1, 2, 9, most=2), True),
        (figure("ms", 1, 2, 9, most=1.9), False),
        (figure("times", 1, 2, 9, least=2), True),
        (figure("times", 1, 2, 9, least=2.1), False),
    ],
)
def test_a_goal_is_met_by_the_median(one: Figure, met: bool | None) -> None:
    """Not by the best round, and not spoiled by the worst."""
    assert one.met is met
    assert Figure.from_data(json.loads(json.dumps(one.as_data()))) == one


def test_latencies_of_a_round_without_samples_are_left_out() -> None:
    """The p50, p95 and p99 of each round that has any; no figure of nothing."""
    found = latencies([[1.0, 2.0, 3.0], [], [5.0]], {"p95": 4})
    assert found["p50"].values == (2.0, 5.0)
    assert found["p95"].most == 4
    assert latencies([[]]) == {}


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (12345.6, "12,346"), (99.96, "100"), (1.0549, "1.05"), (0.012349, "0.0123"), (7, "7")]
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    """Or all of them before the point, with commas."""
    assert short(value) == text


def test_a_cell_has_median_spread_and_goal() -> None:
    """What is equal in all rounds has no spread."""
    assert cell(figure("ms", 3, 1, 2)) == "2 (1–3)"  # noqa: RUF001
    assert cell(figure("ms", 2, 2, most=1)) == "2 ✗ ≤ 1"
    assert cell(figure("times", 1.1, least=1.05)) == "1.1 ✓ ≥ 1.05"


def test_a_table_has_a_row_for_each_subject_and_a_column_for_each_figure() -> None:
    """Also when a row lacks one of them."""
    measured = Measured({"ours.rate": figure("1/s", 5), "peer.rate": figure("1/s", 2), "peer.p50": figure("ms", 9)})
    measured.titles["peer"] = "A peer"
    assert list(table(measured)) == [
        "| | rate, 1/s | p50, ms |",
        "|---|---|---|",
        "| ours | 5 |  |",
        "| A peer | 2 | 9 |",
    ]


def test_a_table_that_would_be_mostly_empty_has_a_row_for_each_figure() -> None:
    """Rows that share no column are a list."""
    measured = Measured({"a.bytes": figure("bytes", 1), "b.cpu": figure("%", 2), "c.took_long": figure("s", 3)})
    assert list(table(measured))[2:] == ["| a | bytes | 1 |", "| b | cpu, % | 2 |", "| c | took long, s | 3 |"]


def a_document() -> dict[str, Any]:
    """Of a run with a peer, one that was absent, and the floor."""
    cycles = Measured(titles={"ours": "smqueue", "peer": "A <peer>"}, absent={"Gone": "no such file /opt/x/y/lib.so"})
    cycles.figures = {
        "ours.rate": figure("cycles/s", 3000, 3300, 2900),
        "peer.rate": figure("cycles/s", 300),
        "peer.ours_is": figure("times", 10, least=5),
    }
    floor = Measured({"floor.rate": figure("cycles/s", 5000), "ours.rate": figure("cycles/s", 1)})
    floor.figures["ours.of_the_floor"] = figure("times", 0.6)
    about = {"at": "2026-01-01", "rounds": 3, "clients": 50, "workers": "1 worker", "note": "", "surroundings": {}}
    return document(about, {"cycles": cycles, "floor": floor}, {"cycles": "What is so.", "floor": "The floor."})


def test_what_could_not_be_measured_is_told_with_its_reason() -> None:
    """And no path of the machine is kept."""
    data = a_document()
    assert data["measures"]["cycles"]["absent"] == {"Gone": "no such file lib.so"}
    assert "not measured: Gone**: no such file lib.so" in markdown(data, "latest.svg")
    assert without_paths("at /usr/lib/python3/a.py: unix:///tmp/bench-x/s.sock, 3/4") == "at a.py: unix://s.sock, 3/4"


@pytest.mark.parametrize("release", ["6.18.44-host-v7", "6.18", "6.18.1"])
def test_a_kernel_is_told_by_its_version_alone(release: str) -> None:
    """And not by the name that whoever has built it has given it."""
    assert kernel(release) == "6.18"


def test_steal_is_a_share_of_what_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the hypervisor took stands beside a figure, as a share of the time of all processors; a guest's time is in
    the user's already, and a system that does not tell of steal has none."""
    linux, other = namedtuple("linux", "user idle steal guest"), namedtuple("other", "user idle")
    told = [linux(1, 1, 1, 1), linux(2, 6, 3, 2), other(1, 1), other(2, 2)]
    monkeypatch.setattr("psutil.cpu_times", lambda: told.pop(0))
    assert Steal().percent() == pytest.approx(25.0)
    assert Steal().percent() == 0.0


def test_the_picture_shows_all_systems_the_fastest_first() -> None:
    """The floor's own rate among them, and of each peer how many times as much ours is; titles are escaped."""
    shown = bars(a_document())
    assert [bar.title for bar in shown] == ["floor", "smqueue", "A <peer>"]
    root = ET.fromstring(svg(shown, "a caption & more"))
    texts = ["".join(one.itertext()) for one in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"A <peer>", "a caption & more", "3,000 0.6 of the floor", "300 ours is 10 times that"} <= set(texts)


def test_a_ratio_is_to_the_neighbouring_round_of_ours() -> None:
    """A peer's second round is compared with ours just before it, not with the median of all of ours."""

    class System:
        name, title, how, ratio = "bullmq", "BullMQ", "somehow", 1.05

    def one(rate: float) -> dict[str, Any]:
        return {"cycles": rate, "seconds": 1.0, "latency_ms": [1.0], "spent_us": {}}

    class Ours(System):
        name, title, ratio = "ours", "smqueue", None

    taken, found = Taken(), Measured()
    taken.ours = [one(100), one(300)]
    taken.theirs["bullmq"] = [(one(50), 100.0), (one(100), 300.0)]
    taken.write(found, [Ours(), System()])  # type: ignore[list-item]
    assert found.figures["bullmq.ours_is"].values == (2.0, 3.0)
    assert found.figures["bullmq.ours_is"].least == 1.05


class Fake:
    """A system that says a rate, or why not, and notes when it was run."""

    how, ratio = "somehow", None

    def __init__(self, name: str, ran: list[str], rates: list[float], broken: str = "") -> None:
        self.name, self.title = name, name.upper()
        self._ran, self._rates, self._broken = ran, iter(rates), broken

    def install(self, cache: Path) -> dict[str, str]:
        if self._broken == "install":
            raise Absent("there is none")
        return {self.name: "1"}

    def round(self, settings: Settings) -> dict[str, Any]:
        self._ran.append(self.name)
        if self._broken == "round" or (self._broken == "first" and self._ran.count(self.name) == 1):
            raise Absent("it fell over")
        return {"cycles": next(self._rates), "seconds": 1.0, "latency_ms": [1.0], "spent_us": {"server": 2.0}}


def test_systems_take_turns_and_those_that_fail_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours before each peer, in each round. One that cannot be installed or run has its reason, and no figure; one that
    has failed in some rounds has figures of the others, and its reason beside them."""
    ran: list[str] = []
    ours = Fake("ours", ran, [100, 200, 300, 400, 500, 600, 700, 800])
    peers = {
        "fast": Fake("fast", ran, [50, 50]),
        "slow": Fake("slow", ran, [1, 1]),
        "none": Fake("none", ran, [], "install"),
        "weak": Fake("weak", ran, [], "round"),
        "once": Fake("once", ran, [4], "first"),
    }
    kinds = []
    for name in peers:
        kinds.append(lambda name=name: peers[name])
        kinds[-1].name = name  # type: ignore[attr-defined]
    monkeypatch.setattr(cycles, "PEERS", kinds)
    monkeypatch.setattr(cycles, "Ours", lambda settings: ours)
    found = cycles.measure(Settings(rounds=2, peers=tuple(peers), say=lambda text: None))
    assert ran == ["ours", "fast", "ours", "slow", "ours", "weak", "ours", "once"] * 2
    assert found.absent == {"NONE": "there is none", "WEAK": "it fell over"}
    assert found.figures["fast.ours_is"].values == (2.0, 10.0)
    assert found.figures["slow.ours_is"].values == (200.0, 600.0)
    assert found.figures["once.ours_is"].values == (200.0,)
    assert "ONCE failed in 1 of 2 rounds: it fell over" in found.notes
    assert found.figures["ours.rate"].values == (100, 200, 300, 400, 500, 600, 700, 800)
    assert not any(name.startswith(("none", "weak")) for name in found.figures)


PAGE = (
    "We do <!-- figure: cycles.ours.rate.median -->9<!-- /figure --> and "
    "<!-- figure: cycles.ours.rate.max ,.1f --><!-- /figure -->."
)


def test_pages_get_their_figures_from_the_results(tmp_path: Path) -> None:
    """A stale one is found by --check, which changes nothing; copying mends it, and then there is nothing to find."""
    page, results = tmp_path / "page.md", tmp_path / "latest.json"
    page.write_text(PAGE)
    results.write_text(json.dumps(a_document()))

    def run(*options: str) -> int:
        return CliRunner().invoke(figures.main, ["--results", str(results), *options, str(page)]).exit_code

    assert run("--check") == 1
    assert page.read_text() == PAGE
    assert run() == 0
    assert "do <!-- figure: cycles.ours.rate.median -->3,000<!-- /figure -->" in page.read_text()
    assert "<!-- figure: cycles.ours.rate.max ,.1f -->3,300.0<!-- /figure -->." in page.read_text()
    assert run("--check") == 0


def test_the_model_is_arithmetic_on_what_was_measured() -> None:
    """Cores for so many cycles a second, each busy for 70 % of the time; nodes of 16 GiB for so many machines; and of
    both cores of the run the share that was used."""
    measures = a_document()["measures"]
    measures["cycles"]["figures"] |= {
        f"ours.cpu_{who}": {"median": us} for who, us in (("server", 200), ("workers", 350), ("clients", 250))
    }
    measures["parked"] = {"figures": {"redis.bytes": {"median": 600}, "idle.commands": {"median": 5}}}
    found = model(measures)
    assert (found["servers_1k"], found["workers_1k"], found["producers_1k"]) == (1, 1, 1)
    assert (found["servers_100k"], found["workers_100k"], found["producers_100k"]) == (29, 50, 36)
    assert (found["nodes_1m"], found["nodes_100m"]) == (1, 4)
    assert found["gib_1m"] == pytest.approx(0.559, abs=0.001)
    assert (found["most"], found["used"]) == (2_500, 3_000 / 2_500)
    assert figures.figure_at({"measures": measures}, "model.nodes_100m") == 4


@pytest.mark.parametrize(
    "path", ["cycles.nobody.rate.median", "cycles.ours.rate.mode", "speed", "cycles", "at.x", "model.nodes_1m"]
)
def test_a_page_that_asks_for_no_figure_is_refused(path: str) -> None:
    """By the figure's name; nothing is copied."""
    with pytest.raises(figures.NoFigure, match=path):
        figures.copied(f"<!-- figure: {path} -->1<!-- /figure -->", a_document())


def a_recording() -> list[Passed]:
    """Of producers (1 and 4) on lines 1 and 4, a worker (2) on line 2, and one that listens; line 9 has the marks."""

    def asked(at: float, pid: int, line: int, data: bytes) -> Passed:
        return Passed(at, pid, line, True, data)

    def told(at: float, pid: int, line: int, data: bytes) -> Passed:
        return Passed(at, pid, line, False, data)

    return [
        asked(0, 1, 1, b"*1\r\n$4\r\nPING\r\n"),
        told(1, 1, 1, b"+PONG\r\n"),
        asked(1, 2, 3, b"*2\r\n$9\r\nSUBSCRIBE\r\n$1\r\na\r\n"),
        asked(2, 1, 9, b"*2\r\n$4\r\nECHO\r\n$9\r\nbegin 1 4\r\n"),
        asked(
            3, 1, 1, b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n*2\r\n$3\r\nGET\r\n$1\r\n"
        ),  # the rest of the second one follows
        asked(4, 1, 1, b"b\r\n"),
        asked(5, 1, 1, b"*2\r\n$3\r\nGET\r\n$1\r\nc\r\n"),  # before the answers to the two
        told(6, 1, 1, b"$1\r\n1\r\n"),
        asked(6, 4, 4, b"*1\r\n$4\r\nPING\r\n"),
        asked(7, 2, 2, b"*4\r\n$5\r\nBRPOP\r\n$1\r\nq\r\n$1\r\nr\r\n$1\r\n1\r\n"),
        told(8, 1, 1, b"$1\r\n2\r\n$1\r\n3\r\n"),
        told(8, 4, 4, b"+PONG\r\n"),
        asked(8.5, 2, 2, b"*2\r\n$3\r\nGET\r\n$1\r\nr\r\n"),
        asked(9, 1, 9, b"*2\r\n$4\r\nECHO\r\n$3\r\nend\r\n"),
        asked(10, 1, 1, b"*1\r\n$4\r\nQUIT\r\n"),
    ]


def test_a_recorded_stream_keeps_what_was_written_together_and_after_what() -> None:
    """A command that came in two parts is whole; what was asked ahead is, and how far each producer was is known."""
    stream = stream_of(a_recording(), b"begin", b"end")
    (producer, other), (worker,) = stream.producers, stream.workers
    assert [(write.commands, write.after) for write in producer.before] == [(1, 0)]
    assert [(write.commands, write.after) for write in producer.measured] == [(2, 1), (1, 1)]
    assert (other.pid, [write.commands for write in other.measured]) == (4, [1])
    taken = b"*2\r\n$4\r\nRPOP\r\n$1\r\nq\r\n"
    assert [(write.data == taken, write.told) for write in worker.measured] == [(True, (2, 0)), (False, (4, 1))]
    assert (stream.writes, stream.names) == (5, {"GET": 4, "PING": 1, "RPOP": 1})


def test_a_peer_that_fails_says_why_in_one_line() -> None:
    """Its last line; and one that prints no figures has failed, too."""
    with pytest.raises(Absent, match=r"^its driver ended with status 3: ValueError: no$"):
        drive("peer", Driver([sys.executable, "-c", "print('ValueError: no'); raise SystemExit(3)"]), {})
    with pytest.raises(Absent, match="status 1"):
        drive("peer", Driver([sys.executable, "-c", "print('{}'); raise SystemExit(1)"]), {})


def test_a_peer_that_aborts_when_it_has_told_its_figures_has_figures() -> None:
    """A runtime that does not end in order, as Temporal's at times, has done its work all the same."""
    aborts = "print('{\"cycles\": 5}', flush=True); import os; os.abort()"
    assert drive("peer", Driver([sys.executable, "-c", aborts]), {}) == {"cycles": 5}
    with pytest.raises(Absent, match="status 0: hello"):
        drive("peer", Driver([sys.executable, "-c", "print('hello')"]), {})
    assert drive("peer", Driver([sys.executable, "-c", "print('hello'); print('{\"cycles\": 1}')"]), {}) == {
        "cycles": 1
    }


def test_a_peer_that_cannot_be_installed_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Node there is no BullMQ. What an installation has left half made, or of another version, is made anew."""
    monkeypatch.setattr(environments.shutil, "which", lambda _: None)
    with pytest.raises(Absent, match="node and npm are not on PATH"):
        environments.node_environment(tmp_path / "bullmq", ["bullmq@1"])
    ran: list[list[str]] = []

    def run(command: list[str]) -> str:
        ran.append(command)
        (tmp_path / "half").mkdir(exist_ok=True)
        return ""

    monkeypatch.setattr(environments, "_run", run)
    (tmp_path / "half" / "rest").mkdir(parents=True)
    for requirements, commands in ((["a==1"], 2), (["a==1"], 2), (["a==2"], 4)):
        environments.python_environment(tmp_path / "half", requirements)
        assert len(ran) == commands
        assert not (tmp_path / "half" / "rest").exists()


def test_the_list_names_every_measure() -> None:
    """With the first line of what it measures; each has a docstring that says more than its name."""
    said = CliRunner().invoke(command.main, ["--list"]).output.splitlines()
    assert [line.split()[0] for line in said] == list(MEASURES)
    assert all(len(load(name)[1]) > 60 for name in MEASURES)


def test_unknown_names_are_refused() -> None:
    """Of measures and of peers, with those that there are."""
    refused = CliRunner().invoke(command.main, ["--only", "cycles,speed"])
    assert refused.exit_code == 2
    assert "'speed' is none of cycles, floor" in refused.output
    assert CliRunner().invoke(command.main, ["--peers", "kafka"]).exit_code == 2
    assert len({peer.name for peer in PEERS}) == len(PEERS)

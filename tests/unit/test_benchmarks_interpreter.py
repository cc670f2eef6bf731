"""Which build of Python the benchmarks run in: those that there are, the choice, and when none is made."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner

from benchmarks import __main__ as command
from benchmarks import interpreter
from benchmarks.figure import Absent, Measured
from benchmarks.settings import Settings
from benchmarks.surroundings import surroundings
from benchmarks.systems import environments
from tests.waiting import wait_until

BASE = Path(sys.executable).resolve()
RUNNING, FAST, SLOW = Path("running"), Path("fast"), Path("slow")


def program(path: Path, script: str) -> None:
    path.parent.mkdir()
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_candidates_are_interpreters_of_this_minor_version_each_once(tmp_path: Path) -> None:
    """By two links to the same it is one. Another version, a virtual environment and what does not start are none."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "python3").symlink_to(BASE)
    (tmp_path / "a" / f"python{interpreter.MINOR}").symlink_to(BASE)
    tag = sys.implementation.cache_tag
    program(tmp_path / "same" / "python3", f"printf '%s\\n' {tag} True /opt/another")
    program(tmp_path / "older" / "python3", "printf '%s\\n' cpython-310 True /opt/older")
    program(tmp_path / "shim" / "python3", "echo 'pyenv: version not installed' >&2; exit 127")
    program(tmp_path / "silent" / "python3", "exit 0")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "environment")], check=True)

    def found(*folders: str) -> list[Path]:
        return interpreter.candidates(os.pathsep.join(["", *(str(tmp_path / folder) for folder in folders)]))

    assert found("none", "shim", "silent", "older", "environment/bin") == []
    assert found("a", "same", "b", "a") == [BASE, Path("/opt/another")]


@pytest.mark.parametrize(
    ("seconds", "chosen", "times"),
    [
        ({FAST: 0.5, SLOW: 0.8}, FAST, 2.0),
        ({SLOW: 0.8, FAST: 0.5}, FAST, 2.0),
        ({FAST: 0.92}, RUNNING, 1.0),
        ({FAST: 0.90}, FAST, 1 / 0.9),
        ({SLOW: 2.0}, RUNNING, 1.0),
        ({SLOW: float("inf")}, RUNNING, 1.0),
        ({}, RUNNING, 1.0),
    ],
)
def test_another_build_is_taken_when_it_is_a_tenth_faster(
    seconds: dict[Path, float], chosen: Path, times: float
) -> None:
    """The fastest of them; and the running one unless one is. One that fails, which takes for ever, is not taken."""
    took = interpreter.choose(RUNNING, [RUNNING, *seconds], {RUNNING: 1.0, **seconds}.__getitem__)
    assert took == (chosen, pytest.approx(times))


def test_builds_take_turns_so_that_a_busy_machine_does_not_decide() -> None:
    """A machine that grows four times as slow slows both; one fast moment of the slower build counts for little."""
    order = list[Path]()
    noise: Iterator[float] = iter([1, 1, 0.3, 1, *[4] * 100])

    def measure(python: Path) -> float:
        order.append(python)
        return next(noise) * {RUNNING: 1.0, FAST: 0.7}[python]

    assert interpreter.choose(RUNNING, [FAST], measure) == (FAST, pytest.approx(1 / 0.7))
    assert order == [RUNNING, FAST] * interpreter.ROUNDS


def test_measuring_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is: no round is begun after two seconds."""
    clock = iter(range(100))
    monkeypatch.setattr(interpreter.time, "monotonic", lambda: float(next(clock)))
    asked: list[Path] = []
    interpreter.choose(RUNNING, [FAST], lambda python: asked.append(python) or 1.0)
    assert len(asked) == 2 * (interpreter.MEASURING_S + 1)


def test_an_interpreter_is_measured_by_running_it(tmp_path: Path) -> None:
    """Some seconds of a loop; one that does not start takes for ever."""
    assert 0 < interpreter.measured(BASE) < 1
    assert interpreter.measured(tmp_path / "none") == float("inf")


class Replaced(Exception):
    """This process would be another one now."""


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Another build is faster; what is made and run instead of this process is noted."""
    noted: dict[str, Any] = {"said": []}

    def make(folder: Path, requirements: list[str], constraints: list[str], python: Path) -> Path:
        noted.update(folder=folder, requirements=requirements, constraints=constraints, python=python)
        if "offline" in noted:
            raise Absent("no index")
        return folder / "bin" / "python"

    def become(path: Path, arguments: list[str], env: dict[str, str]) -> None:
        noted.update(path=path, arguments=arguments, env=env)
        raise Replaced

    monkeypatch.delenv(interpreter.TOLD_VARIABLE, raising=False)

    def choose(running: Path, found: list[Path]) -> tuple[Path, float]:
        return noted.get("choice", (FAST, 1.314))

    monkeypatch.setattr(interpreter, "choose", choose)
    monkeypatch.setattr(interpreter, "python_environment", make)
    monkeypatch.setattr(interpreter.os, "execve", become)
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "benchmarks", "--quick"])
    return noted


def settle(world: dict[str, Any], wanted: str | None = None) -> str:
    return interpreter.settle(wanted, Path("cache"), world["said"].append)


def test_the_command_goes_on_in_the_faster_build(world: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same arguments and versions; and there, where all is chosen, not once more."""
    with pytest.raises(Replaced):
        settle(world)
    assert world["python"] == FAST
    assert world["path"] == Path.cwd() / "cache" / "ours" / "bin" / "python"
    assert world["arguments"] == [str(world["path"]), "-m", "benchmarks", "--quick"]
    assert f"pytest=={pytest.__version__}" in world["constraints"]
    monkeypatch.setenv(interpreter.TOLD_VARIABLE, world["env"][interpreter.TOLD_VARIABLE])
    told = f"the fastest build of {interpreter.MINOR} on PATH: 1.31 times as fast as the one that ran the command"
    assert settle(world) == told
    assert interpreter.TOLD_VARIABLE not in os.environ, "its children are not told"
    assert surroundings(told)["python"].endswith(f", {told}")


def test_an_environment_that_cannot_be_made_is_said_and_done_without(world: dict[str, Any]) -> None:
    """A reader of the figures is told, too. One that was asked for is not replaced by another."""
    world["offline"] = True
    assert settle(world) == f"another build of {interpreter.MINOR} on PATH is 1.31 times as fast"
    assert "no index" in world["said"][-1]
    with pytest.raises(Absent, match="no index"):
        settle(world, str(BASE))
    with pytest.raises(Absent, match="no-such-python"):
        settle(world, "no-such-python")
    assert "path" not in world


def test_the_running_one_is_kept_when_asked_for_or_fast_enough(world: dict[str, Any]) -> None:
    """Nothing is made."""
    assert settle(world, interpreter.THIS) == ""
    world["choice"] = (BASE, 1.0)
    assert settle(world) == f"no build of {interpreter.MINOR} on PATH is 10% faster"
    assert "folder" not in world


def test_one_asked_for_is_taken(world: dict[str, Any]) -> None:
    """Whatever would be faster."""
    with pytest.raises(Replaced):
        settle(world, str(BASE))
    assert world["python"] == BASE


def test_no_build_is_chosen_for_the_tests_nor_for_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They stay fast and offline, in the interpreter that they are about."""
    chosen: list[str | None] = []

    def settle(wanted: str | None, cache: Path, say: object) -> str:
        chosen.append(wanted)
        return ""

    def run(name: str, settings: Settings) -> tuple[Measured, str]:
        return Measured(), "What is so."

    monkeypatch.setattr(interpreter, "settle", settle)
    monkeypatch.setattr(command, "run", run)
    options = ["--no-peers", "--only", "cycles", "--json", str(tmp_path / "mine.json")]
    for some in (["--list"], ["--tiny", *options], ["--tiny", "--python", "python3", *options]):
        assert CliRunner().invoke(command.main, some).exit_code == 0
    assert chosen == []
    assert CliRunner().invoke(command.main, ["--quick", "--python", "mine", *options]).exit_code == 0
    assert chosen == ["mine"]


def test_an_environment_of_another_build_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or with other versions of what is needed; in each pip is not taken from it, for Debian's has none."""
    ran: list[list[str]] = []

    def run(command: list[str]) -> str:
        ran.append(command)
        (tmp_path / "ours").mkdir(exist_ok=True)
        return ""

    monkeypatch.setattr(environments, "_run", run)
    made_of = [("a", ["b==1"]), ("a", ["b==1"]), ("z", ["b==1"]), ("z", ["b==2"])]
    counts: list[int] = []
    for python, constraints in made_of:
        environments.python_environment(tmp_path / "ours", ["a==1"], constraints, tmp_path / python)
        counts.append(len(ran))
    assert counts == [2, 2, 4, 6]
    assert ran[0] == [str(tmp_path / "a"), "-m", "venv", "--without-pip", str(tmp_path / "ours")]
    assert ran[1][:5] == [sys.executable, "-m", "pip", "--python", str(tmp_path / "ours" / "bin" / "python")]


def test_an_installation_that_is_interrupted_ends_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip has one, which would go on installing."""
    monkeypatch.setattr(environments, "INSTALL_S", 2)
    child = tmp_path / "child"
    program(tmp_path / "slow" / "python3", f"sleep 600 & echo $! >{child}; wait")
    with pytest.raises(Absent, match="took more than"):
        environments.python_environment(tmp_path / "ours", [], python=tmp_path / "slow" / "python3")

    def gone() -> bool:
        try:
            return psutil.Process(int(child.read_text())).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    wait_until(gone, "the child to be gone", 10)

"""What a shell's tab key offers."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from click.shell_completion import BashComplete
from click.testing import CliRunner

from smqueue import Module, State, Transaction
from smqueue.cli import completion
from smqueue.cli.commands import COMMANDS, smqueue
from tests.inprocess import Local, Play
from tests.workers import ROOT

doors = Module("doors", version=1)
push = doors.signal("push", int)
pull = doors.signal("pull")


@doors.state
class Closed(State):
    n: int


@doors.state(terminal=True)
class Open(State):
    n: int


@doors.on(Closed, push)
def pushed(tx: Transaction, state: Closed, times: int) -> Open:
    return Open(times)


MODULES = f"{__name__}:doors"


@pytest.fixture
def local(play: Play, monkeypatch: pytest.MonkeyPatch) -> Local:
    """A namespace with some doors, which the environment names."""
    made = play(doors=doors)
    for n in range(3):
        made.add(f"door-{n}", Closed(n))
    made.add("gate", Closed(3))
    made.add("two words", Closed(4))
    made.add("\x1b[2Jdoor", Closed(5))
    monkeypatch.setenv("SMQUEUE_URL", made.settings.url)
    monkeypatch.setenv("SMQUEUE_NAMESPACE", made.namespace)
    monkeypatch.delenv("SMQUEUE_MODULES", raising=False)
    return made


def offered(*words: str) -> set[str]:
    """What is offered for the last word."""
    shell = BashComplete(smqueue, {}, "smqueue", "_SMQUEUE_COMPLETE")
    return {item.value for item in shell.get_completions(list(words[:-1]), words[-1])}


def test_commands_and_options(local: Local) -> None:
    """Commands by their beginning, and their options."""
    assert offered("") >= set(COMMANDS)
    assert offered("re") == {"resume", "retry"}
    assert offered("list", "--q") == {"--quarantined"}
    assert offered("completion", "") == {"bash", "zsh", "fish"}


def test_operations(local: Local) -> None:
    """Active operations that begin so; not those that a shell would take for two words, or a
    terminal for a command."""
    assert offered("show", "") == {"door-0", "door-1", "door-2", "gate"}
    for command in ("show", "why", "cancel", "pause", "signal", "verify", "retry"):
        assert offered(command, "door") == {"door-0", "door-1", "door-2"}
    assert offered("verify", "gate", "door-1") == {"door-1"}
    assert offered("list", "--operation", "g") == {"gate"}


def test_an_operation_that_is_not_new(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where none of the newest begins so, the others are looked at."""
    monkeypatch.setattr(completion, "NEWEST", 1)
    assert offered("show", "door-0") == {"door-0"}


@pytest.mark.parametrize("modules", ["", MODULES])
def test_modules_states_and_signals(local: Local, monkeypatch: pytest.MonkeyPatch, modules: str) -> None:
    """From the code where there is some, else from what the records tell."""
    monkeypatch.setenv("SMQUEUE_MODULES", modules)
    assert offered("list", "--module", "") == {"doors"}
    assert offered("list", "--module", "doors", "--state", "") == ({"Closed", "Open"} if modules else {"Closed"})
    assert offered("list", "--module", "gates", "--state", "") == set()
    assert offered("signal", "gate", "pu") == ({"push", "pull"} if modules else {"push"})
    assert offered("add", "new", "d") == {"doors"}


def test_options_before_the_cursor_count(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    """The deployment may be named on the line instead of in the environment."""
    monkeypatch.setenv("SMQUEUE_URL", "")
    assert offered("show", "door") == set()
    assert offered("show", "--url", local.settings.url, "door-1") == {"door-1"}


@pytest.mark.parametrize(
    "line",
    [
        ["--url", "redis://127.0.0.1:1/0"],
        ["--url", "nonsense"],
        ["-A", "tests.nowhere:executor"],
        ["-A", "loud_app:executor"],
        ["-A", "a:b", "--modules", "c:d"],
    ],
)
def test_nothing_is_said_when_nothing_can_be_looked_up(
    local: Local, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: list[str]
) -> None:
    """No server, no such module, code that prints and exits: nothing is offered, and nothing printed."""
    (tmp_path / "loud_app.py").write_text("import sys\nprint('hello')\nsys.exit('no')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert offered("show", *line, "") == set()
    assert capfd.readouterr() == ("", "")


def test_a_look_that_takes_long_is_not_waited_for(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was found until then is offered; a tab key that hangs is worse than one that does nothing."""
    monkeypatch.setattr(completion, "LONGEST_S", 0.05)
    released, looked = threading.Event(), threading.Event()

    def slow(_: object) -> None:
        released.wait(20)
        looked.set()

    monkeypatch.setattr(completion.Target, "executor", slow)
    assert offered("show", "") == set()
    assert not looked.is_set()
    released.set()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_is_told_how(shell: str) -> None:
    """What ``smqueue completion`` prints calls smqueue as that shell."""
    printed = CliRunner().invoke(smqueue, ["completion", shell])
    assert printed.exit_code == 0
    assert f"{shell}_complete" in printed.output
    assert "_SMQUEUE_COMPLETE" in printed.output


SCRIPT = """
eval "$(smqueue completion bash)"
COMP_WORDS=(smqueue show door)
COMP_CWORD=2
_smqueue_completion smqueue
printf '%s\\n' "${COMPREPLY[@]}"
"""


def test_a_real_shell(local: Local, tmp_path: Path) -> None:
    """bash, told by ``smqueue completion bash``, completes an operation."""
    program = tmp_path / "smqueue"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m smqueue "$@"\n')
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["door-2", "door-1", "door-0"], done.stderr

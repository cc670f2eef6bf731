"""The public API as type checkers see it: ``good.py`` is accepted, each marked line of ``bad.py`` is rejected."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
GOOD = HERE / "good.py"
BAD = HERE / "bad.py"


def errors_of_pyright() -> dict[Path, dict[int, str]]:
    """What pyright reports, as ``{file: {line: message}}``; the files ask for strict mode themselves."""
    pytest.importorskip("pyright")
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, str(GOOD), str(BAD)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    errors: dict[Path, dict[int, str]] = {GOOD: {}, BAD: {}}
    for found in json.loads(done.stdout)["generalDiagnostics"]:
        if found["severity"] == "error":
            errors[Path(found["file"])][found["range"]["start"]["line"] + 1] = found["message"]
    return errors


def errors_of_mypy(directory: Path) -> dict[Path, dict[int, str]]:
    """What mypy strict reports, likewise; of copies, since it will not know one file by two module names."""
    pytest.importorskip("mypy")
    for path in (GOOD, BAD):
        shutil.copy(path, directory)
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", GOOD.name, BAD.name]
    settings = {**os.environ, "MYPYPATH": str(ROOT)}
    done = subprocess.run(command, cwd=directory, env=settings, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr  # 2: it did not get as far as checking
    errors: dict[Path, dict[int, str]] = {GOOD: {}, BAD: {}}
    for name, line, message in re.findall(r"^(\w+\.py):(\d+): error: (.*)$", done.stdout, re.MULTILINE):
        errors[HERE / name][int(line)] = message
    return errors


@pytest.fixture(params=["pyright", "mypy"], scope="module")
def errors(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[Path, dict[int, str]]:
    return errors_of_pyright() if request.param == "pyright" else errors_of_mypy(tmp_path_factory.mktemp("mypy"))


def test_good_uses_are_accepted(errors: dict[Path, dict[int, str]]) -> None:
    """What the contract shows satisfies pyright strict and mypy strict."""
    assert errors[GOOD] == {}


def test_bad_uses_are_rejected(errors: dict[Path, dict[int, str]]) -> None:
    """Each marked mistake is an error where it is marked; nothing else is."""
    marked = {number: text for number, text in enumerate(BAD.read_text().splitlines(), 1) if "# E:" in text}
    accepted = {number: text for number, text in marked.items() if number not in errors[BAD]}
    unexpected = {number: text for number, text in errors[BAD].items() if number not in marked}
    assert (accepted, unexpected) == ({}, {})

"""Where a peer is installed: an environment of its own, made on demand, with pinned versions."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.figure import Absent

INSTALL_S = 900
"""How long one installation may take, in seconds: a package index can be slow."""
_MARK = "installed.json"


def python_environment(
    folder: Path, requirements: Sequence[str], constraints: Sequence[str] = (), python: Path | None = None
) -> Path:
    """A virtual environment with these packages; made anew when they or its interpreter are not what it was made for.

    Args:
        folder: Where it is.
        requirements: As pip is told them; options among them.
        constraints: Versions of what is installed only if something needs it.
        python: Which interpreter it is of; this one unless given.

    Returns:
        Its interpreter.

    Raises:
        Absent: They cannot be installed.
    """
    base = python or Path(sys.executable)
    made, made_of = folder / "bin" / "python", [str(base.resolve()), *requirements, *constraints]
    if not _is_made(folder, made_of):
        _run([str(base), "-m", "venv", "--without-pip", str(folder)])  # Debian's Python has no pip to put in there
        pip = [sys.executable, "-m", "pip", "--python", str(made), "--disable-pip-version-check"]
        pinned = folder / "constraints.txt"
        pinned.write_text("\n".join(constraints))
        _run([*pip, "install", "--quiet", "--constraint", str(pinned), *requirements])
        _mark(folder, made_of)
    return made


def node_environment(folder: Path, requirements: Sequence[str]) -> str:
    """A folder with these npm packages.

    Returns:
        The Node binary.

    Raises:
        Absent: There is no Node here, or they cannot be installed.
    """
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise Absent("node and npm are not on PATH")
    if not _is_made(folder, requirements):
        folder.mkdir(parents=True)
        (folder / "package.json").write_text('{"private": true, "type": "module"}\n')
        quiet = ["--no-audit", "--no-fund", "--no-progress", "--loglevel", "error"]
        _run([npm, "install", "--prefix", str(folder), *quiet, *requirements])
        _mark(folder, requirements)
    return node


def python_versions(python: Path, packages: Sequence[str]) -> dict[str, str]:
    """The versions installed there, and that of the interpreter."""
    code = (
        "import importlib.metadata as m, json, platform, sys; "
        "print(json.dumps({'python': platform.python_version(), **{p: m.version(p) for p in sys.argv[1:]}}))"
    )
    found: dict[str, str] = json.loads(_run([str(python), "-c", code, *packages]))
    return found


def node_versions(node: str, folder: Path, packages: Sequence[str]) -> dict[str, str]:
    """The versions installed there, and that of Node."""
    found = {"node": _run([node, "--version"]).strip().removeprefix("v")}
    for package in packages:
        told = json.loads((folder / "node_modules" / package / "package.json").read_text())
        found[package] = told["version"]
    return found


def _is_made(folder: Path, made_of: Sequence[str]) -> bool:
    try:
        made = json.loads((folder / _MARK).read_text())
    except (OSError, ValueError):
        made = None
    if made == list(made_of):
        return True
    shutil.rmtree(folder, ignore_errors=True)  # of other versions, another build, or left half made
    return False


def _mark(folder: Path, made_of: Sequence[str]) -> None:
    (folder / _MARK).write_text(json.dumps(list(made_of)))


def _run(command: Sequence[str]) -> str:
    name = Path(command[0]).name
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            said, complaints = process.communicate(timeout=INSTALL_S)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)  # pip and npm have children, which would go on installing
            if isinstance(error, subprocess.TimeoutExpired):
                raise Absent(f"{name} took more than {INSTALL_S} s") from None
            raise
    if process.returncode:
        last = [line for line in complaints.splitlines() if line.strip()] or [f"exit status {process.returncode}"]
        raise Absent(f"{name} failed: {last[-1].strip()[:200]}")
    return said

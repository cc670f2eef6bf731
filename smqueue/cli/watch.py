"""Noticing that source files have changed: by their modification times, with no dependency and on any file system."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path

SKIPPED = frozenset({"__pycache__", "node_modules", "site-packages"})


class Sources:
    """The ``*.py`` files below some directories; hidden directories and virtual environments are left out."""

    def __init__(self, roots: Iterable[Path]) -> None:
        self._roots = sorted(set(roots))
        self._seen = self._look()

    def changed(self) -> list[Path]:
        """Files that are new, gone or changed since the last call."""
        before, now = self._seen, self._look()
        self._seen = now
        return sorted(Path(path) for path in before.keys() | now.keys() if before.get(path) != now.get(path))

    def _look(self) -> dict[str, int]:
        found: dict[str, int] = {}
        pending = [str(root) for root in self._roots]
        while pending:
            try:
                with os.scandir(pending.pop()) as entries:
                    inside = list(entries)
            except OSError:
                continue
            if any(entry.name == "pyvenv.cfg" for entry in inside):
                continue
            for entry in inside:
                try:
                    if entry.is_dir(follow_symlinks=False):
                        if not entry.name.startswith(".") and entry.name not in SKIPPED:
                            pending.append(entry.path)
                    elif entry.name.endswith(".py"):
                        found[entry.path] = entry.stat().st_mtime_ns
                except OSError:  # gone meanwhile
                    continue
        return found


def roots_of(names: Iterable[str]) -> list[Path]:
    """The current directory, and where the top packages of imported modules are, unless installed."""
    roots = [Path.cwd()]
    for name in names:
        file = getattr(sys.modules.get(name.partition(".")[0]), "__file__", None)
        if file is None or "site-packages" in Path(file).parts:
            continue
        path = Path(file).resolve()
        # Of a module without a package only its directory would do, which may be anything: the file's own folder.
        roots.append(path.parent)
    return [root for root in roots if not any(root != other and other in root.parents for other in roots)]

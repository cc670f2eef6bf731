"""What a figure depends on besides the code: the hardware and the versions. No name or path of the machine."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

import psutil

from smqueue.server_binary import find_binary

GIBIBYTE = 1024**3
_PATH = re.compile(r"(?<![\w.])/(?:[^\s/:'\",]+/)+")
"""The folders of a path: all but its last part."""


def surroundings(build: str = "") -> dict[str, Any]:
    """Hardware, system, interpreter and server, as text and counts. ``build`` tells of the interpreter's."""
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / GIBIBYTE),
        "system": f"{platform.system()} {kernel(platform.release())}, {platform.machine()}",
        "python": f"{python}, {build}" if build else python,
        "server": str(find_binary()),
        "server_settings": "appendonly yes, appendfsync everysec, on a Unix socket; the same for all that use Redis",
    }


class Steal:
    """The steal time since this was made: what the hypervisor took of the processors' time, for other machines.

    Where processors are shared, a figure of latency says little without it.
    """

    def __init__(self) -> None:
        self._before = self._times()

    def percent(self) -> float:
        """Of all of it; 0 where the system does not tell."""
        taken, passed = (after - before for after, before in zip(self._times(), self._before, strict=True))
        return 100 * taken / passed if passed else 0.0

    @staticmethod
    def _times() -> tuple[float, float]:
        times = psutil.cpu_times()._asdict()
        return times.get("steal", 0.0), sum(spent for name, spent in times.items() if not name.startswith("guest"))


def kernel(release: str) -> str:
    """Its first two numbers: what follows says who has built it, and for which machine."""
    found = re.match(r"\d+\.\d+", release)
    return found[0] if found else ""


def cpu_model() -> str:
    """The name of the processor; its family where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def without_paths(text: str) -> str:
    """A reason that may be kept: paths are cut down to their last part."""
    return _PATH.sub("", text)

"""Which build of Python everything runs in: the fastest of this minor version that is here.

Without profile-guided optimisation, as pyenv builds it unless told otherwise, Python is a fifth to a third slower than
what users run. All that is Python would be measured in that, and BullMQ in a Node that is optimised.
"""

from __future__ import annotations

import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from importlib.metadata import distributions, version
from pathlib import Path
from typing import NoReturn

from benchmarks.figure import Absent
from benchmarks.systems.environments import python_environment

ROOT = Path(__file__).parents[1]
REQUIREMENTS = ("--editable", f"{ROOT}[embedded]", "psutil", "pip")
"""What the benchmarks need; pip, to make the peers' environments."""
THIS = "this"
"""For ``--python``: the one that runs already."""
TOLD_VARIABLE = "BENCH_PYTHON"
"""Tells the process that this one becomes what it runs in; and so that there is nothing left to choose."""
FASTER = 1.1
"""Another one has to be so many times as fast: less may be noise, and is not worth an environment."""
ROUNDS = 10
MEASURING_S = 2.0
"""After so many seconds no further round is begun."""
ANSWER_S = 5.0
"""How long an interpreter may take to answer: what is named python3 may be anything."""
MINOR = f"{sys.version_info.major}.{sys.version_info.minor}"

IDENTITY = """
import os, sys
print(sys.implementation.cache_tag, sys.prefix == sys.base_prefix, os.path.realpath(sys.executable), sep="\\n")
"""
LOOPS = """
import os, time

if hasattr(os, "sched_setaffinity"):  # all of them on the same core: another may be half as fast just now
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])

class Order:
    def __init__(self):
        self.seen = {}

    def see(self, number):
        self.seen[number & 63] = f"order:{number}"
        return len(self.seen)

def loop():
    order, total, began = Order(), 0, time.perf_counter()
    for number in range(5_000):
        total += order.see(number)
    return time.perf_counter() - began

print(min(loop() for _ in range(12)))
"""


def settle(wanted: str | None, cache: Path, say: Callable[[str], None]) -> str:
    """Go on in the interpreter that is wanted: this process becomes it, unless it is that already.

    Args:
        wanted: A path or a name on PATH; ``THIS``; or None for the fastest.
        cache: Its environment is there, in ``ours``.
        say: Told of progress, a line each.

    Returns:
        What a reader of the figures should know of this build; "" when nothing was chosen.

    Raises:
        Absent: The one that was asked for by name cannot be had.
    """
    told = os.environ.pop(TOLD_VARIABLE, None)
    if told is not None or wanted == THIS:
        return told or ""
    if wanted is None:
        running = Path(sys.executable).resolve()
        python, times = choose(running, candidates(os.environ.get("PATH", "")))
        if python == running:
            return f"no build of {MINOR} on PATH is {FASTER - 1:.0%} faster"
        told = f"the fastest build of {MINOR} on PATH: {times:.2f} times as fast as the one that ran the command"
        say(f"{python} is {times:.2f} times as fast as {running}: all runs in that; --python {THIS} keeps this one")
        try:
            return become(python, told, cache, say)
        except Absent as error:
            say(f"that cannot be had, and all runs in {running}: {error}")
            return f"another build of {MINOR} on PATH is {times:.2f} times as fast"
    found = shutil.which(wanted)
    if found is None:
        raise Absent(f"there is no interpreter {wanted}")
    return become(Path(found).absolute(), "given by --python", cache, say)


def become(python: Path, told: str, cache: Path, say: Callable[[str], None]) -> NoReturn:
    """Run this command in an environment of that interpreter, in place of this process.

    Raises:
        Absent: The environment cannot be made.
    """
    say(f"its environment is {cache / 'ours'}; where it has to be made, that takes a minute")
    environment = python_environment(cache.absolute() / "ours", REQUIREMENTS, same_versions(), python)
    sys.stderr.flush()
    os.execve(environment, [str(environment), *sys.orig_argv[1:]], {**os.environ, TOLD_VARIABLE: told})


def candidates(path: str) -> list[Path]:
    """The interpreters of this minor version in these folders, each once, where its links lead.

    None of a virtual environment, and none that does not start, as pyenv's shim of a version that is not active.
    """
    found: dict[Path, None] = {}
    for folder in dict.fromkeys(filter(None, path.split(os.pathsep))):
        for name in ("python3", f"python{MINOR}"):
            tag, own, real = (*_ask(Path(folder, name).absolute(), IDENTITY).splitlines(), "", "", "")[:3]
            if tag == sys.implementation.cache_tag and own == "True":
                found[Path(real)] = None
    return list(found)


def measured(python: Path) -> float:
    """How long it takes for a loop, in seconds: the best of some."""
    return float(_ask(python, LOOPS) or math.inf)


def choose(running: Path, found: Iterable[Path], measure: Callable[[Path], float] = measured) -> tuple[Path, float]:
    """The fastest of them, and how many times as fast as the running one it is.

    They take turns, and the ratio is the median of the rounds': the least time of each is decided by who ran while the
    machine was fast for a moment.
    """
    others = [python for python in found if python != running]
    times: dict[Path, list[float]] = {python: [] for python in others}
    until = time.monotonic() + MEASURING_S
    for _ in range(ROUNDS if others else 0):
        ours = measure(running)
        for python in others:
            times[python].append(ours / measure(python))
        if time.monotonic() > until:
            break
    ratios = {python: statistics.median(some) for python, some in times.items()}
    fastest = max(ratios, key=lambda python: ratios[python], default=running)
    return (fastest, ratios[fastest]) if ratios.get(fastest, 1.0) >= FASTER else (running, 1.0)


def same_versions() -> list[str]:
    """Of all that is installed here. Some of it may not be needed there, or not be had for an older 3.X.Y."""
    return [f"{name}=={version(name)}" for name in sorted({one.name for one in distributions()})]


def _ask(python: Path, code: str) -> str:
    """What it prints; "" when it fails."""
    command = [python, "-I", "-c", code]
    try:
        done = subprocess.run(
            command, capture_output=True, check=True, timeout=ANSWER_S, stdin=subprocess.DEVNULL, errors="replace"
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout

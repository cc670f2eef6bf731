"""The measures. Each is a module whose docstring says what is measured, with ``measure(settings) -> Measured``."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from benchmarks.figure import Measured
from benchmarks.settings import Settings

MEASURES = (
    "cycles", "floor", "latency", "adds", "signals", "timers", "polls", "fanout", "chains", "channel", "history",
    "cold", "scale", "shards", "parked",
)  # fmt: skip
"""In the order in which they run: the one that takes longest last."""


def load(name: str) -> tuple[Callable[[Settings], Measured], str]:
    """A measure, and what it measures."""
    module: Any = importlib.import_module(f"benchmarks.measures.{name}")
    return module.measure, module.__doc__.strip()

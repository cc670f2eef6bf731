"""What the processes of workers have done and how long it took: counted in memory, and added up in Redis.

Every few seconds; whoever is asked for metrics reads the sums of all processes there, dead ones too. They are
statistics and no truth: each batch is added at most once, and a process that is killed takes what it has counted since
its last one with it, some five seconds. What has to be exact is counted by the commits themselves, in ``moves``.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple, TypeVar
from weakref import WeakSet

from smqueue.drivers.driver import Driver
from smqueue.errors import SmqueueError
from smqueue.keys import Keys, decode, encode
from smqueue.protocols.claim import Claimed
from smqueue.roundtrip import Command, Commit, Steps, commit, read
from smqueue.spans import MOVING

log = logging.getLogger("smqueue.tallies")
T = TypeVar("T")

FLUSHED_S = 5.0
"""How often a process adds what it has counted to Redis."""
MOST = 100
"""How many series one state may have of one tally: names of errors, and those of dynamic triggers, may have no end."""
KEPT = 50_000
"""About how many fields the sums may have in Redis, 80 bytes each: the names that all processes of years have used, a
hundred each, may have no end either. What is new then is counted under ``other``."""
OTHER = "other"
KNOWN_RACES = 1_000
"""Ways in which races end whose series are found at one look."""
TOGETHER = 100
"""Series of one EXEC, with up to 14 fields each."""


class Tally(NamedTuple):
    """What is counted.

    Attributes:
        name: As it is stored.
        labels: What it is counted by.
        bounds: Of a histogram, whose values are µs or plain numbers: the upper ends of its buckets, but the last.
    """

    name: str
    labels: tuple[str, ...]
    bounds: tuple[int, ...] = ()


MS, S = 1_000, 1_000_000
SHORT = (MS, 2 * MS, 5 * MS, 10 * MS, 25 * MS, 50 * MS, 100 * MS, 250 * MS, S, 5 * S, 30 * S)
LONG = (10 * MS, 50 * MS, 100 * MS, 250 * MS, 500 * MS, S, 2 * S, 5 * S, 15 * S, 60 * S, 600 * S, 3_600 * S)
LONGEST = (MS, 10 * MS, 100 * MS, S, 10 * S, 60 * S, 600 * S, 3_600 * S, 6 * 3_600 * S, 86_400 * S, 7 * 86_400 * S)

HANDLER = Tally("handler", ("module", "state", "trigger"), SHORT)
HANDLER_FAILED = Tally("handler_failed", ("module", "state", "trigger", "error"))
TRIGGER = Tally("trigger", ("module", "state", "trigger"), LONG)
TRIGGER_FAILED = Tally("trigger_failed", ("module", "state", "trigger", "error"))
COMMIT = Tally("commit", ("module",), SHORT)
OUTCOME = Tally("outcome", ("module",), LONG)
LATE = Tally("late", ("module",), LONG)
MARGIN = Tally("margin", ("module", "state", "trigger"), LONGEST)
DRAIN = Tally("drain", (), (0, 1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000))
COMMITS = Tally("commits", ("module", "outcome"))
CONFLICTS = Tally("conflicts", ())


class Tallies:
    """What this process counts for one namespace.

    The thread that adds it up is started with the first count, and so after any fork. Without a driver it is counted
    for nobody.
    """

    def __init__(self, driver: Driver | None = None, keys: Keys | None = None) -> None:
        self._driver, self._keys = driver, keys
        self.forget()
        _all.add(self)

    def forget(self) -> None:
        """A process that was forked begins at zero: what it has inherited is its parent's to tell."""
        self._lock, self._thread = threading.Lock(), None
        self._telling = threading.Lock()
        self._series: dict[tuple[str, ...], list[int]] = {}
        self._sizes = defaultdict[tuple[str, ...], int](int)
        self._tallies: dict[str, Tally] = {}
        self._races: dict[tuple[object, ...], tuple[list[int], ...]] = {}

    # --- counting: on the way of each transition, so it has to be cheap ----------------------------------------------

    def count(self, tally: Tally, *labels: str) -> None:
        """Something has happened once more."""
        key = (tally.name, *labels)
        with self._lock:
            (self._series.get(key) or self._begun(tally, key))[0] += 1

    def observe(self, tally: Tally, value: int, *labels: str) -> None:
        """Something has taken so long, in µs, or was so many."""
        key = (tally.name, *labels)
        with self._lock:
            series = self._series.get(key) or self._begun(tally, key)
            series[bisect_left(tally.bounds, value)] += 1
            series[-1] += value

    def _begun(self, tally: Tally, key: tuple[str, ...]) -> list[int]:
        state = key[:3]
        if self._sizes[state] >= MOST:
            key = (*state, *[OTHER] * len(key[3:]))
        if (known := self._series.get(key)) is not None:
            return known
        if self._thread is None and self._driver is not None:
            self._thread = threading.Thread(target=self._tell, name="smqueue-tallies", daemon=True)
            self._thread.start()
        self._sizes[state] += 1
        self._tallies[tally.name] = tally
        made = self._series[key] = [0] * (len(tally.bounds) + 2 if tally.bounds else 1)
        return made

    def committed(self, ended: Iterable[tuple[Claimed, str]], claimed_us: int, elapsed_us: int) -> None:
        """What has become of claimed machines, and how long after their claim, their outcomes, or their deadlines.

        Args:
            ended: The machines, and what became of each.
            claimed_us: When they were claimed, by Redis's clock.
            elapsed_us: How long ago that is.
        """
        now_us, slot = claimed_us + elapsed_us, bisect_left(COMMIT.bounds, elapsed_us)
        with self._lock:  # one for all, and all series of one at one look: this runs for each transition
            for one, kind in ended:
                won, placed, at_ms = one.won, one.placed, one.at_ms
                timed, rival = False, None
                for name, wait in one.machine.armed.items():
                    if type(wait) is int:  # a deadline
                        if name == won:
                            timed = True
                        elif rival is None or wait < rival:
                            rival = wait
                known = (placed.module, placed.type.name, won, kind, timed)
                if (into := self._races.get(known)) is None:
                    into = self._race(*known)
                    if len(self._races) < KNOWN_RACES:
                        self._races[known] = into
                commits, commit, since, margin = into
                commits[0] += 1
                if kind not in MOVING:
                    continue
                commit[slot] += 1
                commit[-1] += elapsed_us
                since_us = max(0, now_us - at_ms * 1000)
                since[bisect_left(LATE.bounds, since_us)] += 1
                since[-1] += since_us
                if rival is not None and kind != "kept":
                    margin_us = max(0, rival - at_ms) * 1000
                    margin[bisect_left(MARGIN.bounds, margin_us)] += 1
                    margin[-1] += margin_us

    def _race(self, module: str, state: str, won: str, kind: str, timed: bool) -> tuple[list[int], ...]:
        found = [(COMMITS, module, kind), (COMMIT, module), (LATE if timed else OUTCOME, module)]
        found = [*found, (MARGIN, module, state, won)]
        keys = [(tally, (tally.name, *labels)) for tally, *labels in found]
        return tuple(self._series.get(key) or self._begun(tally, key) for tally, key in keys)

    def conflicts(self, steps: Steps[T]) -> Steps[T]:
        """Run a protocol, and count each EXEC that failed because something watched had changed."""
        try:
            request = next(steps)
            while True:
                try:
                    reply = yield request
                except Exception as error:
                    request = steps.throw(error)
                    continue
                if reply is None and isinstance(request, Commit):
                    self.count(CONFLICTS)
                request = steps.send(reply)
        except StopIteration as end:
            return end.value

    # --- adding up ---------------------------------------------------------------------------------------------------

    def _tell(self) -> None:
        while True:
            time.sleep(FLUSHED_S)
            self.flush()

    def flush(self) -> None:
        """Add what was counted until now to Redis; what Redis does not take is lost."""
        if self._driver is None or self._keys is None:
            return
        with self._telling:  # a process that ends waits for what its thread is adding
            taken = self._taken()
            for at in range(0, len(taken), TOGETHER):
                try:
                    self._driver.run(_add(self._keys.tallies, taken[at : at + TOGETHER]))
                except SmqueueError as error:  # not again: it may have been applied; that Redis is away the pump says
                    log.debug("statistics of some seconds are lost: %s", error)

    def _taken(self) -> list[Taken]:
        with self._lock:
            taken = [(key, series[:]) for key, series in self._series.items() if any(series)]
            for key, _ in taken:
                self._series[key][:] = [0] * len(self._series[key])
        return [(self._tallies[name], tuple(labels), series) for (name, *labels), series in taken]


Taken = tuple[Tally, tuple[str, ...], list[int]]
"""What a process has counted of one series."""


def _add(name: str, taken: Sequence[Taken]) -> Steps[None]:
    """Add to the sums of all processes; 2 round trips, 3 when they have as many fields as they may."""
    series = [(tally, _fields(tally, labels), counted) for tally, labels, counted in taken]
    (fields,) = yield from read([], ("HLEN", name))
    if fields >= KEPT:
        looks: list[Command] = [("HMGET", name, *fields) for _, fields, _ in series]
        known = yield from read([], *looks)
        others = [_fields(tally, (OTHER,) * len(tally.labels)) for tally, _, _ in series]
        series = [
            (tally, fields if any(values) else other, counted)
            for (tally, fields, counted), other, values in zip(series, others, known, strict=True)
        ]
    yield from commit(
        [
            ("HINCRBY", name, field, value)
            for _, fields, counted in series
            for field, value in zip(fields, counted, strict=True)
            if value
        ]
    )


def _fields(tally: Tally, labels: Sequence[str]) -> list[str]:
    """The fields of a series: one, or one for each bucket and their sum."""
    parts = [f":{bound}" for bound in (*tally.bounds, "inf", "sum")] if tally.bounds else [""]
    end = "".join(f" {encode(label)}" for label in labels)
    return [f"{tally.name}{part}{end}" for part in parts]


_all: WeakSet[Tallies] = WeakSet()


def flush_all(**_: object) -> None:
    """Add up what this process has counted: it ends."""
    for tallies in list(_all):
        with suppress(Exception):
            tallies.flush()


def _forked() -> None:
    for tallies in list(_all):
        tallies.forget()


os.register_at_fork(after_in_child=_forked)


# --- reading ---------------------------------------------------------------------------------------------------------


class Series(NamedTuple):
    """A sum of all processes.

    Attributes:
        labels: The values of its tally's labels.
        parts: Of a histogram the upper end of a bucket, ``inf`` or ``sum`` → how many, or how much; else "" → how many.
    """

    labels: tuple[str, ...]
    parts: Mapping[str, int]


def parse_tallies(flat: Sequence[bytes]) -> dict[str, list[Series]]:
    """The reply to HGETALL: name of a tally → its series; what cannot be read is left out."""
    found: dict[tuple[str, tuple[str, ...]], dict[str, int]] = {}
    for raw, value in zip(flat[::2], flat[1::2], strict=True):
        with suppress(ValueError):
            name, *labels = raw.decode().split(" ")
            tally, _, part = name.partition(":")
            found.setdefault((tally, tuple(map(decode, labels))), {})[part] = int(value)
    by_name: dict[str, list[Series]] = {}
    for (tally, labels), parts in found.items():
        by_name.setdefault(tally, []).append(Series(labels, parts))
    return by_name

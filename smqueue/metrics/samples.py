"""The samples of one namespace: its overview, what is paused and waited for, and what its workers have counted."""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import NamedTuple

from smqueue.deployment import Deployment
from smqueue.executor import Executor
from smqueue.metrics import names
from smqueue.metrics.names import Metric
from smqueue.metrics.patrol import Patrol
from smqueue.metrics.waits import Wait, longest_waits
from smqueue.overview import Overview
from smqueue.roundtrip import read
from smqueue.tallies import OTHER, Series, parse_tallies

Pairs = tuple[tuple[str, float], ...]


class Sample(NamedTuple):
    """A value of a metric.

    Attributes:
        metric: Which.
        labels: The namespace, and the values of its labels.
        value: Of a histogram the sum of all that was observed.
        buckets: Of a histogram: upper end → how many were not above it.
    """

    metric: Metric
    labels: tuple[str, ...]
    value: float
    buckets: Pairs = ()


def samples_of(executor: Executor, patrol: Patrol) -> Iterator[Sample]:
    """Look at a namespace, and go on with its patrol.

    Raises:
        StoreUnavailable, StoreRefused: Redis does not answer, or not this.
    """
    began = time.monotonic()
    deployment = executor.deployment
    found = executor.overview()
    namespace = found.namespace
    paused = Counter[tuple[str, str]]()
    for one in executor.paused():
        scope = "operation" if one.module is None else "module" if one.state is None else "state"
        name = "" if one.module is None else one.module if one.state is None else f"{one.module}.{one.state}"
        paused[scope, name] += 1
    waits = _longest(deployment)
    (flat,) = deployment.driver.run(read([], ("HGETALL", deployment.all_keys()[0].tallies)))
    tallied = parse_tallies(flat) if isinstance(flat, list) else {}
    patrol.go_on()

    yield Sample(names.STORE_UP, (namespace,), 1)
    for metric, labels, value in _counts(found):
        yield Sample(metric, (namespace, *labels), value)
    for wait, seconds in waits.items():
        yield Sample(names.WAITING, (namespace, *wait), seconds)
    for name, count in (paused or {("operation", ""): 0}).items():
        yield Sample(names.PAUSED, (namespace, *name), count)
    for kind, count in (patrol.damaged or {"not-scheduled": 0}).items():
        yield Sample(names.DAMAGED, (namespace, kind), count)
    yield Sample(names.PATROLLED, (namespace,), patrol.machines)
    yield Sample(names.ROUNDS, (namespace,), patrol.rounds)
    for metric in names.TALLIED:
        assert metric.tally is not None
        for series in tallied.get(metric.tally.name, ()):
            if len(series.labels) == len(metric.labels):
                yield _sum(metric, namespace, series)
    yield Sample(names.SCRAPE, (namespace,), time.monotonic() - began)


def _counts(found: Overview) -> Iterator[tuple[Metric, tuple[str, ...], float]]:
    """What an overview tells, but the namespace."""
    for edge in found.edges:
        yield names.TRANSITIONS, (edge.module, edge.source or "", edge.target or "", edge.trigger), edge.count
    for state in found.states:
        yield names.ACTIVE, (state.module, state.state), state.active
        if state.oldest is not None and state.active:
            age_s = (found.at - state.oldest).total_seconds()
            yield names.OLDEST, (state.module, state.state), max(0.0, age_s)
    yield names.OPERATIONS, (), found.operations
    yield names.DUE, (), found.due
    yield names.LAG, (), found.lag_s
    yield names.QUARANTINED, (), found.quarantined
    for error, count in _named(found.errors).items():
        yield names.QUARANTINE_ERRORS, (error,), count
    early = Counter[tuple[str, str]]()
    for one in found.early:
        early[one.module, one.signal] += one.count
    for labels, count in early.items():
        yield names.EARLY, labels, count
    yield names.OUTBOX, (), found.requests
    yield names.UNSENT, (), found.unsent
    yield names.WORKERS, (), sum(worker.alive for worker in found.workers)
    there = {(cause.kind, cause.subject) for cause in found.causes}
    told = {kind for kind, _ in there}
    for kind, subject in sorted({*there, *((kind, "") for kind in names.KINDS if kind not in told)}):
        yield names.PROBLEM, (kind, subject), kind in told
    for shard, store in enumerate(found.stores):
        yield names.STORE_MEMORY, (str(shard),), store.used_bytes
        if store.limit_bytes is not None:
            yield names.STORE_LIMIT, (str(shard),), store.limit_bytes


def _named(errors: Mapping[str, int]) -> Mapping[str, int]:
    """Errors by type; texts that begin with no name of one would be labels without end."""
    found = Counter[str]()
    for error, count in errors.items():
        found[error if re.fullmatch(r"[\w.]{1,80}", error) else OTHER] += count
    return found


def _longest(deployment: Deployment) -> dict[Wait, float]:
    found: dict[Wait, float] = {}
    for keys in deployment.all_keys():
        for wait, seconds in deployment.driver.run(longest_waits(keys)).items():
            found[wait] = max(seconds, found.get(wait, 0.0))
    return found


def _sum(metric: Metric, namespace: str, series: Series) -> Sample:
    labels, parts = (namespace, *series.labels), dict(series.parts)
    if metric.type != "histogram":
        return Sample(metric, labels, parts.get("", 0))
    total = parts.pop("sum", 0) * metric.scale
    assert metric.tally is not None
    ends = sorted({float(end) for end in parts} | {*map(float, metric.tally.bounds), math.inf})
    counts = {float(end): count for end, count in parts.items()}
    running = accumulate(counts.get(end, 0) for end in ends)
    return Sample(metric, labels, total, tuple((_end(end, metric), n) for end, n in zip(ends, running, strict=True)))


def _end(end: float, metric: Metric) -> str:
    return "+Inf" if math.isinf(end) else repr(round(end * metric.scale, 6))

"""The collector that ``prometheus_client`` asks: all that is known of a namespace, read from Redis when it is asked."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from smqueue.errors import SmqueueError, error_text
from smqueue.executor import Executor
from smqueue.metrics.names import METRICS, STORE_UP, Metric
from smqueue.metrics.patrol import Patrol
from smqueue.metrics.samples import Sample, samples_of

log = logging.getLogger("smqueue.metrics")

FRESH_S = 1.0
"""For so long a scrape is good: two who ask at the same time cost one."""


class MachineCollector(Collector):
    """What is told of the namespaces of some executors.

    Args:
        executors: Whose namespaces; more may be added.
        wait_s: For how many seconds a caller may be kept waiting, before it gets what was found out the last time.
            ``None``: until it is found out.
    """

    def __init__(self, *executors: Executor, wait_s: float | None = None) -> None:
        self._wait_s = wait_s
        self._lock = threading.Lock()
        self._patrols: dict[tuple[str, str], tuple[Executor, Patrol]] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="smqueue-metrics")
        self._running: Future[list[Sample]] | None = None
        self._found: list[Sample] = []
        self._found_at = float("-inf")
        for executor in executors:
            self.add(executor)

    def add(self, executor: Executor) -> None:
        """Tell of an executor's namespace, too; of several for one namespace the first is asked.

        Raises:
            NoDeployment: Nothing says where it is.
        """
        settings = executor.deployment.settings
        with self._lock:
            self._patrols.setdefault((settings.url, settings.namespace), (executor, Patrol(executor.deployment)))

    def describe(self) -> Iterable[Family]:
        """The names of all metrics, with no look at Redis."""
        return [_family(metric) for metric in METRICS]

    def collect(self) -> Iterable[Family]:
        """All metrics; those that nothing is known of are left out. Never raises for what is wrong with Redis."""
        families: dict[str, Family] = {}
        for sample in self._samples(self._wait_s):
            family = families.setdefault(sample.metric.name, _family(sample.metric))
            match family:
                case HistogramMetricFamily():
                    family.add_metric(sample.labels, list(sample.buckets), sample.value)
                case CounterMetricFamily() | GaugeMetricFamily():
                    family.add_metric(sample.labels, sample.value)
                case _:
                    pass
        return list(families.values())

    def look(self) -> None:
        """Find out now, however long it takes; who collects within a second is told that."""
        self._samples(None)

    def _samples(self, wait_s: float | None) -> list[Sample]:
        with self._lock:
            if self._running is None and time.monotonic() - self._found_at > FRESH_S:
                self._running = self._pool.submit(self._scrape)
            running = self._running
        if running is not None:
            try:
                return running.result(wait_s)
            except TimeoutError:
                log.debug("a scrape takes longer than %s s: the last one is told", wait_s)
        return self._found

    def _scrape(self) -> list[Sample]:
        found: list[Sample] = []
        try:
            for executor, patrol in list(self._patrols.values()):
                found += _looked(executor, patrol)
        finally:
            with self._lock:
                self._found, self._found_at, self._running = found, time.monotonic(), None
        return found


def _looked(executor: Executor, patrol: Patrol) -> Iterator[Sample]:
    """All of one namespace, or that it does not answer."""
    namespace = executor.deployment.settings.namespace
    try:
        found = list(samples_of(executor, patrol))
    except SmqueueError as error:
        log.warning("namespace %s: no metrics: %s", namespace, error)
        found = [Sample(STORE_UP, (namespace,), 0)]
    except Exception as error:  # what is stored may be garbage; the others are still told
        log.exception("namespace %s: no metrics: %s", namespace, error_text(error))
        found = [Sample(STORE_UP, (namespace,), 0)]
    yield from found


def _family(metric: Metric) -> Family:
    labels = ("namespace", *metric.labels)
    match metric.type:
        case "counter":
            return CounterMetricFamily(metric.name.removesuffix("_total"), metric.text, labels=labels)
        case "gauge":
            return GaugeMetricFamily(metric.name, metric.text, labels=labels)
        case "histogram":
            return HistogramMetricFamily(metric.name, metric.text, labels=labels)

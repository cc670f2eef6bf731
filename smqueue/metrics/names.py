"""All metrics: names, types, labels and what they mean. ``docs/metrics.md`` has the same table."""

from __future__ import annotations

from typing import Literal, NamedTuple

from smqueue import tallies
from smqueue.tallies import Tally


class Metric(NamedTuple):
    """One metric. The first label of each is ``namespace``, and not written here.

    Attributes:
        name: As it is scraped; of a counter with ``_total``.
        type: Prometheus' word.
        text: What it is, in one line.
        labels: What it is told by.
        tally: What its samples are sums of; ``None`` when they come from records.
        scale: What one of the tally's units is in the metric's.
    """

    name: str
    type: Literal["counter", "gauge", "histogram"]
    text: str
    labels: tuple[str, ...] = ()
    tally: Tally | None = None
    scale: float = 1e-6


TRANSITIONS = Metric(
    "smqueue_transitions_total",
    "counter",
    "Machines that went from one state to another, counted in the commits",
    ("module", "from", "to", "trigger"),
)
ACTIVE = Metric("smqueue_active_machines", "gauge", "Machines in a state, by the same count", ("module", "state"))
OPERATIONS = Metric("smqueue_active_operations", "gauge", "Operations with active machines")
OLDEST = Metric("smqueue_oldest_seconds", "gauge", "For how long the oldest machine is in a state", ("module", "state"))
WAITING = Metric(
    "smqueue_waiting_seconds",
    "gauge",
    "For how long a trigger has been waited for at the longest, in the operations that are active longest",
    ("module", "state", "trigger", "kind"),
)
DUE = Metric("smqueue_due_entries", "gauge", "Entries of the schedule that are due and taken by nobody")
LAG = Metric("smqueue_schedule_lag_seconds", "gauge", "For how long the first of them has been due")
QUARANTINED = Metric("smqueue_quarantined_machines", "gauge", "Machines that are set aside with an error")
QUARANTINE_ERRORS = Metric(
    "smqueue_quarantined_sample", "gauge", "Machines among 500 that are set aside, by error", ("error",)
)
EARLY = Metric(
    "smqueue_early_signals",
    "gauge",
    "Signals that nobody waits for, in the 100 operations that were sent one last",
    ("module", "signal"),
)
OUTBOX = Metric(
    "smqueue_outbox_requests", "gauge", "What commits and clients have left to be done, and is not done yet"
)
UNSENT = Metric("smqueue_unsent_tasks", "gauge", "Tasks that can never be sent")
WORKERS = Metric("smqueue_workers", "gauge", "Workers that have noted themselves within 15 s")
PAUSED = Metric(
    "smqueue_paused",
    "gauge",
    "What is paused: a module, a state as module.State, or how many operations",
    ("scope", "name"),
)
PROBLEM = Metric("smqueue_problem", "gauge", "1 while something keeps machines from moving", ("kind", "subject"))
STORE_UP = Metric("smqueue_store_up", "gauge", "1 when Redis has answered; else all the others are missing")
STORE_MEMORY = Metric("smqueue_store_memory_bytes", "gauge", "Memory that Redis uses", ("shard",))
STORE_LIMIT = Metric("smqueue_store_memory_limit_bytes", "gauge", "Its maxmemory, where it has one", ("shard",))
DAMAGED = Metric(
    "smqueue_damaged_machines", "gauge", "Machines that something is wrong with, found by the patrol", ("kind",)
)
PATROLLED = Metric("smqueue_patrol_machines_total", "counter", "Machines that the patrol has looked at")
ROUNDS = Metric("smqueue_patrol_rounds_total", "counter", "How often the patrol has been round all active machines")
SCRAPE = Metric("smqueue_scrape_seconds", "gauge", "How long it took to find out all this")

RECORDED = (
    TRANSITIONS, ACTIVE, OPERATIONS, OLDEST, WAITING, DUE, LAG, QUARANTINED, QUARANTINE_ERRORS, EARLY, OUTBOX, UNSENT,
    WORKERS, PAUSED, PROBLEM, STORE_UP, STORE_MEMORY, STORE_LIMIT, DAMAGED, PATROLLED, ROUNDS, SCRAPE,
)  # fmt: skip


def _tallied(name: str, text: str, tally: Tally, scale: float = 1e-6) -> Metric:
    return Metric(name, "histogram" if tally.bounds else "counter", text, tally.labels, tally, scale)


TALLIED = (
    _tallied("smqueue_handler_seconds", "One run of a handler", tallies.HANDLER),
    _tallied("smqueue_handler_failures_total", "Runs of handlers that raised", tallies.HANDLER_FAILED),
    _tallied("smqueue_trigger_seconds", "One attempt of a poll or call", tallies.TRIGGER),
    _tallied("smqueue_trigger_failures_total", "Attempts of triggers' code that raised", tallies.TRIGGER_FAILED),
    _tallied("smqueue_commit_seconds", "From a machine's claim to its commit, its handler included", tallies.COMMIT),
    _tallied("smqueue_outcome_seconds", "From a recorded outcome, such as a signal, to its commit", tallies.OUTCOME),
    _tallied("smqueue_timer_lateness_seconds", "From a deadline to its commit", tallies.LATE),
    _tallied("smqueue_race_margin_seconds", "How long before the next deadline a race was won", tallies.MARGIN),
    _tallied("smqueue_drain_machines", "Machines that one drain, and so one hint, has worked on", tallies.DRAIN, 1),
    _tallied("smqueue_commits_total", "What became of claimed machines", tallies.COMMITS),
    _tallied("smqueue_conflicts_total", "EXECs of workers that failed and were repeated", tallies.CONFLICTS),
)

METRICS: tuple[Metric, ...] = (*RECORDED, *TALLIED)
KINDS = (
    "store", "no_worker", "queue_without_worker", "module_without_worker", "behind", "quarantined", "unsent",
)  # fmt: skip
"""What ``smqueue_problem`` tells of, and 0 of those that are not there: the kinds of an overview's causes."""

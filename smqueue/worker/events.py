"""Celery events for triggers, so that Flower shows them: sent, started, retried, succeeded (won), revoked (lost).

A view, not the truth: ``explain`` is. Events are sent only while somebody consumes them, which workers note in Redis.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from celery import Celery
from celery.utils.nodenames import anon_nodename

log = logging.getLogger("smqueue.events")


class Events:
    """Sends events of triggers under their ids."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    def send(self, *events: tuple[str, dict[str, Any]]) -> None:
        """Send several events over one connection; one that cannot be sent is only missed by the onlooker."""
        app: Any = self._app
        task = app.current_worker_task
        hostname = task.request.hostname if task is not None else getattr(app, "smqueue_hostname", None)
        try:
            with app.events.default_dispatcher(hostname=hostname or anon_nodename()) as dispatcher:
                for kind, fields in events:
                    dispatcher.send(kind, **fields)
        except Exception as error:
            log.debug("events not sent: %s", error)


def sent(trigger_id: str, label: str, operation_id: str, machine_id: str, queue: str) -> tuple[str, dict[str, Any]]:
    """A trigger is armed."""
    shown = repr((operation_id, machine_id))
    fields: dict[str, Any] = {"uuid": trigger_id, "name": label, "args": shown, "kwargs": "{}", "retries": 0}
    fields |= {"eta": None, "expires": None, "root_id": trigger_id, "parent_id": None, "queue": queue}
    return "task-sent", fields


def started(trigger_id: str) -> tuple[str, dict[str, Any]]:
    """Its code runs on this worker's event loop."""
    return "task-started", {"uuid": trigger_id, "pid": 0}


def retried(trigger_id: str, why: str) -> tuple[str, dict[str, Any]]:
    """Its code has run without an outcome, and runs again later."""
    return "task-retried", {"uuid": trigger_id, "exception": why, "traceback": ""}


def won(trigger_id: str, result: str, since_us: int) -> tuple[str, dict[str, Any]]:
    """It has won its race."""
    runtime = max(0.0, time.time() - since_us / 1_000_000)
    return "task-succeeded", {"uuid": trigger_id, "result": result, "runtime": runtime}


def lost(trigger_id: str) -> tuple[str, dict[str, Any]]:
    """Another one has won."""
    return "task-revoked", {"uuid": trigger_id, "terminated": False, "signum": None, "expired": False}

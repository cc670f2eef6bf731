"""Celery events for triggers, so that Flower shows them: sent, started, retried, succeeded (won), revoked (lost).

A view, not the truth: ``explain`` is. Events are sent only while somebody looks on, which workers note in Redis.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from celery import Celery
from celery.utils.nodenames import anon_nodename
from celery.worker.control import Panel, control_command

from smqueue.worker.senders import Senders

log = logging.getLogger("smqueue.events")

REPEATED_S = 15.0
"""Flower repeats ``enable_events`` every 5 s, for workers that came later; after three that are missing it has gone."""


class Events:
    """Sends events of triggers under their ids."""

    def __init__(self, app: Celery, senders: Senders) -> None:
        self._app, self._senders, self._failing = app, senders, False

    def send(self, *events: tuple[str, dict[str, Any]]) -> None:
        """Send several events over one connection; one that cannot be sent is only missed by the onlooker.

        They bear the worker's name, in its children too: to a name of its own Flower would show a worker. Only the
        name of whoever sends ``task-sent`` is not taken for a worker's, and that is all that producers send.
        """
        if not events:
            return
        app: Any = self._app
        task = app.current_worker_task
        hostname = task.request.hostname if task is not None else getattr(app, "smqueue_hostname", None)
        try:
            with (
                self._senders.acquire() as producer,
                app.events.Dispatcher(
                    producer.connection, hostname=hostname or anon_nodename(), channel=producer.channel
                ) as dispatcher,
            ):
                for kind, fields in events:
                    dispatcher.send(kind, **fields)
            self._failing = False
        except Exception as error:
            log.log(logging.DEBUG if self._failing else logging.WARNING, "events were not sent: %s", error)
            self._failing = True


class Onlooker:
    """Whether somebody looks on at a worker's tasks.

    On by ``worker -E`` or one ``celery control enable_events``, it is on until switched off. On by a command that is
    repeated, as Flower does it, it is on for as long as that goes on: Celery itself would send events for ever.

    Args:
        worker: Celery's.
    """

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self._told_at: float | None = None
        self._repeated = False

    def told(self) -> None:
        """The command has come."""
        now = time.monotonic()
        self._repeated |= self._told_at is not None and now - self._told_at < REPEATED_S
        self._told_at = now

    def here(self) -> bool:
        """Whether there is somebody now; switches Celery's own events off when a repeated command has ceased."""
        dispatcher: Any = getattr(getattr(self._worker, "consumer", None), "event_dispatcher", None)
        if dispatcher is None or not dispatcher.enabled:
            return False
        if not dispatcher.groups:  # worker -E: all of them
            return True
        if self._repeated and self._told_at is not None and time.monotonic() - self._told_at > REPEATED_S:
            self._repeated, self._told_at = False, None
            dispatcher.groups.discard("task")
            log.info("nobody asks for events any more: none are sent")
        return "task" in dispatcher.groups


_enable: Any = Panel.data["enable_events"]


def enable_events(state: Any) -> Any:
    """Tell worker(s) to send task-related events."""
    onlooker: Onlooker | None = getattr(state.app, "smqueue_onlooker", None)
    if onlooker is not None:
        onlooker.told()
    return _enable(state)


_command: Any = control_command
_command(name="enable_events")(enable_events)  # in the place of Celery's, for all applications of the process


def sent(trigger_id: str, label: str, operation_id: str, machine_id: str, queue: str) -> tuple[str, dict[str, Any]]:
    """A trigger is armed."""
    shown = repr((operation_id, machine_id))
    fields: dict[str, Any] = {"uuid": trigger_id, "name": label, "args": shown, "kwargs": "{}", "retries": 0}
    fields |= {"eta": None, "expires": None, "root_id": trigger_id, "parent_id": None, "queue": queue}
    return "task-sent", fields


def started(trigger_id: str) -> tuple[str, dict[str, Any]]:
    """Its code runs on this worker's event loop."""
    return "task-started", {"uuid": trigger_id}


def retried(trigger_id: str, why: str, tries: int) -> tuple[str, dict[str, Any]]:
    """Its code has run ``tries`` times without an outcome, and runs again later."""
    return "task-retried", {"uuid": trigger_id, "exception": why, "traceback": "", "retries": tries}


def won(trigger_id: str, result: str, since_us: int) -> tuple[str, dict[str, Any]]:
    """It has won its race."""
    runtime = max(0.0, time.time() - since_us / 1_000_000)
    return "task-succeeded", {"uuid": trigger_id, "result": result, "runtime": runtime}


def lost(trigger_id: str) -> tuple[str, dict[str, Any]]:
    """Another one has won."""
    return "task-revoked", {"uuid": trigger_id, "terminated": False, "signum": None, "expired": False}

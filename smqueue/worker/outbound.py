"""The way to the broker, over Celery."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

from celery import Celery
from kombu.exceptions import OperationalError

from smqueue import tracing
from smqueue.deployment import Settings
from smqueue.errors import BrokerUnavailable
from smqueue.instances import Instances, Push
from smqueue.keys import Keys
from smqueue.protocols.claim import Armed
from smqueue.protocols.transition import attempt_id
from smqueue.records import Active, Placed
from smqueue.worker import events
from smqueue.worker.pushing import Pushing
from smqueue.worker.senders import Senders
from smqueue.worker.settings import queue_of

log = logging.getLogger("smqueue.outbound")

PAUSE_S = 1.0
"""For so long after a failure none is tried: the callers of add and signal would wait for it."""
HINT_EXPIRES_S = 7_200
"""Producers without any worker leave a hint a second and shard: a worker that comes throws away those older than this,
unless its clock is that much behind. Not shorter: of a worker whose clock is that much ahead it would be all of them,
and what is due would have to wait for its pump."""


class Message(NamedTuple):
    """A task of ours to be sent."""

    name: str
    args: tuple[Any, ...]
    options: Mapping[str, Any]


class CeleryOutbound:
    """Sends hints, triggers and users' tasks."""

    def __init__(self, app: Celery, settings: Callable[[], Settings], instances: Callable[[], Instances]) -> None:
        self._app: Any = app
        self._settings, self._instances = settings, instances
        self._pushing = Pushing(app)
        self._senders = Senders(app)
        self._events = events.Events(app, self._senders)
        self._failing, self._again_at = False, 0.0

    def hint(self, namespace: str, shard: int) -> None:
        """See ``Outbound``; one that cannot be sent is not needed: the pump of a worker finds what is due."""
        self._send(Message("smqueue.transition", (namespace, shard), self._hint_options()))

    def push(self, keys: Keys) -> Push | None:
        """A hint for a shard, for commits to push; ``None``: it has to be sent after them."""
        return self._pushing.push(keys, self._settings().url, self._hint_options)

    def _hint_options(self) -> dict[str, Any]:
        return {"queue": queue_of(self._app, "smqueue_transition_queue"), "expires": HINT_EXPIRES_S}

    def send_triggers(self, armed: Sequence[Armed]) -> None:
        """See ``Outbound``."""
        self._send(*[self._trigger(one) for one in armed])

    def _trigger(self, armed: Armed) -> Message:
        op, machine = armed.machine.op, armed.active.machine
        options = {
            "task_id": attempt_id(armed.machine.entry, armed.trigger),
            "queue": queue_of(self._app, "smqueue_trigger_queue"),
            "shadow": f"{armed.placed.module}.{armed.placed.type.name}/{armed.trigger}",
            "argsrepr": repr((op, machine)),
            "kwargsrepr": "{}",
            "retries": armed.tries,  # for Flower, which takes it from the message
        }
        args = (op, machine, armed.entry, armed.kind, self._settings().namespace)
        return Message("smqueue.trigger", args, options)

    def send_task(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], task_id: str, options: Mapping[str, Any]
    ) -> None:
        """See ``Outbound``."""
        given: dict[str, Any] = {"task_id": task_id, **options}
        if headers := tracing.injected():
            given["headers"] = {**(given.get("headers") or {}), **headers}
        try:
            self._app.send_task(name, args=list(args), kwargs=dict(kwargs), **given)
        except (OperationalError, OSError) as error:
            raise BrokerUnavailable(str(error) or type(error).__name__) from error

    def armed(self, placed: Placed, active: Active, arming: str) -> None:
        """See ``Outbound``."""
        queue = queue_of(self._app, "smqueue_trigger_queue")
        entry, type_name, machine = f"{placed.record}:{arming}", placed.type.name, active.machine
        told = [
            events.sent(attempt_id(entry, name), handler.label(placed.module, type_name), placed.op, machine, queue)
            for name, handler in self._instances().handlers(placed).items()
        ]
        self._events.send(*told)

    def ended(self, placed: Placed, active: Active, arming: str, armed: Mapping[str, Any], won: str | None) -> None:
        """See ``Outbound``."""
        entry = f"{placed.record}:{arming}"
        told = [
            events.won(attempt_id(entry, name), "won", active.at_us)
            if name == won
            else events.lost(attempt_id(entry, name))
            for name in armed
        ]
        self._events.send(*told)

    def tell(self, *told: tuple[str, dict[str, Any]]) -> None:
        """Send events of one trigger."""
        self._events.send(*told)

    def _send(self, *messages: Message) -> None:
        if self._failing and time.monotonic() < self._again_at:
            return
        try:
            with tracing.apart(), self._senders.acquire() as producer, _together(producer, messages):
                for name, args, options in messages:
                    self._app.send_task(
                        name, args=args, serializer="json", ignore_result=True, retry=False, producer=producer,
                        **options,
                    )  # fmt: skip
        except Exception as error:  # kombu raises a dozen kinds; all mean that the broker did not take it
            self._again_at = time.monotonic() + PAUSE_S
            if not self._failing:
                log.warning("the broker takes no messages; what is due is found without them, later: %s", error)
            self._failing = True
            return
        if self._failing:
            log.warning("the broker takes messages again")
        self._failing = False


def _together(producer: Any, messages: Sequence[Message]) -> AbstractContextManager[object]:
    """In the block a broker that can, such as Redis, is sent all messages in one round trip, at its end."""
    return producer.batch() if len(messages) > 1 and hasattr(producer, "batch") else nullcontext()  # since kombu 5.7

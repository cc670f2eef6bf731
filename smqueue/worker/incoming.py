"""How a worker takes messages for smqueue's tasks: JSON alone, and what may hold secrets is shown to nobody."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from celery.worker.request import Request
from celery.worker.strategy import default
from kombu.exceptions import ContentDisallowed
from kombu.transport.redis import QoS as RedisQoS
from kombu.transport.virtual import QoS

from smqueue.schemas import HIDDEN

JSON = "application/json"
HINTS = frozenset({"smqueue.transition", "smqueue.trigger"})
"""Tasks that what is due is found and sent again without."""
_Request: Any = Request
_default: Any = default


def json_only(task: Any, app: Any, consumer: Any, **options: Any) -> Callable[..., Any]:
    """Celery's strategy, which looks into a message's body, for JSON alone: also where the application takes pickle."""
    take = _default(task, app, consumer, **options)

    def checked(message: Any, *args: Any, **more: Any) -> Any:
        if message.content_type != JSON:
            raise ContentDisallowed(f"smqueue's tasks take JSON, not {message.content_type}")
        return take(message, *args, **more)

    return checked


def take_hints_lightly(channel: object) -> None:
    """Let a consumer's channel note hints in this process alone.

    Over Redis kombu keeps a copy of each message that is not acknowledged yet, which takes a round trip before the
    message is looked at, and another one when it is acknowledged. A hint that its worker takes along costs a second, of
    a trigger five, and up to five minutes if it had been sent before, while kombu's copy would come back after an hour.
    How many messages are reserved is counted as ever, and who ends in order puts back what it has not begun.
    """
    own: Any = channel
    qos: Any = getattr(channel, "qos", None)
    if not _as_known(own, qos):
        return
    append, ack, restore = qos.append, qos.ack, qos.restore_by_tag

    def append_lightly(message: Any, tag: str) -> None:
        if _is_hint(message):
            QoS.append(qos, message, tag)
        else:
            append(message, tag)

    def ack_lightly(tag: str) -> None:
        if _is_hint(qos._delivered.get(tag)):
            QoS.ack(qos, tag)
        else:
            ack(tag)

    def restore_hint(tag: str, client: Any = None, leftmost: bool = False) -> None:
        message = qos._delivered.get(tag)
        if not _is_hint(message):
            restore(tag, client, leftmost)
            return
        with own.conn_or_acquire(client) as connected:
            to = message.delivery_info
            own._do_restore_message(message._raw, to["exchange"], to["routing_key"], connected, leftmost)

    qos.append, qos.ack, qos.restore_by_tag = append_lightly, ack_lightly, restore_hint


def _as_known(channel: object, qos: object) -> bool:
    """Whether it is Redis, with acknowledgements, and this kombu has what is no public part of it."""
    return (
        isinstance(qos, RedisQoS)
        and hasattr(qos, "_delivered")
        and hasattr(qos, "restore_by_tag")
        and hasattr(channel, "_do_restore_message")
    )


def _is_hint(message: Any) -> bool:
    headers = getattr(message, "headers", None)  # whatever somebody has put there
    task = cast("dict[str, Any]", headers).get("task") if isinstance(headers, dict) else None
    return isinstance(task, str) and task in HINTS


class QuietRequest(_Request):
    """A message whose arguments stand in no event and no log record.

    Whoever has sent it has put a readable form of them beside them, and Flower would show that. Celery's own log of
    level DEBUG shows the arguments of every message all the same.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for name in ("argsrepr", "kwargsrepr"):
            setattr(self, f"_{name}", HIDDEN)
            self._request_dict[name] = HIDDEN


class TriggerRequest(_Request):
    """A run of a trigger's code. How its race ends is told by the transition; Celery's own "succeeded" would be wrong.

    (A task that raises ``Ignore`` tells nothing either, but has Celery take a traceback apart: a fourth of the polls.)
    """

    def send_event(self, type: str, **fields: Any) -> None:
        """All but that."""
        if type != "task-succeeded":
            super().send_event(type, **fields)

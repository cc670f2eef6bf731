"""How a worker takes messages for smqueue's tasks: JSON alone, and what may hold secrets is shown to nobody."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery.worker.request import Request
from celery.worker.strategy import default
from kombu.exceptions import ContentDisallowed

from smqueue.schemas import HIDDEN

JSON = "application/json"
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

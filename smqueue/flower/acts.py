"""What the buttons do, for pages and for scripts: signal, cancel, pause, resume, retry."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from smqueue.client import Client
from smqueue.errors import SmqueueError
from smqueue.executor import Executor
from smqueue.schemas import Codec

ANSWER_S = 10.0
"""How long a worker may take to answer, where Flower has no modules and asks one."""


class NeedsModules(SmqueueError):
    """Flower has none of the modules, which {what} needs: start it with celery -A … flower, of the application whose
    executor has them."""

    fields = ("what",)
    what: str


@dataclass(frozen=True)
class Act:
    """One button.

    Attributes:
        name: In paths.
        button: What it says.
        question: What is asked before; ``{op}`` is the operation.
        consequence: What will happen.
        danger: Whether it cannot be undone.
    """

    name: str
    button: str
    question: str
    consequence: str
    danger: bool = False


ACTS = {
    act.name: act
    for act in (
        Act(
            "signal",
            "Send",
            "Send a signal to {op}?",
            "The machine that has waited longest for it takes it; while none waits, it is kept for one that will.",
        ),
        Act(
            "cancel",
            "Cancel all its machines",
            "Cancel {op}?",
            "Every active machine of the operation ends, marked as cancelled. This cannot be undone.",
            danger=True,
        ),
        Act(
            "pause",
            "Pause",
            "Pause {op}?",
            "Nothing of the operation commits until it is resumed. Its deadlines run on: what falls due meanwhile "
            "fires at the resume.",
        ),
        Act("resume", "Resume", "Resume {op}?", "What fell due while it was paused fires now."),
        Act(
            "retry",
            "Retry",
            "Retry {op}?",
            "Its machines leave the quarantine: those with an outcome run their handler again, others are armed anew.",
        ),
    )
}


class Sendable(NamedTuple):
    """A signal that may be sent from here."""

    module: str | None
    name: str
    codec: Codec[Any] | None
    """``None``: Flower does not know its schema, and a worker checks it."""


def sendable(executor: Executor) -> list[Sendable]:
    """All signals of the modules that are known here."""
    found: list[Sendable] = []
    for module in executor.instances.ids():
        signals = executor.instances.get(module).module.signals
        found += [Sendable(module, name, signal.codec) for name, signal in signals.items()]
    return found


def perform(executor: Executor, op: str, act: str, given: Mapping[str, Any]) -> tuple[str, Any]:
    """Do it.

    Args:
        executor: Where.
        op: The operation.
        act: One of ``ACTS``.
        given: ``reason`` and ``children`` of a cancel, ``reason`` of a pause; ``signal``, ``payload``, ``module``,
            ``machine`` and ``id`` of a signal.

    Returns:
        What has happened, in a sentence, and the same for scripts.

    Raises:
        SmqueueError: It was not done.
    """
    match act:
        case "signal":
            done = _signal(executor, op, given)
            return f"{given['signal']} sent to {op}: {_DELIVERED[done]}.", done
        case "cancel":
            ended = executor.cancel(op, given.get("reason") or None, bool(given.get("children")))
            return f"{op} is cancelled: {_machines(ended)} ended.", ended
        case "pause":
            executor.pause(op, reason=given.get("reason") or None)
            return f"{op} is paused.", None
        case "resume":
            executor.resume(op)
            return f"{op} is resumed.", None
        case _:
            if not executor.instances.ids():
                raise NeedsModules("retry")
            count = executor.retry(op)
            return f"{_machines(count)} of {op} taken out of quarantine.", count


_DELIVERED = {
    "DELIVERED": "a machine waited for it",
    "BUFFERED": "nobody waits for it yet, so it is kept",
    "DUPLICATE": "it had been sent already, and nothing was done",
}


def _signal(executor: Executor, op: str, given: Mapping[str, Any]) -> str:
    more = {name: given.get(name) or None for name in ("module", "machine", "id")}
    if executor.instances.ids():
        return executor.signal(op, given["signal"], given.get("payload"), **more).value
    settings = executor.deployment.settings
    with Client(settings.url, settings.namespace, shards=settings.shards) as client:
        return client.signal(op, given["signal"], given.get("payload"), **more, timeout=ANSWER_S).value


def _machines(count: int) -> str:
    return f"{count:,} {'machine' if count == 1 else 'machines'}"


def as_json(text: bytes) -> dict[str, Any]:
    """The body of a request: one JSON object, or nothing; raises ValueError."""
    data = json.loads(text) if text.strip() else {}
    if not isinstance(data, dict):
        raise ValueError("expected a JSON object")
    return data

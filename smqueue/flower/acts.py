"""What the buttons do, for pages and for scripts: signal, cancel, pause, resume, retry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from smqueue.client import Client
from smqueue.errors import InvalidInput, SmqueueError
from smqueue.executor import Executor
from smqueue.flower.troubles import NoSuchOperation
from smqueue.records import loads
from smqueue.roundtrip import read
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
        question: What is asked before; ``{what}`` is the operation, or the module or state.
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
            "Send a signal to {what}?",
            "The machine that has waited longest for it takes it; while none waits, it is kept for one that will.",
        ),
        Act(
            "cancel",
            "Cancel all its machines",
            "Cancel {what}?",
            "Every active machine of the operation ends, marked as cancelled. This cannot be undone.",
            danger=True,
        ),
        Act(
            "pause",
            "Pause",
            "Pause {what}?",
            "Nothing of the operation commits until it is resumed. Its deadlines run on: what falls due meanwhile "
            "fires at the resume.",
        ),
        Act("resume", "Resume", "Resume {what}?", "What fell due while it was paused fires now."),
        Act(
            "retry",
            "Retry",
            "Retry {what}?",
            "Its machines leave the quarantine: those with an outcome run their handler again, others are armed anew.",
        ),
    )
}


OF_MODULES = {
    act.name: act
    for act in (
        Act(
            "pause",
            "Pause",
            "Pause {what}?",
            "Nothing of it commits in any operation until it is resumed. Deadlines run on: what falls due meanwhile "
            "fires at the resume.",
        ),
        Act("resume", "Resume", "Resume {what}?", "What fell due while it was paused fires now, in all operations."),
    )
}
"""The same for modules and their states."""


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
        given: ``reason``, ``children`` and ``force`` of a cancel, ``reason`` of a pause; ``signal``, ``payload``,
            ``module``, ``machine`` and ``id`` of a signal.

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
            _known(executor, op)
            children, force = bool(given.get("children")), bool(given.get("force"))
            ended = executor.cancel(op, given.get("reason") or None, children, force=force)
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


def perform_on_module(executor: Executor, module: str, state: str, act: str, given: Mapping[str, Any]) -> str:
    """Pause or resume a module, or one state of it.

    Args:
        executor: Where.
        module: Its id.
        state: The name of a state; empty: all of the module.
        act: One of ``OF_MODULES``.
        given: ``reason`` of a pause.

    Returns:
        What has happened, in a sentence.

    Raises:
        SmqueueError: It was not done.
    """
    if not executor.instances.ids():
        raise NeedsModules("pausing a module")
    if act == "pause":
        executor.pause(module=module, state=state or None, reason=given.get("reason") or None)
    else:
        executor.resume(module=module, state=state or None)
    return f"{named(module, state)} is {act}d."


def named(module: str, state: str) -> str:
    """What is steered, as ``explain`` calls it."""
    return f"state {module}.{state}" if state else f"module {module}"


def _known(executor: Executor, op: str) -> None:
    """Raises NoSuchOperation of one that is not, was not, and has nothing kept for it."""
    keys = executor.deployment.keys(op)
    signals = [(m, name) for m in executor.instances.ids() for name in executor.instances.get(m).module.signals]
    kept = [keys.inbox(op, *one) for one in signals]
    (there,) = executor.deployment.driver.run(
        read([], ("EXISTS", keys.active(op), keys.inactive(op), keys.history(op), keys.control(op), *kept))
    )
    if not there:
        raise NoSuchOperation(op, executor.deployment.settings.namespace)


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


TYPES: Mapping[str, type] = {
    "reason": str, "children": bool, "force": bool, "signal": str, "module": str, "machine": str, "id": str,
    "state": str,
}  # fmt: skip
"""Of what scripts may give; a payload is any JSON, and ``null`` is nothing."""


def as_json(text: bytes) -> dict[str, Any]:
    """The body of a request: one JSON object, or nothing.

    Raises:
        InvalidInput: It is none, or something in it has the wrong type.
    """
    try:
        data = loads(text) if text.strip() else {}
    except ValueError as error:
        raise InvalidInput("body", f"no JSON: {error}") from None
    if not isinstance(data, dict):
        raise InvalidInput("body", "expected a JSON object")
    given = cast("dict[str, Any]", data)
    for name, kind in TYPES.items():
        if given.get(name) is not None and not isinstance(given[name], kind):
            raise InvalidInput(name, f"expected {kind.__name__}, got {type(given[name]).__name__}")
    return given

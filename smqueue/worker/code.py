"""Running a trigger's code: one attempt of a poll, a call, a task; what it brings is recorded, or it runs again."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from smqueue.errors import (
    HandlerTimeout,
    InvalidOutcome,
    SecretKeyMissing,
    SmqueueError,
    StoreRefused,
    StoreUnavailable,
    TooLarge,
    UndecodableRecord,
    error_text,
)
from smqueue.handlers import Handler
from smqueue.keys import Keys, new_id, schedule_of
from smqueue.leases import Lease
from smqueue.limits import time_limit
from smqueue.logs import about_machine
from smqueue.protocols import runs
from smqueue.protocols.bounds import PARK_MS
from smqueue.protocols.claim import Armed
from smqueue.protocols.transition import attempt_id
from smqueue.records import compact
from smqueue.retry import Failed, Retry
from smqueue.roundtrip import Steps
from smqueue.schemas import ValidationProblem
from smqueue.spans import trigger_span
from smqueue.tallies import TRIGGER, TRIGGER_FAILED
from smqueue.tracing import Span, header_of
from smqueue.trigger_types import Call, Poll, TaskTrigger
from smqueue.worker import events

if TYPE_CHECKING:
    from smqueue.worker.engine import Engine

log = logging.getLogger("smqueue.triggers")

UNREADY_MS = 10_000
"""When a trigger whose context or handler could not be had is tried again."""
UNLIMITED_S = 3_600.0
"""How long the code of a trigger without a timeout may take, so that no slot of a pool is lost for ever."""
GRACE_S = 2.0
"""How long a coroutine that is cancelled may take to clean up."""


def run_trigger(engine: Engine, keys: Keys, entry: str, kind: str) -> str:
    """One attempt of a trigger's code.

    Returns:
        What became of it: ``RECORDED``, ``AGAIN``, ``LOST``, ``LATE``, ``STALE`` or ``RUNNING``.
    """
    token = new_id()
    try:
        started = engine.driver.run(runs.start(keys, engine.instances, entry, token, kind))
    except (StoreUnavailable, StoreRefused):
        raise
    except (SmqueueError, ValueError) as error:  # this worker cannot read it: it gives it back, for another to try
        engine.driver.run(runs.again(keys, entry, kind, token, UNREADY_MS, 0, error_text(error)))
        return "AGAIN"
    if isinstance(started, str):
        if started == "QUARANTINED":
            log.error("the machine of trigger %s is quarantined: its code kills its worker", entry)
        return started
    armed = started.armed
    try:  # contexts and dynamic transitions are the user's code
        handler = engine.instances.handlers(armed.placed).get(armed.trigger)
        if handler is None:
            raise UndecodableRecord(f"state {armed.placed.type.name} has no handler {armed.trigger} any more")
        attempt = Attempt(engine, keys, armed, handler, token, started.watched)
    except Exception as error:
        what = (armed.trigger, armed.machine.op, error_text(error))
        log.warning("trigger %s of operation %s cannot be run: %s", *what, extra=about_machine(armed))
        engine.driver.run(runs.again(keys, entry, kind, token, UNREADY_MS, 0, error_text(error)))
        return "AGAIN"
    trigger: Any = handler.trigger
    limit = (getattr(trigger, "timeout_s", None) or UNLIMITED_S) + GRACE_S + 3
    with engine.leases.hold([Lease(keys, schedule_of(keys, kind), entry, token)], limit), attempt.spanned():
        match trigger:
            case Poll():
                return attempt.poll(trigger)
            case Call():
                return attempt.call(trigger.fn, trigger.timeout_s, trigger.retry)
            case TaskTrigger():
                return attempt.task(trigger)
            case _:
                return "STALE"


class Attempt:
    """One attempt, under one token."""

    def __init__(self, engine: Engine, keys: Keys, armed: Armed, handler: Handler, token: str, watched: bool) -> None:
        self.engine, self.keys, self.armed, self.handler = engine, keys, armed, handler
        self.token, self.watched = token, watched
        self.id = attempt_id(armed.machine.entry, armed.trigger)
        self.context = engine.instances.context(armed.placed, armed.active.machine, self.id)
        self.span: Span | None = None

    @property
    def label(self) -> str:
        """``module.State/handler``, as Flower and the logs show it."""
        return self.handler.label(self.armed.placed.module, self.armed.placed.type.name)

    @contextmanager
    def spanned(self) -> Generator[None]:
        """The block is the attempt's span, if tracing is on."""
        span = self.span = trigger_span(self.armed)
        if span is None:
            yield
            return
        try:
            with span.current():
                yield
        finally:
            span.end()

    def poll(self, trigger: Poll[Any, Any]) -> str:
        """Ask once."""
        pause_ms = trigger.every_ms(self.armed.placed.state, self.armed.tries)
        try:
            value = self._invoke(trigger.fn, trigger.timeout_s)
            if value is not None:
                return self.record(value)
            return self.again(pause_ms, "")
        except Exception as error:
            self._count_failure(error)
            return self.again(pause_ms, self._text(error))

    def call(self, fn: Callable[..., Any], timeout_s: float | None, retry: Retry) -> str:
        """Call once; an exception is tried again, or is the outcome when that was the last attempt."""
        try:
            return self.record(self._invoke(fn, timeout_s))
        except Exception as error:
            return self.failed(error, retry)

    def task(self, trigger: TaskTrigger[Any, Any]) -> str:
        """Send the user's task, linked to report its end; looked at again in an hour, and sent again under its id."""
        if (ended := self.armed.race.get(f"ended:{self.armed.trigger}")) is not None:
            try:
                end = end_from(self.engine, self.armed.entry, ended)  # it has ended meanwhile
            except SecretKeyMissing as error:  # left for a worker that has the key
                return self.again(UNREADY_MS, error_text(error), told=False)
            return self._recorded(self._outcome(encoded_end(self.engine, self.armed, self.handler, end)))
        try:
            self.engine.send_linked(trigger.signature_for(self.armed.placed.state), self)
        except Exception as error:
            return self.failed(error, Retry())
        return self.again(PARK_MS, "", told=False)

    # --- what became of it ---------------------------------------------------------------------------------------

    def record(self, value: Any) -> str:
        """Record an outcome; the first of a race stands."""
        return self._recorded(self.recording(value))

    def recording(self, value: Any) -> Steps[tuple[str, bool]]:
        """The protocol that records an outcome; raises InvalidOutcome, TooLarge."""
        return self._outcome(encoded(self.engine, self.armed, self.handler, value))

    def _outcome(self, text: str) -> Steps[tuple[str, bool]]:
        return runs.outcome(self.keys, self.armed.entry, self.armed.kind, text, self.token, header_of(self.span))

    def _recorded(self, steps: Steps[tuple[str, bool]]) -> str:
        said, hint = self.engine.driver.run(steps)
        if hint:
            self.engine.outbound.hint(self.keys.namespace, self.keys.shard)
        if self.span is not None:
            self.span.tell({"outcome": said})
        return said

    def failed(self, error: BaseException, retry: Retry) -> str:
        """Try again, or give up and let the handler know."""
        self._count_failure(error)
        attempts = self.armed.tries + 1
        if retry.exhausted(error, attempts):
            return self.record(Failed(self._text(error), attempts))
        return self.again(retry.jittered_ms(attempts), self._text(error))

    def again(self, delay_ms: int, error: str, told: bool = True) -> str:
        """Run again after a while."""
        if error:
            extra = about_machine(self.armed)
            log.info("%s of operation %s failed: %s", self.label, self.armed.machine.op, error, extra=extra)
        steps = runs.again(self.keys, self.armed.entry, self.armed.kind, self.token, delay_ms, 1, error)
        done = self.engine.driver.run(steps)
        if self.watched and done and told:
            self.engine.outbound.tell(events.retried(self.id, error or "no answer yet", self.armed.tries + 1))
        said = "AGAIN" if done else "STALE"
        if self.span is not None:
            self.span.tell({"outcome": said})
        return said

    def _text(self, error: BaseException) -> str:
        """An error of the user's code in words, which may hold what the state keeps secret."""
        return self.engine.instances.without_secrets(error_text(error), self.armed.placed)

    def _count_failure(self, error: BaseException) -> None:
        self.engine.tallies.count(TRIGGER_FAILED, *self._labels, type(error).__name__)
        if self.span is not None:
            self.span.failed(type(error).__name__, self._text(error))

    @property
    def _labels(self) -> tuple[str, str, str]:
        placed = self.armed.placed
        return placed.module, placed.type.name, self.handler.name

    def _invoke(self, fn: Callable[..., Any], timeout_s: float | None) -> Any:
        began = time.perf_counter()
        try:
            return self._limited(fn, timeout_s)
        finally:
            self.engine.tallies.observe(TRIGGER, int((time.perf_counter() - began) * 1_000_000), *self._labels)

    def _limited(self, fn: Callable[..., Any], timeout_s: float | None) -> Any:
        what, limit_s = f"trigger {self.handler.name}", timeout_s or UNLIMITED_S
        with time_limit(what, limit_s):
            value = fn(self.armed.placed.state, self.context)
        if not inspect.isawaitable(value):
            return value
        with time_limit(what, limit_s + GRACE_S):  # a coroutine that blocks its loop is not cancelled by it
            return self.engine.run_async(_bounded(value, what, limit_s))


def encoded(engine: Engine, armed: Armed, handler: Handler, value: Any) -> str:
    """An outcome as it is stored.

    Raises:
        InvalidOutcome: It does not fit the handler's annotation.
        TooLarge: It is over the limit.
    """
    try:
        data = handler.outcome.check(value)
        text = compact(data)
    except ValidationProblem as problem:
        raise InvalidOutcome(f"{handler.name}.{problem.field}".rstrip("."), problem.problem) from None
    if (size := len(text.encode())) > engine.instances.limit:
        raise TooLarge(f"outcome of {handler.name}", size, engine.instances.limit)
    return engine.instances.value(handler.outcome, data, armed.placed.op, armed.placed.module)


def encoded_end(engine: Engine, armed: Armed, handler: Handler, end: Any) -> str:
    """How a user's task has ended, ``{"value": …}`` or ``{"failed": …}``, as an outcome; what does not fit failed."""
    if "failed" in end:
        return encoded(engine, armed, handler, Failed(str(end["failed"]), 1))
    try:
        return encoded(engine, armed, handler, end["value"])
    except (InvalidOutcome, TooLarge) as error:
        return encoded(engine, armed, handler, Failed(error_text(error), 1))


def end_to(engine: Engine, entry: str, end: Any) -> str:
    """An end that is kept for a worker that can read it: one ciphertext, since no schema says what of it is secret."""
    secrets = engine.instances.secrets
    return json.dumps(end if secrets.codec is None else {"sealed": secrets.whole(end, entry)})


def end_from(engine: Engine, entry: str, kept: str) -> Any:
    """What ``end_to`` was given."""
    end = json.loads(kept)
    return engine.instances.secrets.opened_whole(end["sealed"], entry) if "sealed" in end else end


async def _bounded(awaitable: Any, what: str, timeout_s: float) -> Any:
    bound = asyncio.timeout(timeout_s)
    try:
        async with bound:
            return await awaitable
    except TimeoutError:
        if not bound.expired():  # the code's own
            raise
        raise HandlerTimeout(what, timeout_s) from None

"""The Celery tasks. All but ``smqueue.add`` and ``smqueue.signal`` are hints: ids only, they may be lost or doubled."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, cast

from celery import Celery, current_task

from smqueue import tracing
from smqueue.errors import (
    DefinitionError,
    InvalidInput,
    NewerRecord,
    SecretKeyMissing,
    SmqueueError,
    StoreRefused,
    StoreUnavailable,
    UnknownModule,
    error_text,
)
from smqueue.protocols import runs
from smqueue.relay import machines_from_json
from smqueue.worker.code import encoded_end, end_to, run_trigger
from smqueue.worker.engine import Engine
from smqueue.worker.incoming import QuietRequest, TriggerRequest

log = logging.getLogger("smqueue.tasks")

STORE_TRIES = 20
HARD_LIMIT_S = 600
"""A drain ends after a second; one that takes this long is stuck in code that cannot be interrupted."""


class Engines:
    """The engines of an application, by namespace."""

    def __init__(self, app: Celery) -> None:
        self.app = app
        self._engines: list[Engine] = []

    def add(self, engine: Engine) -> None:
        """Register an engine; namespaces are read at first use."""
        self._engines.append(engine)

    def __iter__(self) -> Any:
        return iter(self._engines)

    def get(self, namespace: str | None, modules: Iterable[object] = ()) -> Engine:
        """The engine of a namespace; unless that is given the only one there is, or the only one with these modules.

        An executor may have been built again: of several for one namespace the first that has all their modules counts.

        Raises:
            InvalidInput: There is none, or there are several and no saying which.
            DefinitionError: The modules of one namespace are spread over several executors.
        """
        found = [engine for engine in self._engines if namespace in {None, engine.namespace}]
        wanted = {module for module in modules if isinstance(module, str)}
        if namespace is None and wanted:
            found = [engine for engine in found if wanted.intersection(engine.instances.ids())] or found
        names = {engine.namespace for engine in found}
        if len(names) != 1:
            known = ", ".join(sorted({engine.namespace for engine in self._engines}))
            raise InvalidInput("namespace", f"the executors of this application have {known}; give one of them")
        if len(found) == 1:
            return found[0]
        every = {module for engine in found for module in engine.instances.ids()}
        for engine in found:
            if every.issubset(engine.instances.ids()):
                return engine
        raise DefinitionError(
            f"the modules of namespace {found[0].namespace} ({', '.join(sorted(every))}) are spread over {len(found)} "
            "executors of one application: build one with all of them",
            "the Celery application",
        )


def register(app: Any, engines: Engines) -> None:
    """Define smqueue's tasks on an application."""
    ours: dict[str, Any] = {"shared": False, "serializer": "json", "Strategy": "smqueue.worker.incoming:json_only"}
    hint: dict[str, Any] = {**ours, "ignore_result": True, "acks_late": False}

    @app.task(name="smqueue.transition", time_limit=HARD_LIMIT_S, **hint)
    def transition(namespace: str, shard: int) -> None:
        with _store_may_be_away():
            engines.get(namespace).drain(shard)

    @app.task(name="smqueue.trigger", Request=TriggerRequest, **hint)
    def trigger(operation_id: str, _machine_id: str, entry: str, kind: str, namespace: str) -> None:
        with _store_may_be_away():  # the first look at a namespace asks the server, too
            engine = engines.get(namespace)
            run_trigger(engine, engine.executor.deployment.keys(operation_id), entry, kind)

    # They carry a result, which may be a secret; a worker that dies hands them on.
    late: dict[str, Any] = {**hint, "acks_late": True, "Request": QuietRequest}
    called: dict[str, Any] = {**ours, "ignore_result": False, "Request": QuietRequest}

    @app.task(name="smqueue.ended", **late)
    def ended(result: Any = None, *, entry: str, namespace: str) -> None:
        _record(engines.get(namespace), entry, {"value": result})

    @app.task(name="smqueue.failed", **late)
    def failed(_request: Any, exc: Any = None, _traceback: Any = None, *, entry: str, namespace: str) -> None:
        error = error_text(exc) if isinstance(exc, BaseException) else "task failed"
        _record(engines.get(namespace), entry, {"failed": error})

    @app.task(name="smqueue.add", **called)
    def add(machines: Sequence[Mapping[str, Any]], exist_ok: bool = False, namespace: str | None = None) -> list[str]:
        with _in_words(), _senders_span():
            engine = engines.get(namespace, modules_of(machines))
            given = machines_from_json(engine.instances, machines)
            return [str(machine) for machine in engine.executor.add_state_machines(given, exist_ok)]

    @app.task(name="smqueue.signal", **called)
    def signal(
        operation_id: str,
        signal: str,
        payload: Any = None,
        id: str | None = None,
        module: str | None = None,
        machine: str | None = None,
        namespace: str | None = None,
    ) -> str:
        with _in_words(), _senders_span():
            executor = engines.get(namespace, [module]).executor
            done = executor.signal(operation_id, signal, payload, module=module, machine=machine, id=id)
            return done.value


@contextmanager
def _in_words() -> Generator[None]:
    """The last of an error's args says it in words: of an error a producer without smqueue gets type and args alone."""
    try:
        yield
    except SmqueueError as error:
        absent = [None] * (len(error.fields) - len(error.args))
        error.args = (*error.args, *absent, str(error))
        raise


def _senders_span() -> AbstractContextManager[object]:
    """In the block, the span of whoever has sent the message that this task runs for is the current one."""
    request: Any = getattr(current_task, "request", None)
    return tracing.received(lambda header: getattr(request, header, None))


def modules_of(machines: Any) -> list[object]:
    """The modules that machines in plain JSON name; garbage names none, and is refused later."""
    given = cast("list[Any]", machines) if isinstance(machines, list) else []
    return [cast("dict[str, Any]", one).get("module") for one in given if isinstance(one, dict)]


@contextmanager
def _store_may_be_away() -> Generator[None]:
    """What a hint that finds no Redis was for falls due again by itself; that Redis is away the pump says, once."""
    try:
        yield
    except (StoreUnavailable, StoreRefused) as error:
        log.debug("%s", error)


def _record(engine: Engine, entry: str, end: dict[str, Any]) -> None:
    """The end of a user's task is the outcome of its trigger. It comes but once: Redis is waited for."""
    for attempt in range(STORE_TRIES):
        try:
            return _record_now(engine, entry, end)
        except StoreUnavailable as error:
            log.log(logging.DEBUG if attempt else logging.WARNING, "the end of a task is not recorded yet: %s", error)
            time.sleep(min(0.2 * 2**attempt, 5.0))
    return _record_now(engine, entry, end)


def _record_now(engine: Engine, entry: str, end: dict[str, Any]) -> None:
    for keys in engine.executor.deployment.all_keys():
        try:
            armed = engine.driver.run(runs.peek(keys, engine.instances, entry))
            if armed is None:
                continue
            handler = engine.instances.handlers(armed.placed)[armed.trigger]
            value = encoded_end(engine, armed, handler, end)
            with _senders_span():
                trace = tracing.current()
            said, hint = engine.driver.run(runs.outcome(keys, entry, armed.kind, value, trace=trace))
        except (UnknownModule, NewerRecord, SecretKeyMissing, KeyError):  # a worker that has the module will read it
            said, hint = "UNREAD", False
        if said in {"LOST", "LATE", "UNREAD"}:
            engine.driver.run(runs.keep_end(keys, entry, end_to(engine, entry, end)))
        if hint:
            engine.outbound.hint(keys.namespace, keys.shard)

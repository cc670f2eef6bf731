"""Work outside of a commit: requests that one left, calls of clients, cancels begun, looks at other operations."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from typing import Any, cast

from smqueue import tracing
from smqueue.cancelling import Cancelling
from smqueue.drivers.driver import Driver
from smqueue.errors import (
    BrokerUnavailable,
    InboxFull,
    InvalidInput,
    OperationFinished,
    RequestFailed,
    SmqueueError,
    StateAlreadyExists,
    StoreRefused,
    StoreUnavailable,
    error_text,
)
from smqueue.instances import Instances, Told
from smqueue.keys import Keys, shard_of
from smqueue.logs import about
from smqueue.outbound import Outbound
from smqueue.protocols import control, others, requests, retention, runs
from smqueue.protocols.add import add
from smqueue.protocols.bounds import PARK_MS
from smqueue.protocols.claim import Armed
from smqueue.protocols.requests import Request
from smqueue.protocols.signal import signal
from smqueue.states import StateMachine
from smqueue.trigger_types import Reached

log = logging.getLogger("smqueue.relay")

PAGES = 20
"""How many pages of requests are looked at in one go: others' turn comes."""
SENDS = 8
"""How often a task is tried to be sent that cannot be, with the broker there: some 3 min."""


class Relay:
    """Does what is not part of any commit of a shard."""

    def __init__(self, driver: Driver, keys: Keys, instances: Instances, outbound: Outbound) -> None:
        self.driver, self.keys, self.instances, self.outbound = driver, keys, instances, outbound
        self._broker_away = False
        """In this go: each further task would wait for the broker in vain."""
        self._failing = False

    def own(self, items: Iterable[bytes]) -> None:
        """Do what a commit of this process has just left; what fails is done by whoever finds it due."""
        self._broker_away = False
        for raw in items:
            request = requests.parse(raw)
            try:
                if not self._waits(request):
                    self._do(request)
                    self._goes_on(request)
            except Exception as error:  # the broker or the server may be away: the item stays
                self._stays(request, error)

    def other(self, entry: str) -> None:
        """An entry of the schedule that is no machine's."""
        kind, _, op = entry[1:].partition(":")
        if kind == "cancel":
            self._cancel(op)
        elif kind == "retention":
            self.driver.run(retention.sweep(self.keys, self.instances))
        elif kind == "requests":
            self._requests()
        elif kind == "resume":
            self.driver.run(control.resume(self.keys, op, lift=False))

    def _cancel(self, op: str) -> None:
        """Go on with a cancelling whose caller has died, or has left it to workers."""
        run = Cancelling(self.driver, self.instances, self.outbound, self._left, worker=True)
        left = run.run(self.keys, op).left
        if left:
            text = "operation %s is being cancelled: %d machines are left for later"
            log.info(text, op, left, extra=about(op))

    def _left(self, keys: Keys, items: Iterable[bytes]) -> None:
        """Do what a commit of this process has just left in some shard."""
        Relay(self.driver, keys, self.instances, self.outbound).own(items)

    def _requests(self) -> None:
        """Do what is due, page by page; what stays is passed over."""
        self._broker_away = False
        offset = 0
        for _ in range(PAGES):
            now_ms, items = self.driver.run(requests.pending(self.keys, offset))
            for raw in items:
                offset += not self._try(raw, now_ms)
            if len(items) < requests.BATCH:
                return

    def _try(self, raw: bytes, now_ms: int) -> bool:
        """Do one request if it is due; returns whether it has left its place in the list."""
        try:
            request = requests.parse(raw)
            if request.data["due"] > now_ms:
                return False
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            log.error("a request of %d bytes that cannot be read is dropped: %s", len(raw), error)
            self.driver.run(requests.remove(self.keys, raw))
            return True
        if self._waits(request):
            return False
        try:
            self._do(request)
            self._goes_on(request)
        except StoreUnavailable:
            raise
        except Exception as error:  # also what the server refuses: it may be this request alone
            away = isinstance(error, BrokerUnavailable | OSError)  # then it is tried for ever: it was committed
            refused = isinstance(error, StoreRefused)  # not by the broker
            if (
                request.data.get("kind") == "task"
                and not (away or refused)
                and int(request.data.get("tries", 0)) + 1 >= SENDS
            ):
                name, why = request.data["name"], error_text(error)
                log.error("task %s, id %s, cannot be sent and is set aside: %s", name, request.data["id"], why)
                self.driver.run(requests.set_aside(self.keys, request, error))
            else:
                self._stays(request, error)
                self.driver.run(requests.postpone(self.keys, request))
        return True

    def _waits(self, request: Request) -> bool:
        return self._broker_away and request.data.get("kind") == "task"

    def _stays(self, request: Request, error: Exception) -> None:
        """Say so, but of many that wait for one broker only once."""
        away = isinstance(error, BrokerUnavailable | OSError)
        known = (away and self._failing) or isinstance(error, StoreUnavailable)  # of that the worker's pump tells
        level = logging.DEBUG if known else logging.WARNING
        log.log(level, "a request of kind %s stays for later: %s", request.data.get("kind"), error_text(error))
        self._broker_away = self._broker_away or away
        self._failing = self._failing or away

    def _goes_on(self, request: Request) -> None:
        if self._failing and request.data.get("kind") == "task":
            self._failing = False
            log.warning("the broker takes tasks again")

    # --- requests ------------------------------------------------------------------------------------------------

    def _do(self, request: Request) -> None:
        data = request.data
        match data["kind"]:
            case "task":
                with tracing.under(_trace(request)):
                    self.outbound.send_task(data["name"], data["args"], data["kwargs"], data["id"], data["options"])
                self.driver.run(requests.remove(self.keys, request.raw))
            case "signal":
                told = Told(data["operation_id"], data["module"], data["signal"], data["payload"])
                self._signal(request, told)
            case "add":
                self._start(request)
            case "client-add" | "client-signal":
                self._answer(request)
            case kind:
                raise InvalidInput("kind", f"{kind} is unknown here: left to newer workers")

    def _signal(self, request: Request, told: Told) -> None:
        """A signal sent by a transition: applied and removed in one script, so never twice."""
        here = self.keys
        there = Keys(here.namespace, shard_of(told.operation_id, self.instances.shards))
        id, limit, trace = request.data["id"], self.instances.inbox_limit, _trace(request)
        try:
            if there.shard == here.shard:
                done = self.driver.run(signal(here, told, id, request=request.raw, limit=limit, trace=trace))
            else:
                done = self.driver.run(signal(there, told, id, signal_id=id, limit=limit, trace=trace))
                self.driver.run(requests.remove(here, request.raw))
        except (OperationFinished, InboxFull) as error:
            extra = about(told.operation_id, module=told.module)
            log.warning("a signal sent by a transition is dropped: %s", error, extra=extra)
            self.driver.run(requests.remove(here, request.raw))
            return
        if done is not None and done.hint:
            self.outbound.hint(there.namespace, there.shard)

    def _start(self, request: Request) -> None:
        """Machines that a transition has started in another shard."""
        told = [self.instances.from_json(one) for one in request.data["machines"]]
        machines = [machine_from_json(self.instances, one) for one in told]
        shards = self.instances.shards
        there = Keys(self.keys.namespace, shard_of(machines[0].operation_id, shards))
        self._add(there, machines, request, exist_ok=True)  # committed: no limit refuses them any more
        self.driver.run(requests.remove(self.keys, request.raw))

    def _answer(self, request: Request) -> None:
        data = request.data
        try:
            body: dict[str, Any] = {"value": self._client(request)}
        except (StoreUnavailable, StoreRefused):
            raise
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            problem = f"not of the form that Client sends: {type(error).__name__}: {error}"
            body = {"error": "InvalidInput", "args": ["request", problem], "message": f"request: {problem}"}
        except SmqueueError as error:
            body = _told(error)
        except Exception as error:  # users' code: asked again it would fail again, and its client would wait in vain
            log.warning("what a client has asked for fails: %s", error_text(error), exc_info=error)
            body = _told(RequestFailed(error_text(error)))
        self.driver.run(requests.answer(self.keys, request.raw, data["id"], body))

    def _plain(self, data: dict[str, Any]) -> dict[str, Any]:
        """What a client has asked for, as it was before it was encrypted or left as text on its way here."""
        if "text" in data:
            return _read(data)
        if "sealed" not in data:
            return data
        secret = "machines" if data["kind"] == "client-add" else "payload"
        return {**data, secret: self.instances.secrets.opened_whole(data["sealed"], data["id"])}

    def _client(self, request: Request) -> Any:
        data = self._plain(request.data)
        if data["kind"] == "client-add":
            machines = machines_from_json(self.instances, data["machines"])
            self._are_here(machine.operation_id for machine in machines)
            most = self.instances.max_active
            return self._add(self.keys, machines, request, bool(data.get("exist_ok")), most)
        told = self.instances.signal(data["operation_id"], data["signal"], data["payload"], data.get("module"))
        self._are_here([told.operation_id])
        delivered = self.driver.run(
            signal(
                self.keys,
                told,
                data["id"],
                machine=data.get("machine") or "",
                signal_id=data.get("signal_id") or "",
                asked=request.raw,
                limit=self.instances.inbox_limit,
                trace=_trace(request),
            )
        )
        if delivered is None:
            return None  # another has answered meanwhile
        if delivered.hint:
            self.outbound.hint(self.keys.namespace, self.keys.shard)
        return delivered.delivery.value

    def _are_here(self, operations: Iterable[str]) -> None:
        """Raises InvalidInput for an operation of another shard: who asks by a function has to name the shard's key."""
        for op in operations:
            if (shard := shard_of(op, self.instances.shards)) != self.keys.shard:
                there = Keys(self.keys.namespace, shard).requests
                raise InvalidInput("key", f"operation {op} is in another shard: call with {there}")

    def _add(
        self, keys: Keys, machines: list[StateMachine], request: Request, exist_ok: bool, max_active: int | None = None
    ) -> list[str]:
        commit_id = request.data["id"][:16]
        steps = add(keys, self.instances, machines, commit_id, exist_ok, max_active, _trace(request))
        done = self.driver.run(steps)
        if done.hint:
            self.outbound.hint(keys.namespace, keys.shard)
        if done.watched:
            for placed, active in done.machines:
                self.outbound.armed(placed, active, commit_id)
        return done.value

    # --- other operations ----------------------------------------------------------------------------------------

    def look(self, armed: Armed) -> None:
        """Evaluate ``reached`` or ``finished``: register first, then look."""
        wait = armed.machine.armed[armed.trigger]
        assert isinstance(wait, list)
        op = str(wait[1])
        there = Keys(self.keys.namespace, shard_of(op, self.instances.shards))
        handler = self.instances.handlers(armed.placed)[armed.trigger]
        value: str | None = None
        if there.shard == self.keys.shard:
            self.driver.run(others.watch(there, op, armed.entry))
        if isinstance(handler.trigger, Reached):
            state = self.driver.run(others.has_reached(there, self.instances, op, handler.trigger.states))
            if state is not None:
                data = handler.outcome.dump(state)
                value = self.instances.value(handler.outcome, data, armed.placed.op, armed.placed.module)
        elif self.driver.run(others.has_finished(there, op)):
            value = "null"
        if value is None:
            delay = PARK_MS if there.shard == self.keys.shard else others.LOOK_AGAIN_MS
            self.driver.run(runs.look_again(self.keys, armed, delay))
            return
        _, hint = self.driver.run(runs.outcome(self.keys, armed.entry, armed.kind, value))
        if hint:
            self.outbound.hint(self.keys.namespace, self.keys.shard)


def machines_from_json(instances: Instances, machines: Any) -> list[StateMachine]:
    """Machines as given in plain JSON; raises as ``machine_from_json``."""
    if not isinstance(machines, list | tuple):
        raise InvalidInput("machines", f"expected a list, got {type(machines).__name__}")
    return [machine_from_json(instances, one) for one in cast("list[Any]", machines)]


def machine_from_json(instances: Instances, data: Mapping[str, Any]) -> StateMachine:
    """A machine as given in plain JSON: ``{operation_id, module, type, state}``.

    Raises:
        InvalidInput, InvalidState, UnknownModule: What does not fit; the error names the field.
    """
    from smqueue.errors import InvalidState, NotRegistered
    from smqueue.schemas import ValidationProblem

    if not isinstance(data, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidInput("machines", f"expected an object, got {type(data).__name__}")
    unknown = set(data) - {"operation_id", "module", "type", "state"}
    if unknown:
        raise InvalidInput(min(unknown), "unknown field: give operation_id, module, type and state")
    for name in ("operation_id", "type", "state"):
        if name not in data:
            raise InvalidInput(name, "missing")
    module_id, type_name = data.get("module"), data["type"]
    candidates = [module_id] if module_id is not None else list(instances.ids())
    owners = [id for id in candidates if str(type_name) in instances.get(id).module.types]
    if not owners:
        raise NotRegistered(f"{module_id}.{type_name}" if module_id else str(type_name))
    if len(owners) > 1:
        from smqueue.errors import AmbiguousModule

        raise AmbiguousModule(str(type_name), ", ".join(owners))
    known = instances.get(owners[0]).module.types[str(type_name)]
    try:
        state = known.codec.load(data["state"])
    except ValidationProblem as problem:
        raise InvalidState(f"{known.name}.{problem.field}", problem.problem) from None
    return StateMachine(data["operation_id"], state, owners[0])


def _trace(request: Request) -> str:
    """The header of the span that it was left in, if there was one: a client's may be anything."""
    return tracing.checked(request.data.get("trace"))


def _read(data: dict[str, Any]) -> dict[str, Any]:
    """What smqueue/functions.lua has left: it checks that its JSON is text, and leaves to us what it says."""
    adding = data["kind"] == "client-add"
    try:
        value = json.loads(data["text"], parse_constant=_no_number)
    except ValueError as error:
        raise InvalidInput("state" if adding else "payload", f"not JSON: {error}") from None
    if not adding:
        return {**data, "payload": value}
    machine = {name: data[name] for name in ("operation_id", "module", "type") if name in data}
    return {**data, "machines": [{**machine, "state": value}]}


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _told(error: SmqueueError) -> dict[str, Any]:
    """An error as an answer."""
    return {"error": type(error).__name__, "args": [_plain(arg) for arg in error.args], "message": str(error)}


def _plain(arg: Any) -> Any:
    try:
        json.dumps(arg)
    except (TypeError, ValueError):
        return str(arg)
    return arg


__all__ = ["Relay", "StateAlreadyExists", "machine_from_json"]

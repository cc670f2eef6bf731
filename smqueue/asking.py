"""What a client without machine code does, as turns: asking workers, waiting and following, in JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from smqueue import awaiting, errors
from smqueue.deployment import Deployment
from smqueue.errors import AwaitTimeout, InvalidInput, RequestFailed, SmqueueError, StoreUnavailable, TooLarge
from smqueue.following import FollowingAll, FollowingOne
from smqueue.keys import Keys, encode, new_id
from smqueue.protocols import requests
from smqueue.protocols.signal import Delivery
from smqueue.queries import ActiveState, InactiveState, MachineId, active_state, inactive_state
from smqueue.records import Active, Field, label_of
from smqueue.roundtrip import Steps, answers, over, single
from smqueue.schemas import canonical
from smqueue.schemas.sealed import shown
from smqueue.secrets import SecretCodec, Secrets
from smqueue.spans import add_span, signal_span
from smqueue.standing import parse_inactive
from smqueue.states import check_name, check_operation_id
from smqueue.tracing import header_of, spanning
from smqueue.turns import Look, Take, Timeout, Turns, await_look, deadline, seconds_of

ANSWER_S = 30.0
REQUEST_LIMIT = 16 * 1024 * 1024
Json = Any
Machine = Mapping[str, Json]


class Asking:
    """The calls of ``Client`` and of ``AsyncClient``; theirs is only who takes the turns.

    Args:
        deployment: Whose workers are asked.
        secrets: As for ``Client``.
    """

    def __init__(self, deployment: Deployment, secrets: SecretCodec | None) -> None:
        self._deployment, self._secrets = deployment, Secrets(secrets)

    def add(self, machines: Iterable[Machine], exist_ok: bool, timeout: Timeout) -> Turns[list[MachineId]]:
        """See ``Client.add``."""
        batch = list(machines)
        for machine in batch:
            if not isinstance(machine, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise InvalidInput("machines", f"expected an object, got {type(machine).__name__}")
        ids = [check_operation_id(machine.get("operation_id")) for machine in batch]
        if not batch:
            return []
        asked = {"kind": "client-add", "machines": [dict(machine) for machine in batch], "exist_ok": exist_ok}
        keys = self._deployment.one_shard(ids)
        span = add_span(ids)
        answer = yield from spanning(span, self._ask(keys, asked, timeout, header_of(span)))
        return [MachineId(machine) for machine in answer]

    def signal(
        self, operation_id: str, signal: str, payload: Json, module: str | None, machine: str | None, id: str | None,
        timeout: Timeout,
    ) -> Turns[Delivery]:  # fmt: skip
        """See ``Client.signal``."""
        check_name("signal", signal)
        asked = {"kind": "client-signal", "operation_id": check_operation_id(operation_id), "signal": signal}
        asked |= {"payload": payload, "module": module, "machine": machine, "signal_id": id}
        span = signal_span(operation_id, signal, module)
        asking = self._ask(self._deployment.keys(operation_id), asked, timeout, header_of(span))
        return Delivery((yield from spanning(span, asking, lambda answer: {"delivery": str(answer)})))

    def operation(self, operation_id: str, timeout: Timeout) -> Turns[None]:
        """See ``Client.await_operation``."""
        return awaiting.operation_end(self._deployment, operation_id, timeout)

    def active(self, machine: Machine, timeout: Timeout) -> Turns[ActiveState]:
        """See ``Client.await_active_state``."""
        keys, op, field = self._place(machine)

        def look() -> Steps[ActiveState | None]:
            now, past = yield from over(
                lambda: answers(("HGET", keys.active(op), field), ("HGET", keys.inactive(op), field))
            )
            if now is not None:
                return active_state(Active.parse(now))
            if past is None:
                return None
            seen = inactive_state(parse_inactive(past))
            return ActiveState(seen.created_at, seen.machine_id, seen.step)

        what = f"{label_of(field)} in operation {op}"
        return (yield from await_look(keys.shard, keys.bell(op), look, seconds_of(timeout), what))

    def inactive(self, machine: Machine, timeout: Timeout) -> Turns[InactiveState]:
        """See ``Client.await_inactive_state``."""
        keys, op, field = self._place(machine)

        def look() -> Steps[InactiveState | None]:
            raw = yield from over(lambda: single("HGET", keys.inactive(op), field))
            return None if raw is None else inactive_state(parse_inactive(raw))

        what = f"{label_of(field)} in operation {op}"
        return (yield from await_look(keys.shard, keys.bell(op), look, seconds_of(timeout), what))

    def one(self, operation_id: str, module: str | None, after: int | None, timeout: Timeout) -> FollowingOne:
        """See ``Client.subscribe``."""
        return FollowingOne(self._deployment, _raw, operation_id, module, after, timeout)

    def all(self, module: str | None, timeout: Timeout) -> FollowingAll:
        """See ``Client.subscribe_all``."""
        return FollowingAll(self._deployment, _raw, module, timeout)

    # --- inside --------------------------------------------------------------------------------------------------

    def _ask(self, keys: Keys, data: Mapping[str, Json], timeout: Timeout, trace: str) -> Turns[Json]:
        """Leave a request, with the header of its span, and wait for the answer."""
        seconds, request_id = seconds_of(timeout), new_id()
        try:
            size = len(json.dumps(data, allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidInput("payload" if "payload" in data else "machines", f"not JSON: {error}") from None
        if size > REQUEST_LIMIT:  # of a single state or payload the worker knows the limit
            raise TooLarge("request", size, REQUEST_LIMIT)
        body = dict(data)
        if self._secrets.codec is not None:
            secret = "machines" if "machines" in body else "payload"
            body["sealed"] = self._secrets.whole(body.pop(secret), request_id)
        if trace:
            body["trace"] = trace
        until_s, reply = (yield from deadline(seconds)), keys.reply(request_id)
        try:
            yield Look(keys.shard, requests.ask(keys, {"id": request_id, **body}), until_s)
            answer = yield Take(keys.shard, reply, until_s)
        except TimeoutError:
            answer = None
        if answer is None:
            raise AwaitTimeout("the answer of a worker", seconds)
        with suppress(StoreUnavailable, TimeoutError):  # then it expires
            yield Look(keys.shard, single("DEL", reply), until_s)
        return _opened(json.loads(answer))

    def _place(self, machine: Machine) -> tuple[Keys, str, str]:
        if not isinstance(machine, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidInput("machine", f"expected an object, got {type(machine).__name__}")
        for name in ("operation_id", "module", "type", "state"):
            if name not in machine:
                raise InvalidInput(name, "missing")
        op = check_operation_id(machine["operation_id"])
        module, type_name = check_name("module", machine["module"]), check_name("type", machine["type"])
        try:
            field = f"{encode(module)} {encode(type_name)} {canonical(machine['state'])}"
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidInput("state", f"not JSON: {error}") from None
        return self._deployment.keys(op), op, field


def _opened(answer: Mapping[str, Any]) -> Any:
    if "error" not in answer:
        return answer["value"]
    kind = getattr(errors, answer["error"], None)
    if isinstance(kind, type) and issubclass(kind, SmqueueError):
        raise kind(*answer["args"])
    raise RequestFailed(f"{answer['error']}: {answer.get('message') or answer['args']}")


def _raw(_op: str, field: str, _version: int) -> dict[str, Any] | None:
    """The JSON form of a stored state; ``None`` of garbage."""
    try:
        parsed = Field.parse(field)
        return {"type": parsed.type, "state": shown(json.loads(parsed.state))}
    except (ValueError, RecursionError):
        return None

"""The producer's half: adding, signalling, waiting and following, with no machine code and no Celery application.

States and payloads are JSON-ready. A worker validates, commits and answers, so that errors come back typed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any

from smqueue import errors
from smqueue.deployment import DEFAULT_NAMESPACE, Deployment, Settings
from smqueue.drivers.doorbell import wait_for
from smqueue.errors import AwaitTimeout, InvalidInput, SmqueueError, TooLarge
from smqueue.keys import Keys, encode, new_id
from smqueue.notifier import Feed, Notifier, Subscription
from smqueue.protocols import others, requests
from smqueue.protocols.signal import Delivery
from smqueue.queries import ActiveState, InactiveState, MachineId, active_state, inactive_state
from smqueue.records import Active, Field, label_of
from smqueue.schemas import canonical
from smqueue.schemas.sealed import shown
from smqueue.secrets import SecretCodec, Secrets
from smqueue.standing import parse_inactive
from smqueue.states import check_name, check_operation_id

Timeout = timedelta | float | None
ANSWER_S = 30.0
REQUEST_LIMIT = 16 * 1024 * 1024
Json = Any


class Client:
    """Talks to the workers of a namespace through Redis alone.

    Args:
        url: Of the Redis or Valkey that holds the state.
        namespace: As the workers' executor has it.
        shards: As the workers' executor has it.
        secrets: As the workers' executor has it: states and payloads are encrypted on their way to a worker, wholly,
            since a client has no schema that says what of them is secret. Without it they wait for a worker in plain
            text. A state with secrets cannot be waited for by a client, which cannot know its stored form.
    """

    def __init__(
        self, url: str, namespace: str = DEFAULT_NAMESPACE, *, shards: int = 1, secrets: SecretCodec | None = None
    ) -> None:
        self._deployment = Deployment(lambda: Settings(url, namespace, shards))
        self._secrets = Secrets(secrets)

    def add(
        self, machines: Iterable[Mapping[str, Json]], exist_ok: bool = False, *, timeout: Timeout = ANSWER_S
    ) -> list[MachineId]:
        """Start machines, all or none.

        Args:
            machines: Each ``{"operation_id": …, "module": …, "type": …, "state": {…}}``; ``module`` may be left out
                when only one has such a type.
            exist_ok: Leave out those that exist already, instead of an error.
            timeout: How long to wait for a worker's answer.

        Raises:
            AwaitTimeout: No worker has answered; whether it will is not known, and adding again says so.
            OutboxFull: 10,000 requests wait for a worker already; nothing was sent.
            SmqueueError: As ``Executor.add_state_machines``; nothing was written.
        """
        batch = list(machines)
        for machine in batch:
            if not isinstance(machine, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise InvalidInput("machines", f"expected an object, got {type(machine).__name__}")
        ids = [check_operation_id(machine.get("operation_id")) for machine in batch]
        if not batch:
            return []
        asked = {"kind": "client-add", "machines": [dict(machine) for machine in batch], "exist_ok": exist_ok}
        answer = self._ask(self._deployment.one_shard(ids), asked, timeout)
        return [MachineId(machine) for machine in answer]

    def signal(
        self, operation_id: str, signal: str, payload: Json = None, *, module: str | None = None,
        machine: str | None = None, id: str | None = None, timeout: Timeout = ANSWER_S,
    ) -> Delivery:  # fmt: skip
        """Send a signal; see ``Executor.signal``.

        Raises:
            AwaitTimeout: No worker has answered; whether it will is not known. With ``id``, sending again is safe.
            OutboxFull: As ``add``.
            SmqueueError: As ``Executor.signal``; nothing was sent.
        """
        check_name("signal", signal)
        asked = {"kind": "client-signal", "operation_id": check_operation_id(operation_id), "signal": signal}
        asked |= {"payload": payload, "module": module, "machine": machine, "signal_id": id}
        return Delivery(self._ask(self._deployment.keys(operation_id), asked, timeout))

    # --- waiting -------------------------------------------------------------------------------------------------

    def await_operation(self, operation_id: str, timeout: Timeout = None) -> None:
        """Wait until an operation has had states and none is active; raises AwaitTimeout."""
        keys = self._deployment.keys(check_operation_id(operation_id))

        def look() -> bool | None:
            return self._deployment.driver.run(others.has_finished(keys, operation_id)) or None

        self._until(keys, operation_id, look, timeout, f"operation {operation_id} to finish")

    def await_active_state(self, machine: Mapping[str, Json], timeout: Timeout = None) -> ActiveState:
        """Wait until a machine is, or has ever been, in this state, given in full; raises AwaitTimeout."""
        keys, op, field = self._place(machine)

        def look() -> ActiveState | None:
            if (raw := self._deployment.driver.command("HGET", keys.active(op), field)) is not None:
                return active_state(Active.parse(raw))
            if (raw := self._deployment.driver.command("HGET", keys.inactive(op), field)) is not None:
                past = inactive_state(parse_inactive(raw))
                return ActiveState(past.created_at, past.machine_id, past.step)
            return None

        return self._until(keys, op, look, timeout, f"{label_of(field)} in operation {op}")

    def await_inactive_state(self, machine: Mapping[str, Json], timeout: Timeout = None) -> InactiveState:
        """Wait until a machine has left, or finished in, this state, given in full; raises AwaitTimeout."""
        keys, op, field = self._place(machine)

        def look() -> InactiveState | None:
            raw = self._deployment.driver.command("HGET", keys.inactive(op), field)
            return None if raw is None else inactive_state(parse_inactive(raw))

        return self._until(keys, op, look, timeout, f"{label_of(field)} in operation {op}")

    # --- following -----------------------------------------------------------------------------------------------

    def subscribe(
        self, operation_id: str, module: str | None = None, after: int | None = None, *, timeout: Timeout = None
    ) -> Subscription:
        """Follow one operation; see ``Notifier.subscribe``. Each update's state is ``{"type": …, "state": {…}}``."""
        check_operation_id(operation_id)
        return Notifier(self._deployment, _raw).subscribe(operation_id, module, after, timeout=timeout)

    def subscribe_all(self, module: str | None = None, *, timeout: Timeout = None) -> Feed:
        """Follow all operations; see ``Notifier.subscribe_all``."""
        return Notifier(self._deployment, _raw).subscribe_all(module, timeout=timeout)

    # --- inside --------------------------------------------------------------------------------------------------

    def _ask(self, keys: Keys, data: Mapping[str, Json], timeout: Timeout) -> Json:
        """Leave a request, and wait for the answer."""
        request_id = new_id()
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
        self._deployment.driver.run(requests.ask(keys, {"id": request_id, **body}))
        seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
        until = None if seconds is None else time.monotonic() + seconds
        while True:
            left = 2.0 if until is None else until - time.monotonic()
            if left <= 0:
                raise AwaitTimeout("the answer of a worker", seconds)
            reply = self._deployment.driver.command("BLPOP", keys.reply(request_id), max(0.01, min(left, 2.0)))
            if reply is not None:
                return _opened(json.loads(reply[1]))

    def _until(self, keys: Keys, op: str, look: Callable[[], Any], timeout: Timeout, what: str) -> Any:
        seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
        return wait_for(self._deployment.driver, keys.bell(op), look, seconds, what)

    def _place(self, machine: Mapping[str, Json]) -> tuple[Keys, str, str]:
        for name in ("operation_id", "module", "type", "state"):
            if name not in machine:
                raise InvalidInput(name, "missing")
        op = check_operation_id(machine["operation_id"])
        field = f"{encode(machine['module'])} {encode(machine['type'])} {canonical(machine['state'])}"
        return self._deployment.keys(op), op, field


def _opened(answer: Mapping[str, Any]) -> Any:
    if "error" not in answer:
        return answer["value"]
    kind = getattr(errors, answer["error"], SmqueueError)
    raise kind(*answer["args"])


def _raw(_op: str, field: str, _version: int) -> dict[str, Any]:
    parsed = Field.parse(field)
    return {"type": parsed.type, "state": shown(json.loads(parsed.state))}

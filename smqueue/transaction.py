"""The transaction that handlers write into: reads are consistent at commit, writes are applied with it or not at all.

It does no I/O. A read that is not known yet raises ``NeedRead``; the protocol fetches it under WATCH and runs the
handler again. Writes are buffered as commands.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar, overload

from msgspec.structs import asdict

from smqueue.buffer import Buffer, Value
from smqueue.data_keys import DataKeys, NamedKeys, checked_key, checked_value
from smqueue.errors import (
    AmbiguousModule,
    CrossShard,
    InvalidInput,
    InvalidKey,
    OutboxFull,
    SmqueueError,
    StateAlreadyExists,
    StateAlreadyTerminal,
    TooLarge,
)
from smqueue.instances import Instances
from smqueue.keys import Keys, new_id, shard_of
from smqueue.records import Placed
from smqueue.roundtrip import Command, time_us
from smqueue.standing import TIME, arrivals, standing

if TYPE_CHECKING:
    from smqueue.states import StateMachine
    from smqueue.triggers import Signal

P = TypeVar("P")

REQUESTS_LIMIT = 10_000
"""Tasks, signals and batches for other shards that one commit may leave to be done."""


def placed(instances: Instances, machines: Iterable[StateMachine]) -> tuple[list[Placed], SmqueueError | None]:
    """The records of machines, up to the first that cannot be one, and what is wrong with that."""
    found: list[Placed] = []
    try:
        for machine in machines:
            found.append(instances.place(machine))  # noqa: PERF401 - what came before an error counts
    except SmqueueError as error:
        return found, error
    return found, None


class Transaction(DataKeys):
    """What a handler, or a function given to ``autocommit``, reads and writes Redis with.

    Keys are relative to the module instance; ``shared`` reaches keys outside, by their full name.
    """

    def __init__(
        self,
        keys: Keys,
        instances: Instances,
        module: str | None,
        known: Mapping[Command, Any],
        begun: Collection[str] = (),
    ) -> None:
        self._keys, self._instances, self._module = keys, instances, module
        self._begun = begun  # operations whose history needs no watch: it has begun, and never un-begins
        self.buffer = Buffer(known)
        self.starting: list[Placed] = []
        self.requests: list[dict[str, Any]] = []
        super().__init__(self.buffer)

    @property
    def shared(self) -> DataKeys:
        """Keys outside of the module instance, by their full name."""
        return NamedKeys(self.buffer, self._outside)

    # A method, and no attribute that holds one of its own: then each transaction would be garbage for the collector.
    def _name(self, key: str) -> str:
        if self._module is None:
            raise InvalidKey("key", "this transaction has no module: give autocommit(module=…), or use tx.shared")
        return self._keys.data(self._module, checked_key(key))

    def _outside(self, key: str) -> str:
        if key.startswith("{" + self._keys.tag[1:].rpartition(".")[0] + "."):
            raise InvalidKey("key", "it belongs to smqueue's own records")
        return checked_key(key)

    def now(self) -> datetime:
        """Redis's clock, in UTC, as of this attempt; costs a round trip when nothing was read before."""
        self.buffer.ask(TIME, watch=())
        now_us = time_us(self.buffer.known[TIME])
        return datetime.fromtimestamp(now_us // 1_000_000, UTC).replace(microsecond=now_us % 1_000_000)

    def publish(self, channel: str, message: Value) -> None:
        """Publish on a plain pub/sub channel, at commit."""
        self.buffer.write("PUBLISH", checked_key(channel), checked_value(channel, message))

    def add_state_machines(self, machines: Iterable[StateMachine]) -> None:
        """Start machines with this commit, all or none.

        With several shards, machines of another one travel by outbox: they are started once, right after the commit,
        and one that exists there already is left alone.

        Raises:
            UnknownModule: For the first machine whose module is not registered.
            StateAlreadyExists: For the first whose state is or was in its operation, or stands twice in here.
            StateAlreadyTerminal: For the first whose state is terminal.
            CrossShard: They live in several shards.
        """
        batch, shards = list(machines), self._instances.shards
        elsewhere = {shard_of(one.operation_id, shards) for one in batch} - {self._keys.shard} if shards > 1 else set()
        if not elsewhere:
            found, misplaced = placed(self._instances, batch)
            looks = arrivals(self._keys, self._instances, found, self._begun)
            self.buffer.ask(*looks.commands, watch=looks.watch)
            self.starting += self.fresh(found, misplaced)
            return
        if len({shard_of(one.operation_id, shards) for one in batch}) > 1:
            raise CrossShard(", ".join(one.operation_id for one in batch[:5]))
        told = [self._instances.as_json(self._instances.place(one)) for one in batch]
        self._leave({"kind": "add", "machines": told})

    def fresh(
        self,
        batch: Sequence[Placed],
        misplaced: SmqueueError | None,
        existing: dict[str, str] | None = None,
        own: str = "",
        exist_ok: bool = False,
    ) -> list[Placed]:
        """The records of machines to be added, each of them found to be new.

        Args:
            batch: What is to be added; what their arrival depends on has been looked at.
            misplaced: What is wrong with the machine after these: raised once they are seen to be new.
            existing: Takes record → machine id of those that are there already and no error.
            own: A commit id: what that has made is no error, for the call is a repetition of it.
            exist_ok: Nor is what anybody has made.
        """
        instances, keys = self._instances, self._keys
        taken = {one.record for one in self.starting}
        for one in batch:
            stands = standing(keys, instances, one, self.buffer.known)
            if stands.exists and existing is not None and (exist_ok or stands.made == own):
                existing[one.record] = stands.machine
                continue
            if stands.exists or one.record in taken:
                raise StateAlreadyExists(one.op, one.module, str(one))
            if one.type.terminal:
                raise StateAlreadyTerminal(one.op, one.module, str(one))
            taken.add(one.record)
        if misplaced is not None:
            raise misplaced
        return list(batch)

    @overload
    def signal(self, operation_id: str, signal: Signal[None], *, module: str | None = None) -> None: ...
    @overload
    def signal(self, operation_id: str, signal: Signal[P], payload: P, *, module: str | None = None) -> None: ...
    @overload
    def signal(self, operation_id: str, signal: str, payload: object = None, *, module: str | None = None) -> None: ...
    def signal(self, operation_id: str, signal: Any, payload: Any = None, *, module: str | None = None) -> None:
        """Send a signal with this commit; it is delivered right after, exactly once.

        Raises:
            UnknownSignal, InvalidPayload: As ``Executor.signal``.
        """
        own = self._module
        try:
            told = self._instances.signal(operation_id, signal, payload, module)
        except AmbiguousModule as ambiguous:  # of several that declare it, a handler means its own
            if own is None or own not in ambiguous.candidates.split(", "):
                raise
            told = self._instances.signal(operation_id, signal, payload, own)
        self._leave({"kind": "signal", **asdict(told)})

    def send_task(
        self, name: str, args: Sequence[object] = (), kwargs: Mapping[str, object] | None = None, **options: Any
    ) -> None:
        """Send a Celery task once this has committed: at least once, under one task id.

        Args:
            name: The task's.
            args: Its arguments, JSON-ready.
            kwargs: Its keyword arguments, JSON-ready.
            **options: Of Celery's ``send_task``: ``queue``, ``countdown`` (s), ``eta`` and ``expires`` …

        Raises:
            InvalidInput: Arguments that are not JSON.
            TooLarge: All of it is over the limit of a payload.
            OutboxFull: This transaction has 10,000 tasks and signals already.
        """
        for one in ("eta", "expires"):  # Celery takes these as text, too
            if isinstance(options.get(one), datetime):
                options[one] = options[one].isoformat()
        body = {"name": name, "args": list(args), "kwargs": dict(kwargs or {}), "options": options}
        try:
            size = len(json.dumps(body).encode())
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"arguments of task {name}", f"not JSON: {error}") from None
        if size > self._instances.limit:
            raise TooLarge(f"task {name}", size, self._instances.limit)
        self._leave({"kind": "task", **body})

    def _leave(self, request: dict[str, Any]) -> None:
        """Leave something to be done right after the commit."""
        if len(self.requests) >= REQUESTS_LIMIT:
            raise OutboxFull("the transaction", REQUESTS_LIMIT, "spread them over several")
        self.requests.append({"id": new_id(), **request})

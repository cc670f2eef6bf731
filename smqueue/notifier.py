"""Being told of state changes: the history of an operation in order and then live, or all operations live."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Self, TypeVar

from smqueue.deployment import Deployment
from smqueue.errors import HistoryRewound, UpdatesLost
from smqueue.keys import Keys
from smqueue.protocols.arming import first_entry
from smqueue.protocols.spawn import parse_pairs
from smqueue.queries import MachineId, moment
from smqueue.records import Field, compact
from smqueue.roundtrip import LostReply, Steps, read

PAGE = 500
T = TypeVar("T")
Decode = Callable[[str, str, int], Any]
"""Operation, stored field and version → the state, or ``None`` when it cannot be decoded here."""


@dataclass(frozen=True)
class Update:
    """A machine has entered a state.

    Attributes:
        operation_id: Its operation.
        module: The module instance.
        machine_id: The machine.
        step: Of the machine; 1 is the state that it was added in.
        sequence: Of the operation, from 0, without gaps: what ``subscribe(after=…)`` resumes from.
        state: The state entered; for a cancelled machine the one that it was in. ``None`` when this process cannot
            decode it (it lacks the module, or newer code wrote it). A ``Client`` gets its JSON form.
        terminal: Whether the machine has ended with it.
        at: When, by Redis's clock, UTC.
        merged_into: The machine that goes on in its place, when both reached one active state.
        cancelled: Why it was cancelled; ``None`` when it was not.
        won: The trigger that brought it here; ``None`` when it was added.
    """

    operation_id: str
    module: str
    machine_id: MachineId
    step: int
    sequence: int
    state: Any
    terminal: bool
    at: datetime
    merged_into: MachineId | None = None
    cancelled: str | None = None
    won: str | None = None


class Notifier:
    """Subscriptions to one deployment."""

    def __init__(self, deployment: Deployment, decode: Decode) -> None:
        self._deployment, self._decode = deployment, decode

    def subscribe(
        self, operation_id: str, module: str | None = None, after: int | None = None, *,
        timeout: timedelta | float | None = None,
    ) -> Subscription:  # fmt: skip
        """Follow one operation: its history in order, then live; no gap, no duplicate, over reconnects too.

        Args:
            operation_id: May not exist yet.
            module: Only of this module instance.
            after: Resume behind this sequence.
            timeout: End when nothing has come for this long; for ever unless given.

        Returns:
            An iterator, and a context manager that closes its connection.

        Raises:
            HistoryRewound: From the iterator: the history is shorter than what was read of it.
        """
        return Subscription(self._deployment, self._decode, operation_id, module, after, _seconds(timeout))

    def history(self, operation_id: str) -> list[Update]:
        """What has happened in one operation so far, in order; empty when it has never been started."""
        keys = self._deployment.keys(operation_id)
        found: list[Update] = []
        while True:
            _, lines = self._deployment.driver.run(_history(keys, operation_id, len(found)))
            found += [read_entry(self._decode, operation_id, len(found) + at, line) for at, line in enumerate(lines)]
            if len(lines) < PAGE:
                return found

    def subscribe_all(self, module: str | None = None, *, timeout: timedelta | float | None = None) -> Feed:
        """Follow all operations, from now on: what happened before is not told.

        The last 10,000 updates are kept for a reader that is slower than that; what it loses all the same it is told.

        Args:
            module: Only of this module instance.
            timeout: End when nothing has come for this long; for ever unless given.

        Returns:
            An iterator, and a context manager that closes its connection.

        Raises:
            UpdatesLost: From the iterator, with their number; iterating on goes on with the later ones.
        """
        return Feed(self._deployment, self._decode, module, _seconds(timeout))


def _seconds(timeout: timedelta | float | None) -> float | None:
    return timeout.total_seconds() if isinstance(timeout, timedelta) else timeout


class Updates(ABC):
    """Updates as they come; to be iterated over, and closed at the end.

    Args:
        deployment: Where from.
        decode: Makes states of what is stored.
        module: Only its updates.
        timeout_s: For how long nothing may come before the iteration ends, in seconds; ``None``: for ever.
        channels: Rung when there is something to read.
    """

    def __init__(
        self, deployment: Deployment, decode: Decode, module: str | None, timeout_s: float | None, *channels: str
    ) -> None:
        self._deployment, self._decode, self._module, self._timeout_s = deployment, decode, module, timeout_s
        self._ready: deque[Update | UpdatesLost] = deque()
        self._bell = deployment.driver.doorbell(*channels)
        self._bell.__enter__()  # subscribed before the first look: nothing between is missed

    def __iter__(self) -> Self:
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the subscription."""
        self._bell.close()

    def __next__(self) -> Update:
        until = None if self._timeout_s is None else self._bell.clock() + self._timeout_s
        while not self._ready:
            if self._read():
                continue
            left = None if until is None else until - self._bell.clock()
            if left is not None and left <= 0:
                self.close()
                raise StopIteration
            self._bell.wait(math.inf if left is None else left)
        found = self._ready.popleft()
        if isinstance(found, UpdatesLost):
            raise found
        return found

    def _take(self, op: str, sequence: int, line: bytes) -> None:
        update = read_entry(self._decode, op, sequence, line)
        if self._module is None or update.module == self._module:
            self._ready.append(update)

    @abstractmethod
    def _read(self) -> bool:
        """Read on; whether there was anything."""


class Subscription(Updates):
    """The updates of one operation."""

    def __init__(
        self, deployment: Deployment, decode: Decode, op: str, module: str | None, after: int | None,
        timeout_s: float | None,
    ) -> None:  # fmt: skip
        self._op, self._keys = op, deployment.keys(op)
        self._cursor = 0 if after is None else after + 1
        super().__init__(deployment, decode, module, timeout_s, self._keys.bell(op))

    def _read(self) -> bool:
        """Read on from the cursor; whether there was anything."""
        length, lines = self._deployment.driver.run(_over(lambda: _history(self._keys, self._op, self._cursor)))
        if length < self._cursor and not (length == 0 and self._cursor <= 1):
            raise HistoryRewound(self._op, length, self._cursor)
        for line in lines:
            self._take(self._op, self._cursor, line)
            self._cursor += 1
        return bool(lines)


class Feed(Updates):
    """The updates of all operations."""

    def __init__(self, deployment: Deployment, decode: Decode, module: str | None, timeout_s: float | None) -> None:
        shards = deployment.all_keys()
        super().__init__(deployment, decode, module, timeout_s, *[keys.bells for keys in shards])
        self._cursors: dict[int, tuple[bytes, int]] = {keys.shard: deployment.driver.run(_end(keys)) for keys in shards}

    def _read(self) -> bool:
        found = [self._read_shard(keys) for keys in self._deployment.all_keys()]  # all of them, none short-circuited
        return any(found)

    def _read_shard(self, keys: Keys) -> bool:
        cursor, count = self._cursors[keys.shard]
        entries, trimmed = self._deployment.driver.run(_over(lambda: _news(keys, cursor)))
        if trimmed > count:
            self._ready.append(UpdatesLost(trimmed - count))
            self._cursors[keys.shard] = (cursor, trimmed)  # told once, also when nothing later is there
        if not entries:
            return False
        self._cursors[keys.shard] = (entries[-1][0], max(count, trimmed) + len(entries))
        for _, op, line, sequence in entries:
            self._take(op.decode(), sequence, line)
        return True


def read_entry(decode: Decode, op: str, sequence: int, line: bytes) -> Update:
    """One entry of a history, decoded."""
    data = json.loads(line)
    merged = data.get("merged")
    return Update(
        operation_id=op,
        module=_module(data["to"]),
        machine_id=MachineId(data["machine"]),
        step=data["step"],
        sequence=sequence,
        state=decode(op, data["to"], data["version"]),
        terminal=bool(data.get("terminal")),
        at=moment(data["at"]),
        merged_into=MachineId(merged) if merged else None,
        cancelled=data.get("cancelled"),
        won=data.get("won"),
    )


def _module(field: str) -> str:
    """The module of a field; of garbage that was cancelled the empty one."""
    try:
        return Field.parse(field).module
    except ValueError:
        return ""


def _over(look: Callable[[], Steps[T]]) -> Steps[T]:
    """Look again when the connection was lost meanwhile: a look changes nothing. The driver bounds how often."""
    while True:
        try:
            return (yield from look())
        except LostReply:
            continue


def _history(keys: Keys, op: str, cursor: int) -> Steps[tuple[int, list[bytes]]]:
    """Length and lines of a history from the cursor on; one not begun is the adding of its lone machine."""
    looks = (("LLEN", keys.history(op)), ("LRANGE", keys.history(op), cursor, cursor + PAGE - 1))
    length, lines = yield from read([], *looks)
    if length or cursor:
        return length, lines
    # Not begun, so all its machines are one: only now may the whole hash be read, in one look with the list again.
    length, lines, pairs = yield from read([], *looks, ("HGETALL", keys.active(op)))
    if not length:
        lone = [(field, active) for field, active in parse_pairs(pairs) if active.lone]
        return len(lone), [compact(first_entry(field, active)).encode() for field, active in lone]
    return length, lines


def _end(keys: Keys) -> Steps[tuple[bytes, int]]:
    """The newest update's id, and how many there have been."""
    (info,) = yield from read([], ("XINFO", "STREAM", keys.updates))
    if isinstance(info, Exception):
        return b"0-0", 0
    fields = dict(zip(info[::2], info[1::2], strict=True))
    return fields[b"last-generated-id"], int(fields[b"entries-added"])


def _news(keys: Keys, cursor: bytes) -> Steps[tuple[list[tuple[bytes, bytes, bytes, int]], int]]:
    """Updates behind a cursor, each with its sequence in its operation; and how many were trimmed in all."""
    raw, info = yield from read(
        [], ("XRANGE", keys.updates, b"(" + cursor, "+", "COUNT", PAGE), ("XINFO", "STREAM", keys.updates)
    )
    if isinstance(info, Exception):
        return [], 0
    fields = dict(zip(info[::2], info[1::2], strict=True))
    entries = [(id, data[1], data[3]) for id, data in raw]
    found = yield from read([], *[("LPOS", keys.history(op.decode()), line, "RANK", -1) for _, op, line in entries])
    sequences = [at if isinstance(at, int) else 0 for at in found]  # not begun: the adding of a lone machine
    trimmed = int(fields[b"entries-added"]) - int(fields[b"length"])
    return [(*entry, at) for entry, at in zip(entries, sequences, strict=True)], trimmed

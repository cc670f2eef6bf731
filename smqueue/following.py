"""Following state changes: the history of an operation in order and then live, or all operations live, as turns."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from smqueue.deployment import Deployment
from smqueue.errors import HistoryRewound, UpdatesLost
from smqueue.keys import Keys
from smqueue.protocols.arming import first_entry
from smqueue.protocols.spawn import parse_pairs
from smqueue.queries import MachineId, moment
from smqueue.records import Field, compact
from smqueue.roundtrip import Steps, over, read
from smqueue.states import check_operation_id
from smqueue.turns import Listen, Look, Now, Rest, Timeout, Turns, deadline, seconds_of

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


class Following(ABC):
    """Updates as they come. It does no I/O: its turns are taken by a thread or by a task.

    Args:
        deployment: Where from.
        decode: Makes states of what is stored.
        module: Only its updates.
        timeout: For how long nothing may come before the end; for ever unless given.
    """

    def __init__(self, deployment: Deployment, decode: Decode, module: str | None, timeout: Timeout) -> None:
        self._deployment, self._decode, self._module, self._timeout_s = deployment, decode, module, seconds_of(timeout)
        self._ready: deque[Update | UpdatesLost] = deque()

    @abstractmethod
    def begin(self) -> Turns[None]:
        """Subscribe: before the first look, so that nothing between is missed."""

    @abstractmethod
    def _read(self) -> Turns[bool]:
        """Read on; whether there was anything."""

    def next(self) -> Turns[Update | None]:
        """The next update; ``None`` at the end.

        Raises:
            HistoryRewound: The history is shorter than what was read of it.
            UpdatesLost: So many were lost; going on goes on with the later ones.
        """
        if not self._ready:
            until_s = yield from deadline(self._timeout_s)
            while not self._ready:
                if (yield from self._read()):
                    continue
                if (yield Now()) >= until_s:
                    return None
                yield Rest(until_s)
        found = self._ready.popleft()
        if isinstance(found, UpdatesLost):
            raise found
        return found

    def _take(self, op: str, sequence: int, line: bytes) -> None:
        update = read_entry(self._decode, op, sequence, line)
        if self._module is None or update.module == self._module:
            self._ready.append(update)


class FollowingOne(Following):
    """The updates of one operation, behind a sequence or from the beginning."""

    def __init__(
        self, deployment: Deployment, decode: Decode, op: str, module: str | None, after: int | None, timeout: Timeout
    ) -> None:
        super().__init__(deployment, decode, module, timeout)
        self._op, self._keys = check_operation_id(op), deployment.keys(op)
        self._cursor = 0 if after is None else after + 1

    def begin(self) -> Turns[None]:
        """See ``Following``."""
        yield Listen((self._keys.bell(self._op),))

    def _read(self) -> Turns[bool]:
        look = over(lambda: history(self._keys, self._op, self._cursor))
        length, lines = yield Look(self._keys.shard, look)
        if length < self._cursor and not (length == 0 and self._cursor <= 1):
            raise HistoryRewound(self._op, length, self._cursor)
        for line in lines:
            self._take(self._op, self._cursor, line)
            self._cursor += 1
        return bool(lines)


class FollowingAll(Following):
    """The updates of all operations, from the beginning of the following on."""

    def __init__(self, deployment: Deployment, decode: Decode, module: str | None, timeout: Timeout) -> None:
        super().__init__(deployment, decode, module, timeout)
        self._shards: Sequence[Keys] = deployment.all_keys()
        self._cursors: dict[int, tuple[bytes, int]] = {}

    def begin(self) -> Turns[None]:
        """See ``Following``."""
        yield Listen(tuple([keys.bells for keys in self._shards]))
        for keys in self._shards:
            self._cursors[keys.shard] = yield Look(keys.shard, over(lambda keys=keys: _end(keys)))

    def _read(self) -> Turns[bool]:
        anything = False
        for keys in self._shards:
            anything = (yield from self._read_shard(keys)) or anything
        return anything

    def _read_shard(self, keys: Keys) -> Turns[bool]:
        cursor, count = self._cursors[keys.shard]
        entries, trimmed = yield Look(keys.shard, over(lambda: _news(keys, cursor)))
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


def history(keys: Keys, op: str, cursor: int) -> Steps[tuple[int, list[bytes]]]:
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

"""Following state changes: the history of an operation in order and then live, or all operations live, as turns."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

from smqueue.deployment import Deployment
from smqueue.errors import HistoryRewound, InvalidInput, UpdatesLost, error_text
from smqueue.keys import Keys
from smqueue.protocols.arming import first_entry
from smqueue.protocols.spawn import parse_pairs
from smqueue.queries import MachineId, is_moment, moment
from smqueue.records import Field, compact, loads
from smqueue.roundtrip import Steps, answers, over, read
from smqueue.states import check_operation_id
from smqueue.turns import Listen, Look, Now, Rest, Timeout, Turns, deadline, seconds_of

log = logging.getLogger("smqueue.following")

PAGE = 500
LAST = 10**18
"""No history is as long."""
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
        self._until_s = math.inf
        self.closed = False
        """Whether it has ended; set by others too, also while its turns are taken."""

    @abstractmethod
    def begin(self) -> Turns[None]:
        """Subscribe: before the first look, so that nothing between is missed."""

    @abstractmethod
    def _read(self) -> Turns[bool]:
        """Read on; whether there was anything."""

    def next(self) -> Turns[Update | None]:
        """The next update; ``None`` at the end, and ever after.

        Raises:
            HistoryRewound: What was read of the history is not there any more.
            UpdatesLost: So many were lost; going on goes on with the later ones.
        """
        try:
            yield from self._more()
        except TimeoutError:
            self.closed = True  # no look was answered in time
        if self.closed:
            return None
        found = self._ready.popleft()
        if isinstance(found, UpdatesLost):
            raise found
        return found

    def _more(self) -> Turns[None]:
        """Read on until there is an update, or it is over."""
        if self.closed or self._ready:
            return
        self._until_s = yield from deadline(self._timeout_s)
        while not self._ready and not self.closed:
            if (yield from self._read()):
                continue
            if self.closed or (yield Now()) >= self._until_s:
                self.closed = True
            else:
                yield Rest(self._until_s)

    def _take(self, op: str, sequence: int, line: bytes) -> None:
        update = read_entry(self._decode, op, sequence, line)
        if update is not None and (self._module is None or update.module == self._module):
            self._ready.append(update)


class FollowingOne(Following):
    """The updates of one operation, behind a sequence or from the beginning."""

    def __init__(
        self, deployment: Deployment, decode: Decode, op: str, module: str | None, after: int | None, timeout: Timeout
    ) -> None:
        super().__init__(deployment, decode, module, timeout)
        self._op, self._keys = check_operation_id(op), deployment.keys(op)
        _check_sequence(after)
        self._cursor = 0 if after is None else after + 1
        self._last: Identity | None = None  # of the entry before the cursor, once that has been seen

    def begin(self) -> Turns[None]:
        """See ``Following``."""
        yield Listen((self._keys.bell(self._op),))

    def _read(self) -> Turns[bool]:
        # From the entry before the cursor: of a history that has lost a suffix and grown again only that tells.
        start = max(0, self._cursor - 1)
        look = over(lambda: history(self._keys, self._op, start))
        length, lines = yield Look(self._keys.shard, look, self._until_s)
        if self._cursor:
            before, lines = lines[:1], lines[1:]
            self._see_unchanged(length, before)
        for line in lines:
            self._take(self._op, self._cursor, line)
            self._cursor, self._last = self._cursor + 1, identity(line)
        return bool(lines)

    def _see_unchanged(self, length: int, before: Sequence[bytes]) -> None:
        """Raises HistoryRewound when what was read is not there any more."""
        found = identity(before[0]) if before else None
        if found is None:
            unborn = self._cursor == 1 and length == 0 and self._last is None  # ``after=0`` of what may not exist yet
            rewound = not unborn
        else:
            rewound = self._last is not None and found != self._last
        if rewound:
            raise HistoryRewound(self._op, length, self._cursor)
        self._last = found


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
        news = yield Look(keys.shard, over(lambda: _news(keys, cursor)), self._until_s)
        if news.rewound or news.added < count:
            # What was read is not there any more. Where the two part is not known: all that is kept is told.
            self._ready.append(UpdatesLost(max(0, count - news.added)))
            self._cursors[keys.shard] = (NOTHING, news.trimmed)
            return True
        if news.trimmed > count:
            self._ready.append(UpdatesLost(news.trimmed - count))
            self._cursors[keys.shard] = (cursor, news.trimmed)  # told once, also when nothing later is there
            count = news.trimmed
        for entry in news.entries:
            count += 1
            self._cursors[keys.shard] = (entry.id, count)
            if entry.op is not None:
                self._take(entry.op, entry.sequence, entry.line)
        return bool(news.entries)


def _check_sequence(after: object) -> None:
    """Raises InvalidInput."""
    if after is None or (isinstance(after, int) and not isinstance(after, bool) and 0 <= after < LAST):
        return
    problem = str(after) if isinstance(after, int) else type(after).__name__
    raise InvalidInput("after", f"expected a sequence, which is a whole number from 0, got {problem[:50]}")


Identity = tuple[Any, ...]


def identity(line: bytes) -> Identity:
    """What one entry of a history differs by from all others, however it is spelled; garbage from other garbage."""
    try:
        data = loads(line)
        return data["commit"], data["machine"], data["step"]
    except (ValueError, KeyError, TypeError):
        return (line,)


def read_entry(decode: Decode, op: str, sequence: int, line: bytes) -> Update | None:
    """One entry of a history, decoded; ``None`` of garbage, which holds up nobody, and ``smqueue verify`` tells of."""
    try:
        data = loads(line)
        merged = data.get("merged")
        if not is_moment(data["at"]):
            raise ValueError("its time is none")
        return Update(
            operation_id=op,
            module=_module(data["to"]),
            machine_id=MachineId(data["machine"]),
            step=data["step"],
            sequence=sequence,
            state=_state(decode, op, data["to"], data["version"]),
            terminal=bool(data.get("terminal")),
            at=moment(data["at"]),
            merged_into=MachineId(merged) if merged else None,
            cancelled=data.get("cancelled"),
            won=data.get("won"),
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, OSError) as error:
        log.warning("entry %d of the history of operation %s cannot be read: %s", sequence, op, error_text(error))
        return None


def read_entries(decode: Decode, op: str, first: int, lines: Sequence[bytes]) -> Iterator[Update]:
    """Entries of a history from a sequence on, without garbage."""
    for at, line in enumerate(lines, first):
        if (update := read_entry(decode, op, at, line)) is not None:
            yield update


def _state(decode: Decode, op: str, field: str, version: int) -> Any:
    """The state of an entry; ``None`` when it cannot be decoded here, also since users' code there fails."""
    try:
        return decode(op, field, version)
    except Exception as error:
        log.warning("a state of operation %s cannot be decoded: %s", op, error_text(error))
        return None


def _module(field: str) -> str:
    """The module of a field; of garbage that was cancelled the empty one."""
    try:
        return Field.parse(field).module
    except ValueError:
        return ""


def history(keys: Keys, op: str, cursor: int) -> Steps[tuple[int, list[bytes]]]:
    """Length and lines of a history from the cursor on; one not begun is the adding of its lone machine."""
    looks = (("LLEN", keys.history(op)), ("LRANGE", keys.history(op), cursor, cursor + PAGE - 1))
    length, lines = yield from answers(*looks)
    if length or cursor:
        return length, lines
    # Not begun, so all its machines are one: only now may the whole hash be read. And before the list: one that is
    # still not begun then was not when the hash was read, so that what is not there was never added, or is lost.
    pairs, length, lines = yield from answers(("HGETALL", keys.active(op)), *looks)
    if not length:
        lone = [(field, active) for field, active in parse_pairs(pairs) if active.lone]
        return len(lone), [compact(first_entry(field, active)).encode() for field, active in lone]
    return length, lines


NOTHING = b"0-0"
"""The id before all others."""


class Entry(NamedTuple):
    """One entry of the stream of all updates; of garbage ``op`` is ``None``."""

    id: bytes
    op: str | None
    line: bytes
    sequence: int = 0
    """In its operation."""


class News(NamedTuple):
    """What is behind a cursor."""

    entries: list[Entry]
    added: int
    """How many updates there have been in all."""
    trimmed: int
    """How many of them are not kept any more."""
    rewound: bool
    """The update at the cursor is not there, and was not trimmed: the server has lost it."""


def _end(keys: Keys) -> Steps[tuple[bytes, int]]:
    """The newest update's id, and how many there have been."""
    (info,) = yield from read([], ("XINFO", "STREAM", keys.updates))
    last, added, _ = _counts(info)
    return last, added


def _counts(info: Any) -> tuple[bytes, int, int]:
    """The newest update's id, how many there have been, and how many are kept; raises what else the reply is."""
    if isinstance(info, Exception):
        if "no such key" in str(info):
            return NOTHING, 0, 0
        raise info
    fields = dict(zip(info[::2], info[1::2], strict=True))
    return fields[b"last-generated-id"], int(fields[b"entries-added"]), int(fields[b"length"])


def _news(keys: Keys, cursor: bytes) -> Steps[News]:
    """Updates behind a cursor, each with its sequence in its operation."""
    raw, oldest, info = yield from read(
        [],
        ("XRANGE", keys.updates, cursor, "+", "COUNT", PAGE),
        ("XRANGE", keys.updates, "-", "+", "COUNT", 1),
        ("XINFO", "STREAM", keys.updates),
    )
    last, added, kept = _counts(info)
    for reply in (raw, oldest):
        if isinstance(reply, Exception):
            raise reply
    there = bool(raw) and raw[0][0] == cursor
    before = bool(oldest) and _order(oldest[0][0]) <= _order(cursor)
    rewound = _order(last) < _order(cursor) or (before and not there)
    entries = [_entry(id, data) for id, data in raw[there:]]
    told = [entry for entry in entries if entry.op is not None]
    found = yield from read([], *[("LPOS", keys.history(str(one.op)), one.line, "RANK", -1) for one in told])
    at = {entry.id: _place(reply) for entry, reply in zip(told, found, strict=True)}
    placed = [entry._replace(sequence=at.get(entry.id, 0)) for entry in entries]
    return News(placed, added, added - kept, rewound)


def _order(id: bytes) -> tuple[int, int]:
    """The id of an entry, in a form that compares."""
    ms, _, number = id.partition(b"-")
    return int(ms), int(number)


def _entry(id: bytes, data: Any) -> Entry:
    try:
        return Entry(id, data[1].decode(), data[3])
    except (IndexError, UnicodeDecodeError, TypeError):
        log.warning("entry %s of the updates cannot be read", id.decode())
        return Entry(id, None, b"")


def _place(reply: Any) -> int:
    """The sequence of an update; of the adding of a lone machine, whose history is not begun, 0."""
    if isinstance(reply, Exception) and not str(reply).startswith("WRONGTYPE"):  # garbage is for ``smqueue verify``
        raise reply
    return reply if isinstance(reply, int) else 0

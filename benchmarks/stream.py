"""What a recording says: which process sent what over which connection, and what it had been told before."""

from __future__ import annotations

import bisect
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import hiredis

from benchmarks.recorder import Passed

pack = cast("Any", hiredis).pack_command
PUBSUB = frozenset({b"SUBSCRIBE", b"SSUBSCRIBE", b"PSUBSCRIBE", b"MONITOR"})
UNBLOCKED = {b"BRPOP": b"RPOP", b"BLPOP": b"LPOP"}
"""A wait is not part of the floor: what is there is taken, what is not is not waited for."""


class Write(NamedTuple):
    """One write to a connection.

    Attributes:
        data: The commands, packed.
        commands: How many.
        after: How many replies its connection had read when it was sent: what is asked for ahead is so again.
        told: How many replies each producer's connection had read by then: what is done rests on what producers have
            done.
    """

    data: bytes
    commands: int
    after: int
    told: tuple[int, ...]


@dataclass
class Spoken:
    """One connection: what it wrote before the part that is measured, and in it."""

    pid: int
    before: list[Write] = field(default_factory=list)
    measured: list[Write] = field(default_factory=list)


@dataclass(frozen=True)
class Stream:
    """A recording, ready to be played.

    Attributes:
        producers: The connections of the processes that add and signal, in the order of ``Write.told``.
        workers: Those of all others.
        sent: Bytes written in the measured part.
        received: Bytes read in it.
        names: How often each command was sent in it.
    """

    producers: list[Spoken]
    workers: list[Spoken]
    sent: int
    received: int
    names: Counter[str]

    @property
    def writes(self) -> int:
        """In the measured part."""
        return sum(len(spoken.measured) for spoken in (*self.producers, *self.workers))


def stream_of(passed: Sequence[Passed], begin: bytes, end: bytes) -> Stream:
    """Make sense of a recording.

    Args:
        passed: All of it.
        begin: What a producer echoed before the measured part; behind it are the process ids of all producers.
        end: What it echoed after that.
    """
    began = next(one for one in passed if one.asked and begin in one.data)
    ended = next(one for one in passed if one.asked and end in one.data)
    pids = {int(pid) for pid in began.data.partition(begin)[2].split()}
    lines: defaultdict[int, list[Passed]] = defaultdict(list)
    for one in passed:
        if one.at <= ended.at and one.line not in (began.line, ended.line):
            lines[one.line].append(one)
    read = {line: _replies(some) for line, some in lines.items() if not _listens(some)}
    producers = [line for line in read if lines[line][0].pid in pids]
    told = [read[line] for line in producers]
    spoken = {line: _spoken(lines[line], times, told, began.at) for line, times in read.items()}
    inside = [one for some in lines.values() for one in some if one.at > began.at]
    names: Counter[str] = Counter()
    for one in spoken.values():
        names.update(command[0].decode().upper() for command in _commands(write.data for write in one.measured))
    return Stream(
        [spoken[line] for line in producers],
        [one for line, one in spoken.items() if line not in producers],
        sum(len(one.data) for one in inside if one.asked),
        sum(len(one.data) for one in inside if not one.asked),
        names,
    )


def _commands(data: Iterable[bytes]) -> Iterator[list[bytes]]:
    reader = hiredis.Reader()
    for some in data:
        reader.feed(some)
        while (command := reader.gets()) is not False:
            yield cast("list[bytes]", command)


def _listens(passed: Sequence[Passed]) -> bool:
    """Whether a connection is told what it did not ask for: that is not played."""
    return any(command[0].upper() in PUBSUB for command in _commands(one.data for one in passed if one.asked))


def _replies(passed: Sequence[Passed]) -> list[float]:
    """When each reply of a connection had come in full."""
    reader, found = hiredis.Reader(), list[float]()
    for one in passed:
        if not one.asked:
            reader.feed(one.data)
            while reader.gets() is not False:
                found.append(one.at)
    return found


def _spoken(passed: Sequence[Passed], read: Sequence[float], told: Sequence[Sequence[float]], began: float) -> Spoken:
    """A connection's writes."""
    spoken, reader, waiting = Spoken(passed[0].pid), hiredis.Reader(), list[list[bytes]]()
    for one in passed:
        if not one.asked:
            continue
        reader.feed(one.data)
        while (command := reader.gets()) is not False:
            waiting.append(cast("list[bytes]", command))
        if reader.has_data():
            continue  # the rest of a large command follows
        data = b"".join(_packed(command) for command in waiting)
        known = tuple(bisect.bisect_left(times, one.at) for times in told)
        write = Write(data, len(waiting), bisect.bisect_left(read, one.at), known)
        (spoken.before if one.at < began else spoken.measured).append(write)
        waiting = []
    return spoken


def _packed(command: Sequence[bytes]) -> bytes:
    name = command[0].upper()
    packed: bytes = pack((UNBLOCKED[name], command[1]) if name in UNBLOCKED else tuple(command))
    return packed

"""What a recording says: which process sent what over which connection, and what it had been told before."""

from __future__ import annotations

import bisect
from collections import Counter, defaultdict
from collections.abc import Sequence
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
        told: How many replies producers had read by then, in all: what a worker does rests on what they have done.
    """

    data: bytes
    commands: int
    after: int
    told: int


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
        producers: The connections of the process that adds and signals.
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
    """Make sense of a recording; ``begin`` and ``end`` are what the producer echoed around the measured part."""
    began = next(one for one in passed if one.asked and begin in one.data)
    ended = next(one for one in passed if one.asked and end in one.data)
    producer = began.pid
    lines: defaultdict[int, list[Passed]] = defaultdict(list)
    for one in passed:
        if one.at <= ended.at and one.line not in (began.line, ended.line):
            lines[one.line].append(one)
    read = {line: _replies(some) for line, some in lines.items()}
    told = sorted(at for line, times in read.items() if lines[line][0].pid == producer for at in times)
    spoken = [one for line, some in lines.items() if (one := _spoken(some, read[line], told, began.at)) is not None]
    inside = [one for some in lines.values() for one in some if one.at > began.at]
    names: Counter[str] = Counter()
    for one in spoken:
        reader = hiredis.Reader()
        reader.feed(b"".join(write.data for write in one.measured))
        while (command := reader.gets()) is not False:
            names[cast("list[bytes]", command)[0].decode().upper()] += 1
    return Stream(
        [one for one in spoken if one.pid == producer],
        [one for one in spoken if one.pid != producer],
        sum(len(one.data) for one in inside if one.asked),
        sum(len(one.data) for one in inside if not one.asked),
        names,
    )


def _replies(passed: Sequence[Passed]) -> list[float]:
    """When each reply of a connection had come in full."""
    reader, found = hiredis.Reader(), list[float]()
    for one in passed:
        if not one.asked:
            reader.feed(one.data)
            while reader.gets() is not False:
                found.append(one.at)
    return found


def _spoken(passed: Sequence[Passed], read: Sequence[float], told: Sequence[float], began: float) -> Spoken | None:
    """A connection's writes; ``None`` of one that only listens."""
    spoken, reader, waiting = Spoken(passed[0].pid), hiredis.Reader(), list[list[bytes]]()
    partial = False
    for one in passed:
        if not one.asked:
            continue
        reader.feed(one.data)
        while (command := reader.gets()) is not False:
            waiting.append(cast("list[bytes]", command))
        partial = bool(reader.has_data())
        if partial:
            continue  # the rest of a large command follows
        if any(command[0].upper() in PUBSUB for command in waiting):
            return None
        data = b"".join(_packed(command) for command in waiting)
        write = Write(data, len(waiting), bisect.bisect_left(read, one.at), bisect.bisect_left(told, one.at))
        (spoken.before if one.at < began else spoken.measured).append(write)
        waiting = []
    return spoken


def _packed(command: Sequence[bytes]) -> bytes:
    name = command[0].upper()
    packed: bytes = pack((UNBLOCKED[name], command[1]) if name in UNBLOCKED else tuple(command))
    return packed

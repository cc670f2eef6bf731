"""Active machines as they are stored, found a page at a time: readable without the code of any module.

A page takes a bounded time, whatever is looked for among however many operations, of however many machines each: where
that ran out the next page goes on.
"""

from __future__ import annotations

import math
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec

from smqueue.deployment import Deployment
from smqueue.errors import InvalidInput
from smqueue.instances import Instances
from smqueue.keys import Keys
from smqueue.listing import Fits, Listed, Record, Wanted, listed, noted, scanned
from smqueue.records import compact
from smqueue.roundtrip import Command, Steps, read, time_us
from smqueue.states import check_operation_id

PAGE = 200
"""How many operations are read in one go."""
NAMES = 5_000
"""How many names of operations are, where only some are looked at."""
TOGETHER = 500
"""Of so many machines, or little more, the rest is read in one go."""
BUDGET_S = 0.3
LONGEST = 4_096
"""Characters of a cursor: an operation's id has up to 512 bytes, each of which may be escaped."""


class Found(NamedTuple):
    """A page of machines.

    Attributes:
        machines: As many as were asked for, unless time or the machines ran out. Of an operation of very many it may
            be about 100 more.
        cursor: Where the next page begins; ``None`` after the last.
        looked_at: How many operations were looked at for this page.
    """

    machines: list[Listed]
    cursor: str | None
    looked_at: int


class _Place(NamedTuple):
    """Where to go on."""

    shard: int = 0
    operation: str = ""
    """Behind this one; before the first when it is empty."""
    score: float = 0.0
    """Since when that is active, ms."""
    scan: int = 0
    """A cursor of HSCAN: not behind that operation, but within it; or within the quarantine."""
    behind: str = ""
    """A record of that operation, or of the quarantine, which is so small that one HSCAN brings all of it: those whose
    ids come later."""

    def dump(self) -> str:
        return urlsafe_b64encode(compact(self).encode()).decode()

    @classmethod
    def parse(cls, cursor: str | None) -> _Place:
        if cursor is None:
            return cls()
        with suppress(ValueError):
            if len(cursor) <= LONGEST:
                place = cls(*_parts(urlsafe_b64decode(cursor.encode())))
                if place.shard >= 0 and math.isfinite(place.score) and 0 <= place.scan < 2**64:
                    return place
        raise InvalidInput("cursor", "not one that a page has ended with")


_parts = msgspec.json.Decoder(tuple[int, str, float, int, str]).decode


def search(
    deployment: Deployment, instances: Instances, wanted: Wanted, cursor: str | None = None, limit: int = 50,
    budget_s: float = BUDGET_S,
) -> Found:  # fmt: skip
    """Find a page of active machines; paused and quarantined ones are active.

    Args:
        deployment: Where.
        instances: The modules that are known, whose secrets are hidden; there may be none.
        wanted: Which.
        cursor: Where an earlier page has ended.
        limit: How many are enough.
        budget_s: After how long, in seconds, a page ends with fewer.

    Raises:
        InvalidInput: An operation id or cursor that is none.

    Redis: commands of at most some hundred records each, as many as there is time for.
    """
    place: _Place | None = _Place.parse(cursor)
    page = _Page(deployment, instances, wanted, max(1, limit), time.monotonic() + budget_s)
    if wanted.operation is not None and not wanted.operation.endswith("*"):
        place = page.one(check_operation_id(wanted.operation), place)
        return Found(page.found, place.dump() if place is not None else None, 1)
    while place is not None and place.shard < len(deployment.all_keys()):
        place = page.aside(place) if wanted.quarantined else page.some(place)
        if page.full:
            break
    there = place is not None and place.shard < len(deployment.all_keys())
    return Found(page.found, place.dump() if place is not None and there else None, page.looked_at)


def active_machines(deployment: Deployment, instances: Instances, wanted: Wanted) -> Iterator[Listed]:
    """All of them, streamed, each once."""
    seen: set[tuple[str, str]] = set()
    cursor: str | None = None
    while True:
        page = search(deployment, instances, wanted, cursor)
        for one in page.machines:
            if not one.machine_id or (one.operation_id, one.machine_id) not in seen:
                seen.add((one.operation_id, one.machine_id))
                yield one
        if (cursor := page.cursor) is None:
            return


# --- a page under way ------------------------------------------------------------------------------------------------


class _Page:
    """What is found until it is enough, or the time is up."""

    def __init__(
        self, deployment: Deployment, instances: Instances, wanted: Wanted, limit: int, until_s: float
    ) -> None:
        self._deployment, self._instances, self._wanted = deployment, instances, wanted
        self._limit, self._until_s = limit, until_s
        self.found, self.looked_at = list[Listed](), 0
        self._seen: set[tuple[str, str | None]] = set()  # a scan may bring one twice

    @property
    def full(self) -> bool:
        """Whether to end here."""
        return len(self.found) >= self._limit or time.monotonic() > self._until_s

    def one(self, op: str, place: _Place) -> _Place | None:
        """Machines of a single operation; where to go on in it, or ``None`` at its end."""
        place = self._rest(self._deployment.keys(op), place._replace(operation=op))
        return place if place.scan or place.behind else None

    def some(self, place: _Place) -> _Place | None:
        """Machines of the next operations; where to go on."""
        keys = self._deployment.all_keys()[place.shard]
        if place.scan or place.behind:
            place = self._rest(keys, place)
            if self.full:
                return place
        step = self._run(_step(keys, self._wanted, place))
        for at in range(0, len(step.operations), PAGE):
            ended = self._chunk(keys, step.operations[at : at + PAGE])
            if self.full:
                self.looked_at += at + PAGE
                return ended._replace(shard=place.shard)
        self.looked_at += step.passed
        return step.then if step.then is not None else _Place(place.shard + 1)

    def aside(self, place: _Place) -> _Place:
        """Machines that were set aside, by their notes; where to go on."""
        keys = self._deployment.all_keys()[place.shard]
        count = PAGE if self._wanted.some else max(1, min(self._room, PAGE))
        then, records, looked = self._run(_aside(keys, self._wanted, place, count))
        if not (then.scan or place.scan) and len(records) > self._room:
            records = records[: max(1, self._room)]
            then = then._replace(behind=records[-1].id)
        self._list(keys, records)
        self.looked_at += looked
        return then if then.scan or then.behind else _Place(place.shard + 1)

    # --- inside --------------------------------------------------------------------------------------------------

    def _run(self, steps: Steps[Any]) -> Any:
        return self._deployment.driver.run(steps)

    def _chunk(self, keys: Keys, operations: Sequence[tuple[str, float]]) -> _Place:
        """All machines of some operations, or as many as there is time for; where that has ended."""
        pages = self._run(scanned(keys, [(op, 0) for op, _ in operations], self._wanted))
        pending: list[Record] = []
        place = _Place()
        for (op, score), (scan, records) in zip(operations, pages, strict=True):
            place = _Place(operation=op, score=score, scan=scan)
            if not scan:
                records, behind = _cut(records, "", self._room - len(pending))
                place = place._replace(behind=behind)
            pending += records
            if scan or len(pending) >= min(self._room, TOGETHER):
                self._list(keys, pending)
                pending = []
                if scan and not self.full:
                    place = self._rest(keys, place)
                if self.full:
                    return place
        self._list(keys, pending)
        return place

    def _rest(self, keys: Keys, place: _Place) -> _Place:
        """Machines of an operation from a place in it on; where to go on."""
        while True:
            ((scan, records),) = self._run(scanned(keys, [(place.operation, place.scan)], self._wanted))
            behind = ""
            if not scan and not place.scan:  # one that has grown meanwhile is read anew
                records, behind = _cut(records, place.behind, self._room)
            self._list(keys, records)
            place = place._replace(scan=scan, behind=behind)
            if not (scan or behind) or self.full:
                return place

    @property
    def _room(self) -> int:
        return self._limit - len(self.found)

    def _list(self, keys: Keys, records: Sequence[Record]) -> None:
        new = [one for one in records if (one.op, one.field) not in self._seen or one.field is None]
        self._seen.update((one.op, one.field) for one in new)
        if new:
            self.found += self._run(listed(keys, new, self._instances, quarantined=self._wanted.quarantined))


def _cut(records: Sequence[Record], behind: str, room: int) -> tuple[list[Record], str]:
    """So many of all records of a hash, behind one of them; and which is the last, where there are more."""
    rest = sorted((one for one in records if one.id > behind), key=lambda one: one.id)
    return rest[:room], rest[room - 1].id if len(rest) > room else ""


# --- where to go on --------------------------------------------------------------------------------------------------


class _Step(NamedTuple):
    operations: list[tuple[str, float]]
    """Those to be looked at, and since when they are active, ms."""
    passed: int
    then: _Place | None
    """Where to go on; ``None``: in the next shard."""


def _step(keys: Keys, wanted: Wanted, place: _Place) -> Steps[_Step]:
    start = (yield from _behind(keys, place, wanted.newest)) if place.operation else 0
    size = NAMES if wanted.operation is not None else PAGE
    order = ("REV",) if wanted.newest else ()
    time, flat = yield from read(
        [], ("TIME",), ("ZRANGE", keys.operations, start, start + size - 1, *order, "WITHSCORES")
    )
    page = [(raw.decode(), float(score)) for raw, score in zip(flat[::2], flat[1::2], strict=True)]
    ended = len(page) < size
    bound_ms = time_us(time) / 1000 - (wanted.older_s or 0) * 1000
    recent = [one for one in page if one[1] > bound_ms]  # what began later has no machine that is old enough
    if recent and not wanted.newest:
        ended = True
    chosen = [one for one in page if one[1] <= bound_ms and wanted.takes(one[0])]
    return _Step(chosen, len(page), None if ended else _Place(place.shard, *page[-1]))


def _behind(keys: Keys, place: _Place, newest: bool) -> Steps[int]:
    """The rank behind an operation; of one that has ended meanwhile, that of the first that is as old."""
    rank, span = ("ZREVRANK", (f"({place.score:.0f}", "+inf")) if newest else ("ZRANK", ("-inf", f"({place.score:.0f}"))
    at, before = yield from read([], (rank, keys.operations, place.operation), ("ZCOUNT", keys.operations, *span))
    return int(at) + 1 if at is not None else int(before)


def _aside(keys: Keys, wanted: Wanted, place: _Place, count: int) -> Steps[tuple[_Place, list[Record], int]]:
    """A part of the quarantine from a place on: the next place, what is wanted of it, and how much was looked at."""
    time, reply = yield from read([], ("TIME",), ("HSCAN", keys.quarantine, place.scan, "COUNT", count))
    if isinstance(reply, Exception):
        return _Place(), [], 0
    then = _Place(place.shard, scan=int(reply[0]))
    pairs = zip(reply[1][::2], reply[1][1::2], strict=True)
    notes: dict[str, bytes] = {record.decode(errors="replace"): note for record, note in pairs}
    if not then.scan and not place.scan:  # all of it at once; one that has grown meanwhile is read anew
        names = sorted(name for name in notes if name > place.behind)
        then = then._replace(behind=names[count - 1] if len(names) > count else "")
        notes = {name: notes[name] for name in names[:count]}
    stored = (yield from read([], *[("GET", keys.machine(record)) for record in notes])) if notes else []
    records = [noted(record, note, raw) for (record, note), raw in zip(notes.items(), stored, strict=True)]
    looks: list[Command] = [("HGET", keys.active(one.op), one.field or "") for one in records]
    values = (yield from read([], *looks)) if looks else []
    fits, found = Fits(wanted, time_us(time)), list[Record]()
    for one, value in zip(records, values, strict=True):
        there = one if one.field is None else one._replace(value=value or b"")
        gone = value is None and one.field is not None  # meanwhile
        if wanted.takes(one.op) and not gone and fits(there):
            found.append(there)
    return then, found, len(notes)

"""Cancelling: an operation's control says so, and nothing else of it commits until all its machines have ended.

What its transitions have started elsewhere can be cancelled with it. How machines end: ``ending``.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple, cast

from smqueue.errors import CommitFailed
from smqueue.keys import Keys, decode, encode
from smqueue.protocols.bounds import LEASE_MS, MAX_ATTEMPTS
from smqueue.records import loads
from smqueue.roundtrip import Command, LostReply, Steps, back_off, commit, read, time_us
from smqueue.standing import TIME

CHILDREN = 100
REQUESTS = 500
"""How many of them are read in one go."""


class Noted(NamedTuple):
    """A cancelling that was begun, as its control says: ``cancelling <since, ms> <how> <reason>``."""

    raw: bytes
    since: str
    children: bool
    """The operations that its transitions have started, too."""
    force: bool
    """Without any cancel handler."""
    reason: str
    paused: str = ""
    """What the control says once it is over, when the operation is paused, too."""
    begun: bool = False
    """The cancelling of the children has been begun: what is added to one after its end is left alone."""

    @classmethod
    def parse(cls, raw: object) -> Noted | None:
        """``None``: nothing is being cancelled."""
        if not isinstance(raw, bytes):
            return None
        word, *rest = raw.decode(errors="replace").split(" ", 3)
        if word != "cancelling":
            return None
        since, how, reason = (*rest, "", "", "")[:3]
        flags, _, paused = how.partition(":")
        bits = int(flags) if flags in {*"01234567"} else 0
        return cls(raw, since, bool(bits & 1), bool(bits & 2), reason, decode(paused), bool(bits & 4))

    def said(self) -> str:
        """The control."""
        flags = str(self.children + 2 * self.force + 4 * self.begun)
        how = f"{flags}:{encode(self.paused)}" if self.paused else flags
        return f"cancelling {self.since} {how} {self.reason}"


def begin(keys: Keys, op: str, reason: str, children: bool, force: bool = False) -> Steps[None]:
    """From here on no transition of the operation commits, and a worker finishes the cancelling if its caller dies.

    Begun once more it is the same cancelling, which does what either has asked for; a pause stands until its resume.
    2 round trips.

    Raises:
        CommitFailed: After 100 conflicts.
    """
    control = keys.control(op)
    for attempt in range(MAX_ATTEMPTS):
        try:
            raw, time = yield from read([control], ("GET", control), TIME)
            now_ms = time_us(time) // 1000
            if (yield from commit(_begin(keys, op, raw, now_ms, reason, children, force))) is not None:
                return
        except LostReply:
            continue
        yield from back_off(attempt)
    raise CommitFailed(MAX_ATTEMPTS, "conflict")


def begin_with(keys: Keys, ops: Sequence[str], noted: Noted, parent: str | None) -> Steps[list[str] | None]:
    """Begin the cancelling of operations that another's transitions have started, where there is any to be begun.

    Args:
        keys: Of their shard.
        ops: The operations.
        noted: The cancelling of the other.
        parent: The other, if it is of this shard: once its cancelling is over, or was begun anew, none is begun.

    Returns:
        Which of them are being cancelled now; ``None`` when that of the other is not this one any more.

    Raises:
        CommitFailed: After 100 conflicts.
    """
    own = [] if parent is None else [keys.control(parent)]
    controls = [keys.control(op) for op in ops]
    looks: list[Command] = [TIME, *[("GET", control) for control in (*own, *controls)]]
    looks += [("EXISTS", keys.active(op), keys.children(op)) for op in ops]
    for attempt in range(MAX_ATTEMPTS):
        try:
            time, *replies = yield from read([*own, *controls], *looks)
            if parent is not None and replies.pop(0) != noted.raw:
                return None
            commands, under_way = list[Command](), list[str]()
            for op, raw, there in zip(ops, replies[: len(ops)], replies[len(ops) :], strict=True):
                so_far = Noted.parse(raw)
                if so_far is None and not there:
                    continue
                under_way.append(op)
                if so_far is None or not so_far.children or so_far.force < noted.force:
                    now_ms = time_us(time) // 1000
                    commands += _begin(keys, op, raw, now_ms, noted.reason, children=True, force=noted.force)
            if not commands or (yield from commit(commands)) is not None:
                return under_way
        except LostReply:
            continue
        yield from back_off(attempt)
    raise CommitFailed(MAX_ATTEMPTS, "conflict")


def _begin(keys: Keys, op: str, raw: object, now_ms: int, reason: str, children: bool, force: bool) -> list[Command]:
    """What begins a cancelling, or joins one that is under way."""
    commands: list[Command] = [("ZADD", keys.schedule, now_ms + LEASE_MS, entry_of(op))]
    if (so_far := Noted.parse(raw)) is None:
        paused = raw.decode(errors="replace") if isinstance(raw, bytes) and raw.startswith(b"paused") else ""
        now = Noted(b"", str(now_ms), children, force, reason, paused)
    else:  # what either asks for is done
        again = so_far.begun and not children
        now = Noted(
            b"", so_far.since, children or so_far.children, force or so_far.force, reason, so_far.paused, begun=again
        )
    if (said := now.said()).encode() != raw:  # else whoever is at it goes on
        commands.append(("SET", keys.control(op), said))
    return commands


def children_begun(keys: Keys, op: str, noted: Noted) -> Steps[None]:
    """Note that the cancelling of all its children has been begun, if this one is under way still; 2 round trips."""
    control = keys.control(op)
    (raw,) = yield from read([control], ("GET", control))
    if raw == noted.raw:
        yield from commit([("SET", control, noted._replace(begun=True).said())])


def entry_of(op: str) -> str:
    """The entry of a cancelling in the schedule."""
    return f"~cancel:{op}"


def noted(keys: Keys, op: str) -> Steps[Noted | None]:
    """The cancelling of an operation, if it is being cancelled; 1 round trip."""
    (raw,) = yield from read([], ("GET", keys.control(op)))
    return Noted.parse(raw)


def children_of(keys: Keys, op: str, cursor: Any) -> Steps[tuple[Any, list[str]]]:
    """Some of the operations that are cancelled with this one, and where to go on: at 0 that was all; 1 round trip.

    No more of them come: nothing commits here, and what a cancel handler starts is not counted among them.
    """
    ((cursor, members),) = yield from read([], ("SSCAN", keys.children(op), cursor, "COUNT", CHILDREN))
    return cursor, [member.decode() for member in members]


def unstarted(keys: Keys, op: str) -> Steps[list[bytes]]:
    """Requests that are to start, in other shards, what its transitions have started; 2 round trips for each 500.

    No more of them come. The list is long only while the broker is away, and then stands still: where pages do not
    meet, requests between them were done meanwhile, and it is looked at from the start.
    """
    found, at, last = dict[bytes, None](), 0, None
    while True:
        (items,) = yield from read([], ("LRANGE", keys.requests, at, at + REQUESTS))
        if last is not None and items[:1] != [last]:
            at, last = 0, None
            continue
        started = {raw: ops for raw in items if (ops := _started_by(raw))}
        looks: list[Command] = [("SISMEMBER", keys.children(op), one) for ops in started.values() for one in ops]
        ours = dict(zip(looks, (yield from read([], *looks)) if looks else (), strict=True))
        children = {str(look[2]) for look, is_one in ours.items() if is_one}
        found |= {raw: None for raw, ops in started.items() if ops & children}
        if len(items) <= REQUESTS:
            return list(found)
        at, last = at + REQUESTS, items[-1]


def _started_by(raw: bytes) -> set[str]:
    """The operations that a request is to start machines in."""
    if b'"kind":"add"' not in raw:  # most are tasks, and may be large
        return set()
    with suppress(ValueError):
        match loads(raw):
            case {"kind": "add", "machines": list(machines)}:
                return {one["operation_id"] for one in cast("list[dict[str, str]]", machines)}
            case _:
                pass
    return set()


def lift(keys: Keys, op: str) -> Steps[bool]:
    """Finish a cancelling when no machine is left; 2 round trips. What is paused, too, is so for what comes later.

    Returns:
        Whether it is over.
    """
    control, entry = keys.control(op), entry_of(op)
    for attempt in range(MAX_ATTEMPTS):
        try:
            raw, there = yield from read([control, keys.active(op)], ("GET", control), ("EXISTS", keys.active(op)))
            under_way = Noted.parse(raw)
            if under_way is not None and there:
                return False
            done: list[Command] = [("ZREM", keys.schedule, entry)]
            if under_way is not None:
                done.append(("DEL", control, keys.held(control)))
                done += [("SET", control, under_way.paused)] if under_way.paused else []
            if (yield from commit(done)) is not None:
                return True  # else one has come meanwhile, and may be held already
        except LostReply:
            continue
        yield from back_off(attempt)
    raise CommitFailed(MAX_ATTEMPTS, "conflict")


def put_off(keys: Keys, op: str, noted: Noted, delay_ms: int) -> Steps[None]:
    """What is left of this cancelling is looked at again later; 2 round trips."""
    control = keys.control(op)
    raw, time = yield from read([control], ("GET", control), TIME)
    if raw == noted.raw:
        yield from commit([("ZADD", keys.schedule, "XX", time_us(time) // 1000 + delay_ms, entry_of(op))])

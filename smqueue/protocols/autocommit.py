"""A function in a transaction of its own: ``autocommit``, and the adding of machines."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Generic, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from smqueue.errors import CommitFailed, TooManyActive
from smqueue.instances import Instances
from smqueue.keys import Keys
from smqueue.protocols.bounds import MARKER_S
from smqueue.protocols.decide import Look, decide
from smqueue.protocols.spawn import Spawned, start, tail, unbegun
from smqueue.records import Active, Placed
from smqueue.roundtrip import Command, LostReply, Steps, back_off, commit, read
from smqueue.standing import Look as Arrivals
from smqueue.standing import parse_inactive, watched
from smqueue.transaction import Transaction

T = TypeVar("T")
MAX_LOST = 10


class Done(Struct, Generic[T]):
    """A committed function."""

    value: T
    machines: list[Spawned]
    requests: list[bytes]
    hint: bool
    """Whether the caller is to send a transition hint."""
    watched: bool


def autocommit(
    keys: Keys,
    instances: Instances,
    module: str | None,
    fn: Callable[[Transaction], T],
    commit_id: str,
    max_attempts: int = 100,
    max_active: int | None = None,
    looks: Callable[[Collection[str]], Arrivals] | None = None,
    trace: str = "",
) -> Steps[Done[T]]:
    """Run ``fn`` and commit what it did; again when something it has read was changed meanwhile.

    2 round trips when ``fn`` reads nothing but what its new machines need, one more for each dependent read.

    ``max_active`` is compared with the length of ``schedule``, where each active machine has an entry, and one more for
    each of its triggers with code (requests, retention and cancellations under way have one, too). That is a look
    without a WATCH, or all that add would be in each other's way: what others add until the EXEC is not seen.

    ``looks`` tells what ``fn`` is known to read: it is looked at before, and ``fn`` runs but once. It is given the
    operations whose history is known to have begun. ``trace`` is the header of the span that this is done in.

    Raises:
        TooManyActive: With the new machines there would be more than ``max_active`` in this shard; nothing was written.
        CommitFailed: After ``max_attempts`` conflicts.
        LostReply: After ``MAX_LOST`` replies were lost; whether it was applied is not known.
        Exception: What ``fn`` raised; nothing was written.
    """
    begun: set[str] = set()
    committing: Done[T] | None = None
    doubtful: Done[T] | None = None  # sent, and its reply lost: it may have been applied, or may yet be
    attempt = lost = 0
    while attempt < max_attempts:
        look = Look()
        try:
            if doubtful is not None and (yield from _applied(keys, commit_id, doubtful.machines)):
                return _recognised(doubtful, lost)
            counted: Command = ("ZCARD", keys.schedule)
            always = [watched(keys), ("TIME",), *([] if max_active is None else [counted])]
            if looks is not None:
                first = looks(begun)
                yield from look.fetch(first.watch, [*first.commands, *always])
            decided = yield from decide(keys, instances, module, fn, look, begun)
            if decided is None:
                attempt += 1
                yield from back_off(attempt)
                continue
            tx, value = decided
            checks = tx.buffer.checks()
            once = (
                [] if tx.starting else [keys.marker(commit_id)]
            )  # whichever of its attempts comes first, no second one
            yield from look.fetch(once, [*checks, *always], check=[str(c[1]) for c in checks])
            if tx.starting and max_active is not None and look.known[counted] + len(tx.starting) > max_active:
                raise TooManyActive(look.known[counted], len(tx.starting), max_active)
            yield from look.verify(tx)
            begun |= unbegun(keys, {placed.op for placed in tx.starting}, look)
            started = yield from start(keys, instances, tx.starting, look, commit_id, trace=trace)
            ending, requests = tail(keys, instances, tx, look.now_us, started.due, commit_id, trace)
            commands = [*started.commands, *ending]
            if not tx.starting and commands:
                commands.insert(0, ("SET", keys.marker(commit_id), "1", "EX", MARKER_S))
            committing = Done(value, started.machines, requests, started.due, bool(look.known[watched(keys)]))
            replies = yield from commit(commands)
        except LostReply:  # no conflict, so no attempt of the caller's
            doubtful, lost = committing, lost + 1
            if lost == MAX_LOST:
                raise
            continue
        if replies is not None:
            return replace(committing, hint=started.due and replies[-1] is not None)
        attempt += 1
        yield from back_off(attempt)
    if doubtful is not None and (yield from _applied(keys, commit_id, doubtful.machines)):
        return _recognised(doubtful, lost)
    raise CommitFailed(max_attempts, "conflict")


def _recognised(doubtful: Done[T], lost: int) -> Done[T]:
    """After several lost replies it is open which attempt was applied: its requests are left to whoever finds them."""
    return replace(doubtful, hint=True, requests=doubtful.requests if lost == 1 else [])


def _applied(keys: Keys, commit_id: str, machines: list[Spawned]) -> Steps[bool]:
    """After a lost reply: whether the commit was applied, told by the record that it made, or else by its marker.

    Watched: should the lost request arrive only now, what is tried after this look is a conflict.
    """
    if not machines:
        marker = keys.marker(commit_id)
        return (yield from read([marker], ("GET", marker)))[0] is not None
    first: Placed = machines[0].placed
    looks = [("HGET", keys.active(first.op), first.field), ("HGET", keys.inactive(first.op), first.field)]
    active, inactive = yield from read([keys.machine(first.record)], *looks)
    made: Any = Active.parse(active).made if active else parse_inactive(inactive).get("made") if inactive else None
    return made == commit_id

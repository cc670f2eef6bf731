"""Checks of what belongs to no machine: the lists of operations, requests, early signals, ids of signals."""

from __future__ import annotations

import json
from collections.abc import Iterator

from smqueue.keys import Keys
from smqueue.protocols.auditing.looking import Check, Sight
from smqueue.protocols.auditing.problems import Kind, Problem
from smqueue.protocols.signal import SEEN_KEPT
from smqueue.records import Item
from smqueue.roundtrip import Command

PAGE = 200


def check_listed(keys: Keys, op: str) -> Check:
    """An operation is listed exactly when it has active machines."""

    def check(see: Sight) -> Iterator[Problem]:
        active, listed, _ = see.all([("EXISTS", keys.active(op)), ("ZSCORE", keys.operations, op), ("TIME",)])
        if active and listed is None:
            yield Problem(
                Kind.OPERATION_NOT_LISTED, op, op, f"operation {op} has active machines, but is not listed", "listed",
                (("ZADD", keys.operations, "NX", see.now_ms, op),),
            )  # fmt: skip
        elif listed is not None and not active:
            yield Problem(
                Kind.OPERATION_WITHOUT_MACHINES, op, op, f"operation {op} is listed, but has no active machine",
                "removed from the list", (("ZREM", keys.operations, op),),
            )  # fmt: skip

    return check


def check_finished(keys: Keys, op: str) -> Check:
    """What is to be forgotten is there; one that has begun again is taken off by whoever looks next."""

    def check(see: Sight) -> Iterator[Problem]:
        noted, active, past = see.all(
            [("ZSCORE", keys.finished, op), ("EXISTS", keys.active(op)), ("EXISTS", keys.inactive(op))]
        )
        if noted is not None and not active and not past:
            yield Problem(
                Kind.ORPHAN_FINISHED, op, op, f"operation {op} is to be forgotten, but there is nothing of it",
                "removed", (("ZREM", keys.finished, op),),
            )  # fmt: skip

    return check


def check_retained(keys: Keys, op: str, forget_ms: int) -> Check:
    """A finished operation whose modules all say how long it is kept is noted with its time."""

    def check(see: Sight) -> Iterator[Problem]:
        noted, active, past, _ = see.all(
            [
                ("ZSCORE", keys.finished, op), ("EXISTS", keys.active(op)), ("EXISTS", keys.inactive(op)), ("TIME",),
            ]
        )  # fmt: skip
        if past and not active and noted is None:
            now: Command = ("ZADD", keys.schedule, "NX", see.now_ms, "~retention")
            yield Problem(
                Kind.NOT_RETAINED, op, op, f"operation {op} has finished and its modules say how long it is kept, but "
                "it is not noted: it ended before they said so, or was cancelled without them", "noted",
                (("ZADD", keys.finished, "NX", forget_ms, op), now),
            )  # fmt: skip

    return check


def check_retention(keys: Keys) -> Check:
    """While anything is to be forgotten somebody will look."""

    def check(see: Sight) -> Iterator[Problem]:
        waiting, score, _ = see.all([("EXISTS", keys.finished), ("ZSCORE", keys.schedule, "~retention"), ("TIME",)])
        if waiting and score is None:
            yield Problem(
                Kind.RETENTION_NOT_SCHEDULED, "", "~retention", "finished operations are to be forgotten, but nobody "
                "is to look", "a worker looks, now", (("ZADD", keys.schedule, "NX", see.now_ms, "~retention"),),
            )  # fmt: skip

    return check


def check_requests(keys: Keys) -> Check:
    """While there are requests somebody will do them."""

    def check(see: Sight) -> Iterator[Problem]:
        length, score, _ = see.all([("LLEN", keys.requests), ("ZSCORE", keys.schedule, "~requests"), ("TIME",)])
        if length and score is None:
            yield Problem(
                Kind.REQUESTS_NOT_SCHEDULED, "", "~requests", f"{length} requests (tasks to send, signals to pass on, "
                "calls of clients) are left, but nobody is to do them", "a worker does them, now",
                (("ZADD", keys.schedule, "NX", see.now_ms, "~requests"),),
            )  # fmt: skip

    return check


def check_request(keys: Keys, raw: bytes) -> Check:
    """A request can be read."""
    try:
        request = json.loads(raw)
        fine = isinstance(request["kind"], str) and isinstance(request["id"], str) and request["due"] is not None
    except (ValueError, KeyError, TypeError, RecursionError):
        fine = False

    def check(see: Sight) -> Iterator[Problem]:
        if not fine and see("LPOS", keys.requests, raw) is not None:
            yield Problem(
                Kind.UNREADABLE_REQUEST, "", "requests", f"a request of {len(raw)} bytes cannot be read",
                "not mended: what was asked is not known; the next worker that sees it drops it, and logs that",
            )  # fmt: skip

    return check


def check_inbox(keys: Keys, op: str, module: str, signal: str, limit: int | None) -> Check:
    """Early signals can be read, and are no more than are kept."""
    inbox, name = keys.inbox(op, module, signal), f"{module}.{signal} of operation {op}"

    def check(see: Sight) -> Iterator[Problem]:
        length = see("LLEN", inbox)
        if limit is not None and length > limit:
            yield Problem(
                Kind.INBOX_OVER_LIMIT, op, f"{module}.{signal}", f"{length} early signals {name} are kept, over the "
                f"limit of {limit}", "not mended: each was accepted; the limit may have been lowered",
            )  # fmt: skip
        bad = sum(
            not _readable(raw) for at in range(0, length, PAGE) for raw in see("LRANGE", inbox, at, at + PAGE - 1)
        )
        if bad:
            yield Problem(
                Kind.UNREADABLE_SIGNAL, op, f"{module}.{signal}", f"{bad} early signals {name} cannot be read: the "
                "machine that is to take them cannot move",
                f"not mended: what was sent is not known; LREM them from {inbox}, then smqueue retry",
            )  # fmt: skip

    return check


def _readable(raw: bytes) -> bool:
    try:
        Item.parse(raw)
    except (ValueError, KeyError, TypeError):
        return False
    return True


def check_seen(keys: Keys, op: str) -> Check:
    """No more ids of signals are kept than are needed."""

    def check(see: Sight) -> Iterator[Problem]:
        count = see("ZCOUNT", keys.seen(op), "-inf", "+inf")
        if count > SEEN_KEPT:
            yield Problem(
                Kind.TOO_MANY_SEEN, op, op, f"{count} ids of signals of operation {op} are kept, over {SEEN_KEPT}",
                "the oldest are removed", (("ZREMRANGEBYRANK", keys.seen(op), 0, -SEEN_KEPT - 1),),
            )  # fmt: skip

    return check


def check_key(name: str) -> Check:
    """A key that is none of ours."""

    def check(see: Sight) -> Iterator[Problem]:
        if see("EXISTS", name):
            yield Problem(
                Kind.UNKNOWN_KEY, "", name, f"key {name} is none that this version knows", "not mended: whose it is "
                "is not known",
            )  # fmt: skip

    return check

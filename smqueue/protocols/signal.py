"""Giving a signal to a machine, or keeping it for one."""

from __future__ import annotations

from enum import Enum
from functools import lru_cache
from typing import NamedTuple

from smqueue.errors import InboxFull, OperationFinished
from smqueue.instances import INBOX_LIMIT, Push, Told
from smqueue.keys import Keys, encode
from smqueue.protocols.bounds import HINT_MS, MARKER_S, RESENDS
from smqueue.records import compact
from smqueue.roundtrip import Arg, Steps, own_call, own_repeat, text

KEPT_MS = 7 * 24 * 3_600_000
SEEN_KEPT = 1_000


class Delivery(Enum):
    """What has become of a signal."""

    DELIVERED = "DELIVERED"
    """Recorded for a machine that waited."""
    BUFFERED = "BUFFERED"
    """Kept, since nobody waited for it yet."""
    DUPLICATE = "DUPLICATE"
    """A signal with the same id was accepted before."""


class Delivered(NamedTuple):
    """An accepted signal; ``hint`` when the caller is to send a transition hint."""

    delivery: Delivery
    hint: bool


def signal(
    keys: Keys,
    told: Told,
    attempt: str,
    *,
    machine: str = "",
    signal_id: str = "",
    request: bytes = b"",
    asked: bytes = b"",
    limit: int = INBOX_LIMIT,
    push: Push | None = None,
    trace: str = "",
) -> Steps[Delivered | None]:
    """Record the signal for the machine that has waited longest, or keep it; 1 round trip.

    Args:
        keys: Of the operation's shard.
        told: The signal, validated and encoded.
        attempt: The same over all attempts of one call.
        machine: Only for the machine of this id.
        signal_id: The caller's; a second signal of the same id is a duplicate.
        request: The stored request that this fulfils; removed in the same script.
        asked: The same, for one that is answered: the answer removes it, and what tells a repetition till then.
        limit: How many are kept.
        push: The hint, if the script is to push it.
        trace: The header of the span that sends it, if there is one.

    Returns:
        ``None`` when the request had been fulfilled already.

    Raises:
        OperationFinished: The operation has had states and none is active.
        InboxFull: ``limit`` early ones are kept already.
    """
    op = told.operation_id
    envelope = {"id": signal_id or attempt}
    if machine:
        envelope["machine"] = machine
    if trace:  # first: there the script looks for it
        envelope = {"trace": trace, **envelope}
    item = f'{compact(envelope)[:-1]},"payload":{told.payload}'
    marker_s = 0 if request else KEPT_MS // 1000 if asked else MARKER_S
    own = (encode(op), told.payload, signal_id, machine, item, request or asked, encode(attempt))
    args = _args(keys.prefix, told.module, told.signal, limit, marker_s, push)
    call = own_call("signal", (keys.schedule, push.queue) if push else (keys.schedule,), args, own)
    reply = yield from own_repeat(call, RESENDS)
    said = text(reply)
    match said:
        case "GONE":
            return None
        case "FINISHED":
            raise OperationFinished(op, told.signal)
        case "FULL":
            raise InboxFull(op, told.signal, limit)
        case _:
            return ACCEPTED[said]


ACCEPTED = {each.value: Delivered(each, hint=False) for each in Delivery} | {
    "HINT": Delivered(Delivery.DELIVERED, hint=True)
}


@lru_cache(maxsize=64)
def _args(prefix: str, module: str, name: str, limit: int, marker_s: int, push: Push | None) -> tuple[Arg, ...]:
    """What is the same for all that are sent under a name: made but once, so that groups see at once that it is."""
    pushed = (push.database, push.message, push.mark) if push else ("", "", "")
    return prefix, encode(module), encode(name), name, limit, KEPT_MS, marker_s, HINT_MS, SEEN_KEPT, *pushed

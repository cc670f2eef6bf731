"""What a commit leaves to be done right after it, and what clients without machine code ask of a worker.

Each item is removed by the one who has done it, and carries an id that makes doing it twice harmless.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from smqueue.errors import OutboxFull, error_text
from smqueue.keys import Keys
from smqueue.protocols.bounds import LEASE_MS, REQUESTS_KEPT, RESENDS
from smqueue.roundtrip import Steps, call, commit, read, repeat, text

plain = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
"""ASCII: what a client sends may hold lone surrogates, and it is for a worker to say in which field."""

BATCH = 100
POSTPONED_MS = 60_000
ANSWER_S = 600


class Request(NamedTuple):
    """One item."""

    raw: bytes
    data: dict[str, Any]


def stored(data: Mapping[str, Any], due_ms: int) -> bytes:
    """A request as it is stored: others leave it to its maker until ``due_ms``."""
    return plain({**data, "due": due_ms}).encode()


def parse(raw: bytes) -> Request:
    """Raises ValueError when it is none."""
    return Request(raw, json.loads(raw))


def pending(keys: Keys, offset: int = 0) -> Steps[tuple[int, list[bytes]]]:
    """A page of requests, and Redis's clock in ms; 1 round trip. Those that are due are the caller's to do."""

    def read(reply: Any) -> tuple[int, list[bytes]]:
        return int(reply[0]), list(reply[1:])

    return (yield from call("requests", (keys.requests, keys.schedule), (offset, BATCH, LEASE_MS), read))


def postpone(keys: Keys, request: Request) -> Steps[None]:
    """It could not be done: later, and behind the others; 1 round trip."""
    tries = int(request.data.get("tries", 0)) + 1
    later = {name: value for name, value in request.data.items() if name != "due"}
    item = plain({**later, "tries": tries})[:-1]
    delay_ms = min(1000 * 2**tries, POSTPONED_MS)
    yield from call("postpone", (keys.requests,), (request.raw, item, delay_ms), lambda _: None)


def set_aside(keys: Keys, request: Request, error: Exception) -> Steps[None]:
    """It can never be done: kept where somebody may look, with its error; 2 round trips.

    Only by one: who finds it gone, or changed meanwhile, leaves it as it is, and it is found again.
    """
    item = plain({**request.data, "error": error_text(error)})
    (there,) = yield from read([keys.requests], ("LPOS", keys.requests, request.raw))
    if there is not None:
        yield from commit([("LREM", keys.requests, 1, request.raw), ("RPUSH", keys.unsent, item)])


def remove(keys: Keys, request: bytes) -> Steps[None]:
    """Done; 1 round trip."""
    yield from commit([("LREM", keys.requests, 1, request)])


def ask(keys: Keys, data: Mapping[str, Any]) -> Steps[None]:
    """Ask a worker; 1 round trip. The same id may be asked again: nothing is done twice.

    Raises:
        OutboxFull: No worker has come to ``REQUESTS_KEPT`` earlier ones yet.
    """
    names = (keys.requests, keys.schedule, keys.marker("ask:" + str(data["id"])), keys.wake)
    args = (stored(data, 0), ANSWER_S, REQUESTS_KEPT)
    if not (yield from repeat("ask", names, args, bool, RESENDS)):
        raise OutboxFull(f"namespace {keys.namespace}", REQUESTS_KEPT, "no worker has come to them; ask again later")


def answer(keys: Keys, request: bytes, id: str, body: Mapping[str, Any]) -> Steps[bool]:
    """Answer a client; 1 round trip."""
    names = (keys.requests, keys.reply(id), keys.marker(id))
    return (yield from call("answer", names, (request, plain(body), ANSWER_S), lambda r: bool(r) and text(r) == "1"))

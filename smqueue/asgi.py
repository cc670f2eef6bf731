"""Server-Sent Events of operations as an ASGI application: to mount in FastAPI, Starlette, or to run by itself."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs

from smqueue.async_client import AsyncClient, TypedAsyncClient
from smqueue.drivers.together import ClientClosed
from smqueue.errors import HistoryRewound, InvalidInput, StoreRefused, StoreUnavailable
from smqueue.following import Update
from smqueue.notifier import AsyncUpdates
from smqueue.sse import HEARTBEAT, START, event_of, rewound

log = logging.getLogger("smqueue.asgi")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Allow = Callable[[Scope, str], bool | Awaitable[bool]]

HEARTBEAT_S = 15.0
"""Proxies close what is silent for a minute, commonly."""
DIGITS = 18
"""Of a sequence: more cannot be one."""
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # else nginx keeps events until it has a page of them
]


class OperationEvents:
    """``GET /<operation id>``, below where it is mounted, streams the updates of that operation for ever.

    The history comes first, then what happens, each once and in order; ``id`` is the sequence. An ``EventSource`` that
    reconnects misses nothing and is told nothing twice. ``?after=7`` begins behind a sequence, ``?module=orders`` tells
    of one module alone. It ends when the client leaves, or Redis is not there; then the client comes back by itself.

    Args:
        client: Open for as long as this is served; many streams share its few connections.
        allow: Whether this request may see this operation, also as a coroutine function; else 403. Operations are not
            known to be there or not before that.
        event: Makes an event of an update, ending with an empty line; or nothing, for one that is not to be told.
        heartbeat_s: Seconds of silence after which a comment is sent.
    """

    def __init__(
        self, client: AsyncClient | TypedAsyncClient, *, allow: Allow, event: Callable[[Update], str] = event_of,
        heartbeat_s: float = HEARTBEAT_S,
    ) -> None:  # fmt: skip
        self._client, self._allow, self._event, self._heartbeat_s = client, allow, event, heartbeat_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, by the ASGI specification."""
        if scope["type"] != "http":
            raise NotImplementedError(f"OperationEvents serves http, not {scope['type']}")  # as the specification wants
        if scope["method"] != "GET":
            return await _refuse(send, 405, "only GET is served here")
        operation_id = _below(scope)
        if not operation_id:
            return await _refuse(send, 404, "name an operation: /<operation id>")
        allowed = self._allow(scope, operation_id)
        if not (allowed if isinstance(allowed, bool) else await allowed):
            return await _refuse(send, 403, "this operation is not for you")
        try:
            after, module = _asked(scope)
            updates = self._client.subscribe(operation_id, module, after)
        except InvalidInput as error:
            return await _refuse(send, 400, str(error))
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        await _say(send, HEARTBEAT)  # the headers leave now, not with the first event
        try:
            ends = await self._stream(updates, receive, send)
        except (StoreUnavailable, StoreRefused, ClientClosed) as error:
            log.warning("a stream of operation %s ends: %s", operation_id, error)
            ends = True
        if ends:
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        return None

    async def _stream(self, updates: AsyncUpdates, receive: Receive, send: Send) -> bool:
        """Until there is an end to send; ``False`` when the client has left."""
        async with updates:
            left, coming = asyncio.ensure_future(_disconnected(receive)), asyncio.ensure_future(_next(updates))
            try:
                while True:
                    await asyncio.wait({left, coming}, timeout=self._heartbeat_s, return_when=asyncio.FIRST_COMPLETED)
                    if left.done():
                        return False
                    if not coming.done():
                        await _say(send, HEARTBEAT)
                        continue
                    if text := self._event(coming.result()):
                        await _say(send, text)
                    coming = asyncio.ensure_future(_next(updates))
            except HistoryRewound as error:
                await _say(send, rewound(error))
                return True
            finally:  # before the subscription ends, which is what ``coming`` waits for
                left.cancel()
                coming.cancel()
                await asyncio.gather(left, coming, return_exceptions=True)


async def _next(updates: AsyncUpdates) -> Update:
    return await updates.__anext__()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _below(scope: Scope) -> str:
    """The path below where it is mounted."""
    path, root = str(scope["path"]), str(scope.get("root_path", "")).rstrip("/")
    inside = path == root or path.startswith(f"{root}/")  # by the specification always; older frameworks cut it off
    return (path.removeprefix(root) if inside else path).removeprefix("/")


def _asked(scope: Scope) -> tuple[int | None, str | None]:
    """Behind which sequence, and of which module; raises InvalidInput."""
    query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
    module = query.get("module", [None])[-1]
    spelled, field = query.get("after", [None])[-1], "after"
    for name, value in scope["headers"]:
        if name == b"last-event-id" and value:  # of a client that comes back: it knows more than its address
            spelled, field = value.decode("latin-1"), "Last-Event-ID"
    if spelled is None or (spelled == START and field == "Last-Event-ID"):
        return None, module
    if not (spelled.isascii() and spelled.isdecimal() and len(spelled) <= DIGITS):
        raise InvalidInput(field, "expected a sequence, which is a whole number from 0")
    return int(spelled), module


async def _say(send: Send, text: str) -> None:
    await send({"type": "http.response.body", "body": text.encode(), "more_body": True})


async def _refuse(send: Send, status: int, text: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": f"{text}\n".encode()})

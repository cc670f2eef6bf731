"""What ``uvicorn examples.web.app:app`` serves.

What a body has to be is known to the workers alone: they validate it against the machine's own types, and what they
refuse comes back as an error with the field.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, HTTPException, Request
from fastapi.responses import JSONResponse

from smqueue import AsyncClient
from smqueue.asgi import OperationEvents, Receive, Scope, Send
from smqueue.errors import (
    AwaitTimeout,
    InboxFull,
    InvalidInput,
    OperationFinished,
    OutboxFull,
    SmqueueError,
    StateAlreadyExists,
    StoreUnavailable,
    TooLarge,
    TooManyActive,
)

URL, NAMESPACE = os.environ["SMQUEUE_URL"], os.environ.get("SMQUEUE_NAMESPACE") or "smqueue"
SECRET = os.environ.get("WEBHOOK_SECRET", "")
TIMEOUT_S = 10.0


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    """One client for the whole application, for as long as it is served: what its requests ask travels together."""
    async with AsyncClient(URL, NAMESPACE) as client:
        app.state.client = client
        yield


def client_of(request: Request) -> AsyncClient:
    """The application's client."""
    return request.app.state.client


Opened = Annotated[AsyncClient, Depends(client_of)]
app = FastAPI(title="Orders", lifespan=lifespan)


def may_follow(scope: Scope, order_id: str) -> bool:
    """Who may be told of an order: here anybody of those beginning with o-; elsewhere look at the scope's session."""
    return order_id.startswith("o-")


async def events(scope: Scope, receive: Receive, send: Send) -> None:
    """An EventSource at /events/o-1 is told of each step of order o-1, the past ones first."""
    await OperationEvents(app.state.client, allow=may_follow)(scope, receive, send)


app.mount("/events", events)


@app.put("/orders/{order_id}", status_code=201)
async def start(order_id: str, body: dict[str, Any], client: Opened) -> dict[str, str]:
    """Start an order; again is 409, and changes nothing."""
    state = {**body, "order_id": order_id}
    machine = {"operation_id": order_id, "module": "orders", "type": "Awaiting", "state": state}
    (machine_id,) = await client.add([machine], timeout=TIMEOUT_S)
    return {"machine_id": machine_id}


@app.post("/orders/{order_id}/payment", status_code=202)
async def pay(
    order_id: str, body: dict[str, Any], client: Opened, idempotency_key: Annotated[str | None, Header()] = None
) -> dict[str, str]:
    """Pay an order. With the header Idempotency-Key a call whose answer was lost may be made again."""
    delivery = await client.signal(order_id, "payment", body, id=idempotency_key, timeout=TIMEOUT_S)
    return {"delivery": delivery.value}


@app.post("/webhooks/payments")
async def webhook(request: Request, client: Opened, x_signature: Annotated[str, Header()] = "") -> dict[str, str]:
    """A payment provider calls, and calls again until it is answered: its event's id makes one payment of all that."""
    raw = await request.body()
    expected = hmac.new(SECRET.encode(), raw, hashlib.sha256).hexdigest()
    if not SECRET or not hmac.compare_digest(expected.encode(), x_signature.encode()):
        raise HTTPException(401, "the signature is not that of this body")
    try:
        event = json.loads(raw)
        order_id, event_id, payload = event["order_id"], event["id"], {"amount": event["amount"]}
    except (ValueError, KeyError, TypeError) as error:
        raise HTTPException(400, f"not an event of a payment: {type(error).__name__}: {error}") from None
    if not (isinstance(event_id, str) and event_id):  # without it, each call would be one more payment
        raise HTTPException(400, "not an event of a payment: its id is no text, or empty")
    delivery = await client.signal(order_id, "payment", payload, id=event_id, timeout=TIMEOUT_S)
    return {"delivery": delivery.value}  # DUPLICATE is no error: the provider has been heard


# --- what is refused -------------------------------------------------------------------------------------------------

STATUS: dict[type[SmqueueError], int] = {
    StateAlreadyExists: 409,
    OperationFinished: 409,
    TooLarge: 413,
    InboxFull: 503,
    OutboxFull: 503,
    TooManyActive: 503,
    StoreUnavailable: 503,
    AwaitTimeout: 504,  # no worker has answered; whether one will is not known
}


@app.exception_handler(InvalidInput)
async def unfit(_: Request, error: InvalidInput) -> JSONResponse:
    """422 with the field, in FastAPI's own form."""
    field = error.field.partition(".")[2] or error.field  # without the state or signal that it is a field of
    detail = {"type": type(error).__name__, "loc": ["body", *field.split(".")], "msg": error.problem}
    return JSONResponse({"detail": [detail]}, 422)


@app.exception_handler(SmqueueError)
async def failed(_: Request, error: SmqueueError) -> JSONResponse:
    """What else there is, with its text."""
    status = next((code for kind, code in STATUS.items() if isinstance(error, kind)), 500)
    headers = {"retry-after": "1"} if status == 503 else None
    return JSONResponse({"detail": str(error), "type": type(error).__name__}, status, headers)

"""An application whose every process writes its spans to a file: a web service, and the machines that it feeds."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from smqueue import AsyncClient, Context, Failed, Module, State, StateMachine, Transaction, after, poll, task, wait
from tests.apps.wiring import application, executor_on
from tests.tracing import Lines

provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(Lines(Path(os.environ["TEST_DIR"]))))
if os.environ.get("TEST_TRACED") == "yes":
    trace.set_tracer_provider(provider)
if os.environ.get("TEST_INSTRUMENTED") == "yes":
    CeleryInstrumentor().instrument()

app = application("traced")
tracer = trace.get_tracer("traced")

orders = Module("orders", version=1)


@orders.state
class Awaiting(State):
    order: str


@orders.state
class Packing(State):
    order: str


@orders.state
class Labelling(State):
    order: str


@orders.state
class Handing(State):
    order: str


@orders.state(terminal=True)
class Shipped(State):
    order: str


@dataclass(frozen=True)
class Payment:
    amount: int


payment = orders.signal("payment", Payment)


def first(what: str, order: str) -> bool:
    """Whether something is done for the first time: a file says so, since its process may die of it."""
    try:
        os.close(os.open(f"{os.environ['TEST_DIR']}/{what}-{order}", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


@orders.on(Awaiting, payment)
def paid(tx: Transaction, state: Awaiting, received: Payment) -> Packing:
    if state.order.startswith("deadly") and first("killed", state.order):
        os.kill(os.getpid(), signal.SIGKILL)
    with tracer.start_as_current_span("booking"):
        tx.send_task("traced.mail", args=[state.order])
    return Packing(state.order)


@orders.on(Awaiting, after(minutes=30))
def expired(tx: Transaction, state: Awaiting, _: None) -> Shipped:
    return Shipped(state.order)


def look(state: Packing, context: Context) -> str | None:
    with tracer.start_as_current_span("looking"):
        return None if first("packed", state.order) else "packed"


@orders.on(Packing, poll(look, every=timedelta(milliseconds=50)))
def packed(tx: Transaction, state: Packing, found: str) -> Labelling:
    return Labelling(state.order)


@app.task(name="traced.label")
def label(order: str) -> str:
    with tracer.start_as_current_span("labelling"):
        return f"label of {order}"


@app.task(name="traced.mail")
def mail(order: str) -> None:
    with tracer.start_as_current_span("mailing"):
        pass


@orders.on(Labelling, task(lambda state: label.s(state.order)))
def labelled(tx: Transaction, state: Labelling, got: str | Failed) -> Handing:
    return Handing(state.order)


async def hand_over(state: Handing, context: Context) -> str:
    with tracer.start_as_current_span("handing over"):
        return "gone"


@orders.on(Handing, wait(hand_over))
def handed_over(tx: Transaction, state: Handing, got: str | Failed) -> Shipped:
    return Shipped(state.order)


executor = executor_on(app, orders=orders)


@asynccontextmanager
async def clients(web: FastAPI) -> AsyncIterator[None]:
    url, namespace = os.environ["TEST_STATE_URL"], os.environ["TEST_NAMESPACE"]
    async with executor.async_client() as typed, AsyncClient(url, namespace) as plain:
        web.state.typed, web.state.plain = typed, plain
        yield


web = FastAPI(lifespan=clients)


@web.post("/orders/{order}")
async def add_order(order: str) -> None:
    await web.state.typed.add([StateMachine(order, Awaiting(order))])


@web.post("/orders/{order}/payment")
async def pay(order: str, amount: int) -> str:
    return str(await web.state.typed.signal(order, payment, Payment(amount)))


@web.post("/plain/{order}")
async def add_plain(order: str) -> None:
    machine = {"operation_id": order, "module": "orders", "type": "Awaiting", "state": {"order": order}}
    await web.state.plain.add([machine])


@web.post("/plain/{order}/payment")
async def pay_plain(order: str, amount: int) -> str:
    return str(await web.state.plain.signal(order, "payment", {"amount": amount}))


FastAPIInstrumentor.instrument_app(web)

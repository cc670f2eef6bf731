"""An application whose triggers and handlers hang, wired by the environment alone."""

from __future__ import annotations

import asyncio
import os
import threading
from datetime import timedelta

from smqueue import Context, Failed, Module, Retry, State, Transaction, call, now, poll
from tests.apps.wiring import application, executor_on

hanging = Module(
    "hanging",
    version=1,
    retry=Retry(max_attempts=2, base=timedelta(milliseconds=1)),
    handler_timeout=timedelta(milliseconds=500),
)
LIMIT = timedelta(milliseconds=500)


@hanging.state
class Calling(State):
    how: str


@hanging.state
class Polling(State):
    how: str


@hanging.state
class Handling(State):
    n: int


@hanging.state(terminal=True)
class Over(State):
    what: str


def first_time(context: Context) -> bool:
    """Whether this is the first attempt for this operation, in any process."""
    try:
        with open(f"{os.environ['TEST_DIR']}/{context.operation_id}", "x"):
            return True
    except FileExistsError:
        return False


def blocking() -> None:
    threading.Event().wait(3600)


async def hang(how: str) -> str:
    if how == "raises its own":
        async with asyncio.timeout(0.01):
            await asyncio.Event().wait()
    await asyncio.Event().wait()
    return "never"


def reach(state: Calling, context: Context) -> str:
    blocking()
    return "never"


async def reach_async(state: Calling, context: Context) -> str:
    return await hang(state.how)


def look(state: Polling, context: Context) -> str | None:
    if first_time(context):
        blocking()
    return "second time"


async def look_async(state: Polling, context: Context) -> str | None:
    if first_time(context):
        await hang(state.how)
    return "second time"


def reach_either(state: Calling, context: Context) -> object:
    return reach(state, context) if state.how == "blocks" else reach_async(state, context)


def look_either(state: Polling, context: Context) -> object:
    return look(state, context) if state.how == "blocks" else look_async(state, context)


@hanging.on(Calling, call(reach_either, timeout=LIMIT, retry=Retry(max_attempts=1)))  # type: ignore[arg-type]
def reached(tx: Transaction, state: Calling, got: str | Failed) -> Over:
    return Over(got.error if isinstance(got, Failed) else got)


@hanging.on(Polling, poll(look_either, every=timedelta(milliseconds=20), timeout=LIMIT))  # type: ignore[arg-type]
def looked(tx: Transaction, state: Polling, got: str) -> Over:
    return Over(got)


@hanging.on(Handling, now())
def handled(tx: Transaction, state: Handling, _: None) -> Over:
    if state.n:
        blocking()
    return Over("handled")


app = application("hanging")
executor = executor_on(app, hanging=hanging)

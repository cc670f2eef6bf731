"""An application under test whose coroutines wait until they are cancelled; each process notes both in a file."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from celery import Celery

from smqueue import Context, ExecutorBuilder, Failed, Module, State, Transaction, wait

app = Celery("hosting", broker=os.environ.get("TEST_BROKER_URL"), set_as_current=False)
app.conf.update(
    task_ignore_result=True,
    broker_connection_retry_on_startup=True,
    task_default_queue=os.environ.get("TEST_QUEUE", "celery"),
)

hosting = Module("hosting", version=1)


@hosting.state
class Pending(State):
    n: int


@hosting.state(terminal=True)
class Freed(State):
    n: int


free = hosting.signal("free")


def _note(what: str, op: str) -> None:
    with open(Path(os.environ["TEST_DIR"]) / f"{what}-{os.getpid()}", "a") as file:
        file.write(f"{op}\n")


async def pend(state: Pending, context: Context) -> None:
    _note("started", context.operation_id)
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        _note("cancelled", context.operation_id)
        raise


@hosting.on(Pending, wait(pend))
def came(tx: Transaction, state: Pending, got: Failed | None) -> Freed:
    return Freed(-1)


@hosting.on(Pending, free)
def freed(tx: Transaction, state: Pending, _: None) -> Freed:
    tx.incrby("freed", 1)
    return Freed(state.n)


executor = (
    ExecutorBuilder()
    .with_module("hosting", hosting)
    .build(app, url=os.environ.get("TEST_STATE_URL"), namespace=os.environ.get("TEST_NAMESPACE"))
)

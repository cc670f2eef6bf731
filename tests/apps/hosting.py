"""An application under test whose coroutines wait until they are cancelled; each process notes both in a file."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from smqueue import Context, Failed, Module, State, Transaction, wait
from tests.apps.wiring import application, executor_on

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


app = application("hosting")
executor = executor_on(app, hosting=hosting)

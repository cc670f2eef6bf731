"""An application with a handler that a test holds at its first run; wired by the environment alone."""

from __future__ import annotations

import os
from pathlib import Path

from celery import Celery

from smqueue import ExecutorBuilder, Module, State, Transaction
from tests.waiting import wait_until

held = Module("held", version=1)
begin = held.signal("begin")


@held.state
class Idle(State):
    name: str


@held.state(terminal=True)
class Done(State):
    name: str
    by: int


def folder() -> Path:
    """Where the test and the handler meet."""
    return Path(os.environ["TEST_DIR"])


@held.on(Idle, begin)
def move(tx: Transaction, state: Idle, _: None) -> Done:
    tx.incrby(f"moved:{state.name}", 1)
    entered, go, left = (folder() / f"{state.name}.{step}" for step in ("entered", "go", "left"))
    try:
        with entered.open("x") as file:
            file.write(str(os.getpid()))
    except FileExistsError:
        return Done(state.name, os.getpid())  # another run of it is being held
    wait_until(go.exists, "the test lets the handler go on", timeout_s=25)
    left.touch()
    return Done(state.name, os.getpid())


app = Celery("held")
executor = ExecutorBuilder().with_module("held", held).build(app)

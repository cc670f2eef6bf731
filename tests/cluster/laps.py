"""The workers' application in test_trouble.py, mounted there as ``app.py``: machines that count their laps until they
are told to stop, in two releases.

Each lap is counted twice: in the machine's own state, and in a key that its transition writes. They agree only if every
transition has happened exactly once.
"""

from __future__ import annotations

import os
import threading
from typing import Any, NamedTuple

from celery import Celery
from celery.signals import celeryd_init

from smqueue import Executor, ExecutorBuilder, Module, State, StateMachine, Transaction, now

MODULE = "laps"
HANDLER_S = 0.02


class Release(NamedTuple):
    """One version of the module, and how it starts a machine."""

    module: Module[Any]
    running: Any
    done: Any

    def machine(self, operation_id: str, group: str) -> StateMachine:
        return StateMachine(operation_id, self.running(group, 0), MODULE)


def lap(tx: Transaction) -> None:
    threading.Event().wait(HANDLER_S)
    tx.incrby("laps")
    tx.hincrby("worked", worker_name)


def first_release() -> Release:
    """A machine runs lap after lap."""
    module: Module[Any] = Module(MODULE, version=1)

    @module.state
    class Running(State):
        group: str
        lap: int

    @module.state(terminal=True)
    class Done(State):
        lap: int

    @module.on(Running, now())
    def ran(tx: Transaction, state: Running, _: None) -> Running | Done:
        if tx.exists(f"stop {state.group}"):
            return Done(state.lap)
        lap(tx)
        return Running(state.group, state.lap + 1)

    return Release(module, Running, Done)


def second_release() -> Release:
    """What runs has a shirt, and rests after each lap: a field and a state that the first release does not know."""
    module: Module[Any] = Module(MODULE, version=2)

    @module.state
    class Running(State):
        group: str
        lap: int
        shirt: str

    @module.state
    class Resting(State):
        group: str
        lap: int
        shirt: str

    @module.state(terminal=True)
    class Done(State):
        lap: int

    @module.migrate(Running, since=2)
    def dressed(old: dict[str, Any]) -> dict[str, Any]:
        return {**old, "shirt": "old"}

    @module.on(Running, now())
    def ran(tx: Transaction, state: Running, _: None) -> Resting | Done:
        if tx.exists(f"stop {state.group}"):
            return Done(state.lap)
        lap(tx)
        return Resting(state.group, state.lap + 1, state.shirt)

    @module.on(Resting, now())
    def rested(tx: Transaction, state: Resting, _: None) -> Running:
        return Running(state.group, state.lap, state.shirt)

    return Release(module, lambda group, lap: Running(group, lap, "new"), Done)


FIRST, SECOND = first_release(), second_release()


def build(app: Celery, release: Release, url: str | None = None, namespace: str | None = None) -> Executor:
    """Make the executor; a worker leaves URL and namespace to its environment."""
    return ExecutorBuilder().with_module(MODULE, release.module).build(app, url=url, namespace=namespace)


app = Celery("cluster", set_as_current=False)  # tests import this file too, and have an application already
executor = build(app, SECOND if os.environ.get("LAPS_RELEASE") == "2" else FIRST)
worker_name = ""


@celeryd_init.connect
def note_name(sender: str, **_: Any) -> None:
    global worker_name
    worker_name = sender

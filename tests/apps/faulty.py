"""An application whose handlers fail in every way, wired by the environment alone."""

from __future__ import annotations

import os
import signal
import threading
from datetime import timedelta

from smqueue import Module, Retry, State, StateMachine, Transaction, after, now, poll
from tests.apps.wiring import application, executor_on

faulty = Module(
    "faulty",
    version=1,
    retry=Retry(max_attempts=2, base=timedelta(milliseconds=1)),
    handler_timeout=timedelta(milliseconds=300),
)


@faulty.state
class Trying(State):
    """Waits for a word about how to go on."""

    n: int


@faulty.state
class Asking(State):
    """Polls for ever."""

    n: int


@faulty.state
class Bound(State):
    """Waits for one thing only, which can be spent."""

    n: int
    patience: timedelta = timedelta(minutes=30)


@faulty.state
class Bad(State):
    """Fails at once."""

    how: str


@faulty.state(terminal=True)
class Fine(State):
    n: int


word = faulty.signal("word", str)
fixed: dict[str, bool] = {}
"""By operation: its handlers fail no more. A test's way to deploy a fix."""


@faulty.on((Trying, Asking), word)
def told(tx: Transaction, state: Trying | Asking, how: str) -> Fine | Trying | None:
    if how == "stay":
        return None
    if how.startswith("spawn "):
        tx.add_state_machines([StateMachine(how.removeprefix("spawn "), Trying(1))])
        return None
    if not fixed.get("all"):
        fail(tx, how)
    return None if how == "undecided" else Fine(state.n)


def nothing(state: Asking) -> int | None:
    return None


@faulty.on(Asking, poll(nothing, every=timedelta(milliseconds=20)))
def asked(tx: Transaction, state: Asking, found: int) -> Fine:
    return Fine(found)


@faulty.on(Bound, after(lambda state: state.patience))
def spent(tx: Transaction, state: Bound, _: None) -> Fine | None:
    return Fine(state.n) if fixed.get("all") else None


@faulty.on(Bad, now())
def began(tx: Transaction, state: Bad, _: None) -> Fine:
    fail(tx, state.how)
    return Fine(0)


def fail(tx: Transaction, how: str) -> None:
    tx.incrby("tried")
    match how:
        case "raise" | "undecided":
            raise ValueError("broken on purpose")
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "sleep":
            threading.Event().wait(3600)
        case "deaf":
            deaf()
        case "wrong kind":
            tx.set("text", "no number")
            tx.incrby("text")
        case _:
            pass


def deaf() -> None:
    """Never returns, and swallows what would interrupt it."""
    while True:
        try:
            threading.Event().wait(3600)
        except Exception:
            continue


app = application("faulty")
executor = executor_on(app, faulty=faulty)

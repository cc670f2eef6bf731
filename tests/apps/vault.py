"""An application under test that keeps secrets: every way by which one is stored, and one that fails with it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated

from smqueue import (
    Context,
    ExecutorBuilder,
    Failed,
    FernetCodec,
    Module,
    Retry,
    Secret,
    State,
    StateMachine,
    Transaction,
    after,
    call,
    channel,
    now,
    poll,
    reached,
    task,
    wait,
)  # fmt: skip
from tests.apps.wiring import application

HUSH = "hush"
"""In every secret of these machines."""

vault = Module("vault", retry=Retry(max_attempts=2, base=timedelta(milliseconds=10)))


@dataclass(frozen=True)
class Pin:
    pin: Annotated[str, Secret]
    who: str = "ann"


opening = vault.signal("opening", Pin)
note = vault.signal("note", Annotated[str, Secret])


@vault.state
class Locked(State):
    name: str
    key: Annotated[str, Secret]


@vault.state
class Asking(State):
    name: str
    key: Annotated[str, Secret]


@vault.state
class Calling(State):
    name: str
    key: Annotated[str, Secret]


@vault.state
class Hosting(State):
    name: str
    key: Annotated[str, Secret]


@vault.state
class Listening(State):
    room: str
    key: Annotated[str, Secret]


@vault.state
class Tasking(State):
    name: str
    key: Annotated[str, Secret]


@vault.state
class Watching(State):
    other: str
    key: Annotated[str, Secret]


@vault.state
class Spawning(State):
    others: tuple[str, ...]
    key: Annotated[str, Secret]


@vault.state
class Failing(State):
    name: str
    key: Annotated[str, Secret]


@vault.state(terminal=True)
class Open(State):
    name: str
    key: Annotated[str, Secret]


@vault.on(Locked, opening)
def opened(tx: Transaction, state: Locked, got: Pin) -> Open | None:
    return Open(state.name, f"{state.key} {got.pin}") if got.who != "nobody" else None


@vault.on(Locked, note)
def noted(tx: Transaction, state: Locked, got: str) -> Locked:
    return Locked(state.name, got)


@vault.on(Locked, after(minutes=30))
def expired(tx: Transaction, state: Locked, _: None) -> Open:
    return Open(state.name, "")


def ask(state: Asking | Calling, context: Context) -> Pin:
    return Pin(f"{HUSH} asked {state.key}")


@vault.on(Asking, poll(ask, every=timedelta(milliseconds=50)))
def answered(tx: Transaction, state: Asking, got: Pin) -> Calling:
    return Calling(state.name, got.pin)


@vault.on(Calling, call(ask))
def called(tx: Transaction, state: Calling, got: Pin | Failed) -> Hosting:
    return Hosting(state.name, got.pin if isinstance(got, Pin) else got.error)


async def linger(state: Hosting, context: Context) -> Pin:
    return Pin(f"{HUSH} hosted {state.key}")


@vault.on(Hosting, wait(linger))
def hosted(tx: Transaction, state: Hosting, got: Pin | Failed) -> Open:
    return Open(state.name, got.pin if isinstance(got, Pin) else got.error)


@vault.on(Listening, channel(lambda state: state.room, payload_type=Pin))
def heard(tx: Transaction, state: Listening, got: Pin) -> Open:
    return Open(state.room, got.pin)


app = application("vault")


@app.task(name="vault.reverse")
def reverse(text: str) -> str:
    return text[::-1]


@vault.on(Tasking, task(lambda state: reverse.s(state.key)))
def reversed_(tx: Transaction, state: Tasking, got: Annotated[str, Secret] | Failed) -> Open:
    return Open(state.name, got.error if isinstance(got, Failed) else got)


@vault.on(Watching, reached(lambda state: state.other, Open))
def saw(tx: Transaction, state: Watching, other: Open) -> Open:
    return Open(state.other, f"{state.key} {other.key}")


@vault.on(Spawning, now())
def spawned(tx: Transaction, state: Spawning, _: None) -> Open:
    for other in state.others:
        tx.add_state_machines([StateMachine(other, Locked(other, f"{HUSH} spawned"))])
        tx.signal(other, opening, Pin(f"{HUSH} told"))
    return Open("spawning", state.key)


@vault.on(Failing, now())
def failed(tx: Transaction, state: Failing, _: None) -> Open:
    raise ValueError(f"no door has the key {state.key!r}: {state.key.encode()!r}")


keys = os.environ.get("TEST_SECRET_KEYS", "")
builder = ExecutorBuilder().with_module("vault", vault)
if keys:
    builder = builder.with_secrets(FernetCodec(keys.split(",")))
app.conf.smqueue_shards = int(os.environ.get("TEST_SHARDS", "1"))
executor = builder.build(app, url=os.environ.get("TEST_STATE_URL"), namespace=os.environ.get("TEST_NAMESPACE"))

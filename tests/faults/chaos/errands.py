"""Machines for what orders and cases leave out: a coroutine, signals of a transition, the end of another operation.

An errand asks (a coroutine on a worker's event loop), and in one commit starts a listener and sends it two answers,
which travel by the outbox. A follower, an operation of its own, waits until the errand has finished.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from smqueue import Context, Failed, Module, State, StateMachine, Transaction, finished, wait

errands, listeners, followers = Module("errands"), Module("listeners"), Module("followers")
ANSWERS = (1, 2)
"""Their sum tells apart two different ones from one that came twice."""


@errands.state
class Asking(State):
    errand: str


@errands.state(terminal=True)
class Asked(State):
    errand: str


@errands.state(terminal=True)
class AskedInVain(State):
    errand: str


@listeners.state
class Listening(State):
    errand: str
    heard: int = 0
    total: int = 0


@listeners.state(terminal=True)
class Heard(State):
    errand: str


@listeners.state(terminal=True)
class Garbled(State):
    errand: str
    total: int


@followers.state
class Following(State):
    errand: str


@followers.state(terminal=True)
class Followed(State):
    errand: str


@dataclass(frozen=True)
class Answer:
    """One of ``ANSWERS``."""

    number: int


answer = listeners.signal("answer", Answer)


async def ask(state: Asking, context: Context) -> str:
    await asyncio.sleep(0.1)
    return state.errand


@errands.on(Asking, wait(ask))
def asked(tx: Transaction, state: Asking, said: str | Failed, context: Context) -> Asked | AskedInVain:
    if said != state.errand:
        return AskedInVain(state.errand)
    tx.add_state_machines([StateMachine(context.operation_id, Listening(state.errand), listeners.name)])
    for number in ANSWERS:
        tx.signal(context.operation_id, answer, Answer(number))
    return Asked(state.errand)


@listeners.on(Listening, answer)
def heard(tx: Transaction, state: Listening, it: Answer) -> Listening | Heard | Garbled:
    count, total = state.heard + 1, state.total + it.number
    if count < len(ANSWERS):
        return Listening(state.errand, count, total)
    return Heard(state.errand) if total == sum(ANSWERS) else Garbled(state.errand, total)


@followers.on(Following, finished(lambda state: state.errand))
def followed(tx: Transaction, state: Following, _: None) -> Followed:
    return Followed(state.errand)

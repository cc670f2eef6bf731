"""Collect signatures from the peers until a threshold; race rejection; store the notes in the same commit.

    Collecting ── collected (wait) ──▶ Issued
        └──────── rejected (poll) ───▶ Rejected

Keys written, relative to the module:
    notes   hash: ``<issuance>:<number>`` → the signed note
"""

from __future__ import annotations

import asyncio
from datetime import timedelta

from examples.lightning.peers import Federation, Share
from smqueue import Context, Failed, Module, Retry, State, Transaction, poll, wait

mint = Module[Federation]("mint")


@mint.state
class Collecting(State):
    """``spends`` are the notes given for ``count`` new ones."""

    issuance: str
    spends: list[str]
    count: int
    fee: int = 1


@mint.state(terminal=True)
class Issued(State):
    issuance: str
    count: int


@mint.state(terminal=True)
class Rejected(State):
    issuance: str
    why: str


async def collect(state: Collecting, context: Context[Federation]) -> list[Share]:
    """Ask all peers at once, until enough of them have signed."""
    federation = context.module
    asked = [
        asyncio.ensure_future(federation.sign(peer, state.issuance, state.spends, state.fee))
        for peer in range(federation.peers)
    ]
    shares: list[Share] = []
    try:
        for answer in asyncio.as_completed(asked):
            share = await answer
            if federation.genuine(share, state.issuance):
                shares.append(share)
            if len(shares) == federation.threshold:
                return shares
    finally:
        for one in asked:
            one.cancel()
    raise ConnectionError(f"only {len(shares)} of {federation.threshold} peers have signed")


def rejection(state: Collecting, context: Context[Federation]) -> str | None:
    """Why the federation will not sign; ``None`` while nothing speaks against it."""
    verdict = context.module.verdict(state.spends, state.fee)
    return None if verdict.accepted else verdict.why


@mint.on(Collecting, wait(collect, retry=Retry(max_attempts=10, base=timedelta(seconds=1))))
def collected(
    tx: Transaction, state: Collecting, shares: list[Share] | Failed, context: Context[Federation]
) -> Issued | Rejected:
    if isinstance(shares, Failed):
        return Rejected(state.issuance, shares.error)
    notes = context.module.combine(shares, state.issuance, state.count)
    tx.hset("notes", {f"{state.issuance}:{number}": note for number, note in enumerate(notes)})
    return Issued(state.issuance, len(notes))


@mint.on(Collecting, poll(rejection, every=timedelta(seconds=1)))
def rejected(tx: Transaction, state: Collecting, why: str) -> Rejected:
    return Rejected(state.issuance, why)

"""The other side, simulated: a federation and a gateway. Their answers follow from what they are asked.

Both may be asked from several processes: what they are told is in their constructors, and what they remember (how
often they were asked) only decides how long an answer takes, never what it is.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


def seal(key: str, *parts: object) -> str:
    """Return a message authentication code over some parts."""
    return hmac.new(key.encode(), "|".join(map(str, parts)).encode(), hashlib.sha256).hexdigest()


def payment_hash(preimage: str) -> str:
    """Return the hash that an invoice shows of its preimage."""
    return hashlib.sha256(preimage.encode()).hexdigest()


class NotesSpent(Exception):
    """Somebody has spent these notes already."""


@dataclass(frozen=True)
class Share:
    """One peer's part of a signature over an issuance."""

    peer: int
    signature: str


@dataclass(frozen=True)
class Verdict:
    """What the federation's ledger says of a transaction; ``why`` when it was rejected."""

    accepted: bool
    why: str = ""


class Federation:
    """Peers that sign notes together, and the ledger that they keep.

    Args:
        peers: How many there are.
        threshold: How many signatures make a note valid.
        offline: Peers that never answer.
        forging: Peers whose signatures are wrong.
        spent: Notes that were spent elsewhere.
        unfunded: Contracts into which nobody pays.
        least_fee: Transactions with a lower one are rejected.
        round_s: How long a long poll is held before it is answered with nothing, in seconds.
    """

    def __init__(
        self,
        peers: int = 4,
        threshold: int = 3,
        *,
        offline: frozenset[int] = frozenset(),
        forging: frozenset[int] = frozenset(),
        spent: frozenset[str] = frozenset(),
        unfunded: frozenset[str] = frozenset(),
        least_fee: int = 1,
        round_s: float = 0.02,
    ) -> None:
        self.peers, self.threshold = peers, threshold
        self._offline, self._forging, self._spent, self._unfunded = offline, forging, spent, unfunded
        self._least_fee, self._round_s = least_fee, round_s
        self._polls: Counter[str] = Counter()

    # --- signatures --------------------------------------------------------------------------------------------------

    async def sign(self, peer: int, issuance: str, notes: Sequence[str], fee: int) -> Share:
        """Ask a peer for its part. It signs what its ledger accepts; for anything else it keeps silent."""
        if peer in self._offline or not self.verdict(notes, fee).accepted:
            await asyncio.Event().wait()
        await asyncio.sleep(self._round_s)
        return Share(peer, seal("forged" if peer in self._forging else f"peer-{peer}", issuance))

    def genuine(self, share: Share, issuance: str) -> bool:
        """Return whether a part is what its peer would sign."""
        return hmac.compare_digest(share.signature, seal(f"peer-{share.peer}", issuance))

    def combine(self, shares: Sequence[Share], issuance: str, count: int) -> list[str]:
        """Return ``count`` signed notes; which peers took part does not show."""
        genuine = {share.peer for share in shares if self.genuine(share, issuance)}
        if len(genuine) < self.threshold:
            raise ValueError(f"{len(genuine)} peers signed, {self.threshold} are needed")
        return [seal("federation", issuance, number) for number in range(count)]

    # --- the ledger --------------------------------------------------------------------------------------------------

    def verdict(self, notes: Sequence[str], fee: int) -> Verdict:
        """Say whether a transaction that spends ``notes`` is accepted."""
        if not self._spent.isdisjoint(notes):
            return Verdict(False, "a note was spent before")
        return Verdict(True) if fee >= self._least_fee else Verdict(False, "the fee is too low")

    def reissue(self, notes: Sequence[str]) -> list[str]:
        """Exchange notes for fresh ones; asked twice it gives the same.

        Raises:
            NotesSpent: There is nothing to exchange.
        """
        if not self._spent.isdisjoint(notes):
            raise NotesSpent("a note was spent before")
        return [seal("federation", "reissued", note) for note in notes]

    async def await_funding(self, contract: str) -> bool:
        """Ask whether a contract is funded, and be kept waiting for the answer; ``False``: not yet, ask again."""
        await asyncio.sleep(self._round_s)
        self._polls[contract] += 1
        return contract not in self._unfunded and self._polls[contract] > 1


@dataclass(frozen=True)
class Answer:
    """What a gateway says of a contract: the preimage when it has paid, else why it will not; signed."""

    contract: str
    preimage: str | None
    why: str
    signature: str


class Gateway:
    """Pays invoices for others.

    Args:
        key: Its answers are signed with this.
        knows: Preimages that it learns by paying.
        offline: It never answers.
        most: It refuses larger amounts.
    """

    def __init__(
        self, key: str = "gateway", knows: frozenset[str] = frozenset(), *, offline: bool = False, most: int = 1_000_000
    ) -> None:
        self._key, self._offline, self._most = key, offline, most
        self._preimages = {payment_hash(preimage): preimage for preimage in knows}
        self._asked: Counter[str] = Counter()

    def answer(self, contract: str, invoice: str, amount: int) -> Answer | None:
        """Answer for a contract: at first it is still paying, then someone else answers in its name, then it does."""
        self._asked[contract] += 1
        if self._offline or self._asked[contract] == 1:
            return None
        if self._asked[contract] == 2:
            return self._signed("somebody else", contract, None, "forged")
        if amount > self._most:
            return self._signed(self._key, contract, None, "the amount is too large")
        preimage = self._preimages.get(invoice)
        return None if preimage is None else self._signed(self._key, contract, preimage, "")

    def genuine(self, answer: Answer) -> bool:
        """Return whether the gateway has signed this answer."""
        wanted = seal(self._key, answer.contract, answer.preimage, answer.why)
        return hmac.compare_digest(answer.signature, wanted)

    def _signed(self, key: str, contract: str, preimage: str | None, why: str) -> Answer:
        return Answer(contract, preimage, why, seal(key, contract, preimage, why))

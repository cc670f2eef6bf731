"""Running a function in a transaction: again after each read that it asks for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

from smqueue.buffer import NeedRead
from smqueue.instances import Instances
from smqueue.keys import Keys
from smqueue.roundtrip import Command, Steps, commit, read, time_us
from smqueue.standing import TIME
from smqueue.transaction import Transaction

T = TypeVar("T")


class Look:
    """What one attempt has seen; all of it is watched, but what is only checked."""

    __slots__ = ("known", "taken")

    def __init__(self) -> None:
        self.known: dict[Command, Any] = {}
        self.taken: frozenset[bytes] = frozenset()
        """Buffered signals that this attempt has given away: one is for one machine."""

    @property
    def now_us(self) -> int:
        """Redis's clock at the look that asked for it."""
        return time_us(self.known[TIME])

    def fetch(self, watch: Sequence[str], commands: Sequence[Command], check: Sequence[str] = ()) -> Steps[None]:
        """Look at what is not known yet: 1 round trip, none when nothing is missing."""
        missing = [command for command in dict.fromkeys(commands) if command not in self.known]
        if missing or watch:
            replies = yield from read(watch, *missing, check=check)
            self.known.update(zip(missing, replies, strict=True))

    def verify(self, tx: Transaction) -> Steps[None]:
        """See that none of the writes would fail in EXEC; the looks for it are fetched already, but not watched.

        Raises:
            WrongKind: One would.
        """
        checks = tx.buffer.checks()
        if tight := tx.buffer.verify({command: self.known[command] for command in checks}):
            again = [command for command in checks if command[1] in tight]
            for command in again:
                del self.known[command]
            yield from self.fetch(sorted(tight), again)
            tx.buffer.verify({command: self.known[command] for command in checks})

    def has_held(self) -> Steps[bool]:
        """Whether nothing that was watched has changed since; an empty EXEC, only when something was read."""
        if not self.known:
            return True
        return (yield from commit([])) is not None


def decide(
    keys: Keys,
    instances: Instances,
    module: str | None,
    run: Callable[[Transaction], T],
    look: Look,
    begun: Collection[str] = (),
) -> Steps[tuple[Transaction, T] | None]:
    """Run a handler; n dependent reads are n + 1 runs and n round trips.

    Returns:
        The transaction and what the function returned; ``None`` when it raised on reads that have changed since: the
        attempt is a conflict.

    Raises:
        Exception: What the function raised, on reads that have held still.
    """
    while True:
        tx = Transaction(keys, instances, module, look.known, begun)
        try:
            return tx, run(tx)
        except NeedRead as need:
            yield from look.fetch(need.watch, need.commands)
        except Exception:
            if not (yield from look.has_held()):
                return None
            raise

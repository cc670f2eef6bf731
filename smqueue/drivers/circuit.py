"""A circuit for a server that is away: a short absence is waited out, a long one fails at once.

A server that restarts is back within a second or two, and an error would be the worse answer: nothing has been sent, so
that connecting may be tried again. Once that was in vain for as long as a server may take to answer, waiting helps
nobody: all threads of a producer would stand there. Then one at a time tries, and the others are told at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

from smqueue.errors import StoreUnavailable
from smqueue.retry import Retry

T = TypeVar("T")

PATIENCE_S = 5.0
"""How long connecting is tried before the circuit opens: as long as an answer is waited for."""
PROBE_S = 10.0
"""How long a probe may take before another one starts: connecting, and the first answer."""
PAUSES = Retry(base=timedelta(milliseconds=50), cap=timedelta(seconds=1))
"""Between attempts, jittered. The cap is how late, at most, a server that is back is found by a caller."""


class Circuit:
    """Closed while the server answers. Shared by threads, and inherited by a fork: it has no lock that could be held.

    Two threads may now and then probe at the same time.

    Args:
        clock: Seconds, monotonic.
        sleep: Waits for seconds.
    """

    patience_s = PATIENCE_S

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], object] = time.sleep
    ) -> None:
        self._clock, self._sleep = clock, sleep
        self._opened_by: StoreUnavailable | None = None
        self._failures = 0  # in a row, since it has opened
        self._next_at = 0.0

    def run(self, connect: Callable[[], T], patient: bool = True) -> T:
        """Connect.

        Args:
            connect: Raises StoreUnavailable when the server does not answer; any other error is an answer.
            patient: Whether to try for a while, when the circuit is closed.

        Raises:
            StoreUnavailable: At once when the circuit is open, unless it is this caller's turn to try.
        """
        if self._opened_by is not None:
            return self._probe(connect, self._opened_by)
        until, tries = self._clock() + (self.patience_s if patient else 0), 0
        while True:
            try:
                return connect()
            except StoreUnavailable as error:
                tries += 1
                pause_s = PAUSES.jittered_ms(tries) / 1000
                if self._opened_by is not None or self._clock() + pause_s >= until:
                    self._open(error)
                    raise
            self._sleep(pause_s)

    def _probe(self, connect: Callable[[], T], opened_by: StoreUnavailable) -> T:
        now = self._clock()
        if now < self._next_at:
            raise StoreUnavailable(opened_by.url, f"{opened_by.problem} (and not asked again for a moment)")
        self._next_at = now + PROBE_S
        try:
            connected = connect()
        except StoreUnavailable as error:
            self._open(error)
            raise
        except Exception:
            self._close()
            raise
        self._close()
        return connected

    def _open(self, error: StoreUnavailable) -> None:
        self._failures += 1
        self._next_at = self._clock() + PAUSES.jittered_ms(self._failures) / 1000
        self._opened_by = error

    def _close(self) -> None:
        self._opened_by, self._failures = None, 0

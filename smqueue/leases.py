"""Renewing the leases of what this process works on, in batches, while it lives."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager

from msgspec import Struct

from smqueue.drivers.driver import Driver
from smqueue.keys import Keys
from smqueue.protocols import runs
from smqueue.protocols.bounds import LEASE_MS

RENEW_S = LEASE_MS / 3000
BATCH = 500
log = logging.getLogger("smqueue.leases")


class Lease(Struct, frozen=True, gc=False):
    """One entry held by this process; the token of a race is the guard it was claimed with."""

    keys: Keys
    schedule: str
    entry: str
    token: str


class Leases:
    """What this process holds. The thread that renews is started with the first lease, and so after any fork."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._lock = threading.Lock()
        self._held: dict[Lease, tuple[float, Callable[[Lease], None] | None]] = {}
        self._pid = 0
        self._starting: dict[int, threading.Lock] = {}

    @contextmanager
    def hold(self, leases: Iterable[Lease], limit_s: float) -> Generator[None]:
        """Renew these while the block runs, at most for ``limit_s``: work that never ends is not held for ever."""
        held = list(leases)
        self.add(held, limit_s)
        try:
            yield
        finally:
            self.release(held)

    def add(self, leases: Iterable[Lease], limit_s: float, lost: Callable[[Lease], None] | None = None) -> None:
        """Renew these until they are released, at most for ``limit_s``.

        Args:
            leases: What is held.
            limit_s: Seconds.
            lost: Called, on the renewing thread, with each that turns out to be held no longer.
        """
        until = time.monotonic() + limit_s
        self._start()
        with self._lock:
            self._held.update(dict.fromkeys(leases, (until, lost)))

    def release(self, leases: Iterable[Lease]) -> None:
        """Renew these no longer."""
        with self._lock:
            for lease in leases:
                self._held.pop(lease, None)

    def _start(self) -> None:
        if self._pid == os.getpid():
            return
        # A fork may have come while a lock was held: the child gets one of its own, and all of its threads the same.
        with self._starting.setdefault(os.getpid(), threading.Lock()):
            if self._pid != os.getpid():
                self._held, self._lock, self._pid = {}, threading.Lock(), os.getpid()
                threading.Thread(target=self._renew, name="smqueue-leases", daemon=True).start()

    def _renew(self) -> None:
        while True:
            time.sleep(RENEW_S)
            now = time.monotonic()
            with self._lock:
                self._held = {lease: held for lease, held in self._held.items() if held[0] > now}
                held = self._held.copy()
            groups: dict[tuple[str, str], list[Lease]] = {}
            for lease in held:
                groups.setdefault((lease.keys.prefix, lease.schedule), []).append(lease)
            for leases in groups.values():
                for at in range(0, len(leases), BATCH):
                    part = leases[at : at + BATCH]
                    pairs = [(lease.entry, lease.token) for lease in part]
                    try:
                        lost = set(self._driver.run(runs.renew(part[0].keys, part[0].schedule, pairs)))
                        for lease in part:
                            tell = held[lease][1]
                            # Not of one that was given up meanwhile, and has come back.
                            if lease.entry in lost and tell is not None and self._held.get(lease) is held[lease]:
                                tell(lease)
                    except Exception as error:  # the next round tries again, or the lease runs out
                        log.debug("leases not renewed: %s", error)

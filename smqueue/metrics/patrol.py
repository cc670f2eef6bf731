"""A patrol: at each scrape some of the active machines are looked at, whether each has what makes it move."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Mapping

from smqueue.deployment import Deployment
from smqueue.keys import Keys
from smqueue.protocols.auditing.looking import Check, judge, looks, suspects
from smqueue.protocols.auditing.problems import NOTES
from smqueue.protocols.auditing.records import check_active
from smqueue.roundtrip import Command, Steps

BUDGET_S = 0.05
SOME = 50
"""Machines that are looked at in one go: some 400 small commands."""
PAGE = 100
KNOWN = 500
"""Of more damaged machines than this only those are told."""

Place = tuple[Keys, str, bytes]
"""The shard, the operation and the field of an active record."""


class Patrol:
    """Goes round the active machines of a namespace, with the checks of ``smqueue verify``.

    What seems wrong is judged once more, in one instant, before it is told, and looked at again each time, so that
    what has been mended is told no longer.

    Args:
        deployment: Where.
    """

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self.rounds = self.machines = 0
        self._known: dict[Place, tuple[Check, tuple[str, ...]]] = {}
        self._fields: deque[Place] = deque()
        self._operations: deque[tuple[Keys, str, int]] = deque()
        self._shards: deque[tuple[Keys, int]] = deque()

    @property
    def damaged(self) -> Mapping[str, int]:
        """What is wrong, in the words of ``smqueue verify`` → with how many machines."""
        return Counter(kind for _, kinds in self._known.values() for kind in kinds)

    def go_on(self, budget_s: float = BUDGET_S) -> None:
        """Look at some more machines: until the time is over, or the round.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        until = time.monotonic() + budget_s
        driver = self._deployment.driver
        again = {check: place for place, (check, _) in self._known.items()}
        wrong = set(driver.run(suspects(list(again)))) if again else set[Check]()
        for check, place in again.items():
            if check not in wrong:
                del self._known[place]
        if not (self._shards or self._operations or self._fields):
            self._shards.extend((keys, 0) for keys in self._deployment.all_keys())
        while True:
            going = driver.run(self._find())
            places = [self._fields.popleft() for _ in range(min(SOME, len(self._fields)))]
            self.machines += len(places)
            self._look(places)
            if not going and not self._fields:
                self.rounds += 1
                return
            if time.monotonic() > until:
                return

    def _look(self, places: list[Place]) -> None:
        checks = {check_active(keys, op, field): (keys, op, field) for keys, op, field in places}
        driver = self._deployment.driver
        for check in driver.run(suspects(list(checks))) if checks else ():
            kinds = {one.kind.value for one in driver.run(judge(check)) if one.kind not in NOTES}
            if kinds and len(self._known) < KNOWN:
                self._known[checks[check]] = (check, tuple(sorted(kinds)))

    def _find(self) -> Steps[bool]:
        """Find the next machines; returns whether there may be more of them."""
        while len(self._fields) < SOME:
            if self._operations:
                some = [self._operations.popleft() for _ in range(min(SOME, len(self._operations)))]
                yield from self._active(some)
            elif self._shards:
                keys, cursor = self._shards.popleft()
                ((after, flat),) = yield from looks([], [("ZSCAN", keys.operations, cursor, "COUNT", PAGE)])
                self._operations.extend((keys, op.decode(errors="replace"), 0) for op in flat[::2])
                if int(after):
                    self._shards.appendleft((keys, int(after)))
            else:
                return False
        return True

    def _active(self, some: list[tuple[Keys, str, int]]) -> Steps[None]:
        """Records of operations, a page of each; those of one shard in one round trip."""
        for keys in dict.fromkeys(keys for keys, _, _ in some):
            here = [(op, cursor) for owner, op, cursor in some if owner is keys]
            commands: list[Command] = [("HSCAN", keys.active(op), cursor, "COUNT", PAGE) for op, cursor in here]
            for (op, _), reply in zip(here, (yield from looks([], commands)), strict=True):
                if isinstance(reply, Exception):  # a key of another type
                    continue
                cursor, flat = reply
                self._fields.extend((keys, op, field) for field in flat[::2])
                if int(cursor):
                    self._operations.append((keys, op, int(cursor)))

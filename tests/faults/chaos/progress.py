"""How long nothing moved after a fault: the state's own stream of updates, read past the proxy, says when what did."""

from __future__ import annotations

import json
import threading
import time
from types import TracebackType
from typing import Any, Self

import redis

from smqueue.keys import Keys
from tests.faults.chaos.application import NAMESPACE
from tests.faults.chaos.schedule import Strike
from tests.faults.chaos.site import Site

LOOK_EVERY_S = 0.05
SAMPLE_EVERY_S = 0.5


class Progress:
    """Watches on a thread of its own.

    Args:
        site: Whose state.
        strikes: What is measured, once it has hit.
    """

    def __init__(self, site: Site, strikes: list[Strike]) -> None:
        self._site, self._strikes = site, strikes
        self._updates = Keys(NAMESPACE).updates
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
        self.samples: list[tuple[float, int]] = []
        """When, and how many updates (addings and transitions) there had been in all."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join(10)

    def _run(self) -> None:
        sampled = 0.0
        with self._site.state_client(timeout_s=1) as client:
            while not self._stop.wait(LOOK_EVERY_S):
                try:
                    for one in self._strikes:
                        if one.measured_from is not None and one.resumed_s is None:
                            self._measure(client, one)
                    if time.time() - sampled > SAMPLE_EVERY_S:
                        sampled = time.time()
                        self.samples.append((sampled, int(client.xinfo_stream(self._updates)["entries-added"])))
                except redis.RedisError:
                    continue

    def _measure(self, client: Any, one: Strike) -> None:
        since = one.measured_from
        if since is None or since > time.time():
            return
        if (at := self._next_transition(client, since)) is not None and since == one.measured_from:
            one.resumed_s = max(0.0, at - since - self._outage_s(since, at))

    def _next_transition(self, client: Any, since: float) -> float | None:
        cursor = f"{int(since * 1000)}"
        while page := client.xrange(self._updates, cursor, "+", count=200):
            for id, data in page:
                if any(_step(value) > 1 for value in data.values()):
                    return int(id.partition(b"-")[0]) / 1000
            cursor = "(" + page[-1][0].decode()
        return None

    def _outage_s(self, since: float, until: float) -> float:
        return sum(max(0.0, min(until, to) - max(since, begin)) for begin, to in list(self._site.outages))


def _step(value: bytes) -> int:
    """The step of an entry of a history; 0 for what is none."""
    if not value.startswith(b"{"):
        return 0
    return int(json.loads(value).get("step", 0))

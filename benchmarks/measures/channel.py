"""10,000 machines that listen on one channel, and one message: the time until all of them have moved."""

from __future__ import annotations

import time

from benchmarks.feeding import add_all, await_count, await_true, count_of
from benchmarks.figure import Measured, figure
from benchmarks.machines import NEWS, Listening
from benchmarks.settings import Settings
from benchmarks.stage import Stage

LIMIT_S = 60
SETTLE_S = 1.0
"""From when the last listener is claimed until the message: its subscription is under way then."""


def measure(settings: Settings) -> Measured:
    """One stage a round."""
    count = settings.sizes.listeners
    seconds: list[float] = []
    armed: list[float] = []
    for number in range(settings.rounds):
        with Stage(settings.workers) as stage:
            executor, state = stage.executor, stage.connect()
            (keys,) = executor.deployment.all_keys()

            def all_listen() -> bool:
                now_ms = time.time() * 1000
                return state.zcard(keys.hosted) == count and state.zcount(keys.hosted, "-inf", now_ms) == 0  # noqa: B023

            began = time.perf_counter()
            add_all(executor, "listener", [Listening(one) for one in range(count)])
            await_true(all_listen, LIMIT_S, "all to listen")
            armed.append(count / (time.perf_counter() - began))
            time.sleep(SETTLE_S)
            before, published = count_of(executor), time.time()
            state.publish(NEWS, "1")
            seconds.append(await_count(executor, before + count, LIMIT_S) - published)
        settings.say(f"round {number + 1}: {count / seconds[-1]:,.0f} machines/s")
    found = Measured(titles={"message": f"one message, {count:,} machines"})
    found.figures["message.took"] = figure("s", *seconds)
    found.figures["message.rate"] = figure("machines/s", *[count / one for one in seconds])
    found.figures["message.armed"] = figure("machines/s", *armed)
    return found

"""Ten operations that are stuck, each in its own way, on real servers and workers."""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from smqueue.embedded import EmbeddedServer
from smqueue.keys import digest
from smqueue.records import Machine
from tests.apps import shop
from tests.shopping import Shop
from tests.waiting import wait_until
from tests.workers import running


class Stuck(NamedTuple):
    """One operation, and what is to be said of it."""

    shop: Shop
    op: str
    cause: str
    """Kind of its cause."""
    says: str
    """A regular expression, of what ``why`` says."""


SITUATIONS = (
    "no signal",
    "a signal sent to another operation",
    "a failing poll",
    "a handler that raises",
    "no worker",
    "no worker for one queue",
    "paused",
    "store full",
    "an undecodable record",
    "a schedule entry deleted by hand",
)


@contextmanager
def stuck(server: EmbeddedServer, directory: Path, name: str) -> Generator[dict[str, Stuck]]:
    """Make all ten, and keep their workers running.

    Args:
        server: Of all but the full one.
        directory: Where triggers count, empty.
        name: Begins the names of the namespaces.
    """
    shops = {
        part: Shop(server.url, server.broker_url, f"{name}-{part}", directory) for part in ("live", "alone", "half")
    }
    shops["half"].env["TEST_TRIGGER_QUEUE"] = f"{name}-triggers"  # which nobody consumes
    workers = [shops["live"].worker("--pool", "solo"), shops["half"].worker("--pool", "solo")]
    with running(*workers), EmbeddedServer() as small:
        shops["full"] = Shop(small.url, small.broker_url, f"{name}-full", directory)
        for worker in workers:
            worker.wait_ready()
        yield {**_alive(shops["live"]), **_elsewhere(shops)}


def _alive(live: Shop) -> dict[str, Stuck]:
    """Those that a worker cannot help."""
    executor, keys, client = live.executor, live.keys, live.redis
    live.add("silent", shop.Packing("silent"))
    live.add("raising", shop.Breaking("raise"))
    for op in ("o-17", "held", "garbled", "forgotten"):
        live.add(op, shop.Awaiting(op, 3))
    executor.signal("o-71", shop.payment, shop.Payment(3))
    (live.directory / "polls-failing").mkdir()  # its look at a file of that name fails
    live.add("failing", shop.Polling(3))
    executor.pause("held")
    (field,) = client.hkeys(keys.active("garbled"))
    client.hset(keys.active("garbled"), field, "no record")
    (field,) = client.hkeys(keys.active("forgotten"))
    record = digest("forgotten", field.decode())
    client.zrem(keys.schedule, Machine.parse(client.get(keys.machine(record))).entry)
    for op in ("failing", "raising"):
        wait_until(lambda op=op: "Error: " in str(executor.explain(op).active[0]), f"{op} has failed")
    return {
        "no signal": Stuck(live, "silent", "no_signal", r"waits for signal packed, since .*: none has come"),
        "a signal sent to another operation": Stuck(live, "o-17", "signal_elsewhere", r"one was sent to o-71 .* ago"),
        "a failing poll": Stuck(live, "failing", "trigger_fails", r"polled .* last error: IsADirectoryError: "),
        "a handler that raises": Stuck(live, "raising", "handler_fails", r"handler.*: ValueError: broken on purpose"),
        "paused": Stuck(live, "held", "paused", r"is paused \(operation held"),
        "an undecodable record": Stuck(live, "garbled", "unreadable", r"cannot be read here: .*not one|cannot be read"),
        "a schedule entry deleted by hand": Stuck(
            live, "forgotten", "unscheduled", r"lost its entry .* verify forgotten --repair"
        ),
    }


def _elsewhere(shops: dict[str, Shop]) -> dict[str, Stuck]:
    """Those that lack a worker, or a server."""
    alone, half, full = shops["alone"], shops["half"], shops["full"]
    alone.add("orphan", shop.Awaiting("orphan", 3))
    half.add("half", shop.Polling(3))
    full.add("late", shop.Awaiting("late", 3))
    full.redis.config_set("maxmemory", 1)
    queue = re.escape(half.env["TEST_TRIGGER_QUEUE"])
    return {
        "no worker": Stuck(alone, "orphan", "no_worker", r"No worker runs"),
        "no worker for one queue": Stuck(half, "half", "queue_without_worker", rf"No worker takes the queue {queue}"),
        "store full": Stuck(full, "late", "store", r"Redis takes no writes: its memory is full"),
    }

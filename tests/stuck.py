"""Ten operations that are stuck, each in its own way, and two more of their kind, on real servers and workers."""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from celery import Celery

from smqueue import ExecutorBuilder, Module, State, StateMachine, Transaction
from smqueue.embedded import EmbeddedServer
from smqueue.keys import digest
from smqueue.records import Machine
from tests.apps import shop
from tests.apps.stuck import Raising, Refusing, troubles
from tests.shopping import Shop
from tests.waiting import wait_until
from tests.workers import running

APP = "tests.apps.stuck"


class Stuck(NamedTuple):
    """One operation, and what is to be said of it."""

    shop: Shop
    op: str
    cause: str
    """Kind of its cause."""
    says: str
    """A regular expression, of what ``why`` and its page say."""
    metric: str
    """Which is above zero because of it."""
    labels: Mapping[str, str] = {}
    """Of that metric."""
    glance: str = ""
    """A regular expression, of what the page of all machines says, where it is a matter of more than one."""
    asked: str = ""
    """What is searched for on that page."""


TEN = (
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
SITUATIONS = (*TEN, "a handler that raises behind a poll", "a record that is garbage")


@contextmanager
def stuck(server: EmbeddedServer, directory: Path, name: str) -> Generator[dict[str, Stuck]]:
    """Make all of them, and keep their workers running.

    Args:
        server: Of all but the full one.
        directory: Where triggers count, empty.
        name: Begins the names of the namespaces.
    """

    def made(part: str, at: EmbeddedServer) -> Shop:
        return Shop(at.url, at.broker_url, f"{name}-{part}", directory, troubles=troubles)

    shops = {part: made(part, server) for part in ("live", "alone", "half")}
    shops["half"].env["TEST_TRIGGER_QUEUE"] = f"{name}-triggers"  # which nobody consumes
    workers = [shops[part].worker("--pool", "solo", app=APP) for part in ("live", "half")]
    with running(*workers), EmbeddedServer() as small:
        shops["full"] = made("full", small)
        for worker in workers:
            worker.wait_ready()
        yield {**_waiting(shops["live"]), **_broken(shops["live"]), **_elsewhere(shops)}


def sites(situations: Mapping[str, Stuck]) -> dict[str, str]:
    """The environment of a Flower that shows all of them."""
    places = {(one.shop.url, one.shop.namespace) for one in situations.values()}
    return {"TEST_SITES": json.dumps(sorted(places))}


def _waiting(live: Shop) -> dict[str, Stuck]:
    """Those that wait for what does not come, or may not go on."""
    live.add("silent", shop.Packing("silent"))
    live.add("o-17", shop.Awaiting("o-17", 3))
    live.executor.signal("o-71", shop.payment, shop.Payment(3))
    (live.directory / "polls-failing").mkdir()  # its look at a file of that name fails
    live.add("failing", shop.Polling(3))
    live.add("held", shop.Awaiting("held", 3))
    live.executor.pause("held", reason="by hand")
    return {
        "no signal": Stuck(
            live, "silent", "no_signal", r"waits for signal packed, since .*: none has come",
            "smqueue_waiting_seconds", {"state": "Packing", "trigger": "handed_over", "kind": "signal"},
        ),
        "a signal sent to another operation": Stuck(
            live, "o-17", "signal_elsewhere", r"one was sent to o-71 .* ago",
            "smqueue_early_signals", {"module": "orders", "signal": "payment"}, r"o-71 1 . orders\.payment",
        ),
        "a failing poll": Stuck(
            live, "failing", "trigger_fails", r"polled .* last error: IsADirectoryError: ",
            "smqueue_trigger_failures_total",
            {"state": "Polling", "trigger": "polled", "error": "IsADirectoryError"},
        ),
        "paused": Stuck(
            live, "held", "paused", r"is paused \(operation held for .*: by hand\): .* waits for smqueue resume held",
            "smqueue_paused", {"scope": "operation"}, r"Paused operation held",
        ),
    }  # fmt: skip


def _broken(live: Shop) -> dict[str, Stuck]:
    """Those whose code fails, and those that were tampered with."""
    keys, client, failing = live.keys, live.redis, "smqueue_handler_failures_total"
    live.add("raising", Raising(1))
    live.add("refusing", Refusing(1))
    for op in ("garbled", "forgotten"):
        live.add(op, shop.Awaiting(op, 3))
    (field,) = client.hkeys(keys.active("garbled"))
    client.hset(keys.active("garbled"), field, "no record")
    (field,) = client.hkeys(keys.active("forgotten"))
    record = digest("forgotten", field.decode())
    client.zrem(keys.schedule, Machine.parse(client.get(keys.machine(record))).entry)
    add_older(live, "changed")
    live.executor.signal("changed", shop.payment, shop.Payment(3))
    for op in ("failing", "raising", "refusing", "changed"):
        wait_until(lambda op=op: failed(live, op), f"{op} has failed")
    return {
        "a handler that raises": Stuck(
            live, "raising", "handler_fails", r"handler has failed .*: ValueError: broken on purpose",
            failing, {"state": "Raising", "trigger": "raised", "error": "ValueError"},
            r"raising .*ValueError: broken on purpose", "raising*",
        ),
        "a handler that raises behind a poll": Stuck(
            live, "refusing", "handler_fails", r"refused has won, .* has failed .*: KeyError: 'refused on purpose'",
            failing, {"state": "Refusing", "trigger": "refused", "error": "KeyError"},
            r"refusing .*KeyError: 'refused on purpose'", "refusing*",
        ),
        "an undecodable record": Stuck(
            live, "changed", "unreadable", r"is quarantined.*: UndecodableRecord: .*smqueue retry changed",
            "smqueue_quarantined_sample", {"error": "UndecodableRecord"},
            r"1 machine is quarantined \(1 UndecodableRecord\)",
        ),
        "a record that is garbage": Stuck(
            live, "garbled", "unreadable", r"orders\.Awaiting cannot be read here: unreadable",
            "smqueue_damaged_machines", {"kind": "unreadable-record"}, r"garbled .*unreadable", "garbled*",
        ),
        "a schedule entry deleted by hand": Stuck(
            live, "forgotten", "unscheduled", r"lost its entry .* verify forgotten --repair",
            "smqueue_damaged_machines", {"kind": "not-scheduled"},
        ),
    }  # fmt: skip


def failed(live: Shop, op: str) -> bool:
    """Whether a worker has noted an error."""
    (one,) = live.executor.explain(op).active
    return one.status == "quarantined" or one.attempts > 0 or any(trigger.last_error for trigger in one.triggers)


def add_older(live: Shop, op: str) -> None:
    """Start an order of code before its fields were changed, for which nobody has written a migration."""
    older: Any = Module("orders", version=1)

    @older.state
    class Awaiting(State):
        number: int

    @older.state(terminal=True)
    class Shipped(State):
        number: int

    payment = older.signal("payment", shop.Payment)

    @older.on(Awaiting, payment)
    def paid(tx: Transaction, state: Awaiting, received: shop.Payment) -> Shipped:
        return Shipped(state.number)

    app = Celery("older", broker=live.broker, set_as_current=False)
    executor = ExecutorBuilder().with_module("orders", older).build(app, url=live.url, namespace=live.namespace)
    executor.add_state_machines([StateMachine(op, Awaiting(3))])


def _elsewhere(shops: dict[str, Shop]) -> dict[str, Stuck]:
    """Those that lack a worker, or a server."""
    alone, half, full = shops["alone"], shops["half"], shops["full"]
    alone.add("orphan", shop.Awaiting("orphan", 3))
    half.add("half", shop.Polling(3))
    full.add("late", shop.Awaiting("late", 3))
    full.redis.config_set("maxmemory", 1)
    queue = half.env["TEST_TRIGGER_QUEUE"]
    untaken, stopped = rf"No worker takes the queue {re.escape(queue)}", r"Redis takes no writes: its memory is full"
    return {
        "no worker": Stuck(
            alone, "orphan", "no_worker", r"No worker runs", "smqueue_problem", {"kind": "no_worker"}, r"No worker runs"
        ),
        "no worker for one queue": Stuck(
            half, "half", "queue_without_worker", untaken,
            "smqueue_problem", {"kind": "queue_without_worker", "subject": queue}, untaken,
        ),
        "store full": Stuck(full, "late", "store", stopped, "smqueue_problem", {"kind": "store"}, stopped),
    }  # fmt: skip

"""Every pool of Celery's that we promise; and what waits in the memory of a worker: how much, and what survives it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest
from celery import Celery

from smqueue import Executor, ExecutorBuilder, SignalFor, StateMachine
from smqueue.embedded import EmbeddedServer
from tests.apps import hosting, shop
from tests.shopping import Shop, stops_cleanly
from tests.waiting import wait_until
from tests.workers import Worker, running

PENDING = 10_000
LARGEST_GROWTH = 100 * 2**20
"""Bytes of resident memory, for all that are pending."""


@pytest.fixture
def world(server: EmbeddedServer, namespace: str, tmp_path: Path) -> Shop:
    return Shop(server.url, server.broker_url, namespace, tmp_path)


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo", "gevent"])
def test_every_trigger_on_every_pool(world: Shop, pool: str) -> None:
    """Each kind of trigger runs to its end on each pool; then a warm shutdown, with a coroutine and a subscription
    pending, takes seconds and leaves no traceback."""
    worker = world.worker("-P", pool, "-c", "2")
    with running(worker):
        worker.wait_ready()
        world.run_every_kind()
        world.add("pending", shop.Hosting(3_600_000))
        world.add("listens", shop.Listening("never"))
        world.listening("listens")
        wait_until(lambda: world.executor.explain("pending").active[0].triggers[0].running, "the coroutine is pending")
        stops_cleanly(worker)


# --- pending coroutines ----------------------------------------------------------------------------------------------


def test_ten_thousand_coroutines_pending(world: Shop) -> None:
    """One process holds 10,000 pending coroutines in less than 100 MiB; when their races are lost, it cancels each."""
    executor = _hosting(world)
    with running(worker := world.worker("-P", "prefork", "-c", "1", app="tests.apps.hosting")):
        worker.wait_ready()
        process = psutil.Process(worker.process.pid)
        executor.add_state_machines([StateMachine("first", hosting.Pending(0))])
        wait_until(lambda: _noted(world, "started", worker) == ["first"], "the first is pending")
        before = process.memory_info().rss
        ids = [f"op{n}" for n in range(PENDING)]
        executor.add_state_machines([StateMachine(op, hosting.Pending(n)) for n, op in enumerate(ids)])
        wait_until(lambda: len(_noted(world, "started", worker)) == PENDING + 1, "all are pending", timeout_s=60)
        growth = process.memory_info().rss - before
        print(f"{PENDING} pending coroutines: {growth / 2**20:.1f} MiB, {growth / PENDING:.0f} bytes each")
        assert growth < LARGEST_GROWTH
        executor.signal_many([SignalFor(op, hosting.free) for op in ids])
        wait_until(lambda: len(_noted(world, "cancelled", worker)) == PENDING, "all are cancelled", timeout_s=120)
        wait_until(lambda: world.redis.get(world.keys.data("hosting", "freed")) == b"%d" % PENDING, "all have moved")
        assert sorted(_noted(world, "started", worker)) == sorted({"first", *ids}), "none was started twice"


def test_who_was_stopped_past_the_lease_keeps_what_nobody_has_taken(world: Shop) -> None:
    """A process that could not renew in time, and is the only one, does not start its coroutines anew."""
    executor = _hosting(world)
    ids = [f"op{n}" for n in range(20)]
    with running(worker := world.worker("-P", "solo", app="tests.apps.hosting")):
        worker.wait_ready()
        for n, op in enumerate(ids):
            executor.add_state_machines([StateMachine(op, hosting.Pending(n))])
        wait_until(lambda: len(_noted(world, "started", worker)) == len(ids), "all are pending")
        os.kill(worker.process.pid, signal.SIGSTOP)
        wait_until(lambda: _held_ms(world) < 0, "all leases are over")
        os.kill(worker.process.pid, signal.SIGCONT)
        wait_until(lambda: _held_ms(world) > 0, "it holds them again")
        for op in ids:
            executor.signal(op, hosting.free)
        for op in ids:
            executor.await_operation(op, 30)
        wait_until(lambda: len(_noted(world, "cancelled", worker)) == len(ids), "all are cancelled")
        assert sorted(_noted(world, "started", worker)) == sorted(ids), "none was started twice"


def _held_ms(world: Shop) -> float:
    """For how long all that is hosted is held, by the server's clock; less than nothing when the last lease is over."""
    seconds, micros = world.redis.time()
    scores = [score for _, score in world.redis.zrange(world.keys.hosted, 0, -1, withscores=True)]
    return min(scores) - (seconds * 1_000 + micros / 1_000)


def test_coroutines_of_a_killed_process_start_elsewhere(world: Shop) -> None:
    """When a process that hosts coroutines is killed, another starts all of them, and each machine still moves once."""
    executor = _hosting(world)
    two = [world.worker("-P", "solo", app="tests.apps.hosting") for _ in range(2)]
    ids = {f"op{n}" for n in range(20)}
    with running(*two):
        for worker in two:
            worker.wait_ready()
        for n, op in enumerate(ids):
            executor.add_state_machines([StateMachine(op, hosting.Pending(n))])

        def started() -> list[str]:
            return [op for worker in two for op in _noted(world, "started", worker)]

        wait_until(lambda: set(started()) == ids, "all are pending")
        victim, other = sorted(two, key=lambda worker: len(_noted(world, "started", worker)), reverse=True)
        victim.kill()
        wait_until(lambda: set(_noted(world, "started", other)) == ids, "the other one hosts them")
        for op in ids:
            executor.signal(op, hosting.free)
        for op in ids:
            executor.await_operation(op, 30)
        assert world.redis.get(world.keys.data("hosting", "freed")) == b"20"


def _hosting(world: Shop) -> Executor:
    app = Celery(f"hosting-{world.namespace}", broker=world.broker, set_as_current=False)
    app.conf.update(task_default_queue=world.namespace)
    return (
        ExecutorBuilder().with_module("hosting", hosting.hosting).build(app, url=world.url, namespace=world.namespace)
    )


def _noted(world: Shop, what: str, worker: Worker) -> list[str]:
    """The operations whose coroutines have started, or were cancelled, in a worker's main process."""
    path = world.directory / f"{what}-{worker.process.pid}"
    return path.read_text().splitlines() if path.exists() else []


# --- queues ----------------------------------------------------------------------------------------------------------


def test_a_worker_that_consumes_none_of_our_queues_says_so(world: Shop) -> None:
    """A worker started with another queue's name says which ones it should consume; nothing moves by it silently."""
    with running(worker := world.worker("-P", "solo", "-Q", "elsewhere")):
        worker.wait_ready()
        told = f"this worker consumes elsewhere, but smqueue's messages go to {world.namespace}"
        wait_until(lambda: told in worker.output, "it says so")
    with running(worker := world.worker("-P", "solo", "-Q", f"elsewhere,{world.namespace}")):
        worker.wait_ready()
        world.add("op", shop.Instant(1))
        world.ends("op")
        assert "but smqueue's messages go to" not in worker.output

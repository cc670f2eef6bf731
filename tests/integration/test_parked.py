"""Machines that wait cost bytes in Redis, the same for each, and nothing else."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from statistics import mean
from typing import Any

import psutil
import pytest
import redis
from celery import Celery

from examples.orders import Awaiting, Payment, delivery, orders, parcels, payment
from smqueue import Executor, ExecutorBuilder, StateMachine
from smqueue.embedded import EmbeddedServer
from tests.workers import Worker, running

MACHINES = 20_000
"""Far more than what Redis stores compactly, so that more of them cost the same each."""
BATCH = 1_000
WARM = 300
"""Operations that the worker runs to their end before its memory is measured: what it loads late is loaded then."""
NAMESPACE = "parked"
SAMPLE = 200
IDLE_S = 5
MEBIBYTE = 1024 * 1024


@pytest.fixture(scope="module")
def alone() -> Iterator[EmbeddedServer]:
    """A server of its own: its memory and its commands are counted."""
    with EmbeddedServer() as server:
        yield server


def test_waiting_machines_cost_only_bytes_in_redis(
    alone: EmbeddedServer, record_property: Callable[[str, object], None]
) -> None:
    """Machines on a signal and a 30-minute timer: no message, no worker's memory, no traffic (semantics 31).

    Under 900 bytes of Redis each, and the second half costs what the first did; under 4 MiB more in the worker, 200
    bytes each; under 200 commands/s when nothing happens.
    """
    app = Celery("parked", broker=alone.broker_url, set_as_current=False)
    builder = ExecutorBuilder().with_module("orders", orders).with_module("parcels", parcels)
    executor = builder.build(app, url=alone.url, namespace=NAMESPACE)
    env = {"SMQUEUE_URL": alone.url, "SMQUEUE_NAMESPACE": NAMESPACE, "CELERY_BROKER_URL": alone.broker_url}
    worker = Worker("examples.orders.app", env, ("--concurrency", "2"))
    with redis.Redis.from_url(alone.url, socket_timeout=60) as state, running(worker):
        worker.wait_ready()
        run_to_their_end(executor, WARM)
        used, resident = used_bytes(state), resident_bytes(worker)

        halfway = 0
        for at in range(0, MACHINES, BATCH):
            if at == MACHINES // 2:
                halfway = used_bytes(state)
            executor.add_state_machines(
                [StateMachine(f"order-{n}", Awaiting(f"order-{n}", 30)) for n in range(at, at + BATCH)]
            )

        all_used = used_bytes(state)
        each = (all_used - used) / MACHINES
        grown = resident_bytes(worker) - resident
        rate = commands_per_s(state)
        first = (halfway - used) / (MACHINES / 2)
        print(f"{each:.0f} bytes of Redis each, of the first half {first:.0f}")
        print(f"worker +{grown / MEBIBYTE:.1f} MiB; {rate:.0f} commands/s at idle")
        print(breakdown := sampled(state, executor))
        record_property("parked", f"{each:.0f} bytes, +{grown} bytes, {rate:.0f} commands/s; {breakdown}")
        assert messages(alone) == {}
        assert grown < 4 * MEBIBYTE
        assert rate < 200
        assert each < 900
        assert all_used - halfway < 1.2 * (halfway - used)

        run_to_their_end(executor, 1, name="one-more")  # and they are in nobody's way
        assert sum(1 for _ in executor.get_active_operations()) == MACHINES


def run_to_their_end(executor: Executor, count: int, name: str = "warm") -> None:
    """Add orders, pay them, deliver their parcels."""
    names = [f"{name}-{n}" for n in range(count)]
    executor.add_state_machines([StateMachine(op, Awaiting(op, 30)) for op in names])
    for op in names:
        executor.signal(op, payment, Payment(30))
        executor.signal(op, delivery, "signed")
    for op in names:
        executor.await_operation(op, timeout=30)


def used_bytes(client: redis.Redis) -> int:
    """What the server has allocated, but for the buffers of the append-only file, which come and go."""
    info: dict[str, Any] = client.info()
    return int(info["used_memory"]) - int(info.get("mem_aof_buffer", 0))


def resident_bytes(worker: Worker) -> int:
    """The resident memory of a worker's processes."""
    parent = psutil.Process(worker.process.pid)
    return sum(process.memory_info().rss for process in (parent, *parent.children(recursive=True)))


def commands_per_s(client: redis.Redis) -> float:
    """What the server is asked while nothing happens; commands of scripts count too."""

    def processed() -> int:
        return int(client.info("stats")["total_commands_processed"])

    before, began = processed(), client.time()
    client.blpop(["nothing comes here"], timeout=IDLE_S)  # the server's own clock ends this
    ended, after = client.time(), processed()
    elapsed_s = ended[0] - began[0] + (ended[1] - began[1]) / 1_000_000
    return (after - before) / elapsed_s


def messages(server: EmbeddedServer) -> dict[bytes, int]:
    """Keys with messages → how many: queues, and what was delivered and is not acknowledged; not who is bound."""
    broker: Any = redis.Redis(unix_socket_path=str(server.socket_path), db=1, socket_timeout=10)
    with broker:
        length_of = {b"list": broker.llen, b"hash": broker.hlen, b"zset": broker.zcard}
        keys = [key for key in broker.scan_iter() if not key.startswith(b"_kombu")]
        return {key: length_of[kind](key) for key in keys if (kind := broker.type(key)) in length_of}


def sampled(client: redis.Redis, executor: Executor) -> str:
    """The mean ``MEMORY USAGE`` by kind of key, in bytes, of some machines."""
    keys = executor.deployment.all_keys()[0]
    ops = [f"order-{n}" for n in random.Random(1).sample(range(MACHINES), SAMPLE)]
    records = [executor.instances.place(StateMachine(op, Awaiting(op, 30))).record for op in ops]
    kinds = {
        "active": [keys.active(op) for op in ops],
        "machine": [keys.machine(record) for record in records],
        "waiting": [keys.waiting(op, "orders", payment.name) for op in ops],
    }
    means = {kind: mean(client.memory_usage(name) or 0 for name in names) for kind, names in kinds.items()}
    for kind, name in (("schedule", keys.schedule), ("operations", keys.operations)):
        means[kind] = (client.memory_usage(name, samples=SAMPLE) or 0) / MACHINES
    return ", ".join(f"{kind} {size:.0f}" for kind, size in means.items())

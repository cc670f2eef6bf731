"""A Redis that is broker and state refuses all writes for a while: workers neither end nor forget."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
import redis

from tests.faults.replaying import NAMESPACE, Feeder, cases, check_nothing_left, check_paths, site, wait_finished
from tests.waiting import wait_until

OPERATIONS, MESSAGES = 400, 500
REFUSALS = {
    "out of memory": ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0"),
    "read-only": ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE"),
    "short of replicas": ("CONFIG SET min-replicas-to-write 1", "CONFIG SET min-replicas-to-write 0"),
}


@pytest.mark.parametrize("refusal", REFUSALS)
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_broker_that_refuses_for_a_while_ends_no_worker(refusal: str, pool: str) -> None:
    """Each worker is refused, says so, and goes on when the server takes writes again; each path is its trace.

    (semantics 5)
    """
    given = cases(OPERATIONS)
    begin, end = (line.split() for line in REFUSALS[refusal])
    with site() as made:
        workers = made.start_workers(2, "--pool", pool)
        client: Any = redis.Redis.from_url(made.state.url, socket_timeout=10)
        with client, Feeder(made, given) as feeder:
            wait_until(lambda: feeder.added - made.active() >= OPERATIONS // 4, "some operations to finish", 60)
            for worker in workers:  # or they would have taken all before the refusal
                os.kill(worker.process.pid, signal.SIGSTOP)
            for _ in range(MESSAGES):  # enough for each to be given one more, whose delivery cannot be noted; no hints
                made.app.send_task("smqueue.add", ([],), {"namespace": NAMESPACE})
            client.execute_command(*begin)
            for worker in workers:
                os.kill(worker.process.pid, signal.SIGCONT)
            for worker in workers:
                wait_until(lambda worker=worker: "the broker refuses" in worker.output, f"{worker.name} to notice", 60)
            client.execute_command(*end)
            wait_finished(made, feeder)
        for worker in workers:
            assert worker.process.poll() is None, worker.output[-3000:]
        check_paths(made, given)
        check_nothing_left(made)

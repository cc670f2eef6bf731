"""What machines that wait cost the others: from add to done of one more, beside 100 of them and beside 100,000.

``python -m benchmarks.parked``. Two namespaces on one embedded server, with a worker each; they take turns, so that
what else the machine does falls on both alike. Exits non-zero when the median is 1.5 times as long or longer.
"""

# ruff: noqa: ARG001 - handlers take what the contract passes

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Generator
from pathlib import Path

from celery import Celery

from smqueue import Executor, ExecutorBuilder, Module, State, StateMachine, Transaction, after, now
from smqueue.embedded import EmbeddedServer
from smqueue.processes import Child

FEW, MANY = 100, 100_000
LIMIT = 1.5
ROUNDS = 300
WARM = 30
"""Rounds that are run and not counted."""
BATCH = 1_000
ROOT = Path(__file__).parents[1]

parked = Module("parked", version=1)
go = parked.signal("go")


@parked.state
class Waiting(State):
    """Waits for a signal or half an hour."""

    number: int


@parked.state
class Running(State):
    """Goes on at once."""

    number: int


@parked.state(terminal=True)
class Done(State):
    """Is over."""

    number: int


@parked.on(Waiting, go)
def went(tx: Transaction, state: Waiting, _: None) -> Done:
    """The signal has come."""
    return Done(state.number)


@parked.on(Waiting, after(minutes=30))
def expired(tx: Transaction, state: Waiting, _: None) -> Done:
    """It has not."""
    return Done(state.number)


@parked.on(Running, now())
def ran(tx: Transaction, state: Running, _: None) -> Done:
    """From add to done in one transition."""
    return Done(state.number)


app = Celery("parked", broker=os.environ.get("PARKED_BROKER"), set_as_current=False)
app.conf.task_default_queue = os.environ.get("SMQUEUE_NAMESPACE", "parked")
executor = ExecutorBuilder().with_module("parked", parked).build(app)


@contextlib.contextmanager
def crowd(server: EmbeddedServer, count: int, logs: Path) -> Generator[Executor]:
    """A namespace with so many machines that wait, and a worker of its own."""
    namespace = f"parked-{count}"
    client = Celery(namespace, broker=server.broker_url, set_as_current=False)
    client.conf.task_default_queue = namespace
    made = ExecutorBuilder().with_module("parked", parked).build(client, url=server.url, namespace=namespace)
    for at in range(0, count, BATCH):
        numbers = range(at, min(count, at + BATCH))
        made.add_state_machines([StateMachine(f"waiting-{n}", Waiting(n)) for n in numbers])
    env = {"SMQUEUE_URL": server.url, "SMQUEUE_NAMESPACE": namespace, "PARKED_BROKER": server.broker_url}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "celery", "-A", "benchmarks.parked", "worker", "--concurrency", "1"]
    command += ["--hostname", f"{namespace}@localhost", "--without-gossip", "--without-mingle"]
    with Child(namespace, command, env=env, output=logs / f"{namespace}.log"):
        yield made


def add_to_done_ms(made: Executor, name: str) -> float:
    """Add one more machine, and wait until it is done."""
    began = time.perf_counter()
    made.add_state_machines([StateMachine(name, Running(0))])
    made.await_operation(name, timeout=60)
    return (time.perf_counter() - began) * 1000


def main(many: int, rounds: int) -> int:
    """Measure, print, judge; returns the exit status."""
    with (
        tempfile.TemporaryDirectory(prefix="parked-") as logs,
        EmbeddedServer() as server,
        crowd(server, FEW, Path(logs)) as beside_few,
        crowd(server, many, Path(logs)) as beside_many,
    ):
        crowds = {FEW: beside_few, many: beside_many}
        for count, made in crowds.items():
            for n in range(WARM):
                add_to_done_ms(made, f"warm-{count}-{n}")
        took: dict[int, list[float]] = {count: [] for count in crowds}
        for n in range(rounds):
            order = sorted(crowds, reverse=n % 2 == 1)
            for count in order:
                took[count].append(add_to_done_ms(crowds[count], f"more-{n}"))
    print(f"{'waiting':>10} {'p50 ms':>8} {'p95 ms':>8}   add to done of one more, {rounds} rounds")
    for count, times in took.items():
        print(f"{count:>10,} {statistics.median(times):>8.2f} {statistics.quantiles(times, n=20)[-1]:>8.2f}")
    ratio = statistics.median(took[many]) / statistics.median(took[FEW])
    print(f"{'ratio':>10} {ratio:>8.2f}            limit {LIMIT}")
    return 0 if ratio < LIMIT else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--waiting", type=int, default=MANY, help="how many wait in the larger namespace")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    given = parser.parse_args()
    sys.exit(main(given.waiting, given.rounds))

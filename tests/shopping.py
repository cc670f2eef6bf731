"""A namespace in which tests/apps/shop.py is at work: its workers are processes, its producer is the test."""

from __future__ import annotations

import os
import signal
from datetime import timedelta
from pathlib import Path
from typing import Any

import redis
from celery import Celery

from smqueue import Executor, ExecutorBuilder, Module, State, StateMachine
from smqueue.keys import Keys
from tests.apps import shop
from tests.apps.wiring import environment
from tests.waiting import wait_until
from tests.workers import Worker


class Shop:
    """One namespace and one queue of the shop.

    Args:
        url: Of the state.
        broker: Of the messages.
        namespace: And name of the queue.
        directory: Where triggers count their runs.
        more: Modules that the producer knows beside the shop's, by id.
    """

    def __init__(self, url: str, broker: str, namespace: str, directory: Path, **more: Module[Any]) -> None:
        self.url, self.broker, self.namespace, self.directory = url, broker, namespace, directory
        self.env = environment(url, broker, namespace, directory)
        self.app = Celery(f"producer-{namespace}", broker=broker, set_as_current=False)
        self.app.conf.update(task_default_queue=namespace, task_ignore_result=True)
        modules = ExecutorBuilder()
        for id, module in {"orders": shop.orders, "kinds": shop.kinds, **more}.items():
            modules = modules.with_module(id, module)
        self.executor: Executor = modules.build(self.app, url=url, namespace=namespace)
        self.redis: redis.Redis = redis.Redis.from_url(url, socket_timeout=10)

    @property
    def keys(self) -> Keys:
        """The keys of the only shard."""
        return self.executor.deployment.keys("any")

    def worker(self, *options: str, app: str = "tests.apps.shop") -> Worker:
        """A worker; start-up is waited for by ``wait_ready``."""
        return Worker(app, self.env, options)

    def add(self, op: str, state: State) -> None:
        """Start one machine."""
        self.executor.add_state_machines([StateMachine(op, state)])

    def ends(self, op: str) -> list[State]:
        """Wait until an operation has finished; returns its terminal states."""
        self.executor.await_operation(op, 30)
        terminal = (shop.Done, shop.Shipped, shop.Cancelled)
        return [m.state for m, _ in self.executor.get_operation_states(op) if isinstance(m.state, terminal)]

    def listening(self, op: str) -> None:
        """Wait until the subscription of a machine in ``Listening`` is confirmed."""

        def confirmed() -> bool:
            return self.executor.explain(op).active[0].triggers[0].running

        wait_until(confirmed, f"{op} listens")

    def run_every_kind(self) -> None:
        """Bring every kind of trigger to its end, and check what came of it."""
        cases: dict[str, tuple[State, str]] = {
            "poll": (shop.Polling(3), "polled 3"),
            "call": (shop.Calling(2), "called attempt 3"),
            "call-fails": (shop.Calling(5), "failed ConnectionError: attempt 3 3"),
            "wait": (shop.Hosting(100), "waited wait"),
            "task": (shop.Tasking(4), "sum 5"),
            "task-fails": (shop.Tasking(-4), "failed ValueError: negative"),
            "reached": (shop.Watching("poll"), "saw polled 3"),
            "finished": (shop.Joining("call"), "joined"),
            "now": (shop.Instant(3), "instant"),
            "channel": (shop.Listening(f"room-{self.namespace}"), "heard yes"),
        }
        for op, (state, _) in cases.items():
            self.add(op, state)
        self.add("after", shop.Awaiting("after", 3, timedelta(milliseconds=300)))
        self.add("signal", shop.Awaiting("signal", 5))
        self.executor.signal("signal", shop.payment, shop.Payment(7))
        self.executor.signal("signal", shop.packed)
        self.listening("channel")
        for message in ("no", "yes"):
            self.redis.publish(f"room-{self.namespace}", f'"{message}"')
        found = {op: self.ends(op) for op in (*cases, "after", "signal")}
        assert found == {
            **{op: [shop.Done(what)] for op, (_, what) in cases.items()},
            "after": [shop.Cancelled("after", "unpaid")],
            "signal": [shop.Shipped("signal")],
        }
        assert self.redis.get(self.keys.data("orders", "revenue")) == b"7"


def stops_cleanly(worker: Worker, within_s: float = 15) -> None:
    """SIGTERM: the worker ends by itself, soon, with exit code 0 and nothing to complain about."""
    os.kill(worker.process.pid, signal.SIGTERM)
    status = worker.process.wait(within_s)
    assert status == 0, worker.output[-3000:]
    said = worker.output.partition("Warm shutdown")[2]
    for complaint in ("Traceback", "Task was destroyed", "was never awaited", "CRITICAL"):
        assert complaint not in said, said[-3000:]

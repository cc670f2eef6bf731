"""What a process that runs machines holds for one executor."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from celery import Celery
from celery.canvas import Signature

from smqueue import tracing
from smqueue.drain import Drain
from smqueue.drivers.driver import Driver
from smqueue.executor import Executor
from smqueue.instances import Instances
from smqueue.keys import Keys
from smqueue.leases import Leases
from smqueue.limits import alarms, time_limit
from smqueue.records import Placed
from smqueue.schemas import HIDDEN
from smqueue.tallies import HANDLER, Tallies
from smqueue.worker.garbage import at_ease
from smqueue.worker.outbound import CeleryOutbound

if TYPE_CHECKING:
    from smqueue.worker.code import Attempt


class Engine:
    """One executor at work in this process: its drains and leases, made at first use."""

    def __init__(self, app: Celery, executor: Executor, outbound: CeleryOutbound) -> None:
        self.app, self.executor, self.outbound = app, executor, outbound
        self._lock = threading.Lock()
        self._leases: Leases | None = None
        self._tallies: Tallies | None = None
        self._local = threading.local()
        self.loop: asyncio.AbstractEventLoop | None = None
        """The event loop that hosts coroutines, in the process that has one."""
        self.loop_pid = 0
        """That process: a child forked from it inherits the loop, but not the thread that runs it."""

    @property
    def driver(self) -> Driver:
        """The driver."""
        return self.executor.deployment.driver

    @property
    def instances(self) -> Instances:
        """The registered modules, with handlers bounded in time."""
        instances = self.executor.instances
        instances.time_limit, instances.ran = time_limit, self._ran
        return instances

    @property
    def namespace(self) -> str:
        """The namespace."""
        return self.executor.deployment.settings.namespace

    @property
    def leases(self) -> Leases:
        """What this process works on."""
        if self._leases is None:
            with self._lock:
                self._leases = self._leases or Leases(self.driver)
        return self._leases

    @property
    def tallies(self) -> Tallies:
        """What this process counts."""
        if self._tallies is None:
            with self._lock:
                self._tallies = self._tallies or Tallies(self.driver, self.keys(0))
        return self._tallies

    def _ran(self, placed: Placed, handler: str, seconds: float) -> None:
        self.tallies.observe(HANDLER, int(seconds * 1_000_000), placed.module, placed.type.name, handler)

    def keys(self, shard: int) -> Keys:
        """The keys of a shard."""
        return self.executor.deployment.all_keys()[shard]

    def drain(self, shard: int) -> int:
        """Work off what is due in a shard."""
        drains: dict[int, Drain] = self._local.__dict__.setdefault("drains", {})
        if shard not in drains:
            given = (self.driver, self.keys(shard), self.instances, self.leases, self.outbound, self.tallies)
            drains[shard] = Drain(*given)
        with alarms(), at_ease():
            return drains[shard].run()

    def run_async(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine to its end: on the hosting loop if this process has one, else on one of its own."""
        if self.loop is not None and self.loop_pid == os.getpid() and self.loop.is_running():
            running = asyncio.run_coroutine_threadsafe(work, self.loop)
            try:
                return running.result()
            finally:
                running.cancel()  # when this thread was interrupted
        return asyncio.run(work)

    def send_linked(self, signature: Any, attempt: Attempt) -> None:
        """Send a user's task so that its end is reported, whichever it is; no result back end is needed.

        It has the trigger's id, so in Flower the two are one: under the trigger's name, with the task's beside it.
        """
        armed = attempt.armed
        given = {"entry": armed.entry, "namespace": self.namespace}
        options = {"headers": headers} if (headers := tracing.injected()) else {}
        done: Any = Signature("smqueue.ended", kwargs=given, options=options, app=self.app)
        failed: Any = Signature("smqueue.failed", kwargs=given, options=options, app=self.app)
        sent: Any = self.app.signature(signature).clone()
        if headers:
            sent.set(headers={**(sent.options.get("headers") or {}), **headers})
        sent.link(done)
        sent.link_error(failed)
        shown = {"task": sent.task, "args": sent.args, "kwargs": sent.kwargs}
        if armed.placed.type.codec.secret_fields:  # they come from the state
            shown |= {"args": HIDDEN, "kwargs": HIDDEN}
        sent.apply_async(
            task_id=attempt.id,
            shadow=attempt.label,
            argsrepr=repr((armed.machine.op, armed.active.machine)),
            kwargsrepr=repr(shown),
        )

"""The worker steps: a pump that wakes what falls due, and a host for what waits in memory. They run in the worker's
main process, whatever its pool."""

from __future__ import annotations

import gc
import logging
import random
import threading
import time
from contextlib import suppress
from datetime import timedelta
from traceback import walk_tb
from typing import Any

from celery import bootsteps

from smqueue import limits
from smqueue.errors import SmqueueError, StoreRefused, StoreUnavailable, error_text
from smqueue.keys import new_id
from smqueue.presence import NOTED_S, Noted, leave, note
from smqueue.protocols.bounds import HINT_MS, WATCH_MS
from smqueue.protocols.claim import pump
from smqueue.retry import Retry
from smqueue.worker.engine import Engine
from smqueue.worker.events import Onlooker
from smqueue.worker.hosting import Host
from smqueue.worker.incoming import take_hints_lightly
from smqueue.worker.settings import queue_of, whole

log = logging.getLogger("smqueue.worker")

LONGEST_S = WATCH_MS / 1000
"""The pump looks about this often: what falls due sooner rings for it."""
SPACED_S = 0.02
"""And no more often than this: who arms a thousand in a second rings fifty times."""
ROTATED_S = 0.05
"""A watch that is over is left to others for so long, or one process would host all that waits."""
WATCHED_S = 1.0
WATCHED_KEPT_S = 5
BACK_OFF = Retry(base=timedelta(milliseconds=200), cap=timedelta(seconds=2))
"""Of a pump whose server is away, on top of what the driver waits."""
BROKEN_S = 5.0
RECONNECT_S = 0.5
"""At least so long from one connection to the broker to the next: Celery ends what restarts five times in a second."""
CAPACITY = 20_000


class Pump(bootsteps.StartStopStep):
    """For each executor: wake what falls due, host what waits in memory."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        self._stopping = threading.Event()
        self._wakes: list[threading.Event] = []
        self._threads: list[threading.Thread] = []
        self._hosts: list[Host] = []
        self._noted: list[tuple[Engine, Noted]] = []
        self._id = new_id()

    def start(self, parent: Any) -> None:
        """Start a thread for each executor of the worker's application."""
        worker: Any = parent
        worker.app.smqueue_hostname = worker.hostname
        worker.app.smqueue_onlooker = Onlooker(worker)
        _check_queues(worker)
        _outlive_broker(getattr(worker, "consumer", None))
        for engine in worker.app.smqueue_engines:
            thread = threading.Thread(target=self._run, args=(worker, engine), name="smqueue-pump", daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self, parent: Any) -> None:  # noqa: ARG002
        """Stop waking and hosting; what is running goes on to its end."""
        self._stopping.set()
        for wake in self._wakes:
            wake.set()
        for thread in self._threads:
            thread.join(5)
        for host in self._hosts:
            host.stop()
        for engine, noted in self._noted:
            with suppress(SmqueueError):  # then it is taken for gone in a while
                leave(engine.driver, engine.keys(0), noted)

    def terminate(self, parent: Any) -> None:
        """As ``stop``: what is left behind is leased."""
        self.stop(parent)

    def _run(self, worker: Any, engine: Engine) -> None:
        host: Host | None = None
        wake = threading.Event()
        self._wakes.append(wake)
        failures, told_at, looked_at, on_watch = 0, 0.0, 0.0, False
        noted_at = 0.0

        def roused() -> None:
            if on_watch:
                wake.set()

        while not self._stopping.is_set():
            try:
                if host is None:
                    keys = engine.executor.deployment.all_keys()
                    _ = engine.driver, engine.leases
                    if worker.app.smqueue_engines.get(engine.namespace) is not engine:
                        return  # the executor was built again
                    load_modules(engine)
                    settle()
                    host = Host(engine, whole(worker.app, "smqueue_wait_capacity", CAPACITY), roused)
                    host.start()
                    self._hosts.append(host)
                    self._noted.append((engine, _noted(worker, engine)))
                    log.info("namespace %s: watching %d shard(s)", engine.namespace, len(keys))
                if time.monotonic() - told_at > WATCHED_S and worker.app.smqueue_onlooker.here():
                    told_at = time.monotonic()
                    for keys in engine.executor.deployment.all_keys():
                        engine.driver.command("SET", keys.watched, "1", "EX", WATCHED_KEPT_S)
                if time.monotonic() - noted_at > NOTED_S:
                    noted_at = time.monotonic()
                    for mine in [noted for whose, noted in self._noted if whose is engine]:
                        note(engine.driver, engine.keys(0), mine)
                _tell_overruns(worker)
                on_watch, looked_at = True, time.monotonic()  # what rings while it looks is looked at again
                wait_s, on_watch = self._round(engine, host)
                if failures:
                    log.warning("namespace %s: Redis answers again", engine.namespace)
                failures = 0
            except SmqueueError as error:
                if failures == 0:
                    away = isinstance(error, StoreUnavailable | StoreRefused)
                    log.error("%s%s", error, "; trying again until it answers" if away else "")
                failures += 1
                wait_s = BACK_OFF.jittered_ms(failures) / 1000
            except Exception:
                log.exception("the pump failed, and goes on")
                wait_s = BROKEN_S
            wake.wait(wait_s)
            self._stopping.wait(max(0.0, looked_at + SPACED_S - time.monotonic()))
            wake.clear()

    def _round(self, engine: Engine, host: Host) -> tuple[float, bool]:
        """Look at each shard once; returns how long nothing is due, in seconds, and whether it is on watch anywhere."""
        wait_s, on_watch = LONGEST_S + ROTATED_S, False
        for keys in engine.executor.deployment.all_keys():
            hint_ms = random.randint(HINT_MS, HINT_MS * 3 // 2)
            watch = engine.driver.run(pump(keys, host.room > 0, self._id, hint_ms))
            if watch.hint:
                engine.outbound.hint(keys.namespace, keys.shard)
            next_ms = 0 if watch.hosted and host.claim(keys) else watch.wait_ms
            later_s = 0.0 if watch.mine else random.uniform(0, ROTATED_S)
            wait_s = min(wait_s, max(next_ms, 20 if watch.hosted else 5) / 1000 + later_s)
            on_watch = on_watch or watch.mine
        return wait_s, on_watch


def _noted(worker: Any, engine: Engine) -> Noted:
    """What a worker says of itself to whoever asks why nothing moves."""
    versions: dict[str, int] = {}
    for module in engine.instances.ids():
        with suppress(Exception):  # one that cannot be used is one that it has not; ``load_modules`` has said so
            versions[module] = engine.instances.get(module).module.version
    transitions, triggers = (queue_of(worker.app, f"smqueue_{which}_queue") for which in ("transition", "trigger"))
    return Noted(worker.hostname, tuple(sorted(worker.app.amqp.queues.consume_from)), transitions, triggers, versions)


def settle(**_: Any) -> None:
    """What a process has loaded stays: the collector need not go through it again and again.

    No collection before that: it would touch all that a forked process shares with its parent.
    """
    gc.freeze()


def _tell_overruns(worker: Any) -> None:
    """Say once of each slot that is lost to code that cannot be interrupted, and when no slot is left."""
    found = limits.overruns()
    for one in found:
        if not one.told:
            one.told = True
            lost, of = len(found), worker.concurrency
            log.error(
                "%s runs longer than its limit of %g s, and on this pool nothing can interrupt it: its machine is "
                "tried elsewhere, its slot is lost until it returns; %d of %d are lost%s",
                *(one.what, one.limit_s, lost, of, ": restart this worker, it can do nothing" if lost >= of else ""),
            )


def load_modules(engine: Engine) -> None:
    """Import the modules that were given by name: what is wrong with one is said now, not when a machine needs it."""
    for module in engine.instances.ids():
        try:
            _ = engine.instances.get(module).module
        except Exception as error:  # the user's file may raise anything
            log.error("module %s cannot be used: %s", module, error_text(error))


def _outlive_broker(consumer: Any) -> None:
    """Neither a broken connection nor a broker that refuses for a while is a reason to end.

    Where messages were reserved and not acknowledged, kombu's Redis transport fails with AttributeError when it is
    closed for the second time, and when one of them is acknowledged after that; Celery takes both as unrecoverable: a
    broker that restarts would end its workers. Held by
    ``test_a_server_that_comes_back_loses_nothing_that_was_acknowledged`` and by
    ``test_what_was_reserved_before_the_broker_restarted_does_not_end_the_worker`` in ``tests/faults``.

    So does Celery take what a Redis broker says that is out of memory, read-only or short of replicas; but that passes.
    What is refused before anything was consumed is a wrong configuration, and ends the worker as ever. Held by
    ``test_a_broker_that_refuses_for_a_while_ends_no_worker`` there.
    """
    if consumer is None:
        return
    connect, loop, start = consumer.connect, consumer.loop, consumer.blueprint.start
    connected_at, consumed = -RECONNECT_S, False

    def connect_guarded() -> Any:
        nonlocal connected_at
        time.sleep(max(0.0, connected_at + RECONNECT_S - time.monotonic()))
        connected_at = time.monotonic()
        connection = connect()
        close = connection.close

        def close_guarded() -> None:
            try:
                close()
            except AttributeError as error:
                log.debug("a broken connection was not closed in order: %s", error)

        connection.close = close_guarded
        take_hints_lightly(connection.default_channel)
        return connection

    def loop_noted(*args: Any) -> None:
        nonlocal consumed
        consumed = True
        loop(*args)

    def start_guarded(parent: Any) -> None:
        try:
            start(parent)
        except consumer.channel_errors as error:
            if not consumed:
                raise
            # Not one more of its ``connection_errors``: those are suppressed where a message is acknowledged, and
            # with as many unacknowledged as it may hold a worker would wait for ever.
            raise ConnectionError(f"the broker refuses: {error}") from error
        except AttributeError as error:
            if not any(frame.f_code.co_name == "basic_ack" for frame, _ in walk_tb(error.__traceback__)):
                raise
            raise ConnectionError("a message of an earlier connection cannot be acknowledged") from error

    consumer.connect, consumer.loop, consumer.blueprint.start = connect_guarded, loop_noted, start_guarded


def _check_queues(worker: Any) -> None:
    """Say so when this worker consumes none of our queues: nothing would move, silently."""
    ours = {queue_of(worker.app, f"smqueue_{which}_queue") for which in ("trigger", "transition")}
    consumed = set(worker.app.amqp.queues.consume_from)
    if not ours & consumed:
        names, given = ", ".join(sorted(ours)), ", ".join(sorted(consumed))
        log.warning(
            "this worker consumes %s, but smqueue's messages go to %s: start one with -Q %s", given, names, names
        )

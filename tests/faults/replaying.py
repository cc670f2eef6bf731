"""A load whose every step can be checked afterwards: cases of an event log, replayed through real workers.

One operation for each case and one signal for each event. Each step notes which event it took, so a signal that was
lost, doubled or overtaken leaves a path that is not the case's trace.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self

import redis
from celery import Celery

from smqueue import Executor, ExecutorBuilder
from smqueue.demo.replay import Closed, event, machine_of, replay, signals_of, trace_of
from smqueue.demo.xes import Case, Event, read_log
from smqueue.embedded import EmbeddedServer
from smqueue.errors import StoreRefused, StoreUnavailable
from tests.waiting import wait_until
from tests.workers import Worker

HELPDESK = Path(__file__).parents[3] / "shared" / "data" / "helpdesk.xes.gz"
NAMESPACE = "faults"
"""Each test has servers of its own."""
ACTIVITIES = ("Assign seriousness", "Take in charge ticket", "Wait", "Resolve ticket", "Require upgrade", "Closed")
LENGTHS = {2: 2, 3: 18, 4: 49, 5: 16, 6: 6, 7: 4, 9: 3, 14: 2}
"""Events of a case → how many of 100 cases have as many: about as in the helpdesk log."""
CHUNK = 50
QUEUE = "celery"
STEAL_S = 0.5


def cases(count: int) -> list[Case]:
    """Cases of the helpdesk log where it is at hand, and generated ones like them elsewhere."""
    if HELPDESK.exists():
        return list(islice((case for case in read_log(HELPDESK) if case.events), count))
    rng = random.Random(1)
    lengths = rng.choices(list(LENGTHS), list(LENGTHS.values()), k=count)
    return [
        Case(f"Case {n}", [Event(rng.choice(ACTIVITIES), None) for _ in range(length)])
        for n, length in enumerate(lengths)
    ]


class Site:
    """A state server, a broker, an executor in the test's process, and workers.

    Args:
        state: Holds the state.
        broker: Holds the messages; may be the same server.
    """

    def __init__(self, state: EmbeddedServer, broker: EmbeddedServer) -> None:
        self.state, self.broker = state, broker
        self.env = {
            "SMQUEUE_URL": state.url,
            "SMQUEUE_NAMESPACE": NAMESPACE,
            "CELERY_BROKER_URL": broker.broker_url,
        }
        self.app = Celery("producer", broker=broker.broker_url, set_as_current=False)
        self.executor: Executor = (
            ExecutorBuilder().with_module("replay", replay).build(self.app, url=state.url, namespace=NAMESPACE)
        )
        self.workers: list[Worker] = []

    def start_workers(self, count: int = 2, *options: str, app: str = "tests.apps.demo") -> list[Worker]:
        """Start workers of one process each, and wait until they consume."""
        started = [Worker(app, self.env, ("--concurrency", "1", *options)) for _ in range(count)]
        self.workers += started
        for worker in started:
            worker.wait_ready()
        return started

    def kill_workers(self) -> None:
        """SIGKILL for all workers that live, and all their processes."""
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.kill()

    def messages(self) -> redis.Redis:
        """A client of the broker's database."""
        return redis.Redis(unix_socket_path=str(self.broker.socket_path), db=1, socket_timeout=10)

    def delete_queues(self) -> int:
        """Delete the queues and what is delivered and not acknowledged; returns how many keys that were."""
        with self.messages() as client:
            keys = [key for key in client.scan_iter(count=1000) if not key.startswith(b"_kombu")]
            return int(client.delete(*keys)) if keys else 0

    def steal_message(self) -> int:
        """Wait for a message as workers do, and lose it if it comes; returns how many that was."""
        with self.messages() as client:
            return int(bool(client.brpop([QUEUE], timeout=STEAL_S)))

    def active(self) -> int:
        """How many operations have active machines; asked until a server that restarts is back."""
        driver, keys = self.executor.deployment.driver, self.executor.deployment.all_keys()[0]

        def counted() -> list[int]:
            try:
                return [int(driver.command("ZCARD", keys.operations))]
            except StoreUnavailable:
                return []

        return wait_until(counted, "the server to answer", 60)[0]


@contextmanager
def site(*, fsync_always: bool = False, own_broker: bool = False) -> Generator[Site]:
    """A site, torn down at the end; shows what its workers said when the block fails."""
    with EmbeddedServer(fsync="always" if fsync_always else "everysec") as state:
        broker = EmbeddedServer().start() if own_broker else state
        made = Site(state, broker)
        try:
            yield made
        except BaseException:
            for worker in made.workers:
                print(f"--- {worker.name}\n{worker.output[-3000:]}")
            raise
        finally:
            made.kill_workers()
            for worker in made.workers:
                worker.stop()  # what is left is its log
            if own_broker:
                broker.stop()


class Feeder:
    """Adds cases and sends their events on a thread of its own. What was acknowledged is never sent again.

    What the server refused or did not answer is sent again under the same id, once it does: whether it was applied is
    not known.

    Args:
        made: Where.
        given: What.
        ahead: How many operations may be unfinished when more are added: what is fed lasts as long as what is run.
            ``None``: any number.
    """

    def __init__(self, made: Site, given: Sequence[Case], ahead: int | None = 100) -> None:
        self._site, self._executor, self._cases, self._ahead = made, made.executor, given, ahead
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._feed, daemon=True)
        self.added = 0
        """How many cases were added, and acknowledged."""
        self.signalled = 0
        """How many events were acknowledged."""
        self.unanswered = 0
        """How many calls ended without an answer."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join(30)

    @property
    def done(self) -> bool:
        """Whether all was acknowledged.

        Raises:
            AssertionError: A call failed, otherwise than by an answer that did not come.
        """
        if self._error is not None:
            raise AssertionError(f"the producer failed: {self._error!r}") from self._error
        return not self._thread.is_alive()

    def _feed(self) -> None:
        try:
            for at in range(0, len(self._cases), CHUNK):
                chunk = self._cases[at : at + CHUNK]
                machines = [machine_of(case) for case in chunk]
                self._wait_for_room()
                self._acknowledged(lambda batch=machines: self._executor.add_state_machines(batch, exist_ok=True))
                self.added += len(chunk)
                # By turns, as events of many cases come: each waits for the transition before, or is kept for it.
                columns = itertools.zip_longest(*[[(case, it) for it in signals_of(case)] for case in chunk])
                for case, it in (pair for column in columns for pair in column if pair is not None):
                    self._acknowledged(
                        lambda case=case, it=it: self._executor.signal(
                            case.name, event, it, module="replay", id=f"event-{it.index}"
                        )
                    )
                    self.signalled += 1
                    if self._stop.is_set():
                        return
        except BaseException as error:
            self._error = error

    def _wait_for_room(self) -> None:
        while self._ahead is not None and not self._stop.is_set():
            with contextlib.suppress(StoreUnavailable, StoreRefused):
                if self._site.active() <= self._ahead:
                    return
            self._stop.wait(0.01)

    def _acknowledged(self, send: Callable[[], object]) -> None:
        while not self._stop.is_set():
            try:
                send()
            except (StoreUnavailable, StoreRefused):
                self.unanswered += 1
                self._stop.wait(0.02)
            else:
                return


def wait_finished(made: Site, feeder: Feeder, timeout_s: float = 60) -> None:
    """Until all is fed and no operation has an active machine."""
    wait_until(lambda: feeder.done, "all events to be acknowledged", timeout_s)
    wait_until(lambda: made.active() == 0, "all operations to finish", timeout_s)


def check_paths(made: Site, given: Sequence[Case]) -> None:
    """Each path is its case's trace: nothing lost, nothing twice, nothing in another order."""
    for case in given:
        history = made.executor.notifier.history(case.name)
        assert [update.sequence for update in history] == list(range(len(case.events) + 1))
        assert [update.step for update in history] == list(range(1, len(case.events) + 2))
        assert len({update.machine_id for update in history}) == 1
        assert [update.terminal for update in history] == [False] * len(case.events) + [True]
        assert isinstance(history[-1].state, Closed)
        assert trace_of([update.state for update in history]) == [it.activity for it in case.events]


def check_nothing_left(made: Site) -> None:
    """Nothing is armed, due or set aside any more: no entry, no race, no early signal, no request."""
    with redis.Redis.from_url(made.state.url, socket_timeout=10) as client:
        prefix = made.executor.deployment.all_keys()[0].prefix
        kinds = {key.decode().removeprefix(prefix).partition(":")[0] for key in client.scan_iter(f"{prefix}*", 1000)}
    left = kinds & {"active", "machine", "race", "schedule", "hosted", "waiting", "inbox", "requests", "quarantine"}
    assert left == set()

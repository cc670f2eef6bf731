"""``LocalExecutor``: an executor in memory, with the real protocols and virtual time."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Self, TypeVar

from smqueue.deployment import DEFAULT_NAMESPACE, Deployment, Settings
from smqueue.drivers.switchboard import Board
from smqueue.errors import InvalidInput, NeverIdle, NothingHappens
from smqueue.executor import Executor
from smqueue.instances import Instance, Instances
from smqueue.modules import Module
from smqueue.protocols import runs
from smqueue.states import State, check_name
from smqueue.testing.armed import Waiting, named, single, waiting
from smqueue.testing.board import LocalBoard
from smqueue.testing.due import next_due_ms
from smqueue.testing.engine import LocalEngine, LocalOutbound, SentTask
from smqueue.testing.hosting import LocalHost
from smqueue.testing.keyspace import START_US
from smqueue.testing.memory import Memory
from smqueue.testing.reading import read_key
from smqueue.testing.store import Store
from smqueue.trigger_types import Trigger
from smqueue.worker.code import encoded, run_trigger

T = TypeVar("T")
GlobalContext = Callable[[str, str], Any]
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
IDLE_STEPS = 2_000
"""So often triggers may run in vain in a wait without a timeout, and so many steps may be at one instant."""


class LocalExecutor(Executor):
    """An executor that is also its own worker and its own Redis: for tests.

    It has all methods of ``Executor``, on the real protocols, in memory and in virtual time: ``advance``,
    ``run_until_idle``, ``await_*`` and subscriptions run the machines, and nothing else does. No server, no broker, no
    thread, and the same every time. For one thread only.

    Code of ``poll``, ``call`` and ``wait`` runs as in a worker. What sleeps with ``asyncio.sleep`` takes no real time:
    a ``poll`` or ``call`` that does is done at once, a ``wait`` goes on when the executor's clock has come that far.

    Args:
        modules: Modules, each under its name as id; or mappings id → module.
        context: What handlers and triggers get as ``context.module``; or a function that makes it.
        contexts: The same for single modules, by id.
        global_context: Makes ``context.global_context`` for a module id and an operation id.
        start: The first instant; 2026-01-01, UTC, unless given.
        shards: Of its namespace.
        **named: More modules, by id.

    Raises:
        DuplicateModule: The id is taken.
        MissingExtra: Lua is not installed: ``pip install 'smqueue[testing]'``.
    """

    def __init__(
        self,
        *modules: Module[Any] | Mapping[str, Module[Any]],
        context: Any = None,
        contexts: Mapping[str, Any] | None = None,
        global_context: GlobalContext | None = None,
        start: datetime | None = None,
        shards: int = 1,
        **named: Module[Any],
    ) -> None:
        by_id = [pair for one in (*modules, named) for pair in _by_id(one)]
        registered = Instances(global_context, shards)
        for id, module in by_id:
            check_name("module id", id)
            registered.register(Instance(id, module, (contexts or {}).get(id, context), "LocalExecutor"))
        self._driver = self._connect(START_US if start is None else (start - EPOCH) // MICROSECOND)
        self._store = self._driver.store
        self._driver.pass_time = self._pass_time
        settings = Settings(self._driver.url, DEFAULT_NAMESPACE, shards)
        noted = LocalOutbound()
        super().__init__(Deployment(lambda: settings, lambda _: self._driver), lambda: registered, noted)
        self._noted = noted
        self._engine = LocalEngine(self, noted)
        self._host = LocalHost(self._engine, self._store)
        self._jitter = random.Random(0).getstate()
        self.limit = IDLE_STEPS
        """So often may triggers run in vain in a wait without a timeout; so many steps, and 20 more for each machine,
        may there be at one instant."""
        self._idle = self._moved = self._moved_before = 0
        self._store.scripts.start()

    def _connect(self, now_us: int) -> Memory:
        return Memory(Store(now_us))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cancel the coroutines that are pending."""
        self._host.close()

    # --- time ----------------------------------------------------------------------------------------------------

    @property
    def now(self) -> datetime:
        """The virtual clock, UTC: what ``tx.now()`` gives."""
        return EPOCH + self._store.now_us * MICROSECOND

    def advance(self, by: timedelta | None = None, **amount: float) -> None:
        """Let time pass: what falls due meanwhile runs, each at its own instant.

        Args:
            by: How much; or as keywords, those of ``timedelta``: ``minutes=31``.
            **amount: See ``by``.

        Raises:
            InvalidInput: A negative time.
            NeverIdle: At one instant there is always something more to do.
        """
        self.advance_to(self.now + (by or timedelta()) + timedelta(**amount))

    def advance_to(self, when: datetime) -> None:
        """Let time pass until an instant; see ``advance``."""
        until_us = (when - EPOCH) // MICROSECOND
        if until_us < self._store.now_us:
            raise InvalidInput("when", f"{when} is before now, {self.now}: time goes forward only")
        self.run_until_idle()
        while (next_us := self._next_us()) is not None and next_us <= until_us:
            self._move_to(next_us)
            self.run_until_idle()
        self._move_to(until_us)
        self.run_until_idle()

    def run_until_idle(self) -> None:
        """Run all that is due now, without any time passing.

        Raises:
            NeverIdle: There is always something more to do.
        """
        limit = self.limit + 20 * sum(self._driver.command("ZCARD", k.schedule) for k in self._deployment.all_keys())
        done = 0
        while one := self._work():
            done += one
            if done > limit:
                raise NeverIdle(done)

    # --- triggers ------------------------------------------------------------------------------------------------

    def complete(
        self,
        trigger: str | Trigger[Any, Any] | Callable[..., Any],
        outcome: Any = None,
        operation_id: str | None = None,
        *,
        machine: str | None = None,
    ) -> bool:
        """Complete an armed trigger of a waiting machine, as if its code had returned, or its task had ended so.

        Its handler runs with the next ``run_until_idle``, ``advance`` or ``await_*``.

        Args:
            trigger: The handler's name (``paid``, or in full ``orders.Awaiting/paid``), the handler, or the trigger.
            outcome: Its outcome; ``Failed(error, attempts)`` for a ``call``, ``wait`` or ``task`` that was given up.
            operation_id: Only of this operation.
            machine: Only the machine of this id.

        Returns:
            Whether it counts: not when another has won the race already, or its deadline has passed.

        Raises:
            NotArmed, AmbiguousTrigger: No, or no single, machine waits for it.
            InvalidOutcome, TooLarge: The outcome does not fit the handler's annotation.
        """
        one = single(self.waiting(operation_id), trigger, operation_id, machine)
        value = encoded(self._engine, one.armed, one.handler, outcome)
        said, _ = self._driver.run(runs.outcome(one.keys, one.armed.entry, one.kind, value))
        return said == "RECORDED"

    def publish(self, channel: str, message: Any) -> int:
        """Publish a message for the machines that wait for one on a channel.

        Args:
            channel: Its name.
            message: ``bytes``, as they are; or what is published as JSON: plain data, or a value of the trigger's type.

        Returns:
            How many machines took it.
        """
        self._host.subscribe()
        return self._host.publish(channel, message)

    def waiting(self, operation_id: str | None = None) -> Sequence[Waiting]:
        """The armed triggers of all machines, or of one operation's, whose races are not decided."""
        return waiting(self._deployment, self.instances, operation_id)

    # --- what was done -------------------------------------------------------------------------------------------

    @property
    def sent_tasks(self) -> Sequence[SentTask]:
        """The Celery tasks that would have been sent so far, each once, in order."""
        return list(self._noted.tasks.values())

    @property
    def published(self) -> Sequence[tuple[str, bytes]]:
        """What handlers have published so far: channel and message."""
        return list(self._host.published)

    def states(self, operation_id: str) -> Sequence[State]:
        """The states in which the machines of an operation are, or have ended, in the order they were entered."""
        found = {machine.machine_id: machine for machine in self.notifier.history(operation_id)}
        return [update.state for update in sorted(found.values(), key=lambda update: update.sequence)]

    def data(self, key: str, module: str | None = None) -> Any:
        """What handlers have written to a key: text, or a ``dict``, ``set`` or ``list`` of text; ``None``: no such key.

        Args:
            key: Relative to the module, as handlers write it.
            module: Its id; the only one, unless given.
        """
        home = module if module is not None else self._only_module()
        if home is None:
            raise InvalidInput("module", f"one of {', '.join(self.instances.ids())}: whose key is meant?")
        self.instances.get(home)
        return self.shared_data(self._deployment.all_keys()[0].data(home, key))

    def shared_data(self, key: str) -> Any:
        """What handlers have written to a key by ``tx.shared``; see ``data``."""
        return read_key(self._driver, key)

    def _board(self) -> Board:
        return LocalBoard(self._driver)

    # --- inside --------------------------------------------------------------------------------------------------

    def _work(self) -> int:
        """Work off what is due now; returns how much that was."""
        done, moved = 0, self._moved
        for keys in self._deployment.all_keys():
            if self._is_due(keys.schedule):
                with self._same_jitter():
                    done += self._drain(keys.shard)
        return done + self._host.run(moved=self._moved > moved)

    def _drain(self, shard: int) -> int:
        done, moved = self._engine.drain_of(shard).once()
        self._moved += moved
        triggers, self._noted.triggers = self._noted.triggers, []
        for armed in triggers:
            run_trigger(self._engine, self._engine.keys(shard), armed.entry, armed.kind)
        return done

    def _is_due(self, schedule: str) -> bool:
        return bool(self._driver.command("ZCOUNT", schedule, "-inf", self._store.now_ms))

    def _next_us(self) -> int | None:
        """When something happens next, in µs; ``None``: nothing will, by itself."""
        held = self._held()
        shards = self._deployment.all_keys()
        dues = [next_due_ms(self._driver, keys, held, len(shards)) for keys in shards]
        found = [due_ms * 1000 for due_ms in dues if due_ms is not None]
        if self._host.next_us is not None:
            found.append(self._host.next_us)
        return max(min(found), self._store.now_us + 1000) if found else None

    def _held(self) -> Collection[str]:
        """Entries of triggers that are pending: they come back by themselves."""
        return self._host.held

    def _move_to(self, at_us: int) -> None:
        if at_us > self._store.now_us:
            self._store.advance(at_us - self._store.now_us)

    def _pass_time(self, seconds: float) -> None:
        """What a doorbell does: until something has happened, or for so long."""
        if self._work():
            return
        next_us, now_us = self._next_us(), self._store.now_us
        if seconds == float("inf"):
            if next_us is None or self._in_vain():
                raise NothingHappens(self._why(next_us))
            self._move_to(next_us)
        else:
            until_us = now_us + max(round(seconds * 1_000_000), 1)
            self._move_to(until_us if next_us is None else min(next_us, until_us))
        self._work()

    def _in_vain(self) -> bool:
        """Whether triggers have run again and again, no machine has moved, and no deadline will move one."""
        self._idle = self._idle + 1 if self._moved == self._moved_before else 0
        self._moved_before = self._moved
        if self._idle > self.limit and any(one.kind == "deadline" for one in self.waiting()):
            self._idle = 0
        return self._idle > self.limit

    def _why(self, next_us: int | None) -> str:
        found = self.waiting()
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        what = f"machines wait for {named(found[:5]) or 'nothing'}{more}"
        return (
            f"{self.limit} attempts have brought nothing; {what}"
            if next_us is not None
            else f"nothing falls due; {what}"
        )

    @contextmanager
    def _same_jitter(self) -> Generator[None]:
        """Back-off is jittered, each time the same way."""
        others = random.getstate()
        random.setstate(self._jitter)
        try:
            yield
        finally:
            self._jitter = random.getstate()
            random.setstate(others)


def _by_id(given: Module[Any] | Mapping[str, Module[Any]]) -> Sequence[tuple[str, Module[Any]]]:
    return [(given.name, given)] if isinstance(given, Module) else list(given.items())

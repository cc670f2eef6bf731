"""What a worker is made of, without Celery: leases that nobody renews, a broker that only notes, coroutines in virtual
time."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from smqueue.drain import Drain
from smqueue.executor import Executor
from smqueue.leases import Lease, Leases
from smqueue.protocols.claim import Armed, claim
from smqueue.records import Active, Placed
from smqueue.tallies import Tallies
from smqueue.testing.virtual import run_virtually
from smqueue.worker.engine import Engine

if TYPE_CHECKING:
    from smqueue.worker.code import Attempt


@dataclass(frozen=True)
class SentTask:
    """A Celery task that would have been sent.

    Attributes:
        name: The task's.
        args: Its arguments.
        kwargs: Its keyword arguments.
        id: Its task id; two that differ in nothing else are equal.
        options: ``queue``, ``countdown`` …
        trigger: ``module.State/handler`` of the ``task`` trigger that waits for its end; ``None`` for ``tx.send_task``.
    """

    name: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    id: str = field(default="", compare=False)
    options: Mapping[str, Any] = field(default_factory=dict)
    trigger: str | None = None


class LocalOutbound:
    """A broker that takes everything and delivers what the executor asks it for."""

    def __init__(self) -> None:
        self.triggers: list[Armed] = []
        """Triggers whose code is to run."""
        self.tasks: dict[str, SentTask] = {}
        """By id: one that is sent twice is one."""

    def hint(self, namespace: str, shard: int) -> None:
        """See ``Outbound``; whoever runs the machines looks anyway."""

    def send_triggers(self, armed: Sequence[Armed]) -> None:
        """See ``Outbound``."""
        self.triggers += armed

    def send_task(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], task_id: str, options: Mapping[str, Any]
    ) -> None:
        """See ``Outbound``."""
        self.tasks.setdefault(task_id, SentTask(name, tuple(args), dict(kwargs), task_id, dict(options)))

    def armed(self, placed: Placed, active: Active, arming: str) -> None:
        """See ``Outbound``; nobody looks on."""

    def ended(self, placed: Placed, active: Active, arming: str, armed: Mapping[str, Any], won: str | None) -> None:
        """See ``Outbound``; nobody looks on."""

    def tell(self, *told: tuple[str, dict[str, Any]]) -> None:
        """Events of one trigger; nobody looks on."""


class _Unrenewed(Leases):
    """No time passes while something runs, so nothing need be renewed, and no thread be started for it."""

    def add(self, leases: Iterable[Lease], limit_s: float, lost: Callable[[Lease], None] | None = None) -> None:
        """Nothing to do."""

    def release(self, leases: Iterable[Lease]) -> None:
        """Nothing to do."""


class LocalDrain(Drain):
    """A drain that claims but once: whoever runs it looks himself whether there is more."""

    def once(self) -> tuple[int, int]:
        """Handle what is due, as far as one claim goes; returns how many entries that were, and how many moved."""
        return self._done(self._batch)

    def step(self, entry: str) -> None:
        """Handle one entry that is due, before all others."""
        self.driver.command("ZADD", self.keys.schedule, "XX", 0, entry)
        self._done(1)

    def _done(self, count: int) -> tuple[int, int]:
        due = self.driver.run(claim(self.keys, self.instances, count))
        entries = sum(map(len, (due.machines, due.doubtful, due.triggers, due.unreadable, due.other)))
        return entries, self._handle(due)


class LocalEngine(Engine):
    """One executor at work, in memory."""

    def __init__(self, executor: Executor, outbound: LocalOutbound) -> None:
        super().__init__(cast("Any", None), executor, cast("Any", outbound))
        self.noted = outbound
        self._tallies = Tallies()  # for nobody
        self._drains: dict[int, LocalDrain] = {}

    def drain_of(self, shard: int) -> LocalDrain:
        """The drain of a shard."""
        if shard not in self._drains:
            keys = self.keys(shard)
            self._drains[shard] = LocalDrain(self.driver, keys, self.instances, self.leases, self.outbound)
        return self._drains[shard]

    def forget(self) -> None:
        """As if this process had died, and another had come."""
        self._drains.clear()
        self.noted.triggers.clear()

    @property
    def leases(self) -> Leases:
        """What is worked on."""
        return _Unrenewed(self.driver)

    def run_async(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine to its end, in virtual time."""
        return run_virtually(work)

    def send_linked(self, signature: Any, attempt: Attempt) -> None:
        """Note a user's task; its end is told by ``complete``."""
        options = dict(signature.get("options") or {})
        args, kwargs = tuple(signature.get("args") or ()), dict(signature.get("kwargs") or {})
        task = SentTask(signature["task"], args, kwargs, attempt.id, options, attempt.label)
        self.noted.tasks.setdefault(attempt.id, task)

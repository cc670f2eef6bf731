"""The comparison: of each operation what was fed, what the model says, what the records, histories and counters say."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from smqueue import Executor
from smqueue.demo.machines import orders, refunds
from smqueue.demo.replay import Closed, replay, trace_of
from smqueue.following import Update
from smqueue.keys import Keys
from tests.faults.chaos.application import STEPS, TOTAL
from tests.faults.chaos.load import Fed

LEFT = frozenset({"active", "machine", "race", "schedule", "hosted", "waiting", "inbox", "requests", "quarantine"})
"""Kinds of keys of which none is there when all has ended."""
BATCH = 500


@dataclass
class Found:
    """One operation that is not as it must be.

    Attributes:
        fed: The operation.
        lost: Commits that are missing.
        doubled: Commits that are too many.
        unknown: Signals that were acknowledged and that the store does not know.
        active: Whether it has not ended.
        absent: Whether the operation is not there at all.
        torn: Whether history and counters do not agree: a part of a commit.
        illegal: Whether its history is one that no machines can have.
        said: What is wrong, in words.
    """

    fed: Fed
    lost: int = 0
    doubled: int = 0
    unknown: set[str] = field(default_factory=set[str])
    active: bool = False
    absent: bool = False
    torn: bool = False
    illegal: bool = False
    said: list[str] = field(default_factory=list[str])


class Truth:
    """Compares. What still runs meanwhile may seem torn.

    Args:
        executor: Of the namespace.
        client: Of the state's database.
    """

    def __init__(self, executor: Executor, client: Any) -> None:
        self._executor, self._client = executor, client
        self._keys: Keys = executor.deployment.all_keys()[0]
        self.transitions = 0
        self._counted = Counter[str]()

    def compare(self, fed: Iterable[Fed]) -> list[Found]:
        """Those operations that are not exactly as they must be."""
        wrong, batch = list[Found](), list[Fed]()
        for one in fed:
            batch.append(one)
            if len(batch) == BATCH:
                wrong += self._compare(batch)
                batch = []
        return wrong + self._compare(batch)

    def _compare(self, batch: list[Fed]) -> list[Found]:
        reading = self._client.pipeline(transaction=False)
        for one in batch:
            reading.hgetall(f"{STEPS}{one.operation_id}").zrange(self._keys.seen(one.operation_id), 0, -1)
            reading.exists(self._keys.active(one.operation_id))
        replies = reading.execute()
        found: list[Found] = []
        for at, one in enumerate(batch):
            counted = Counter({name.decode(): int(count) for name, count in replies[3 * at].items()})
            self._counted.update(counted)
            seen = {id.decode() for id in replies[3 * at + 1]}
            history = self._executor.notifier.history(one.operation_id)
            self.transitions += sum(update.step > 1 for update in history)
            problem = judge(one, counted, history, bool(replies[3 * at + 2]))
            problem.unknown = one.signal_ids - seen
            if problem.unknown:
                problem.said.append(f"signals that are not known: {sorted(problem.unknown)}")
            if problem.said:
                found.append(problem)
        return found

    def totals(self, fed: Iterable[Fed], money: bool) -> list[str]:
        """The counters of all operations together against their sums, after ``compare``; says what differs.

        Args:
            fed: All that was fed.
            money: Whether what was received and paid back must be what was fed.
        """
        names = {key.decode().removeprefix(TOTAL) for key in self._client.scan_iter(f"{TOTAL}*", 1000)}
        totals = Counter({name: int(self._client.get(f"{TOTAL}{name}") or 0) for name in names})
        said = [
            f"the counter of {name} is {totals[name]}, and the sum over all operations {self._counted[name]}"
            for name in sorted(names | set(self._counted))
            if totals[name] != self._counted[name]
        ]
        due = Counter[str]()
        for one in fed:
            due.update({"revenue": one.revenue, "refunded": one.refunded})
        for name, module in (("revenue", orders.name), ("refunded", refunds.name)) if money else ():
            got = int(self._client.get(self._keys.data(module, name)) or 0)
            if got != due[name]:
                said.append(f"{name} is {got} instead of {due[name]}")
        return said

    def left(self, early: Iterable[str] = ()) -> list[str]:
        """Keys of kinds that may not be there any more.

        Args:
            early: Operations that ended too early: signals to them may still be kept.
        """
        prefix, kept = self._keys.prefix, {self._keys.inbox(op, "", "").rstrip(":") for op in early}
        found = (key.decode() for key in self._client.scan_iter(f"{prefix}*", 1000))
        said = [
            f"left: {key}"
            for key in found
            if key.removeprefix(prefix).partition(":")[0] in LEFT and key.rsplit(":", 2)[0] not in kept
        ]
        for key in (self._keys.schedule, self._keys.hosted):
            said += [f"left in {key}: {entry.decode()}" for entry in self._client.zrange(key, 0, -1)]
        return said


def judge(one: Fed, counted: Counter[str], history: list[Update], active: bool) -> Found:
    """Judge one operation by its counters and its history; nothing is said of one that is as it must be."""
    found = Found(one, active=active, absent=not history)
    found.lost, found.doubled = (one.steps - counted).total(), (counted - one.steps).total()
    if found.lost or found.doubled:
        found.said.append(f"committed {dict(counted)} instead of {dict(one.steps)}")
    if active:
        found.said.append("it has not ended")
    if found.absent:
        found.said.append("it is not there")
    won = Counter(f"{update.module}.{update.won}" for update in history if update.won)
    moved = Counter({name: count for name, count in counted.items() if not name.endswith("/kept")})
    if won != moved:
        found.torn = True
        found.said.append(f"the history has {dict(won)}, the counters {dict(moved)}")
    said = _illegal(history, ended=not active)
    found.illegal = bool(said)
    found.said += said
    if history and (paths := _paths(history)) != one.paths:
        found.said.append(f"it went {paths} instead of {one.paths}")
    return found


def _illegal(history: list[Update], ended: bool) -> list[str]:
    """What no history may show, whatever the machines."""
    said: list[str] = []
    machines: dict[str, list[Update]] = defaultdict(list)
    for position, update in enumerate(history):
        machines[update.machine_id].append(update)
        if update.sequence != position:
            said.append(f"its history has {update.sequence} at {position}")
    for machine, steps in machines.items():
        if [update.step for update in steps] != list(range(1, len(steps) + 1)):
            said.append(f"machine {machine} has steps {[update.step for update in steps]}")
        if any(update.terminal for update in steps[:-1]) or (ended and not steps[-1].terminal):
            said.append(f"machine {machine} did not end exactly once")
    return said


def _paths(history: list[Update]) -> dict[str, tuple[str, ...]]:
    """By module what its machine has passed, as ``Fed.paths`` says it; of two machines one after the other."""
    passed: dict[str, list[Any]] = defaultdict(list)
    for update in history:
        passed[update.module].append(update.state)
    paths = {module: tuple(type(state).__name__ for state in states) for module, states in passed.items()}
    if replay.name in passed and isinstance(passed[replay.name][-1], Closed):
        paths[replay.name] = tuple(trace_of(passed[replay.name]))
    return paths

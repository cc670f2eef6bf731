"""What ``explore`` checks by itself: no machine is lost, none takes a step twice, none is set aside, and handlers
decide the same when they are run again."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from smqueue.buffer import NeedRead
from smqueue.errors import error_text
from smqueue.executor import Executor
from smqueue.handlers import Handler
from smqueue.instances import Instances
from smqueue.keys import Keys, decode, digest
from smqueue.records import Active, Machine, Placed
from smqueue.roundtrip import text
from smqueue.states import Context, State
from smqueue.transaction import Transaction
from smqueue.trigger_types import Cancel


class Unsound(AssertionError):
    """Something that must never be."""


class Decisions:
    """What handlers have decided, in words; and whether they decide the same again."""

    def __init__(self, instances: Instances) -> None:
        self._apply, self.story = instances.apply, list[str]()
        self._made: dict[tuple[str, ...], tuple[object, ...]] = {}
        self._problem = ""
        instances.apply = self._applied

    def check(self) -> None:
        """Raises Unsound when a handler was run again with all the same, and has decided otherwise."""
        if self._problem:
            raise Unsound(self._problem)

    def _applied(
        self, handler: Handler, tx: Transaction, placed: Placed, outcome: Any, context: Callable[[], Context[Any, Any]]
    ) -> State | None:
        try:
            result = self._apply(handler, tx, placed, outcome, context)
        except NeedRead:
            raise  # it is run again with what it wants to read
        except Exception as error:
            self.story.append(f"{handler.name} of {placed.op} raises {error_text(error)}")
            raise
        came = f"{placed.op} goes to {result}" if result is not None else f"{placed.op} stays in {placed.state}"
        if isinstance(handler.trigger, Cancel):
            came = f"{placed.op} ends in {placed.state}, cancelled"
        self.story.append(f"{handler.name} runs: {came}")
        reads = sorted(repr(pair) for pair in tx.buffer.known.items())
        given = (context().attempt_id, handler.name, repr(outcome), *reads)
        asked = [{name: value for name, value in one.items() if name != "id"} for one in tx.requests]
        decided = (repr(result), list(tx.buffer.writes), [one.record for one in tx.starting], asked)
        before = self._made.setdefault(given, decided)
        if before != decided:
            which = next(at for at, (was, now) in enumerate(zip(before, decided, strict=True)) if was != now)
            what = ("returned", "wrote", "started", "sent")[which]
            self._problem = (
                f"{handler.name} was run again with all the same, and decided otherwise: first it {what} "
                f"{before[which]}, then {decided[which]}. A handler may depend on nothing but its arguments and what "
                "it reads by tx, for it runs again after a crash or a conflict"
            )
        return result


def operations(executor: Executor, keys: Keys) -> list[str]:
    """All operations of a shard that have, or have had, machines."""
    found: dict[str, None] = {}
    for prefix in (keys.active(""), keys.inactive("")):
        names = executor.deployment.driver.command(
            "SCAN", 0, "MATCH", "*:" + prefix.partition("}:")[2] + "*", "COUNT", 10**6
        )[1]
        found |= dict.fromkeys(decode(text(name).removeprefix(prefix)) for name in names)
    return sorted(found)


class Soundness:
    """Looks at all machines, again and again; what it has seen once must not vanish.

    Args:
        executor: Whose.
        quarantine: Machines may be set aside.
    """

    def __init__(self, executor: Executor, *, quarantine: bool) -> None:
        self._executor, self._quarantine = executor, quarantine
        self._running: dict[str, set[str]] = defaultdict(set)
        """Operation → machines that were active."""
        self._looked: dict[str, Any] = {}

    def check(self) -> None:
        """Raises Unsound when a machine is set aside, lost, has taken a step twice, or will never be looked at."""
        driver = self._executor.deployment.driver
        for keys in self._executor.deployment.all_keys():
            aside: Any = driver.command("HGETALL", keys.quarantine)
            if aside and not self._quarantine:
                why = json.loads(aside[1])
                raise Unsound(f"a machine of operation {why['op']} is quarantined: {why['error']}")
            for op in dict.fromkeys([*operations(self._executor, keys), *self._running]):
                flat: Any = driver.command("HGETALL", keys.active(op))
                looks = (driver.command("LLEN", keys.history(op)), flat)
                fields = {Active.parse(raw).machine: text(field) for field, raw in pairs(flat)}
                if self._looked.get(op) != looks:
                    self._check_steps(op, fields)
                    self._looked[op] = looks
                for field in fields.values():
                    raw: Any = driver.command("GET", keys.machine(digest(op, field)))
                    if raw is None or driver.command("ZSCORE", keys.schedule, Machine.parse(raw).entry) is None:
                        raise Unsound(f"a machine of operation {op} is active, and nothing will ever look at it")

    def _check_steps(self, op: str, active: Mapping[str, str]) -> None:
        steps: dict[str, int] = {}
        ended: set[str] = set()
        for update in self._executor.notifier.history(op):
            machine = update.machine_id
            last = steps.get(machine, 0)
            if machine in ended or update.step != last + 1:
                raise Unsound(f"a machine of operation {op} takes step {update.step} after step {last}")
            steps[machine] = update.step
            if update.terminal or update.merged_into is not None:  # one that is cancelled is, too
                ended.add(machine)
        self._running[op] |= set(active) | (set(steps) - ended)
        for machine in self._running[op]:
            if machine not in active and machine not in ended:
                raise Unsound(f"a machine of operation {op} is lost")
            if machine in active and machine in ended:
                raise Unsound(f"a machine of operation {op} has ended, and is active")
        self._running[op] -= ended


def pairs(flat: Any) -> list[tuple[Any, Any]]:
    """A flat reply as pairs."""
    return list(zip(flat[::2], flat[1::2], strict=True))

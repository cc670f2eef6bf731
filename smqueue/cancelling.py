"""Cancelling an operation, and with it those that its transitions have started.

Each operation notes that it is being cancelled before any of them ends, so that whoever dies half-way, the workers
finish what was begun. A machine with a cancel handler is ended by whoever has its code; one whose handler fails stays
until that has succeeded, or it is cancelled by force.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from smqueue.drivers.driver import Driver
from smqueue.errors import (
    CancelUnfinished,
    CommitFailed,
    SmqueueError,
    StoreUnavailable,
    TornCommit,
    WorkerKilled,
    error_text,
)
from smqueue.instances import Instances
from smqueue.keys import Keys, new_id, shard_of
from smqueue.logs import about
from smqueue.outbound import Outbound
from smqueue.protocols import cancel, ending, requests, runs
from smqueue.protocols.bounds import MAX_ALONE, PARK_MS
from smqueue.protocols.cancel import Noted
from smqueue.protocols.ending import Ended, Leaving
from smqueue.retry import Retry

log = logging.getLogger("smqueue.cancel")

ELSEWHERE_MS = 2_000
"""When a worker that lacks the code of a cancel handler looks again; others may look sooner."""
WORKER_S = 5.0
"""After this long a worker hands over to another message, that no task runs for long."""

UNSTARTED = b"~requests"
"""Among what has to stay: requests of its transitions that could not be done."""

Own = Callable[[Keys, Sequence[bytes]], None]
"""Does what a commit has left to be done right after it."""


class Done(NamedTuple):
    """How far a cancelling has come."""

    ended: int
    """Machines that this run has ended."""
    left: int = 0
    """Machines that it had to leave."""
    why: str = ""
    """Why the first of them was left."""


class Cancelling:
    """One run of a cancelling: by its caller, or by a worker that goes on with it.

    Args:
        driver: The way to Redis.
        instances: The registered modules.
        outbound: What is told of triggers that end, and of what falls due.
        own: Does what cancel handlers have left to be done.
        worker: Whether this is a worker's run: it keeps its time, and leaves alone what was set aside.
    """

    def __init__(
        self, driver: Driver, instances: Instances, outbound: Outbound, own: Own, *, worker: bool = False
    ) -> None:
        self.driver, self.instances, self.outbound, self.own, self.worker = driver, instances, outbound, own, worker
        self._until = time.monotonic() + (WORKER_S if worker else float("inf"))
        self._ended = self._left = 0
        self._why = ""

    def run(self, keys: Keys, operation_id: str) -> Done:
        """Go on with what was begun, as far as this process can; what is left of it has entries of its own."""
        waiting, known = [(keys, operation_id)], {operation_id}
        while waiting:
            there, op = waiting.pop()
            children = _Operation(self, there, op).finish()
            waiting += [(theirs, child) for child, theirs in children.items() if child not in known]
            known.update(children)
            if self.late:
                break
        return Done(self._ended, self._left, self._why)

    @property
    def late(self) -> bool:
        """Whether it is others' turn."""
        return time.monotonic() > self._until

    def after(self, keys: Keys, op: str, done: Ended, commit_id: str) -> None:
        """What follows a commit that has ended machines."""
        self._ended += len(done.machines)
        if done.hint:
            self.outbound.hint(keys.namespace, keys.shard)
        if done.watched:
            for one, machine in done.machines:
                if machine is None:
                    continue
                with suppress(SmqueueError):  # of what cannot be read here nobody is told
                    _, placed = self.instances.load(op, one.field, one.active.version)
                    self.outbound.ended(placed, one.active, machine.arming, machine.armed, None)
            for placed, active in done.started:
                self.outbound.armed(placed, active, commit_id)
        if done.requests:
            self.own(keys, done.requests)

    def torn(self) -> None:
        """A machine has ended, although a command of its handler's has failed."""
        self._ended += 1

    def leave(self, count: int, why: str) -> None:
        """So many machines have to stay."""
        self._left += count
        self._why = self._why or why


class _Operation:
    """One operation in it."""

    def __init__(self, run: Cancelling, keys: Keys, op: str) -> None:
        self.run, self.keys, self.op = run, keys, op
        self.keep = run.instances.longest_keep()
        self._noted: Noted | None = None
        self._begun = False
        """Whether the cancelling of all its children has been begun."""
        self._started = False
        """Whether those that are to be started in other shards have been."""
        self._has_children = False
        self._children: dict[str, Keys] = {}
        """Those that are being cancelled."""
        self._stay: dict[bytes, str] = {}
        """What has to stay: why."""
        self._again_ms: list[int] = []

    def finish(self) -> Mapping[str, Keys]:
        """End all that can be ended here.

        Returns:
            The operations that are being cancelled with it, and where they are.
        """
        driver, keys, op = self.run.driver, self.keys, self.op
        while True:
            noted, in_time = self._look(), True
            if noted is not None and noted.children and not self._begun and not (noted.begun and self.run.worker):
                in_time = self._begin_children(noted)
                if in_time and self._has_children and UNSTARTED not in self._stay:
                    driver.run(cancel.children_begun(keys, op, noted))
                    continue
            stay = len(self._stay)
            if noted is not None and in_time:
                in_time = self._pass(noted)
            if UNSTARTED not in self._stay and (driver.run(cancel.lift(keys, op)) or noted is None):
                return self._children
            assert noted is not None
            if not in_time or self.run.late:
                driver.run(cancel.put_off(keys, op, noted, 0))
                self.run.outbound.hint(keys.namespace, keys.shard)
                return self._children
            if self._stay and len(self._stay) == stay:
                break
        again_ms = min(self._again_ms, default=PARK_MS)
        driver.run(cancel.put_off(keys, op, noted, again_ms))
        if not again_ms:
            self.run.outbound.hint(keys.namespace, keys.shard)
        self.run.leave(len(self._stay), next(iter(self._stay.values())))
        return self._children

    def _look(self) -> Noted | None:
        """The cancelling as it is now: whoever has begun it again may have asked for more, and what stayed may go."""
        noted = self.run.driver.run(cancel.noted(self.keys, self.op))
        if noted is None or self._noted is None or noted.raw != self._noted.raw:
            self._noted, self._begun, self._started, self._has_children = noted, False, False, False
            self._stay.clear()
            self._again_ms.clear()
        return noted

    def _begin_children(self, noted: Noted) -> bool:
        """Begin the cancelling of its children before its own machines end; returns whether there was time for that."""
        cursor = b"0"
        while not self._begun:
            cursor, found = self.run.driver.run(cancel.children_of(self.keys, self.op, cursor))
            self._has_children = self._has_children or bool(found)
            by_shard: dict[int, list[str]] = {}
            for child in found:
                by_shard.setdefault(shard_of(child, self.run.instances.shards), []).append(child)
            if not self._started and set(by_shard) - {self.keys.shard}:
                self._start_children(noted)
            for shard, ops in by_shard.items():
                if not self._begin_in(shard, ops, noted):
                    return True  # it is over, or was begun anew: the next look tells
            self._begun = int(cursor) == 0
            if self.run.late and not self._begun:
                return False
        return True

    def _start_children(self, noted: Noted) -> None:
        """What it has started in another shard may not be there yet: that is done now, and ends like the others."""
        driver, self._started = self.run.driver, True
        if not (asked := driver.run(cancel.unstarted(self.keys, self.op))):
            return
        self.run.own(self.keys, asked)
        left = driver.run(cancel.unstarted(self.keys, self.op))
        if noted.force:
            for request in left:
                driver.run(requests.remove(self.keys, request))
        elif left:
            self._stay[UNSTARTED] = "what it has started in another shard cannot be started here"
            self._again_ms.append(self._elsewhere_ms)

    def _begin_in(self, shard: int, ops: Sequence[str], noted: Noted) -> bool:
        """Only while it is under way itself: who helps with what others have finished ends nothing that comes later."""
        driver, theirs = self.run.driver, Keys(self.keys.namespace, shard)
        parent = self.op if shard == self.keys.shard else None
        if parent is None and driver.run(cancel.noted(self.keys, self.op)) != noted:
            return False
        begun = driver.run(cancel.begin_with(theirs, ops, noted, parent))
        self._children.update(dict.fromkeys(begun or (), theirs))
        return begun is not None

    def _pass(self, noted: Noted) -> bool:
        """Look at all machines once; returns whether there was time for that."""
        driver, instances, cursor = self.run.driver, self.run.instances, b"0"
        while True:
            cursor, found = driver.run(ending.page(self.keys, instances, self.op, cursor, noted.force))
            new = [one for one in found if one.raw not in self._stay]
            plain = [one for one in new if one.undo is None and one.lacking is None]
            for at in range(0, len(plain), ending.BATCH):
                self._end(plain[at : at + ending.BATCH], noted)
                if self.run.late:
                    return False
            for one in new:
                if one.undo is not None or one.lacking is not None:
                    self._undo(one, noted)
                    if self.run.late:
                        return False
            if int(cursor) == 0:
                return True

    def _end(self, batch: Sequence[Leaving], noted: Noted) -> None:
        commit_id = new_id()
        steps = ending.end(self.keys, self.op, batch, noted, commit_id, self.keep, self.run.instances.chain)
        self.run.after(self.keys, self.op, self.run.driver.run(steps), commit_id)

    def _undo(self, one: Leaving, noted: Noted) -> None:
        """Run a cancel handler, or leave its machine to others."""
        if one.lacking is not None:
            self._stays(one, f"its cancel handler cannot be run here: {one.lacking}", self._elsewhere_ms)
            return
        if one.aside and self.run.worker:
            self._stays(one, "its cancel handler was given up", None)
            return
        if self.run.worker and self._kills(one, noted):
            return
        commit_id = new_id()
        try:
            steps = ending.undo(self.keys, self.run.instances, self.op, one, noted, commit_id, self.keep)
            done = self.run.driver.run(steps)
        except StoreUnavailable:
            raise
        except CommitFailed as error:  # bad luck is no fault
            self._stays(one, str(error), Retry().jittered_ms(1))
        except TornCommit as torn:
            text = "torn commit of the cancelling of operation %s: %s"
            log.error(text, self.op, torn.problem, extra=about(self.op))
            self.run.torn()
        except Exception as error:
            self._failed(one, noted, error)
        else:
            self.run.after(self.keys, self.op, done, commit_id)

    def _kills(self, one: Leaving, noted: Noted) -> bool:
        """Note that a worker runs this handler; whether those that did before have not come back, and it is set aside.

        They ran nothing beside it, as a machine does that is suspected to kill its worker.
        """
        times = self.run.driver.run(runs.suspect(self.keys, one.entry, ending.UNDOING)) if one.entry else 0
        if times <= MAX_ALONE:
            return False
        self._failed(one, noted, WorkerKilled(times), again=False)
        return True

    def _failed(self, one: Leaving, noted: Noted, error: Exception, *, again: bool = True) -> None:
        assert one.undo is not None
        placed, handler = one.undo
        label = handler.label(placed.module, placed.type.name)
        text = self.run.instances.without_secrets(error_text(error), placed, handler)
        extra = about(self.op, machine=one.active.machine, module=placed.module, state=placed.type.name)
        log.warning("cancel handler %s of operation %s failed: %s", label, self.op, text, extra=extra)
        told = f"cancel handler {label}: {text}"
        retry = placed.type.module.retry if again else None
        again_ms = self.run.driver.run(ending.failed(self.keys, self.op, one, noted, error, told, retry=retry))
        if again_ms is None:
            aside = "operation %s: %s cannot be cancelled and is quarantined: %s"
            log.error(aside, self.op, placed, text, extra=extra)
        self._stays(one, told, again_ms)

    @property
    def _elsewhere_ms(self) -> int:
        return ELSEWHERE_MS if self.run.worker else 0

    def _stays(self, one: Leaving, why: str, again_ms: int | None) -> None:
        self._stay[one.raw] = why
        if again_ms is not None:
            self._again_ms.append(again_ms)


def cancel_all(
    run: Cancelling, keys: Keys, operation_id: str, reason: str, *, children: bool = False, force: bool = False
) -> int:
    """Cancel an operation.

    Returns:
        How many machines were ended.

    Raises:
        CancelUnfinished: Some had to be left to workers.
    """
    run.driver.run(cancel.begin(keys, operation_id, reason, children, force))
    done = run.run(keys, operation_id)
    if done.left:
        raise CancelUnfinished(operation_id, done.ended, done.left, done.why)
    return done.ended

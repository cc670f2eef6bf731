"""Draining a shard: claim what is due, commit it as a group, see to what did not move. No Celery here."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple

from smqueue import tracing
from smqueue.cancelling import WORKER_S
from smqueue.drivers.driver import Driver, Later, Started
from smqueue.drivers.group import group
from smqueue.errors import (
    CommitFailed,
    NewerRecord,
    SecretKeyMissing,
    SmqueueError,
    StoreRefused,
    StoreUnavailable,
    UndecodableRecord,
    UnknownModule,
    WorkerKilled,
    error_text,
)
from smqueue.instances import Instances
from smqueue.keys import Keys, new_id
from smqueue.leases import Lease, Leases
from smqueue.logs import about, about_machine
from smqueue.outbound import Outbound
from smqueue.protocols import runs
from smqueue.protocols.arming import AWAITED_AGAIN
from smqueue.protocols.bounds import LEASE_MS, MAX_ALONE
from smqueue.protocols.claim import Armed, Claimed, Due, Unreadable, claim, parse_row
from smqueue.protocols.transition import Transitioned, transition
from smqueue.records import kind_of
from smqueue.relay import Relay
from smqueue.retry import Retry
from smqueue.roundtrip import LostReply, Run, Steps
from smqueue.spans import transition_span, transitioned
from smqueue.tallies import DRAIN, HANDLER_FAILED, Tallies
from smqueue.tracing import Span

log = logging.getLogger("smqueue.drain")

LARGEST_BATCH = 128
GROUP_S = 0.05
"""A group closes after this much handler time: what has been decided is not kept waiting by the rest."""
DRAIN_S = 1.0
"""A drain hands over to another message after this long, so that no task runs for long."""
AHEAD_FROM = 16
"""From which size of a claim on the next is asked for before it is worked off: handlers that take long keep theirs."""
AHEAD_OF = 8
"""And of how many that are due: with fewer there are seldom others by then, and one that finds none lets a hint go."""
LATE_S = LEASE_MS / 1000 * 0.7
"""After this long what was claimed ahead is not worked on any more: handlers have become slow."""
LOOKED_AT = frozenset({"reached", "finished"})
"""Triggers that need no task: to see whether another machine is there is one look."""
ELSEWHERE_MS = 2_000
"""When a worker that lacks a module or its version looks again; others may look sooner."""


class Sent(NamedTuple):
    """A group whose handlers have run, or will when its commit is asked for."""

    due: Due
    claimed: Sequence[Claimed]
    leases: Sequence[Lease]
    """Of each."""
    ids: Sequence[str]
    spans: Sequence[Span | None]
    started: Started[list[Run[Transitioned]]]
    took_s: float


@dataclass
class Moving:
    """What was claimed, and how its commit is under way."""

    due: Due
    leases: Sequence[Lease]
    sent: Sent | None

    def abandon(self, leases: Leases) -> None:
        """It is tried again when its leases have run out."""
        leases.release(self.leases)
        if self.sent is not None:
            self.sent.started.abandon()


class Drain:
    """Works off what is due in one shard."""

    def __init__(
        self, driver: Driver, keys: Keys, instances: Instances, leases: Leases, outbound: Outbound,
        tallies: Tallies | None = None,
    ) -> None:  # fmt: skip
        self.driver, self.keys, self.instances, self.leases, self.outbound = driver, keys, instances, leases, outbound
        self.tallies = tallies or Tallies()
        self.relay = Relay(driver, keys, instances, outbound)
        self._batch = 16
        self._told: set[str] = set()

    def run(self) -> int:
        """Work until nothing is due, or for about a second; then another message goes on.

        Returns:
            How many machines have moved.
        """
        moved = self._run()
        self.tallies.observe(DRAIN, moved)
        return moved

    def _run(self) -> int:
        until, moved, hinted = time.monotonic() + DRAIN_S, 0, False
        claiming: Started[Due] | None = None
        moving: Moving | None = None
        asked_s = 0.0
        try:
            while True:
                try:
                    due = self.driver.run(self._claim()) if claiming is None else claiming.result()
                except SmqueueError:  # of the next claim: what is under way has nothing to do with it
                    if moving is not None:
                        self._end(moving)
                    raise
                late = claiming is not None and time.monotonic() - asked_s > LATE_S
                claiming = None
                if late or not due.found:  # what is read so late is somebody else's by now, or is due again
                    moved, moving = moved + (self._end(moving) if moving is not None else 0), None
                    if late:
                        continue
                    return moved
                if due.more and not hinted:  # more than one claim: another worker may help
                    self.outbound.hint(self.keys.namespace, self.keys.shard)
                    hinted = True
                ahead = len(due.machines) >= AHEAD_OF and self._batch >= AHEAD_FROM and self.driver.overlaps
                ahead = ahead and not (due.doubtful or due.triggers or due.other)
                if ahead and time.monotonic() < until:  # the server claims while handlers run here
                    claiming, asked_s = self.driver.start(self._claim()), time.monotonic()
                before, moving = moving, self._begin(due, ahead)  # and they run while it commits what came before
                moved += self._end(before) if before is not None else 0
                if claiming is None:
                    moved += self._end(moving)
                    moving = None
                self._others(due, until)
                if claiming is None and time.monotonic() > until:
                    if not hinted:  # one for one: two would double with every drain, while there is enough to do
                        self.outbound.hint(self.keys.namespace, self.keys.shard)
                    return moved
        finally:
            if claiming is not None:
                claiming.abandon()
            if moving is not None:
                moving.abandon(self.leases)

    def _handle(self, due: Due, until: float = float("inf")) -> int:
        """All that was claimed, without more ado."""
        moved = self._end(self._begin(due, ahead=False))
        self._others(due, until)
        return moved

    def _claim(self) -> Steps[Due]:
        return claim(self.keys, self.instances, self._batch)

    def _others(self, due: Due, until: float) -> None:
        """What was claimed beside machines that move."""
        for one in due.unreadable:
            self._unreadable(one)
        if sent := [armed for armed in due.triggers if armed.kind not in LOOKED_AT]:  # before any look that may fail
            with self._apart(f"{len(sent)} triggers"):
                self.outbound.send_triggers(sent)
        for armed in due.triggers:
            if armed.kind in LOOKED_AT:
                with self._apart(f"trigger {armed.trigger} of operation {armed.machine.op}", armed):
                    self.relay.look(armed)
        for entry in due.other:
            with self._apart(entry), self._working_on(entry):
                self.relay.other(entry)
            if time.monotonic() > until:  # the rest is leased, and so due again; in order, each has its turn
                break

    @contextmanager
    def _apart(self, what: str, armed: Armed | None = None) -> Generator[None]:
        """One entry that fails keeps no other waiting; it is leased, and so tried again."""
        try:
            yield
        except (StoreUnavailable, StoreRefused):
            raise
        except Exception as error:
            whose = about_machine(armed) if armed is not None else None
            log.warning("%s: %s; tried again later", what, error_text(error), extra=whose)

    def _working_on(self, entry: str) -> AbstractContextManager[None]:
        """A cancelling may take longer than a claim: it runs handlers."""
        if not entry.startswith("~cancel:"):
            return nullcontext()
        longest = max((self.instances.get(id).module.handler_timeout for id in self.instances.ids()), default=None)
        limit_s = WORKER_S + (longest.total_seconds() * 2 if longest is not None else 0)
        return self.leases.hold([Lease(self.keys, self.keys.schedule, entry, "")], limit_s + 5)

    def _begin(self, due: Due, ahead: bool) -> Moving:
        """Run the handlers of what was claimed; with ``ahead`` their commit is sent, too."""
        longest = max({one.placed.type.module.handler_timeout for one in due.machines}, default=timedelta())
        leases = [self._lease(one) for one in due.machines]
        self.leases.add(leases, longest.total_seconds() * 2 + 5)
        try:
            return Moving(due, leases, self._send(due, due.machines, leases, ahead) if due.machines else None)
        except BaseException:
            self.leases.release(leases)
            raise

    def _end(self, moving: Moving) -> int:
        """See how the commit has ended, and move those that were not in it; returns how many have moved."""
        due, sent, moved = moving.due, moving.sent, 0
        try:
            steady, leases = due.machines, moving.leases
            while sent is not None:
                began = time.monotonic()
                done = self._settle(sent, due.watched)
                self._size((sent.took_s + time.monotonic() - began) / done)
                moved += done
                steady, leases = steady[done:], leases[done:]
                sent = self._send(due, steady, leases) if steady else None
        finally:
            self.leases.release(moving.leases)
        moving.sent = None
        return moved + self._doubtful(due)

    def _doubtful(self, due: Due) -> int:
        """Machines whose last claim ended in nothing. One runs, alone; returns how many have moved.

        The others are given back before it does, and that claim does not count for them: should it take this worker
        with it, they are neither suspected nor kept waiting.
        """
        for one in due.doubtful[1:]:
            self.driver.run(runs.defer(self.keys, one.entry, one.guard, 0, failed=False))
        if not due.doubtful:
            return 0
        self._batch = 1  # what is given back comes next, one by one
        suspect = due.doubtful[0]
        times = self.driver.run(runs.suspect(self.keys, suspect.entry))
        if times > MAX_ALONE:
            text = "operation %s: a machine is quarantined: it kills its worker"
            log.error(text, suspect.op, extra=about(suspect.op))
            self._defer(suspect.entry, suspect.guard, suspect.op, WorkerKilled(times), failed=True, quarantine=True)
            return 0
        try:
            machine = parse_row(self.instances, suspect.row, due.now_us)
        except (SmqueueError, ValueError) as error:
            problem = error if isinstance(error, SmqueueError) else UndecodableRecord(str(error))
            self._unreadable(Unreadable(suspect.entry, suspect.entry.partition(":")[0], suspect.op, problem))
            return 0
        assert isinstance(machine, Claimed)
        leases = [self._lease(machine)]
        with self.leases.hold(leases, machine.placed.type.module.handler_timeout.total_seconds() * 2 + 5):
            return self._settle(self._send(due, [machine], leases), due.watched, alone=True)

    def _lease(self, one: Claimed) -> Lease:
        return Lease(self.keys, self.keys.schedule, one.entry, one.machine.guard)

    def _size(self, seconds_each: float) -> None:
        """Claim no more than a group's time: what is claimed here cannot be run elsewhere."""
        self._batch = max(1, min(LARGEST_BATCH, int(GROUP_S / max(seconds_each, 1e-6)), self._batch * 2))

    def _send(self, due: Due, claimed: Sequence[Claimed], leases: Sequence[Lease], ahead: bool = False) -> Sent:
        """Run handlers, of as many as fit into one group."""
        ids, began = [new_id() for _ in claimed], time.monotonic()
        spans: list[Span | None] = []
        protocols = self._begun(claimed, ids, spans)
        steps = self.tallies.conflicts(group(protocols, GROUP_S))
        started = self.driver.start(steps) if ahead else Later(self.driver, steps)
        return Sent(due, claimed, leases, ids, spans, started, time.monotonic() - began)

    def _settle(self, sent: Sent, watched: bool, alone: bool = False) -> int:
        """See what has become of a group; returns how many it was of."""
        ended = sent.started.result()
        claimed, ids, spans = sent.claimed, sent.ids, sent.spans
        elapsed_us = int((time.perf_counter() - sent.due.read_s) * 1_000_000)
        requests: list[bytes] = []
        hint = False
        told: list[tuple[Claimed, str]] = []
        self.leases.release(sent.leases[: len(ended)])
        try:
            for one, commit_id, run, span in zip(claimed, ids, ended, spans, strict=False):
                if run.error is not None:
                    if span is not None:
                        span.failed(type(run.error).__name__, self._text(one, run.error))
                        span.end()
                    self._failed(one, run.error, alone)
                    continue
                done = run.result()
                if span is not None:
                    transitioned(span, one, done)
                told.append((one, done.kind))
                requests += done.requests
                hint = hint or done.hint
                if watched or done.kind in {"held", "torn"}:
                    self._after(one, commit_id, done, watched)
        finally:  # also when Redis goes away: they have moved
            self.tallies.committed(told, sent.due.now_us, elapsed_us)
        if hint:
            self.outbound.hint(self.keys.namespace, self.keys.shard)
        self.relay.own(requests)
        return len(ended)

    def _begun(
        self, claimed: Sequence[Claimed], ids: Sequence[str], spans: list[Span | None]
    ) -> Iterator[Steps[Transitioned]]:
        traced = tracing.on()
        for one, commit_id in zip(claimed, ids, strict=True):
            spans.append(span := transition_span(one) if traced else None)
            yield transition(self.keys, self.instances, one, commit_id, span)

    def _after(self, one: Claimed, commit_id: str, done: Transitioned, watched: bool) -> None:
        match done.kind:
            case "held":
                self.driver.run(runs.hold(self.keys, one.entry, done.detail))
            case "torn":
                what = (one.placed, one.machine.op, done.detail)
                log.error("torn commit of %s in operation %s: %s", *what, extra=about_machine(one))
                entry = one.entry if done.to is None else f"{done.to.placed.record}:{commit_id}"
                why = UndecodableRecord(f"a command failed inside EXEC while the state moved: {done.detail}")
                self._defer(entry, "", one.machine.op, why, quarantine=True)
            case _:
                pass
        if watched and done.kind in {"moved", "merged", "kept", "torn"}:
            over = one.machine.armed
            if done.kind == "kept":  # the race goes on; only a trigger that is not awaited again is over
                over = {n: wait for n, wait in over.items() if n == one.won and kind_of(wait) not in AWAITED_AGAIN}
            self.outbound.ended(one.placed, one.active, one.machine.arming, over, one.won)
            arrived = [done.to] if done.to is not None and done.kind == "moved" else []
            for placed, active in (*arrived, *done.machines):
                if not placed.type.terminal:
                    self.outbound.armed(placed, active, commit_id)

    # --- what did not move ---------------------------------------------------------------------------------------

    def _failed(self, one: Claimed, error: Exception, alone: bool) -> None:
        match error:
            case CommitFailed():  # bad luck is no fault: never a reason to set a machine aside
                self._defer(one.entry, one.machine.guard, one.machine.op, error, delay_ms=Retry().jittered_ms(1))
            case StoreUnavailable() | LostReply():  # the leases run out, and all of it is due again
                log.debug("%s", error)  # the worker's pump says so, once
            case SecretKeyMissing():  # of its outcome; who lacks the key of its state has not got here
                self._elsewhere(error)
                self._defer(one.entry, one.machine.guard, one.machine.op, error, delay_ms=ELSEWHERE_MS)
            case StoreRefused() if not alone:  # of whom, its next run will tell, alone
                log.debug("%s", error)
            case _:  # a refusal too: what it alone has asked for; if Redis refuses all, this is not noted either
                at = (one.placed.module, one.placed.type.name, one.won)
                self.tallies.count(HANDLER_FAILED, *at, type(error).__name__)
                retry = one.placed.type.module.retry
                failures = one.attempts + 1
                label = f"{one.placed.module}.{one.placed.type.name}/{one.won}"
                text = self._text(one, error)
                extra = about_machine(one)
                log.warning("handler %s of operation %s failed: %s", label, one.machine.op, text, extra=extra)
                if retry.exhausted(error, failures):
                    self._set_aside(one, text)
                else:
                    delay_ms = retry.jittered_ms(failures)
                    self._defer(one.entry, one.machine.guard, one.machine.op, text, failed=True, delay_ms=delay_ms)

    def _text(self, one: Claimed, error: Exception) -> str:
        """An error of the user's code in words, which may hold what state or outcome keep secret."""
        handler = None
        with suppress(Exception):  # dynamic transitions are the user's code
            handler = self.instances.handlers(one.placed).get(one.won)
        return self.instances.without_secrets(error_text(error), one.placed, handler, one.value)

    def _set_aside(self, one: Claimed, text: str) -> None:
        log.error("operation %s: %s is quarantined: %s", one.machine.op, one.placed, text, extra=about_machine(one))
        self._defer(one.entry, one.machine.guard, one.machine.op, text, failed=True, quarantine=True)

    def _unreadable(self, one: Unreadable) -> None:
        """Only a worker that has the module, the version and the key may judge a record."""
        if isinstance(one.error, UnknownModule | NewerRecord | SecretKeyMissing):
            self._elsewhere(one.error)
            self._defer(one.entry, "", one.op, one.error, delay_ms=ELSEWHERE_MS)
            return
        log.error("operation %s: a record is set aside: %s", one.op or "(unknown)", one.error, extra=about(one.op))
        self._defer(one.entry, "", one.op, one.error, quarantine=True)

    def _elsewhere(self, error: SmqueueError) -> None:
        """Say, once, what this worker lacks."""
        if str(error) not in self._told:
            log.warning("left for another worker: %s", error)
            self._told.add(str(error))

    def _defer(
        self, entry: str, guard: str, op: str, error: Exception | str, *, delay_ms: int = 0, failed: bool = False,
        quarantine: bool = False,
    ) -> None:  # fmt: skip
        text = error if isinstance(error, str) else error_text(error)
        why = SmqueueError(text) if quarantine else None
        self.driver.run(runs.defer(self.keys, entry, guard, delay_ms, failed=failed, error=text, op=op, quarantine=why))

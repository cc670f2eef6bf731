"""After the last fault: all must end, and is compared with the model; what does not fit gets its story told."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

from smqueue.audit import audit
from smqueue.cli.words import told
from smqueue.demo.plan import PlannedSignal
from smqueue.errors import OperationFinished, SmqueueError
from tests.faults.chaos.application import application, executor_on
from tests.faults.chaos.load import Fed, Load, again
from tests.faults.chaos.producer import read_ledger
from tests.faults.chaos.report import Report
from tests.faults.chaos.site import Site
from tests.faults.chaos.strikes import POWER
from tests.faults.chaos.truth import Found, Truth

STALLED_S = 150.0
"""A run is given up when nothing has ended for so long after the last fault: a trigger is sent again rather late."""
UNFORESEEN = ("raised unexpected", "the pump failed", "torn commit", "is quarantined")
"""What no worker may say, whatever hits it."""
STORIES, NEAR_S = 3, 15.0
Tell = Callable[[str], None]


class Ending:
    """What comes after the last fault.

    Args:
        site: Whose workers still run.
        report: What is filled.
        tell: Called with a line that says how far it is.
    """

    def __init__(self, site: Site, report: Report, tell: Tell) -> None:
        self.site, self.report, self.tell = site, report, tell
        self.executor = executor_on(application(site.broker.broker_url), site.state.url)
        self._load = Load(site.seed, site.cases)
        self._renewed: list[Fed] = []
        self._missing: dict[str, set[str]] = {}  # of an operation, what a killed server did not keep

    def fed(self) -> Iterable[Fed]:
        """Everything that was fed and acknowledged, chunk by chunk."""
        for producer in range(len(self.site.producers.posts)):
            for line in read_ledger(self.site.ledger(producer)):
                yield from self._load.chunk(producer, int(str(line["chunk"])))
        yield from self._renewed

    def check(self) -> None:
        """See all end, and compare everything."""
        self._ledgers()
        with self.site.state_client(timeout_s=30) as client:
            if self.report.fsync != "always":
                self._feed_again(Truth(self.executor, client).compare(self.fed()), ended=False)
            self._await_ended(client)
            self.tell("comparing")
            wrong = Truth(self.executor, client).compare(self.fed())
            if wrong and self.report.fsync != "always":
                self._feed_again(wrong, ended=True)
                self._await_ended(client)
            self._compare(client)
            self._verify()
        self._logs()

    def _await_ended(self, client: Any) -> None:
        """Until no operation is active and nothing is scheduled, or nothing has ended for long.

        What the last commits asked for is done at once, and its entry goes when a worker looks, 4 s later.
        """
        keys = self.executor.deployment.all_keys()[0]

        def left() -> tuple[int, int]:
            return client.zcard(keys.operations), client.zcard(keys.schedule)

        least, since = left(), time.monotonic()
        while any(there := left()) and time.monotonic() - since < STALLED_S:
            if there < least:
                least, since = there, time.monotonic()
            active, due = there
            told = f"{active} operations are active, {due} entries scheduled"
            self.tell(f"{told}; nothing has ended for {time.monotonic() - since:.0f} s")
            time.sleep(0.1)

    def _compare(self, client: Any) -> None:
        report, fed, truth = self.report, list(self.fed()), Truth(self.executor, client)
        wrong = [it for it in truth.compare(fed) if not self._explained(it)]
        report.operations, report.transitions = len(fed), truth.transitions
        report.finished = len(fed) - sum(it.active or it.absent for it in wrong)
        report.lost = sum(it.lost for it in wrong)
        report.doubled = sum(it.doubled for it in wrong)
        report.lost_suffix = sum(map(len, self._missing.values()))
        report.problems += [f"{it.fed.operation_id}: {'; '.join(it.said)}" for it in wrong]
        report.problems += truth.totals(fed, money=not report.lost_suffix)
        report.problems += truth.left(self._missing)[:20]
        report.stories = [self._story(it) for it in wrong[:STORIES]]

    def _logs(self) -> None:
        """No fault may end a worker that it did not hit, nor end in an error that nobody has foreseen."""
        for post in self.site.workers.posts:
            if not post.child.alive:
                self.report.problems.append(f"{post.name} has ended by itself: {self.site.log(post)} says why")
            for line in self.site.log(post).read_text(errors="replace").splitlines():
                if any(words in line for words in UNFORESEEN):
                    self.report.problems.append(f"{post.name} said {line}")

    def _ledgers(self) -> None:
        for producer in range(len(self.site.producers.posts)):
            for line in read_ledger(self.site.ledger(producer)):
                said: Any = line["said"]
                self.report.signals += said.get("signals", 0)
                self.report.unanswered += said.get("unanswered", 0)
                self.report.refused += said.get("refused", 0)
                odd: Any = line["odd"]
                if self.report.fsync == "always":
                    self.report.problems += [f"producer {producer} was told {text}" for text in odd]

    # --- what a killed server may lose under everysec ----------------------------------------------------------------

    def _feed_again(self, found: list[Found], ended: bool) -> None:
        """Send again what a killed server did not keep; an operation that ended without it begins anew."""
        if not any(it.kind in {"server killed", POWER} for it in self.report.hit):
            return
        self.tell("feeding again what was lost")
        for it in found:
            missing = it.unknown | ({"the adding"} if it.absent else set[str]())
            if it.torn or not missing or ended == (it.active or it.absent):
                continue
            self._missing.setdefault(it.fed.operation_id, set()).update(missing)
            fed = again(it.fed) if ended else it.fed
            if ended:
                self._renewed.append(fed)
            for signal in fed.early:
                self._signal(fed, signal)
            self.executor.add_state_machines([fed.machine], exist_ok=True)
            for signal in fed.signals:
                self._signal(fed, signal)

    def _signal(self, fed: Fed, signal: PlannedSignal) -> None:
        with contextlib.suppress(OperationFinished):  # it ended early, without what was lost
            self.executor.signal(fed.operation_id, signal.name, signal.payload, module=signal.module, id=signal.id)

    def _explained(self, it: Found) -> bool:
        """Whether it is as it is because a killed server lost a suffix, and whole as far as it goes."""
        return it.fed.operation_id in self._missing and not (it.torn or it.active or it.illegal)

    # --- the audit, and what is told of an operation -----------------------------------------------------------------

    def _verify(self) -> None:
        self.tell("verifying")
        try:
            found = audit(self.executor.deployment, self.executor.instances)
        except SmqueueError as error:
            self.report.verify = f"failed: {error}"
            self.report.problems.append(f"verify {self.report.verify}")
            return
        looked_at = ", ".join(f"{count:,} {what}" for what, count in found.looked_at.items())
        self.report.verify = f"{'clean' if found.clean else f'{len(found.problems)} problems'} ({looked_at})"
        self.report.problems += [f"verify: {problem}" for problem in found.problems]

    def _story(self, it: Found) -> str:
        """What is known of one operation."""
        op = it.fed.operation_id
        history = self.executor.notifier.history(op)
        lines = ["", f"the story of {op}: {'; '.join(it.said)}"]
        lines += [
            f"  {one.at:%H:%M:%S.%f} {one.module} step {one.step}: {one.state} (won: {one.won})" for one in history
        ]
        lines.append(f"  sent: {', '.join(signal.id for signal in (*it.fed.early, *it.fed.signals))}")
        lines += [f"  why: {line}" for line in told(self.executor.explain(op), datetime.now(UTC))]
        times = [one.at.timestamp() for one in history]
        for one in self.report.hit:
            if times and one.began and times[0] - NEAR_S < one.began < times[-1] + NEAR_S:
                at = datetime.fromtimestamp(one.began, UTC)
                lines.append(f"  {at:%H:%M:%S.%f} fault {one.number}: {one.kind} ({one.detail})")
        return "\n".join(lines)

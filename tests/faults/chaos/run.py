"""One run: everything starts, faults hit on schedule, everything ends, and what is there is compared with the model."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.chaos.ending import Ending, Tell
from tests.faults.chaos.live import LiveAudits
from tests.faults.chaos.progress import Progress
from tests.faults.chaos.report import Report
from tests.faults.chaos.schedule import Strike, schedule
from tests.faults.chaos.site import Fsync, Site
from tests.faults.chaos.strikes import BROKER_KILLED, KINDS, POWER, strike

AT_ONCE = 12


@dataclass(frozen=True)
class Plan:
    """What is run.

    Attributes:
        seconds: For how long faults hit.
        seed: Of the load and the faults.
        fsync: Of the state's server.
        every_s: The mean time between two faults, in seconds.
        workers: How many, by turns prefork and threads.
        producers: How many processes.
        ahead: How many operations may be active when a producer adds more.
        one_server: Whether the broker is the state's server.
        kinds: Only these kinds of faults; all that the setting allows if empty.
        resumed_limit_s: How long nothing may move after a worker or server was killed, in seconds.
        keep: Whether data and logs stay even when all went well.
        folder: Where they are; a temporary directory if ``None``.
    """

    seconds: float
    seed: int = 1
    fsync: Fsync = "always"
    every_s: float = 2.1
    workers: int = 4
    producers: int = 2
    ahead: int = 300
    one_server: bool = False
    kinds: tuple[str, ...] = ()
    resumed_limit_s: float = 5.0
    keep: bool = False
    folder: Path | None = None

    def schedule(self) -> list[Strike]:
        """The faults, not yet done."""
        excluded = {POWER} if self.fsync == "always" else set[str]()
        excluded |= {BROKER_KILLED} if self.one_server else set()
        weights = {name: KINDS[name].weight for name in self.kinds or KINDS if name not in excluded}
        return schedule(self.seed, self.seconds, self.every_s, weights)


def run(plan: Plan, tell: Tell = lambda _line: None) -> Report:
    """Run it all.

    Args:
        plan: What.
        tell: Called about twice a second with a line that says how far it is.

    Returns:
        What was found; ``problems`` is empty when all holds.
    """
    folder = plan.folder or Path(tempfile.mkdtemp(prefix="chaos-"))
    report = Report(plan.seed, plan.fsync, strikes=plan.schedule(), kept=str(folder))
    try:
        tell("starting")
        site = Site(folder, plan.seed, plan.fsync, plan.workers, plan.producers, plan.ahead, plan.one_server)
        with site:
            with Progress(site, report.strikes) as progress:
                began = time.time()
                with LiveAudits(site) as audits:
                    _inject(site, plan, report, progress, tell)
                report.seconds = time.time() - began
                report.audited = audits.audited
                report.problems += [f"an audit beside the workers said: {problem}" for problem in audits.problems]
                tell("the last chunks are fed")
                site.stop_producers()
                Ending(site, report, tell).check()
            report.outages = [(begin - began, until - began) for begin, until in site.outages]
            report.samples = [(at - began, count) for at, count in progress.samples if at < began + report.seconds]
        report.check_progress(plan.resumed_limit_s)
    except BaseException:
        tell(f"data and logs: {folder}\n")
        raise
    if not (plan.keep or report.problems):
        shutil.rmtree(folder, ignore_errors=True)
        report.kept = ""
    return report


def _inject(site: Site, plan: Plan, report: Report, progress: Progress, tell: Tell) -> None:
    """Let the faults hit at their times, several at once where they do not exclude each other."""
    began, pause = time.monotonic(), threading.Event()
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="strike") as pool:
        todo, done = list(report.strikes), list[Any]()
        while (now := time.monotonic() - began) < plan.seconds:
            while todo and todo[0].planned_s <= now:
                done.append(pool.submit(strike, site, todo.pop(0)))
            if post := site.producers.fallen():
                raise AssertionError(f"{post.name} failed: {site.log(post)} says why")
            under_way = [one.kind for one in report.strikes if one.began is not None and one.ended is None]
            updates = progress.samples[-1][1] if progress.samples else 0
            hit = sum(one.began is not None for one in report.strikes)
            tell(f"{now:4.0f} of {plan.seconds:.0f} s, {updates:,} updates, {hit} faults; {', '.join(under_way)}")
            pause.wait(0.1)
        tell("the last faults end")

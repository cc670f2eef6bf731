"""What a run has shown: as text, and as plain data."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from tests.faults.chaos.schedule import Strike
from tests.faults.chaos.strikes import POWER

PROMISED = ("worker killed", "server killed", POWER)
"""Kinds after which progress must resume within the limit."""
SHOWN = 20


@dataclass
class Report:
    """One run.

    Attributes:
        seed, fsync, seconds: What was run, and for how long faults were injected.
        operations: Fed and acknowledged.
        finished: Of them, those that have ended.
        signals: Acknowledged.
        unanswered: Calls of producers that got no answer, and were made again.
        refused: Calls that the server refused, and were made again.
        transitions: In all histories.
        lost: Commits that are missing.
        doubled: Commits that are too many.
        lost_suffix: Acknowledged addings and signals that a killed server did not keep, under ``everysec``.
        verify: What the audit said: ``clean``, or its problems.
        audited: How many active operations were audited while all ran.
        strikes: The faults.
        problems: What does not hold; nothing in a run that went well.
        stories: Of operations that are not as they must be.
        samples: When (s from the start), and how many updates there had been.
        outages: When (s from the start) the server could not be written to: from, until.
        kept: Where data and logs are; empty when they were removed.
    """

    seed: int
    fsync: str
    seconds: float = 0.0
    operations: int = 0
    finished: int = 0
    signals: int = 0
    unanswered: int = 0
    refused: int = 0
    transitions: int = 0
    lost: int = 0
    doubled: int = 0
    lost_suffix: int = 0
    verify: str = "not run"
    audited: int = 0
    strikes: list[Strike] = field(default_factory=list[Strike])
    problems: list[str] = field(default_factory=list[str])
    stories: list[str] = field(default_factory=list[str])
    samples: list[tuple[float, int]] = field(default_factory=list[tuple[float, int]])
    outages: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])
    kept: str = ""

    @property
    def hit(self) -> list[Strike]:
        """The faults that hit something."""
        return [one for one in self.strikes if one.began is not None]

    @property
    def standstill_s(self) -> float:
        """The longest time between two samples of which the later shows nothing new, without outages of the server."""
        longest, since = 0.0, 0.0
        for (_, count), (later, then) in pairwise(self.samples):
            if then != count:
                since = later
                continue
            out = sum(max(0.0, min(until, later) - max(begin, since)) for begin, until in self.outages)
            longest = max(longest, later - since - out)
        return longest

    def by_kind(self) -> dict[str, dict[str, Any]]:
        """Of each kind: how many, and how long until progress resumed."""
        kinds: dict[str, list[Strike]] = defaultdict(list)
        for one in self.hit:
            kinds[one.kind].append(one)
        rows: dict[str, dict[str, Any]] = {}
        for kind, ones in sorted(kinds.items()):
            times = [one.resumed_s for one in ones if one.resumed_s is not None]
            rows[kind] = {
                "count": len(ones),
                "resumed_median_s": round(statistics.median(times), 3) if times else None,
                "resumed_max_s": round(max(times), 3) if times else None,
            }
        return rows

    def check_progress(self, limit_s: float) -> None:
        """Note which faults failed, and where progress took longer than promised."""
        for one in self.hit:
            if one.failed:
                self.problems.append(f"fault {one.number} ({one.kind}) failed: {one.failed}")
            late = one.resumed_s is None or one.resumed_s > limit_s
            if one.kind in PROMISED and late:
                took = "never" if one.resumed_s is None else f"after {one.resumed_s:.1f} s"
                self.problems.append(f"fault {one.number} ({one.kind}, {one.detail}): progress resumed {took}")

    def as_data(self) -> dict[str, Any]:
        """All of it, JSON-ready; times of faults in seconds from the start."""
        start = min((one.began for one in self.hit if one.began is not None), default=0.0)
        names = (
            "seed", "fsync", "seconds", "operations", "finished", "signals", "unanswered", "refused", "transitions",
            "lost", "doubled", "lost_suffix", "verify", "audited", "problems", "stories", "kept",
        )  # fmt: skip
        data: dict[str, Any] = {name: getattr(self, name) for name in names}
        data |= {"ok": not self.problems, "faults": len(self.hit), "by_kind": self.by_kind()}
        data["transitions_per_s"] = round(self.transitions / self.seconds, 1) if self.seconds else 0.0
        data["standstill_s"] = round(self.standstill_s, 2)
        data["injected"] = [
            {
                "number": one.number,
                "kind": one.kind,
                "detail": one.detail,
                "at_s": round((one.began or 0.0) - start, 2),
                "until_s": round((one.ended or 0.0) - start, 2),
                "resumed_s": None if one.resumed_s is None else round(one.resumed_s, 3),
            }
            for one in self.hit
        ]
        return data

    def as_text(self) -> str:
        """For people."""
        kinds = self.by_kind()
        width = max([len(kind) for kind in kinds] or [4])
        skipped = Counter(one.kind for one in self.strikes if one.began is None)
        rate = self.transitions / self.seconds if self.seconds else 0.0
        lines = [
            f"seed {self.seed}, appendfsync {self.fsync}, {self.seconds:.0f} s of faults",
            f"operations   {self.operations:,}, finished {self.finished:,}",
            f"transitions  {self.transitions:,}, {rate:,.0f}/s; signals {self.signals:,}",
            f"producers    {self.unanswered:,} calls unanswered, {self.refused:,} refused, all made again",
            "",
            f"{'fault':<{width}}  count  progress after, median and max",
        ]
        for kind, row in kinds.items():
            median, most = row["resumed_median_s"], row["resumed_max_s"]
            took = "none" if most is None else f"{median:.2f} {most:6.2f} s"
            lines.append(f"{kind:<{width}}  {row['count']:>5}  {took}")
        lines.append(f"{'together':<{width}}  {len(self.hit):>5}  longest standstill {self.standstill_s:.1f} s")
        if skipped:
            lines.append(f"{'with nothing to hit':<{width}}  {skipped.total():>5}")
        lines += ["", f"lost         {self.lost}", f"doubled      {self.doubled}"]
        if self.fsync != "always":
            lines.append(f"lost suffix  {self.lost_suffix} acknowledged calls that a killed server did not keep")
        lines.append(f"verify       {self.verify}; {self.audited:,} audits of operations while all ran")
        if self.problems:
            lines += ["", f"{len(self.problems)} things do not hold:", *(f"  {it}" for it in self.problems[:SHOWN])]
            lines += self.stories
        else:
            lines.append("all is exactly as the model says")
        if self.kept:
            lines.append(f"data and logs: {self.kept}")
        return "\n".join(lines)

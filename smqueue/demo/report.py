"""What a demo run has found: checks, figures, a table."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

from rich.console import Console
from rich.table import Table

from smqueue.executor import Executor
from smqueue.following import Update

SHOWN = 10


@dataclass
class Report:
    """Collects what is found; ``problems`` must stay empty.

    Attributes:
        title: What was run.
        seconds: From the first producer's call to the last commit.
        finals: How many machines ended in each state.
        transitions: Steps in all histories, without the adding of machines.
        latencies_ms: From the accepting of a signal to the commit, by Redis's clock.
        facts: Lines for the summary.
        problems: What does not hold.
    """

    title: str
    seconds: float = 0.0
    finals: Counter[str] = field(default_factory=Counter[str])
    transitions: int = 0
    latencies_ms: list[float] = field(default_factory=list[float])
    facts: list[str] = field(default_factory=list[str])
    problems: list[str] = field(default_factory=list[str])

    def path_of(self, executor: Executor, operation_id: str) -> list[Update]:
        """The history of an operation, checked to be a legal path of each of its machines."""
        history = executor.notifier.history(operation_id)
        paths: dict[str, list[Update]] = {}
        for position, update in enumerate(history):
            if update.sequence != position:
                self.problems.append(f"{operation_id}: the history has {update.sequence} at {position}")
            paths.setdefault(update.machine_id, []).append(update)
        for machine, steps in paths.items():
            names = [type(step.state).__name__ for step in steps]
            if [step.step for step in steps] != list(range(1, len(steps) + 1)):
                self.problems.append(f"{operation_id}: machine {machine} has steps {[step.step for step in steps]}")
            if [step.terminal for step in steps] != [False] * (len(steps) - 1) + [True]:
                self.problems.append(f"{operation_id}: machine {machine} did not end exactly once: {names}")
            module = executor.instances.get(steps[0].module).module
            edges = {(edge.source, edge.target) for edge in module.graph().edges}
            for source, target in pairwise(names):
                if (source, target) not in edges:
                    self.problems.append(f"{operation_id}: no handler leads from {source} to {target}")
            self.finals[f"{steps[0].module}.{names[-1]}"] += 1
            self.transitions += len(steps) - 1
        return history

    def measure(self, executor: Executor, operation_id: str, signals: Iterable[str]) -> None:
        """Take the time from signal to commit of the states that were left by one of these handlers."""
        names = set(signals)
        for _, past in executor.get_inactive_states(operation_id):
            if past.won in names and past.won_at is not None and past.won_at >= past.created_at:
                self.latencies_ms.append((past.exited_at - past.won_at).total_seconds() * 1000)

    def show(self, console: Console) -> None:
        """Print the table and the verdict."""
        console.print(self.title, highlight=False, soft_wrap=True)
        table = Table()
        table.add_column("ended in")
        table.add_column("machines", justify="right")
        for name, count in sorted(self.finals.items()):
            table.add_row(name, f"{count:,}")
        console.print(table)
        console.print(f"transitions   {self.transitions:,} in {self.seconds:.1f} s")
        if self.seconds > 0:
            console.print(f"throughput    {self.transitions / self.seconds:,.0f} transitions/s, all on this machine")
        if self.latencies_ms:
            ordered = sorted(self.latencies_ms)
            p95 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))]
            console.print(f"signal→commit p50 {statistics.median(ordered):.1f} ms, p95 {p95:.1f} ms ({len(ordered):,})")
        for fact in self.facts:
            console.print(fact, highlight=False, soft_wrap=True)
        if not self.problems:
            console.print("[green]every check holds[/green]")
            return
        console.print(f"[red]{len(self.problems)} checks failed[/red]")
        for problem in self.problems[:SHOWN]:
            console.print(f"  {problem}", highlight=False, soft_wrap=True)

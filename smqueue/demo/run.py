"""Running the demo: feed, kill in the middle, wait, check."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from smqueue.demo import replay
from smqueue.demo.machines import orders, refunds
from smqueue.demo.plan import PlannedOrder, expected, make_plan
from smqueue.demo.report import Report
from smqueue.demo.stage import Stage
from smqueue.demo.xes import Case, read_log
from smqueue.errors import InvalidInput
from smqueue.executor import Executor
from smqueue.following import Update
from smqueue.states import State
from smqueue.transaction import Transaction

T = TypeVar("T")
CHUNK = 50
STALLED_S = 120.0
"""The run is given up when nothing has ended for this long."""


def run_orders(stage: Stage, count: int, seed: int, console: Console) -> Report:
    """Feed orders, and check each of them against the model."""
    plan = make_plan(count, seed)
    report = Report(f"{count:,} orders, seed {seed}")

    def feed(chunk: Sequence[PlannedOrder]) -> None:
        executor = stage.executor
        for order in chunk:
            _signal(executor, order, early=True)
        executor.add_state_machines([order.machine for order in chunk])
        for order in chunk:
            _signal(executor, order, early=False)

    _play(stage, plan, feed, [order.operation_id for order in plan], report, console)
    _check_orders(stage.executor, plan, report)
    return report


def run_log(stage: Stage, path: Path, console: Console) -> Report:
    """Replay an event log: one operation a case, one signal an event; each path must equal its trace."""
    cases = list(read_log(path))
    if not any(case.events for case in cases):
        raise InvalidInput(str(path), "holds no case with an event")
    report = Report(f"{path.name}: {len(cases):,} cases, {sum(len(case.events) for case in cases):,} events")
    full = [case for case in cases if case.events]

    def feed(chunk: Sequence[Case]) -> None:
        executor = stage.executor
        executor.add_state_machines([replay.machine_of(case) for case in chunk])
        for case in chunk:
            for index, event in enumerate(replay.signals_of(case)):
                executor.signal(case.name, replay.event, event, module="replay", id=f"event-{index}")

    _play(stage, full, feed, [case.name for case in full], report, console)
    equal = 0
    for case in full:
        history = report.path_of(stage.executor, case.name)
        trace = replay.trace_of([update.state for update in history if isinstance(update.state, State)])
        if trace == [event.activity for event in case.events]:
            equal += 1
        else:
            report.problems.append(f"{case.name}: its path {trace} is not its trace")
        report.measure(stage.executor, case.name, ["moved"])
    report.facts.append(f"replayed      {len(cases)} cases, {sum(len(case.events) for case in cases)} events")
    report.facts.append(f"paths         {equal} of {len(full)} equal to their trace")
    return report


def _signal(executor: Executor, order: PlannedOrder, early: bool) -> None:
    for signal in order.signals:
        if signal.early == early:
            executor.signal(order.operation_id, signal.name, signal.payload, module=signal.module, id=signal.id)


def _play(
    stage: Stage,
    items: Sequence[T],
    feed: Callable[[Sequence[T]], None],
    ids: list[str],
    report: Report,
    console: Console,
) -> None:
    """Feed in chunks, kill in the middle, and wait until every operation has ended."""
    began = time.monotonic()
    columns = (TextColumn("{task.description:<10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        fed = progress.add_task("fed", total=len(items))
        ended = progress.add_task("ended", total=len(ids))
        killed = False
        size = max(1, min(CHUNK, len(items) // 10))
        for at in range(0, len(items), size):
            if not killed and at >= len(items) // 2:
                killed = True
                progress.console.print(f"[yellow]{stage.accident()}[/yellow]", highlight=False, soft_wrap=True)
            chunk = items[at : at + size]
            feed(chunk)
            progress.update(fed, advance=len(chunk))
            progress.update(ended, completed=min(at, at + len(chunk) - active_count(stage.executor)))
        last, since = -1, time.monotonic()
        while (active := active_count(stage.executor)) > 0:
            progress.update(ended, completed=len(ids) - active)
            if active != last:
                last, since = active, time.monotonic()
            if time.monotonic() - since > STALLED_S:
                report.problems.append(f"{active} operations have not ended, and nothing has for {STALLED_S:.0f} s")
                break
            time.sleep(0.05)
        progress.update(ended, completed=len(ids) - active_count(stage.executor))
    report.seconds = time.monotonic() - began


def active_count(executor: Executor) -> int:
    """How many operations have active machines."""
    deployment = executor.deployment
    return sum(int(deployment.driver.command("ZCARD", keys.operations)) for keys in deployment.all_keys())


def _check_orders(executor: Executor, plan: Sequence[PlannedOrder], report: Report) -> None:
    revenue = refunded = 0
    kinds: Counter[str] = Counter()
    for order in plan:
        wanted = expected(order)
        revenue, refunded = revenue + wanted.revenue, refunded + wanted.refunded
        history = report.path_of(executor, order.operation_id)
        finals = {update.module: update.state for update in history if update.terminal}
        paths = _paths(history)
        if paths != dict(wanted.paths) or not wanted.fits(finals):
            report.problems.append(f"{order.operation_id} ({order.kind}): {paths} instead of {dict(wanted.paths)}")
        report.measure(executor, order.operation_id, ["paid"])
        kinds[order.kind] += 1

    def counter(key: str) -> Callable[[Transaction], int]:
        return lambda tx: int(tx.get(key) or 0)

    for name, module, due in (("revenue", orders.name, revenue), ("refunded", refunds.name, refunded)):
        found = executor.autocommit(counter(name), module=module)
        report.facts.append(f"{name:<13} {found / 100:,.2f}, expected {due / 100:,.2f}")
        if found != due:
            report.problems.append(f"the counter {name} is {found}, and the sum of what was paid {due}")
    report.facts.append("inputs        " + ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items())))


def _paths(history: Sequence[Update]) -> dict[str, tuple[str, ...]]:
    """The names of the states that each module's machine has passed."""
    by_module: dict[str, list[str]] = {}
    for update in history:
        by_module.setdefault(update.module, []).append(type(update.state).__name__)
    return {module: tuple(names) for module, names in by_module.items()}

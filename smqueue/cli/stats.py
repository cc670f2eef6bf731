"""``smqueue stats``: what a namespace is doing, and what is wrong with it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

import click
from rich.console import Group
from rich.markup import escape
from rich.text import Text

from smqueue.cli.arguments import MODULE
from smqueue.cli.live import View, shown_once, watch, watch_option
from smqueue.cli.output import table
from smqueue.cli.target import Target, deployment_options
from smqueue.cli.words import span
from smqueue.overview import EdgeCount, Overview, StateCount, overview

WINDOW_S = 10.0
"""What rates are an average of."""
EARLY = 10
"""How many early signals are shown."""
PAUSED = 10
"""How many pauses are shown."""

NOT_WON = {"+add": "(added)", "+cancel": "(cancelled)", "+merge": "(merged)"}

Edge = tuple[str, str | None, str | None, str]


@click.command(
    epilog="""\b
Examples:
  smqueue stats
  smqueue stats --module orders --watch                           with rates: an average of ten seconds
  smqueue stats --json | jq '.causes[].text'
  smqueue stats --json --watch | jq -c '[.at, .active, .lag_s]'
"""
)
@click.option("--module", type=MODULE, metavar="ID", help="Only machines of this module.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@watch_option
@deployment_options
def stats(module: str | None, as_json: bool, watched: bool, target: Target) -> None:
    """Show what a namespace is doing: machines by state and since when, transitions, what lags, and what is wrong.

    However many machines wait, it takes no longer. Needs no modules.
    """
    executor = target.executor()
    rates = Rates()

    def look() -> View:
        found = overview(executor.deployment)
        return view_of(found, rates.of(found) if watched else None, module)

    if watched:
        watch(look, executor, as_json)
    else:
        shown_once(look(), as_json)


class Rates:
    """Transitions a second, of what was seen in the last ten."""

    def __init__(self) -> None:
        self._seen: deque[tuple[datetime, Mapping[Edge, int]]] = deque()

    def of(self, found: Overview) -> dict[Edge, float]:
        """By edge; 0 when there was nothing before to compare with."""
        counts = {_edge(one): one.count for one in found.edges}
        self._seen.append((found.at, counts))
        # The first one kept is the last that is older than the window.
        while len(self._seen) > 2 and (found.at - self._seen[1][0]).total_seconds() >= WINDOW_S:
            self._seen.popleft()
        at, before = self._seen[0]
        passed_s = (found.at - at).total_seconds()
        return {
            key: round((n - before.get(key, 0)) / passed_s, 1) if passed_s > 0 else 0.0 for key, n in counts.items()
        }


def _edge(one: EdgeCount) -> Edge:
    return one.module, one.source, one.target, one.trigger


def view_of(found: Overview, rates: Mapping[Edge, float] | None, module: str | None) -> View:
    """What is shown of a namespace, or of one module in it."""
    states = [one for one in found.states if module in {None, one.module}]
    edges = [one for one in found.edges if module in {None, one.module}]
    rows = _as_json(found, states, edges, rates)
    # What passes with time by itself is no change.
    facts = {name: value for name, value in rows.items() if name not in {"at", "lag_s", "workers", "stores"}}
    facts["causes"] = [cause.kind for cause in found.causes]  # their texts have ages
    facts["states"] = [{**row, "oldest_s": None} for row in rows["states"]]
    facts["alive"] = sorted(worker.name for worker in found.workers if worker.alive)
    return View(Group(*_parts(found, states, edges, rates)), rows, facts)


# --- for people ------------------------------------------------------------------------------------------------------


def _parts(
    found: Overview, states: list[StateCount], edges: list[EdgeCount], rates: Mapping[Edge, float] | None
) -> Iterator[Any]:
    active = sum(one.active for one in states)
    operations = f" in {_many(found.operations, 'active operation')}" if len(states) == len(found.states) else ""
    yield Text(f"namespace {found.namespace}: {_many(active, 'active machine')}{operations}")
    alive = [worker.name for worker in found.workers if worker.alive]
    names = f" ({', '.join(alive[:3])}{', …' if len(alive) > 3 else ''})" if alive else ""
    yield Text(f"workers: {len(alive)}{names}")
    late = f", the first for {found.lag_s:.1f} s" if found.due else ""
    yield Text(f"due: {found.due:,}{late}; requests: {found.requests:,}; tasks never sent: {found.unsent:,}")
    yield Text(f"quarantined: {found.quarantined:,}")
    yield from _paused(found)
    if not found.causes:
        yield Text("nothing is known to be wrong", style="green")
    for cause in found.causes:
        yield Text.assemble((cause.text, "red"), f". {cause.remedy[:1].upper()}{cause.remedy[1:]}.")
    if states:
        yield Text()
        yield _states(found, states)
    if edges:
        yield Text()
        yield _edges(edges, rates)
    if found.early:
        yield Text()
        yield Text("signals that nobody waits for:")
        for one in found.early[:EARLY]:
            ago = span(found.at - one.latest)
            yield Text(f"  {one.count:,} {one.module}.{one.signal} to {one.operation_id}, the latest {ago} ago")
        if len(found.early) > EARLY:
            yield Text(f"  and to {len(found.early) - EARLY:,} others")


def _paused(found: Overview) -> Iterator[Any]:
    for one in found.paused[:PAUSED]:
        since = f" for {span(found.at - one.since)}" if one.since else ""
        reason = f": {one.reason}" if one.reason else ""
        yield Text.assemble((f"paused: {one}{since}{reason}", "yellow"), f". {one.lifted_by} ends it.")
    if len(found.paused) > PAUSED:
        yield Text(f"paused: {len(found.paused) - PAUSED:,} more at least; --json names them")


def _states(found: Overview, states: list[StateCount]) -> Any:
    rows = table("module", "state", ">active", "oldest", ">ended")
    for one in states:
        oldest = f"{'' if one.exact else 'at least '}{span(found.at - one.oldest)}" if one.oldest else ""
        ended = f"{one.ended:,}" if one.ended else ""
        rows.add_row(escape(one.module), escape(one.state), f"{one.active:,}", oldest, ended)
    return rows


def _edges(edges: list[EdgeCount], rates: Mapping[Edge, float] | None) -> Any:
    rows = table("module", "from", "to", "by", ">times", *([">per s"] if rates is not None else []))
    for one in edges:
        by = NOT_WON.get(one.trigger, one.trigger)
        names = map(escape, (one.module, one.source or "", one.target or "", by))
        rate = [f"{rates[_edge(one)]:,.1f}"] if rates is not None else []
        rows.add_row(*names, f"{one.count:,}", *rate)
    return rows


def _many(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


# --- for programs ----------------------------------------------------------------------------------------------------


def _as_json(
    found: Overview, states: list[StateCount], edges: list[EdgeCount], rates: Mapping[Edge, float] | None
) -> dict[str, Any]:
    plain = asdict(found)
    plain["active"] = sum(one.active for one in states)
    plain["states"] = [
        {**asdict(one), "oldest_s": (found.at - one.oldest).total_seconds() if one.oldest else None} for one in states
    ]
    plain["transitions"] = [_transition(one, rates) for one in edges]
    del plain["edges"]
    return _timeless(plain)


def _transition(one: EdgeCount, rates: Mapping[Edge, float] | None) -> dict[str, Any]:
    told = {"module": one.module, "from": one.source, "to": one.target, "trigger": one.trigger, "count": one.count}
    return told | ({} if rates is None else {"per_s": rates[_edge(one)]})


def _timeless(value: Any) -> Any:
    """With times as ISO 8601."""
    match value:
        case dict():
            return {name: _timeless(one) for name, one in value.items()}
        case list() | tuple():
            return [_timeless(one) for one in value]
        case datetime():
            return value.isoformat()
        case _:
            return value

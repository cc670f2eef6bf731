"""What the pages show: one bounded look at a namespace, and one at an operation. Called on threads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from smqueue.diagnosis import OF_ALL, Diagnosis, diagnose
from smqueue.drawing import svg
from smqueue.errors import InvalidInput, MissingExtra
from smqueue.executor import Executor
from smqueue.explain import Explanation
from smqueue.flower.spans import span_of
from smqueue.flower.steps import Window, transitions, window
from smqueue.flower.troubles import NoSuchOperation
from smqueue.graph import Graph
from smqueue.listing import Wanted
from smqueue.pauses import Paused, paused_by
from smqueue.records import Field
from smqueue.roundtrip import read
from smqueue.rows import rows_of
from smqueue.search import Found, search
from smqueue.words import told

LATELY = 20
"""Of its last so many steps the states are looked at, for how an operation has ended."""
SHOWN = 50
"""Machines of one operation that are looked at."""
FOUND = 50
"""Machines on a page of a search."""


TOLD = OF_ALL | {"module_without_worker", "no_signal"}
"""Causes whose remedy the sentences have, or that are no fault."""


class Drawn(NamedTuple):
    """The graph of a module."""

    module: str
    picture: str | None
    """An SVG; ``None`` where no library draws it."""
    edges: list[tuple[str, str, str, int]]
    """Source, target, handler and how often."""
    missing: str
    """Why there is no picture."""


class Seen(NamedTuple):
    """One operation at one moment.

    Attributes:
        diagnosis: What is known of it and why it does not move.
        rows: Its active machines as JSON, secrets hidden.
        sentences: Why it is where it is; each with those that belong to it.
        remedies: What to do about it, where the sentences do not say so.
        graphs: Of its modules, with its machines in them.
        more: How many of its active machines are not shown.
        modules: Whether the code of any module is here.
        standing: ``active``, ``finished``, ``not started`` or ``paused``.
        fingerprint: Changes when anything shown has changed but times.
    """

    diagnosis: Diagnosis
    rows: list[dict[str, Any]]
    sentences: list[tuple[str, list[str]]]
    remedies: list[str]
    graphs: list[Drawn]
    more: int
    modules: bool
    standing: str
    fingerprint: str


def seen(executor: Executor, op: str, *, drawn: bool = True) -> Seen:
    """Look at an operation, however many machines and steps it has.

    Raises:
        NoSuchOperation: Nothing is known of it.
    """
    deployment, instances = executor.deployment, executor.instances
    found = diagnose(deployment, instances, op, past=LATELY, active=SHOWN)
    explanation = replace(found.explanation, active=found.explanation.active[:SHOWN])
    keys = deployment.keys(op)
    asked = (("HLEN", keys.active(op)), ("LLEN", keys.history(op)), ("GET", keys.control(op)))
    # Of a key of another type, which smqueue verify tells of, nothing is known.
    count, steps, control = (
        None if isinstance(one, Exception) else one for one in deployment.driver.run(read([], *asked))
    )
    if not (explanation.active or explanation.stored or explanation.buffered or steps or control):
        raise NoSuchOperation(op, deployment.settings.namespace)
    rows = [row for row in rows_of(explanation, instances) if row["kind"] == "active"]
    standing = "active" if explanation.active else "finished" if steps else "not started"
    if isinstance(control, bytes):
        standing = "paused" if control.startswith(b"paused") else "being cancelled"
    return Seen(
        diagnosis=replace(found, explanation=explanation),
        rows=rows,
        remedies=list(dict.fromkeys(cause.remedy for cause in found.causes if cause.kind not in TOLD)),
        sentences=_nested(told(explanation, found.at, found.causes)),
        graphs=_graphs(executor, op, explanation) if drawn else [],
        more=max(0, int(count or 0) - len(explanation.active)),
        modules=bool(instances.ids()),
        standing=standing,
        fingerprint=str([(row | {"since": "", "triggers": [_still(t) for t in row["triggers"]]}) for row in rows])
        + str((found.causes, explanation.buffered, steps, control)),
    )


def _still(trigger: Mapping[str, Any]) -> dict[str, Any]:
    return {**trigger, "next_run": None, "running": None}


def _nested(lines: list[str]) -> list[tuple[str, list[str]]]:
    found: list[tuple[str, list[str]]] = []
    for line in lines:
        if line.startswith(" ") and found:
            found[-1][1].append(line.strip())
        else:
            found.append((line, []))
    return found


def past(executor: Executor, op: str, before: int | None = None, after: int | None = None) -> Window:
    """A window of its history."""
    return window(executor.deployment, executor.instances, op, before, after)


# --- graphs ----------------------------------------------------------------------------------------------------------


def _graphs(executor: Executor, op: str, explanation: Explanation) -> list[Drawn]:
    here: dict[str, Counter[str]] = {}
    for one in explanation.active:
        try:
            field = Field.parse(one.field)
        except ValueError:
            continue
        here.setdefault(field.module, Counter())[field.type] += 1
    counts = transitions(executor.deployment, op)
    return [draw(executor, module, here.get(module, {}), counts.get(module, {})) for module in sorted({*here, *counts})]


def draw(
    executor: Executor, module: str, current: Mapping[str, int], counts: Mapping[tuple[str, str, str], int]
) -> Drawn:
    """The graph of a module with what is in it; of one without code what has been seen."""
    graph = Graph((), ())
    if module in executor.instances:
        graph = executor.instances.get(module).module.graph()
    edges = [(*key, times) for key, times in sorted(counts.items(), key=lambda one: -one[1])]
    try:
        return Drawn(module, svg(graph, current=current, counts=counts), edges, "")
    except MissingExtra as error:
        return Drawn(module, None, edges, str(error))


def pauses(executor: Executor, module: str, states: Iterable[str]) -> dict[str, Paused]:
    """What of a module is paused: by state, and of all of it by the empty name."""
    keys = executor.deployment.all_keys()[0]  # a module is paused in every shard
    names = ["", *states]
    controls = [keys.control_module(module, name or None) for name in names]
    replies = executor.deployment.driver.run(read([], *[("GET", control) for control in controls]))
    found = [
        paused_by(keys, control, raw if isinstance(raw, bytes) else None)
        for control, raw in zip(controls, replies, strict=True)
    ]
    return {name: one for name, one in zip(names, found, strict=True) if one is not None}


# --- searching -------------------------------------------------------------------------------------------------------


class Asked(NamedTuple):
    """What a search form was filled with."""

    operation: str = ""
    module: str = ""
    state: str = ""
    older: str = ""
    quarantined: bool = False
    newest: bool = False
    cursor: str = ""

    @classmethod
    def of(cls, argument: Callable[[str], str]) -> Asked:
        """What the arguments of a request say."""
        operation, module, state, older = (argument(name).strip() for name in ("operation", "module", "state", "older"))
        quarantined, newest = (argument(name) not in {"", "0", "false"} for name in ("quarantined", "newest"))
        return cls(operation, module, state, older, quarantined, newest, argument("cursor"))

    @property
    def anything(self) -> bool:
        """Whether anything was asked for."""
        return any(self)

    def wanted(self) -> Wanted:
        """The same for a search; raises InvalidInput."""
        try:
            older_s = span_of(self.older).total_seconds() if self.older else None
        except ValueError as error:
            raise InvalidInput("older", str(error)) from None
        return Wanted(
            self.operation or None, self.module or None, self.state or None, self.quarantined, older_s, self.newest
        )


def find(executor: Executor, asked: Asked, limit: int = FOUND) -> Found:
    """A page of a search, which takes a bounded time."""
    return search(executor.deployment, executor.instances, asked.wanted(), asked.cursor or None, limit)

"""The audit of a live namespace: everything of it is looked at, in bounded batches, beside running workers.

What seems wrong at a first look is judged once more on one instant before it is reported, so that a running system
gives no false alarm. ``smqueue verify`` is this on the command line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeVar

from smqueue.deployment import Deployment
from smqueue.errors import SmqueueError, StoreUnavailable
from smqueue.instances import Instances
from smqueue.keys import Keys, decode, digest
from smqueue.protocols.auditing import entries, records, whole
from smqueue.protocols.auditing.history import Told, check_history, edges_of
from smqueue.protocols.auditing.looking import Check, WrongType, judge, looks, mend, suspects, together, wrong_type
from smqueue.protocols.auditing.paths import NO_EDGES, Paths
from smqueue.protocols.auditing.problems import NOTES, Kind, Problem
from smqueue.roundtrip import Command, Steps
from smqueue.states import check_operation_id

PAGE = 200
"""Fields, members or entries of one key that are read at a time."""
SCANNED = 500
"""Keys that a step of the scan looks at."""
ATTEMPTS = 3
TOGETHER = 50
"""Collections, or histories, of which a page is read in one round trip."""
SINGLE = frozenset({"schedule", "hosted", "quarantine", "operations", "finished", "requests"})
KNOWN = SINGLE | frozenset(
    ["active", "inactive", "history", "machine", "race", "waiting", "inbox", "seen", "control", "held", "watchers"]
)
OTHERS = frozenset(
    ["data", "marker", "reply", "updates", "moves", "early", "workers", "hint", "watch", "roused", "watched", "meta"]
).union({"tallies", "children", "unsent", "controls"})
"""Kinds of key that are not looked into."""
SEEN_TWICE = frozenset({Kind.WRONG_TYPE, Kind.UNREADABLE_MACHINE, Kind.WRONG_MACHINE})
"""What two checks may find, each in its own words."""
T = TypeVar("T")


@dataclass
class Report:
    """What an audit has found.

    Attributes:
        problems: What is wrong, and was not mended.
        notes: What is odd and does no harm: what the next claim removes, what may be meant so.
        repaired: What was wrong, and is mended; ``remedy`` says what was done.
        looked_at: How many of what: operations, records, steps, machines, entries, signals …
        edges_checked: Whether steps were compared with the transitions that modules declare.
        seals_checked: Whether the seals of histories were: that takes the key.
    """

    problems: list[Problem] = field(default_factory=list[Problem])
    notes: list[Problem] = field(default_factory=list[Problem])
    repaired: list[Problem] = field(default_factory=list[Problem])
    looked_at: dict[str, int] = field(default_factory=dict[str, int])
    edges_checked: bool = False
    seals_checked: bool = False

    @property
    def clean(self) -> bool:
        """Whether nothing is wrong any more."""
        return not self.problems

    def count(self, what: str, n: int = 1) -> None:
        """Something has been looked at."""
        if n and what:
            self.looked_at[what] = self.looked_at.get(what, 0) + n


Progress = Callable[[Report], object]


def audit(
    deployment: Deployment,
    instances: Instances | None = None,
    *,
    operations: Iterable[str] | None = None,
    repair: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Look at everything of a namespace, or of some of its operations.

    Safe beside running workers: it only reads, unless ``repair`` is given, and no request is longer than some hundred
    small commands.

    Args:
        deployment: Where the namespace is.
        instances: Its modules; without them (``None``, or none registered) steps are not compared with declared
            transitions.
        operations: Only these; default all. What belongs to no operation is then left out.
        repair: Mend what can be mended: each under WATCH, and only if it still is as it was found.
        progress: Called after each batch with what there is so far.

    Returns:
        What was found and mended.

    Raises:
        StoreUnavailable: No answer, three times.

    Redis: some 2 round trips for each 500 keys, more where there is more to an operation.
    """
    wanted = None if operations is None else [check_operation_id(op) for op in operations]
    found = Report(
        edges_checked=bool(instances is not None and instances.ids()),
        seals_checked=instances is not None and instances.chain is not None,
    )
    for keys in deployment.all_keys():
        shard = _Shard(deployment, keys, instances, found, repair, progress)
        if wanted is None:
            shard.everything()
        else:
            shard.operations([op for op in wanted if deployment.keys(op).shard == keys.shard])
    return found


class _Scan(NamedTuple):
    """A collection whose members are looked at."""

    command: Command
    what: str
    make: Callable[[bytes], Check]


class _Shard:
    """The audit of one shard."""

    def __init__(
        self, deployment: Deployment, keys: Keys, instances: Instances | None, report: Report, repair: bool,
        progress: Progress | None,
    ) -> None:  # fmt: skip
        self.driver, self.keys, self.report, self.repair = deployment.driver, keys, report, repair
        self.instances = instances if report.edges_checked else None
        self.progress = progress
        self._told: dict[tuple[Kind, str, str], Problem] = {}
        self._chain = instances.chain if instances is not None else None
        self._edge = edges_of(self.instances) if self.instances is not None else NO_EDGES

    # --- what there is -----------------------------------------------------------------------------------------------

    def everything(self) -> None:
        """All keys of the shard, as a scan of the database brings them."""
        keys = self.keys
        self._checks([whole.check_requests(keys), whole.check_retention(keys)])
        pattern = "".join(f"\\{c}" if c in "*?[]\\" else c for c in keys.prefix) + "*"
        cursor: Any = 0
        while True:
            cursor, page = self._one("SCAN", cursor, "MATCH", pattern, "COUNT", SCANNED)
            self._keys([raw.decode(errors="replace") for raw in page])
            if int(cursor) == 0:
                return

    def operations(self, ops: Sequence[str]) -> None:
        """Only some operations: their records, machines, histories, early signals, controls."""
        keys = self.keys
        for op in ops:
            names = [keys.active(op), keys.inactive(op), keys.history(op), keys.seen(op), keys.watchers(op)]
            names += [keys.control(op), keys.held(keys.control(op))]
            for module in self.instances.ids() if self.instances is not None else ():
                signals = self.instances.get(module).module.signals if self.instances is not None else ()
                names += [make(op, module, signal) for signal in signals for make in (keys.inbox, keys.waiting)]
            self._keys(names)
            self._checks([whole.check_listed(keys, op), whole.check_finished(keys, op)])
            for make in (records.check_machine, records.check_race, records.check_quarantined):
                scans = (("HSCAN", keys.active(op)), ("HSCAN", keys.inactive(op)))
                self._scan(_Scan(scan, "", _of_field(keys, op, make)) for scan in scans)

    def _keys(self, names: Sequence[str]) -> None:
        """A page of keys: each by its kind."""
        checks: list[Check] = []
        scans: list[_Scan] = []
        begun: list[str] = []
        others: list[str] = []
        for name in names:
            kind, _, rest = name.removeprefix(self.keys.prefix).partition(":")
            parts = [decode(part) for part in rest.split(":")]
            match kind, parts:
                case "history", [op]:
                    begun.append(op)
                case (("active" | "inactive"), [op]):
                    others.append(op)
                    if kind == "active":
                        self.report.count("operations")
                        checks.append(whole.check_listed(self.keys, op))
                        scans.append(
                            _Scan(("HSCAN", name), "active records", partial(records.check_active, self.keys, op))
                        )
                case "requests", [""]:
                    self._requests()
                case _:
                    checks += self._single(name, kind, rest, parts)
                    scans += self._collection(name, kind, rest, parts)
        self._checks(checks)
        self._scan(scans)
        self._histories([*begun, *self._without_history(others)])

    def _single(self, name: str, kind: str, rest: str, parts: list[str]) -> Iterator[Check]:
        """The checks of a key as a whole."""
        keys = self.keys
        match kind, parts:
            case "machine", _:
                self.report.count("machines")
                yield records.check_machine(keys, rest)
            case "race", _:
                self.report.count("races")
                yield records.check_race(keys, rest)
            case "control", _:
                self.report.count("controls")
                yield entries.check_control(keys, name)
            case "held", ["control", *_]:
                yield entries.check_held(keys, keys.prefix + rest)
            case "inbox", [op, module, signal]:
                self.report.count("inboxes")
                limit = self.instances.inbox_limit if self.instances is not None else None
                yield whole.check_inbox(keys, op, module, signal, limit)
            case "seen", [op]:
                yield whole.check_seen(keys, op)
            case _ if kind not in OTHERS and (kind not in KNOWN or (kind in SINGLE) != (name == keys.prefix + kind)):
                yield whole.check_key(name)
            case _:
                pass

    def _collection(self, name: str, kind: str, rest: str, parts: list[str]) -> Iterator[_Scan]:
        """What of a key is looked at member by member."""
        keys = self.keys
        match kind, parts:
            case (("schedule" | "hosted"), [""]):
                yield _Scan(("ZSCAN", name), "entries", partial(entries.check_scheduled, keys, name))
            case "waiting", [op, module, signal]:
                yield _Scan(("ZSCAN", name), "waiting", partial(entries.check_waiting, keys, op, module, signal))
            case "watchers", [op]:
                yield _Scan(("SSCAN", name), "watchers", partial(entries.check_watcher, keys, op))
            case "held", ["control", *_]:
                yield _Scan(("SSCAN", name), "held", partial(entries.check_held_entry, keys, keys.prefix + rest))
            case "quarantine", [""]:
                yield _Scan(("HSCAN", name), "quarantined", _of_text(keys, records.check_quarantined))
            case "operations", [""]:
                yield _Scan(("ZSCAN", name), "", _of_text(keys, whole.check_listed))
            case "finished", [""]:
                yield _Scan(("ZSCAN", name), "finished operations", _of_text(keys, whole.check_finished))
            case _:
                pass

    def _scan(self, scans: Iterable[_Scan]) -> None:
        """Look at the members of collections: a page of each of many in one round trip."""
        rest: list[tuple[_Scan, Any]] = [(scan, 0) for scan in scans]
        while rest:
            some, rest = rest[:TOGETHER], rest[TOGETHER:]
            commands: list[Command] = [(*scan.command, cursor, "COUNT", PAGE) for scan, cursor in some]
            checks: list[Check] = []
            for (scan, _), reply in zip(some, self._run(lambda c=commands: looks([], c)), strict=True):
                if isinstance(reply, Exception):
                    self._found([wrong_type(WrongType(scan.command, str(reply)))])
                    continue
                members = reply[1] if scan.command[0] == "SSCAN" else reply[1][::2]
                self.report.count(scan.what, len(members))
                checks += map(scan.make, members)
                rest += [(scan, reply[0])] if int(reply[0]) else []
            self._checks(checks)

    def _requests(self) -> None:
        at = 0
        while page := self._one("LRANGE", self.keys.requests, at, at + PAGE - 1):
            self.report.count("requests", len(page))
            self._checks([whole.check_request(self.keys, raw) for raw in page])
            at += PAGE

    # --- histories ---------------------------------------------------------------------------------------------------

    def _without_history(self, ops: Sequence[str]) -> list[str]:
        """Of these operations, those of which a scan for histories finds none."""
        if not ops:
            return []
        commands: list[Command] = [("EXISTS", self.keys.history(op)) for op in ops]
        replies = self._run(lambda: looks([], commands))
        return [op for op, there in zip(ops, replies, strict=True) if not there]

    def _histories(self, ops: Sequence[str]) -> None:
        """Compare histories with records, many operations in lock step."""
        unique = list(dict.fromkeys(ops))
        for at in range(0, len(unique), TOGETHER):
            some = unique[at : at + TOGETHER]
            make = [partial(check_history, self.keys, op, partial(Paths, op, self._edge, self._chain)) for op in some]
            checks: list[Check] = []
            for op, told in zip(some, self._run(lambda make=make: together([one() for one in make])), strict=True):
                self.report.count("histories", bool(told.steps))
                self.report.count("steps", told.steps)
                self.report.count("inactive records", told.records)
                self._found(told.problems)
                if (keep_ms := self._keep_ms(told)) is not None:
                    checks.append(whole.check_retained(self.keys, op, told.ended_ms + keep_ms))
            self._checks(checks)

    def _keep_ms(self, told: Told) -> int | None:
        """How long an operation with these modules is kept; ``None``: for ever, or it cannot be told."""
        if self.instances is None or not told.modules or any(one.kind not in NOTES for one in told.problems):
            return None
        try:
            keeps = [self.instances.get(module).module.keep for module in told.modules]
        except SmqueueError:
            return None
        known = [keep.total_seconds() for keep in keeps if keep is not None]
        return int(max(known) * 1000) if known and len(known) == len(keeps) else None

    # --- looking and mending -----------------------------------------------------------------------------------------

    def _checks(self, checks: Sequence[Check]) -> None:
        """Look at some things; what seems wrong once more, and mend it if that is asked for."""
        for check in self._run(lambda: suspects(checks)) if checks else ():
            problems = self._run(lambda check=check: judge(check))
            if self.repair and any(problem.mend for problem in problems):
                mended, problems = self._run(lambda check=check: mend(self.keys, check))
                self.report.repaired += mended
            self._found(problems)
        if self.progress is not None:
            self.progress(self.report)

    def _found(self, problems: Iterable[Problem]) -> None:
        """Report each once, though a scan may bring a key twice, and two checks may see one thing."""
        for problem in problems:
            told = self.report.notes if problem.kind in NOTES else self.report.problems
            same = (problem.kind, problem.record, "" if problem.kind in SEEN_TWICE else problem.words)
            known = self._told.get(same)
            if known is None:
                told.append(problem)
            elif problem.operation and not known.operation:  # this one tells more
                told[told.index(known)] = problem
            else:
                continue
            self._told[same] = problem

    def _one(self, *command: Any) -> Any:
        reply = self._run(lambda: looks([], [command]))[0]
        return [] if isinstance(reply, Exception) else reply

    def _run(self, steps: Callable[[], Steps[T]]) -> T:
        """Run a protocol; again when its answer is lost: to look twice changes nothing."""
        for _ in range(ATTEMPTS - 1):
            try:
                return self.driver.run(steps())
            except StoreUnavailable:
                continue
        return self.driver.run(steps())


def _of_text(keys: Keys, make: Callable[[Keys, str], Check]) -> Callable[[bytes], Check]:
    return lambda raw: make(keys, raw.decode(errors="replace"))


def _of_field(keys: Keys, op: str, make: Callable[[Keys, str], Check]) -> Callable[[bytes], Check]:
    return lambda raw: make(keys, digest(op, raw.decode(errors="replace")))


__all__ = ["Kind", "Problem", "Report", "audit"]

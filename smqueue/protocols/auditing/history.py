"""Reading one operation's history and records, page by page, while it goes on.

A history only grows, so its pages can be read at leisure. What a record says is compared on the spot first; what does
not fit is read again together with all that the history has gained meanwhile, in one EXEC.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from smqueue.instances import Instances
from smqueue.keys import Keys
from smqueue.protocols.auditing.looking import WrongType, looks, refused, wrong_type
from smqueue.protocols.auditing.paths import EdgeProblem, Paths, Step, disagreement, same_type
from smqueue.protocols.auditing.problems import Kind, Problem
from smqueue.protocols.auditing.records import label
from smqueue.records import Active, Field
from smqueue.roundtrip import Command, Commit, Steps
from smqueue.standing import parse_inactive

PAGE = 200
MAX_ROUNDS = 20
MOST = 200
"""States of one type that are judged in one EXEC."""


@dataclass
class Told:
    """What an operation's history and records have shown."""

    problems: list[Problem] = field(default_factory=list[Problem])
    steps: int = 0
    records: int = 0
    """Inactive ones."""
    modules: set[str] = field(default_factory=set[str])
    """Of its inactive records; ``""`` for one that cannot be read."""
    ended_ms: int = 0
    """When the last of them was left."""

    def note(self, state: str, value: bytes) -> None:
        """Take the module and the time of an inactive record."""
        try:
            self.modules.add(Field.parse(state).module)
            self.ended_ms = max(self.ended_ms, int(parse_inactive(value)["exited"]) // 1000)
        except (ValueError, KeyError, TypeError):
            self.modules.add("")


def check_history(keys: Keys, op: str, make: Callable[[], Paths]) -> Steps[Told]:
    """Compare the history of an operation with its records; a round trip for each 200 of either.

    Args:
        keys: Of the operation's shard.
        op: The operation.
        make: Makes empty paths.
    """
    told = yield from _once(keys, op, make())
    if told.problems:  # forgotten and begun anew while it was read? Then it reads differently now
        known = {(one.kind, one.record) for one in told.problems}
        told = yield from _once(keys, op, make())
        told.problems = [one for one in told.problems if (one.kind, one.record) in known]
    return told


def _once(keys: Keys, op: str, paths: Paths) -> Steps[Told]:
    told = Told()
    try:
        yield from _read(keys, op, paths, told.problems)
        doubtful = yield from _doubtful(keys, op, paths, told)
        for states in doubtful:
            told.problems.extend((yield from _certain(keys, op, paths, states, told.problems)))
    except WrongType as wrong:
        told.problems.append(wrong_type(wrong))
    told.steps = paths.length
    if paths.unsealed:
        words = f"{paths.unsealed} steps of operation {op} have no seal: they were made before there was a key, or "
        words += "by a process that has none"
        told.problems.append(Problem(Kind.UNSEALED, op, op, words, "not mended: what they were cannot be proven now"))
    return told


def _read(keys: Keys, op: str, paths: Paths, problems: list[Problem]) -> Steps[None]:
    while True:
        page = yield from _one(("LRANGE", keys.history(op), paths.length, paths.length + PAGE - 1))
        for raw in page:
            problems.extend(paths.feed(raw))
        if len(page) < PAGE:
            return


def _one(command: Command) -> Steps[Any]:
    (reply,) = yield from looks([], [command])
    if isinstance(reply, Exception):
        raise WrongType(command, str(reply))
    return reply


def _doubtful(keys: Keys, op: str, paths: Paths, told: Told) -> Steps[list[list[str]]]:
    """States of which history and records seem to say different things; those of one type together."""
    live = paths.live()
    doubtful, unseen = dict.fromkeys(live), set(paths.left)
    for key in (keys.active(op), keys.inactive(op)):
        cursor: Any = 0
        while True:
            cursor, flat = yield from _one(("HSCAN", key, cursor, "COUNT", PAGE))
            for raw, value in zip(flat[::2], flat[1::2], strict=True):
                state = raw.decode(errors="replace")
                if key == keys.inactive(op):
                    told.records += 1
                    unseen.discard(state)
                    told.note(state, value)
                    fits = _inactive(paths, state, value) is None
                else:
                    fits = _active(paths, state, value) is None and len(live.get(state, ())) < 2
                    if fits:
                        doubtful.pop(state, None)
                if not fits:
                    doubtful[state] = None
            if int(cursor) == 0:
                break
    groups: dict[tuple[str, str], list[str]] = {}
    for state in (*doubtful, *(unseen - doubtful.keys())):
        groups.setdefault(same_type(state), []).append(state)
    return [group[at : at + MOST] for group in groups.values() for at in range(0, len(group), MOST)]


def _certain(keys: Keys, op: str, paths: Paths, states: Sequence[str], problems: list[Problem]) -> Steps[list[Problem]]:
    """Judge records of one type on one instant: they, and the rest of the history, in one EXEC."""
    for _ in range(MAX_ROUNDS):
        tail: Command = ("LRANGE", keys.history(op), paths.length, paths.length + PAGE - 1)
        found: list[Command] = [("HGET", key, s) for s in states for key in (keys.active(op), keys.inactive(op))]
        replies = refused((yield Commit((tail, *found))))
        for command, reply in zip((tail, *found), replies, strict=True):
            if isinstance(reply, Exception):
                raise WrongType(command, str(reply))
        for raw in replies[0]:
            problems.extend(paths.feed(raw))
        if len(replies[0]) < PAGE:
            return list(_judged(paths, states, replies[1:]))
    return []  # it grows faster than it is read


def _judged(paths: Paths, states: Sequence[str], found: Sequence[bytes | None]) -> Iterator[Problem]:
    live, total, counted = paths.live(), 0, list[Problem]()
    for state, active, past in zip(states, found[::2], found[1::2], strict=True):
        if active is not None and (wrong := _active(paths, state, active)) is not None:
            yield wrong
        yield from (_lost(paths, step) for step in live.get(state, ()) if step.machine != _machine_in(active))
        if (differs := _inactive(paths, state, past)) is None:
            continue
        counts = differs.kind in {Kind.INACTIVE_DISAGREES, Kind.NO_HISTORY}
        if counts and (off := paths.off_by(state, parse_inactive(past).get("visits", 0) if past is not None else 0)):
            total += off
            counted.append(differs)
        else:
            yield differs
    # A state that earlier code has stored is left under its old spelling, while the history has the new one: then one
    # record counts more and another less, and together they are right.
    if total or not counted:
        yield from counted


def _machine_in(active: bytes | None) -> str | None:
    try:
        return None if active is None else Active.parse(active).machine
    except ValueError:
        return None


def _active(paths: Paths, state: str, value: bytes) -> Problem | None:
    try:
        active = Active.parse(value)
    except ValueError:
        return None  # the check of the record names it
    return paths.check_active(state, active.machine, active.step, active.lone) or paths.check_seal(state, active)


def _lost(paths: Paths, step: Step) -> Problem:
    return Problem(
        Kind.LOST_MACHINE, paths.op, step.machine, f"{label(paths.op, step.to)}: machine {step.machine} is there at "
        f"step {step.step} by the history, but it has no active record: nothing moves it",
        "not mended: what it waited for is not known; add a machine that goes on from there",
    )  # fmt: skip


def _inactive(paths: Paths, state: str, value: bytes | None) -> Problem | None:
    if value is None:
        return disagreement(paths, state, None) if state in paths.left else None
    what = label(paths.op, state)
    try:
        data = parse_inactive(value)
        times, ints = (data["at"], data["exited"]), (data["at"], data["exited"], data["step"], data["visits"])
        if not all(isinstance(one, int) for one in ints):
            raise ValueError("not numbers")
    except (ValueError, KeyError) as problem:
        return Problem(
            Kind.UNREADABLE_INACTIVE, paths.op, what, f"{what}: its inactive record cannot be read: {problem}",
            "not mended: what it was is not known; the history has its steps",
        )  # fmt: skip
    if times[0] > times[1]:
        return Problem(
            Kind.WRONG_TIMES, paths.op, what, f"{what} was left before it was entered",
            "not mended: which of the times is right is not known",
        )  # fmt: skip
    return disagreement(paths, state, data)


# --- edges -----------------------------------------------------------------------------------------------------------


def edges_of(instances: Instances) -> EdgeProblem:
    """Judge steps by the graphs of these modules; of another version, or a dynamic state, nothing can be told."""
    graphs = {id: instances.get(id).module.graph() for id in instances.ids()}
    known = {id: {(edge.source, edge.target, edge.handler) for edge in graph.edges} for id, graph in graphs.items()}

    def problem(before: Step | None, after: Step) -> str | None:
        try:
            module, target, _ = Field.parse(after.to)
        except ValueError:
            return "its state is none"
        if module not in graphs or after.version != instances.get(module).module.version:
            return None
        if before is None:
            return f"a machine begins in {target}, which is terminal" if target in graphs[module].terminal else None
        source = Field.parse(before.to)
        if source.module != module:
            return f"it goes from module {source.module} to module {module}"
        if after.cancelled or source.type in graphs[module].dynamic or before.version != after.version:
            return None
        if (source.type, target, after.won or "") in known[module]:
            return None
        return f"{module} declares no transition from {source.type} to {target} by {after.won}"

    return problem

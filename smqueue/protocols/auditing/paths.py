"""A history as paths: each machine's steps follow each other, along declared edges, to an end or to where it is now.

Pure: it is fed a history's entries in their order, and knows then what the records should say.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from msgspec import to_builtins

from smqueue.chain import Chain
from smqueue.protocols.arming import first_entry
from smqueue.protocols.auditing.problems import Kind, Problem
from smqueue.protocols.auditing.records import label
from smqueue.records import Active, Field

UNWRITTEN = "not mended: a history is not written anew; smqueue show tells what is stored now"


class Step(NamedTuple):
    """One entry of a history."""

    machine: str
    step: int
    to: str
    version: int
    terminal: bool
    cancelled: bool
    merged: str | None
    won: str | None
    seal: str

    @classmethod
    def parse(cls, data: Any) -> Step:
        """Raises ValueError when it is not one."""
        match data:
            case {"machine": str(machine), "step": int(step), "to": str(to), "version": int(version), **more}:
                merged, won = more.get("merged"), more.get("won")
                if not isinstance(merged, str | None) or not isinstance(won, str | None):
                    raise ValueError("not a step")
                ends = bool(more.get("terminal")), "cancelled" in more
                return cls(machine, step, to, version, *ends, merged, won, str(more.get("seal", "")))
            case _:
                raise ValueError("not a step")

    @property
    def is_last(self) -> bool:
        """Whether its machine has ended with it."""
        return self.terminal or self.merged is not None


class Left(NamedTuple):
    """How a state stands in a history."""

    machine: str
    step: int
    visits: int
    """How often it was left; or, when terminal, entered."""


EdgeProblem = Callable[[Step | None, Step], str | None]
"""Why a step from one entry to the next is none that its module declares; ``None``: it is, or it cannot be told."""

NO_EDGES: EdgeProblem = lambda _before, _after: None  # noqa: E731


@dataclass
class Paths:
    """What a history says, as far as it was fed."""

    op: str
    edge: EdgeProblem = NO_EDGES
    chain: Chain | None = None
    length: int = 0
    unsealed: int = 0
    """Steps of machines of which none was sealed before."""
    last: dict[str, Step] = field(default_factory=dict[str, Step])
    """Machine → its last step."""
    left: dict[str, Left] = field(default_factory=dict[str, Left])
    """Stored state → what its inactive record should say."""

    def feed(self, raw: bytes) -> Iterator[Problem]:
        """Take the next entry; yields what is wrong with it."""
        place, self.length = self.length, self.length + 1
        try:
            data = json.loads(raw, parse_constant=_refuse)
            step = Step.parse(data)
        except (ValueError, RecursionError) as problem:
            yield self._wrong(Kind.UNREADABLE_STEP, f"#{place}", f"its entry {place} cannot be read: {problem}")
            return
        if self.chain is not None:
            yield from self._sealed(self.chain, data, step)
        if step.machine == "":  # a record was cancelled that nobody could read: whose it was only its state tells
            for one in self.live().get(step.to, ()):
                self.last[one.machine] = one._replace(terminal=True, cancelled=True)
            self._leave(step.to, "", 0)
            return
        before = self.last.get(step.machine)
        yield from self._follows(before, step)
        self.last[step.machine] = step
        if before is not None and not before.is_last:
            self._leave(before.to, before.machine, before.step)
        if step.terminal and not step.cancelled and step.merged is None:
            known = self.left.get(step.to)
            first = known or Left(step.machine, step.step, 0)
            self.left[step.to] = first._replace(visits=first.visits + 1)

    def _leave(self, state: str, machine: str, step: int) -> None:
        known = self.left.get(state)
        self.left[state] = Left(machine, step, 1 if known is None else known.visits + 1)

    def _follows(self, before: Step | None, step: Step) -> Iterator[Problem]:
        name = f"machine {step.machine}"
        due = 1 if before is None else before.step + 1
        if before is not None and before.is_last:
            yield self._wrong(Kind.STEP_AFTER_END, step.machine, f"{name} goes on at step {step.step} after its end")
        if step.step > due:
            yield self._wrong(Kind.STEP_MISSING, step.machine, f"{name}: step {step.step} follows step {due - 1}")
        elif step.step < due:
            yield self._wrong(Kind.STEP_TWICE, step.machine, f"{name}: step {step.step} comes again after {due - 1}")
        if step.step == due and (why := self.edge(before, step)) is not None:
            yield self._wrong(Kind.NOT_AN_EDGE, step.machine, f"{name}, step {step.step}: {why}")
        if step.merged is not None:
            other = self.last.get(step.merged)
            if other is None or other.is_last or same_type(other.to) != same_type(step.to):
                yield self._wrong(
                    Kind.WRONG_MERGE, step.machine, f"{name} merged into {step.merged}, which was not in that state"
                )

    def _sealed(self, chain: Chain, data: dict[str, Any], step: Step) -> Iterator[Problem]:
        before = self.last.get(step.machine)
        rests_on = before.seal if before is not None else ""
        name = f"machine {step.machine}, step {step.step}"
        if not step.seal and not rests_on:
            self.unsealed += 1
        elif not step.seal:
            yield self._wrong(Kind.TAMPERED, step.machine, f"{name} has no seal, although the step before it has one")
        elif step.seal != chain.seal(self.op, rests_on, data):
            words = f"the seal of {name} does not fit: it, or what came before it, is not what was written"
            yield self._wrong(Kind.TAMPERED, step.machine, words)

    def check_seal(self, state: str, active: Active) -> Problem | None:
        """Whether an active record has the seal of its machine's last step."""
        if self.chain is None or (known := self.last.get(active.machine)) is None:
            alone = self.chain is not None and self.length == 0 and active.seal
            if not alone or active.seal == self._first_seal(state, active):
                return None
        elif active.seal == known.seal or known.step != active.step:
            return None
        return Problem(
            Kind.TAMPERED, self.op, active.machine, f"{label(self.op, state)}: the seal of its active record does not "
            "fit: it, or the history, is not what was written", UNWRITTEN,
        )  # fmt: skip

    def _first_seal(self, state: str, active: Active) -> str:
        return self.chain.seal(self.op, "", to_builtins(first_entry(state, active))) if self.chain is not None else ""

    def _wrong(self, kind: Kind, record: str, words: str) -> Problem:
        return Problem(
            kind, self.op, record, f"history of operation {self.op}: {words}",
            UNWRITTEN,
        )  # fmt: skip

    # --- what the records should say ---------------------------------------------------------------------------------

    def live(self) -> dict[str, list[Step]]:
        """Stored state → the machines that are in it: one, if all is well."""
        found: dict[str, list[Step]] = {}
        for step in self.last.values():
            if not step.is_last:
                found.setdefault(step.to, []).append(step)
        return found

    def check_active(self, state: str, machine: str, step: int, lone: bool) -> Problem | None:
        """Whether an active record is where the history says its machine is."""
        known = self.last.get(machine)
        if known is None and lone and self.length == 0 and step == 1:
            return None  # its adding is written with the next thing that happens
        if known is not None and (known.step, known.to, known.is_last) == (step, state, False):
            return None
        says = "does not know it" if known is None else f"has it at step {known.step}" + " and ended" * known.is_last
        return Problem(
            Kind.ACTIVE_DISAGREES if self.length else Kind.NO_HISTORY, self.op, machine,
            f"{label(self.op, state)}: machine {machine} is at step {step}, but the history {says}",
            "not mended: which of them is right is not known; smqueue show and the history tell what is stored",
        )  # fmt: skip

    def off_by(self, state: str, visits: int) -> int:
        """By how much the visits that a record counts differ from the history's."""
        known = self.left.get(state)
        return visits - (known.visits if known is not None else 0)


def samesame_type(state: str) -> tuple[str, str]:
    """Module and type: what two spellings of one state, of an older and a newer version, have in common."""
    return same_type(state)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def same_type(state: str) -> tuple[str, str]:
    """Module and type: what two spellings of one state, of an older and a newer version, have in common."""
    try:
        return Field.parse(state)[:2]
    except ValueError:
        return "", state


def disagreement(paths: Paths, state: str, data: dict[str, Any] | None) -> Problem | None:
    """What an inactive record and the history say differently; ``None``: nothing. An absent record counts 0 visits."""
    known = paths.left.get(state)
    visits = 0 if data is None else data.get("visits", 0)
    what = label(paths.op, state)
    if paths.off_by(state, visits):
        said = 0 if known is None else known.visits
        counts = "there is no inactive record" if data is None else f"its inactive record counts {visits} visits"
        words = f"{what}: {counts}, the history {said}"
    elif known is not None and data is not None and (data["machine"], data["step"]) != (known.machine, known.step):
        words = f"{what}: by its inactive record machine {data['machine']} was in it at step {data['step']}, by the "
        words += f"history {known.machine} at step {known.step}"
    else:
        return None
    return Problem(
        Kind.INACTIVE_DISAGREES if paths.length else Kind.NO_HISTORY, paths.op, what, words,
        "not mended: which of them is right is not known; smqueue show and the history tell what is stored",
    )  # fmt: skip

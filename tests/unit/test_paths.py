"""A history as paths: what each entry may follow, and what the records should say after it."""

from __future__ import annotations

from typing import Any

import pytest

from smqueue.protocols.auditing.paths import EdgeProblem, Paths, Step, disagreement
from smqueue.protocols.auditing.problems import Kind
from smqueue.records import compact

A, B, END = 'm A {"n":1}', 'm B {"n":1}', "m End {}"


def entry(machine: str, step: int, to: str, **more: Any) -> dict[str, Any]:
    return {"machine": machine, "step": step, "to": to, "at": step, "commit": f"c{step}", "version": 1, **more}


def end(machine: str, step: int, to: str = END, **more: Any) -> dict[str, Any]:
    return entry(machine, step, to, terminal=True, **more)


def fed(*entries: dict[str, Any], edge: EdgeProblem | None = None) -> tuple[Paths, list[Kind]]:
    paths = Paths("op") if edge is None else Paths("op", edge)
    return paths, [problem.kind for one in entries for problem in paths.feed(compact(one).encode())]


NAN = b'{"machine":"x","step":1,"to":"x","version":1,"x":NaN}'
WON = b'{"machine":"x","step":1,"to":"x","version":1,"won":[]}'
LEGAL = {
    "one machine to its end": [entry("x", 1, A), entry("x", 2, B), end("x", 3)],
    "the same state again": [entry("x", 1, A), entry("x", 2, A), entry("x", 3, A)],
    "there and back": [entry("x", 1, A), entry("x", 2, B), entry("x", 3, A)],
    "two machines by turns": [entry("x", 1, A), entry("y", 1, B), entry("x", 2, END, terminal=True), end("y", 2)],
    "a merge": [entry("x", 1, A), entry("y", 1, B), entry("x", 2, B, merged="y"), end("y", 2)],
    "a cancellation": [entry("x", 1, A), end("x", 2, A, cancelled="why")],
    "what could not be read is cancelled": [entry("x", 1, A), end("", 1, A, cancelled="")],
}
ILLEGAL = {
    "a gap": ([entry("x", 1, A), entry("x", 3, B)], [Kind.STEP_MISSING]),
    "no beginning": ([entry("x", 2, A)], [Kind.STEP_MISSING]),
    "a step twice": ([entry("x", 1, A), entry("x", 1, A)], [Kind.STEP_TWICE]),
    "steps swapped": (
        [entry("x", 1, A), entry("x", 3, B), entry("x", 2, A)],
        [Kind.STEP_MISSING, Kind.STEP_TWICE],
    ),
    "after its end": ([entry("x", 1, A), end("x", 2), entry("x", 3, A)], [Kind.STEP_AFTER_END]),
    "after it was merged": (
        [entry("x", 1, A), entry("y", 1, B), entry("x", 2, B, merged="y"), entry("x", 3, A)],
        [Kind.STEP_AFTER_END],
    ),
    "merged into nobody": ([entry("x", 1, A), entry("x", 2, B, merged="y")], [Kind.WRONG_MERGE]),
    "merged into one that is elsewhere": (
        [entry("x", 1, A), entry("y", 1, A), entry("x", 2, B, merged="y")],
        [Kind.WRONG_MERGE],
    ),
}


@pytest.mark.parametrize("entries", LEGAL.values(), ids=LEGAL)
def test_a_legal_path_has_no_problem(entries: list[dict[str, Any]]) -> None:
    """What the protocols write is no problem."""
    assert fed(*entries)[1] == []


@pytest.mark.parametrize(("entries", "problems"), ILLEGAL.values(), ids=ILLEGAL)
def test_an_illegal_path_is_named(entries: list[dict[str, Any]], problems: list[Kind]) -> None:
    """Each way in which steps do not follow each other is named."""
    assert fed(*entries)[1] == problems


@pytest.mark.parametrize(
    "raw", [b"garbage", b"[]", b"{}", b'{"machine":1,"step":1,"to":"x","version":1}', b"\xff", NAN, WON]
)
def test_garbage_is_named(raw: bytes) -> None:
    """What is no step is named, and what follows is read on."""
    paths = Paths("op")
    assert [problem.kind for problem in paths.feed(raw)] == [Kind.UNREADABLE_STEP]
    assert [problem.kind for problem in paths.feed(compact(entry("x", 1, A)).encode())] == []


def test_edges_are_asked_for_each_step() -> None:
    """Each step is judged with the one before it; one that does not follow is not judged."""
    asked: list[tuple[str | None, str]] = []

    def edge(before: Step | None, after: Step) -> str | None:
        asked.append((before.to if before else None, after.to))
        return "no such edge" if after.to == B else None

    _, problems = fed(entry("x", 1, A), entry("x", 2, B), entry("x", 4, A), edge=edge)
    assert asked == [(None, A), (A, B)]
    assert problems == [Kind.NOT_AN_EDGE, Kind.STEP_MISSING]


def test_what_the_records_should_say() -> None:
    """Visits of states left, entries into a terminal one, where each machine is."""
    paths, _ = fed(
        *(entry("x", 1, A), entry("x", 2, A), entry("x", 3, B), entry("y", 1, A)),
        *(end("y", 2), end("x", 4), entry("z", 1, B)),
    )
    assert {state: (left.machine, left.step, left.visits) for state, left in paths.left.items()} == {
        A: ("y", 1, 3),
        B: ("x", 3, 1),
        END: ("y", 2, 2),  # the first one's time and name are kept
    }
    assert {state: [step.machine for step in steps] for state, steps in paths.live().items()} == {B: ["z"]}
    assert paths.check_active(B, "z", 1, lone=False) is None
    for machine, step in (("z", 2), ("x", 4), ("nobody", 1)):
        wrong = paths.check_active(B, machine, step, lone=False)
        assert wrong is not None
        assert wrong.kind is Kind.ACTIVE_DISAGREES


def test_a_lone_machine_has_no_history() -> None:
    """Only one that is marked so, at its first step, and while there is no history."""
    empty, (begun, _) = Paths("op"), fed(entry("y", 1, A))
    assert empty.check_active(A, "x", 1, lone=True) is None
    for paths, step, lone in ((empty, 1, False), (empty, 2, True), (begun, 1, True)):
        assert paths.check_active(A, "x", step, lone) is not None


def test_an_inactive_record_is_compared() -> None:
    """Its visits, and who was in it last."""
    paths, _ = fed(entry("x", 1, A), entry("x", 2, A), entry("x", 3, B))
    right = {"machine": "x", "step": 2, "visits": 2}
    assert disagreement(paths, A, right) is None
    for wrong in ({**right, "visits": 1}, {**right, "step": 1}, {**right, "machine": "y"}, None):
        assert disagreement(paths, A, wrong) is not None


def test_problems_show_no_state() -> None:
    """Secrets may stand in a state: no problem has its content."""
    secret = 'm A {"card":"4111"}'
    paths, _ = fed(entry("x", 1, secret), entry("x", 2, secret))
    told = [disagreement(paths, secret, None), paths.check_active(secret, "y", 1, lone=False)]
    assert all(problem is not None and "4111" not in problem.words + problem.remedy for problem in told)

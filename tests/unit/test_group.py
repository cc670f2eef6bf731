"""A group of protocols, answered by hand."""

from __future__ import annotations

from typing import Any

import pytest

from smqueue.drivers.group import group
from smqueue.roundtrip import Commit, LostReply, Read, Steps


def commits() -> Steps[str]:
    """Looks once and commits; a conflict ends it."""
    yield Read(("a",), (("GET", "a"),))
    return "committed" if (yield Commit((("SET", "a", "1"),))) is not None else "must look again"


def reads_twice() -> Steps[str]:
    """Looks, and looks again at what depends on the first look."""
    yield Read(("b",), (("GET", "b"),))
    try:
        yield Read(("c",), (("GET", "c"),))
    except LostReply:
        return "lost"
    return "read"


def test_a_lost_reply_spoils_the_looks_of_all() -> None:
    """When one member's reply is lost the connection is gone, and with it the WATCHes of all: a member that stands at
    its commit must not commit on them. (semantics 5)"""
    steps = group([commits(), reads_twice()])
    assert next(steps) == Read(("a", "b"), (("GET", "a"), ("GET", "b")))
    assert steps.send([None, None]) == Read(("c",), (("GET", "c"),))
    with pytest.raises(StopIteration) as ended:
        steps.throw(LostReply())
    assert [run.result() for run in ended.value.value] == ["must look again", "lost"]


def patient() -> Steps[int]:
    """Looks and commits until it has; returns how often it looked."""
    for looks in range(1, 9):
        yield Read(("a",), (("GET", "a"),))
        if (yield Commit((("SET", "b", "1"),))) is not None:
            return looks
    return 0


def test_after_a_second_failure_each_is_tried_alone() -> None:
    """One foreign write in each round must not hold up all the members of a group: a second EXEC that fails is the last
    that they share."""
    sizes: list[int] = []
    runs = ended(group([patient(), patient(), patient()]), sizes)
    assert sizes == [3, 3, 1, 1, 1]
    assert [run.result() for run in runs] == [3, 3, 3]


def ended(steps: Steps[Any], sizes: list[int]) -> Any:
    """Answer a group to its end; its first two commits conflict. Notes how many commands each had."""
    answer: Any = None
    while True:
        try:
            request = steps.send(answer)
        except StopIteration as end:
            return end.value
        assert isinstance(request, Read | Commit)
        answer = [None] * len(request.commands)
        if isinstance(request, Commit):
            sizes.append(len(request.commands))
            answer = None if len(sizes) <= 2 else answer

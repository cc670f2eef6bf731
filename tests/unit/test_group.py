"""A group of protocols, answered by hand."""

from __future__ import annotations

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

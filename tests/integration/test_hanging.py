"""Code that never returns: interrupted where that can be done, seen where it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest

from smqueue.embedded import EmbeddedServer
from tests.apps.hanging import Calling, Handling, Over, Polling, hanging
from tests.apps.wiring import environment
from tests.inprocess import Local, Play
from tests.waiting import wait_until
from tests.workers import Worker, running

INTERRUPTED = [
    ("prefork", "blocks"),
    ("prefork", "awaits"),
    ("solo", "blocks"),
    ("solo", "awaits"),
    ("threads", "awaits"),
]


def worker(server: EmbeddedServer, namespace: str, directory: Path, pool: str, slots: int) -> Worker:
    env = environment(server.url, server.broker_url, namespace, directory)
    return Worker("tests.apps.hanging", env, ["-P", pool, "-c", str(slots)])


@pytest.fixture
def local(play: Play) -> Local:
    return play(hanging=hanging)


def ending(local: Local, op: str) -> str:
    """How an operation has ended, once it has."""
    local.executor.await_operation(op, 60)
    (over,) = [state for state in local.inactive(op) if isinstance(state, Over)]
    return over.what


@pytest.mark.parametrize(("pool", "how"), INTERRUPTED)
def test_a_trigger_that_never_returns_is_interrupted(
    local: Local, server: EmbeddedServer, namespace: str, tmp_path: Path, pool: str, how: str
) -> None:
    """One attempt of a ``call`` or ``poll`` lasts no longer than its ``timeout``: the call has failed with
    HandlerTimeout, the poll asks again; the only slot of the worker is free for others."""
    with running(one := worker(server, namespace, tmp_path, pool, 1)):
        one.wait_ready()
        local.add("call", Calling(how))
        local.add("poll", Polling(how))
        assert ending(local, "call") == "HandlerTimeout: trigger reached ran longer than its limit of 0.5 s."
        assert ending(local, "poll") == "second time"
        local.add("handler", Handling(0))
        assert ending(local, "handler") == "handled"


def test_a_timeout_of_the_codes_own_is_not_taken_for_the_limit(
    local: Local, server: EmbeddedServer, namespace: str, tmp_path: Path
) -> None:
    """A TimeoutError that a coroutine raises by itself is its own error."""
    with running(one := worker(server, namespace, tmp_path, "threads", 1)):
        one.wait_ready()
        local.add("call", Calling("raises its own"))
        assert ending(local, "call").startswith("TimeoutError")


def test_slots_that_cannot_be_freed_are_told_of(
    local: Local, server: EmbeddedServer, namespace: str, tmp_path: Path
) -> None:
    """On threads, where nothing can interrupt it, the worker says once of each handler that runs past its limit that
    its slot is lost, how many are, and when none is left what to do."""
    with running(one := worker(server, namespace, tmp_path, "threads", 4)):
        one.wait_ready()
        local.add("bad", Handling(1))
        wait_until(lambda: "1 of 4 are lost" in one.output, "the first to be told of", timeout_s=60)
        local.add("good", Handling(0))
        assert ending(local, "good") == "handled"
        local.add("worse", *[Handling(n) for n in range(2, 8)])
        wait_until(lambda: "4 of 4 are lost: restart this worker" in one.output, "the last", timeout_s=120)
        assert one.output.count("runs longer than its limit") == 4
        one.kill()  # its threads would never let it end

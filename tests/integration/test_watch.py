"""The watch: of all pumps one looks when things fall due, and is rung for when something does before it would look."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from smqueue import Context, Failed, Module, Retry, State, Transaction, after, now, poll, wait
from smqueue.protocols.bounds import WATCH_MS
from smqueue.protocols.claim import Watch, pump
from tests.inprocess import Local, Play
from tests.waiting import wait_until

watched = Module("watched", retry=Retry(base=timedelta(milliseconds=10), cap=timedelta(milliseconds=20)))


@watched.state
class Timed(State):
    ms: int


@watched.state
class Polling(State):
    ms: int


@watched.state
class Hosted(State):
    ms: int


@watched.state
class Failing(State):
    ms: int


@watched.state(terminal=True)
class Over(State):
    ms: int


@watched.on(Timed, after(lambda state: timedelta(milliseconds=state.ms)))
def late(tx: Transaction, state: Timed, _: None) -> Over:
    return Over(state.ms)


def nothing_yet(state: Polling, context: Context[Any, Any]) -> int | None:
    return None


@watched.on(Polling, poll(nothing_yet, every=lambda state: timedelta(milliseconds=state.ms)))
def found(tx: Transaction, state: Polling, _: int) -> Over:
    return Over(state.ms)


async def for_ever(state: Hosted, context: Context[Any, Any]) -> None:
    raise AssertionError("nobody hosts it here")


@watched.on(Hosted, wait(for_ever))
def told(tx: Transaction, state: Hosted, _: Failed | None) -> Over:
    return Over(state.ms)


@watched.on(Failing, now())
def failing(tx: Transaction, state: Failing, _: None) -> Over:
    raise RuntimeError("not yet")


@pytest.fixture
def local(play: Play) -> Local:
    return play(watched=watched)


def look(local: Local, caller: str) -> Watch:
    return local.driver.run(pump(local.keys(), hosted=True, caller=caller))


def test_one_pump_at_a_time_is_on_watch(local: Local) -> None:
    """While one looks, the others are told for how long, and neither hint nor host; then another takes over, so that
    a pump that has died keeps nothing waiting. What thousands of them cost is one look a second each."""
    local.add("op", Timed(1))
    local.wait_past(local.now_ms() + 2)
    first, other, again = look(local, "a"), look(local, "b"), look(local, "a")
    assert (first.mine, first.hint) == (True, True)
    assert (other.mine, other.hint, other.hosted) == (False, False, False)
    assert 0 < other.wait_ms <= WATCH_MS
    assert again.mine
    wait_until(lambda: look(local, "b").mine, "the watch is free")
    assert not look(local, "a").mine


def test_a_pump_looks_again_soon_while_something_is_due(local: Local) -> None:
    """Its hint may be lost, and another deadline pass meanwhile: whoever has just hinted does not sleep over that."""
    local.add("op", Timed(1))
    local.wait_past(local.now_ms() + 2)
    first = look(local, "a")
    assert first.hint
    assert first.wait_ms <= WATCH_MS // 4
    assert look(local, "a").wait_ms <= WATCH_MS // 4


def test_a_clock_that_is_set_back_leaves_no_watch_for_ever(local: Local) -> None:
    """What says that it ends later than any watch can is none."""
    local.redis.set(local.keys().watch, f"gone {local.now_ms() + 3_600_000}")
    assert look(local, "a").mine
    assert not look(local, "b").mine


@pytest.mark.parametrize(
    ("state", "rings"),
    [
        (Timed(WATCH_MS // 2), True),
        (Timed(WATCH_MS * 100), False),
        (Hosted(1), True),
        (Polling(WATCH_MS // 4), True),
        (Polling(WATCH_MS * 100), False),
        (Failing(1), True),
    ],
)
def test_what_falls_due_sooner_than_the_pump_looks_rings_for_it(local: Local, state: State, rings: bool) -> None:
    """A deadline, the next poll, the next attempt of a handler, and what is to be hosted: the pump on watch is rung for
    when it would look too late, and only then; and but once until it has looked."""
    keys = local.keys()
    assert look(local, "a").wait_ms >= WATCH_MS  # it would sleep over all of these
    with local.redis.pubsub(ignore_subscribe_messages=True) as heard:
        heard.subscribe(keys.wake)
        wait_until(lambda: local.redis.pubsub_numsub(keys.wake)[0][1] == 1, "it listens")

        def rung(op: str) -> int:
            local.add(op, state)
            local.run()
            local.redis.publish(keys.wake, op)
            count = 0
            while (said := wait_until(lambda: heard.get_message(timeout=1), "a message"))["data"] != op.encode():
                count += said["data"] == b""
            return count

        assert bool(rung("first")) is rings
        local.redis.set(keys.roused, "1")  # as it is, but for longer than a slow test takes
        assert rung("second") == 0
        wait_until(lambda: look(local, "a").mine, "it looks")
        assert bool(rung("third")) is rings

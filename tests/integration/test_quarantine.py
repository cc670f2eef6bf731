"""One bad machine or record is set aside and reported; all others go on."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from smqueue import StateMachine
from smqueue.embedded import EmbeddedServer
from smqueue.errors import UndecodableRecord
from tests.apps.faulty import Asking, Bad, Bound, Fine, Trying, faulty, fixed, word
from tests.integration.driving import Loop
from tests.waiting import wait_until
from tests.workers import Worker, running


@pytest.fixture
def loop(server: EmbeddedServer, namespace: str) -> Iterator[Loop]:
    fixed.clear()
    yield Loop(server.url, namespace, {"faulty": faulty})
    fixed.clear()


def quarantined(loop: Loop, op: str) -> Any:
    """The explanation of the one machine of an operation, once it is set aside."""
    return loop.until(
        lambda: (found := loop.explained(op)).status in {"quarantined", "unreadable"} and found, f"{op} to be set aside"
    )


def aside(loop: Loop) -> dict[str, dict[str, Any]]:
    """What is in quarantine: record → why."""
    return {record.decode(): json.loads(why) for record, why in loop.redis.hgetall(loop.keys.quarantine).items()}


def finishes(loop: Loop, op: str) -> None:
    """A machine of another operation goes its way, from its adding to its end."""
    loop.add(op, Trying(7))
    loop.executor.signal(op, word, "go")
    loop.settle(op)
    assert [machine.state for machine, found in loop.executor.get_inactive_states(op) if found.terminal] == [Fine(7)]


# --- handlers that fail ----------------------------------------------------------------------------------------------


def test_a_handler_that_raises_is_retried_then_quarantined(loop: Loop) -> None:
    """An exception is retried with back-off, then the machine is quarantined with its error, visible; its state and the
    handler's writes are as before. (semantics 20)"""
    loop.add("bad", Trying(1))
    loop.executor.signal("bad", word, "raise")
    loop.run()
    found = quarantined(loop, "bad")
    assert (found.status, found.attempts, found.won) == ("quarantined", 2, "told")
    assert found.last_error == "ValueError: broken on purpose"
    assert found.triggers[0].name == "faulty.Trying/told"
    assert found.triggers[0].last_error == "ValueError: broken on purpose"
    (why,) = aside(loop).values()
    assert (why["op"], why["error"]) == ("bad", found.last_error)
    assert loop.redis.get(loop.keys.data("faulty", "tried")) is None
    assert loop.active("bad") == [Trying(1)]
    assert loop.executor.has_active_states("bad")
    finishes(loop, "good")


def test_the_error_is_shown_from_the_first_failure_on(loop: Loop) -> None:
    """``explain`` shows the last error while the machine is still being retried. (semantics 20)"""
    loop.add("bad", Trying(1))
    loop.executor.signal("bad", word, "raise")
    loop._drain._commit(claimed(loop), watched=False)  # pyright: ignore[reportPrivateUsage]
    found = loop.explained("bad")
    assert (found.status, found.attempts, found.last_error) == ("decided", 1, "ValueError: broken on purpose")


def claimed(loop: Loop) -> list[Any]:
    from smqueue.protocols.claim import claim

    return loop.driver.run(claim(loop.keys, loop.instances, 10)).machines


def test_others_of_the_batch_commit(loop: Loop) -> None:
    """Of a batch in which some handlers raise, all others commit, in the same operation too. (semantics 20)"""
    machines = loop.add("op", *[Trying(n) for n in range(20)])
    for n, machine in enumerate(machines):
        loop.executor.signal("op", word, "raise" if n % 4 == 0 else "go", machine=machine)
    loop.until(lambda: len(aside(loop)) == 5, "five to be set aside")
    assert sorted(s.n for s in loop.active("op")) == [0, 4, 8, 12, 16]  # pyright: ignore[reportAttributeAccessIssue]
    loop.run()
    ended = [machine.state for machine, found in loop.executor.get_inactive_states("op") if found.terminal]
    assert len(ended) == 15


def test_a_quarantined_machine_stays_aside(loop: Loop) -> None:
    """It is not run again, however often its entries fall due, until ``retry``. (semantics 20)"""
    loop.add("bad", Asking(1))
    loop.executor.signal("bad", word, "raise")
    quarantined(loop, "bad")
    stored = loop.stored("bad", Asking(1))
    for entry in (stored.entry, f"{stored.entry}:asked"):
        loop.make_due(entry)
        assert loop.run() == 0
        assert loop.redis.zscore(loop.keys.schedule, entry) > loop.now_ms() + 3_000_000
    assert loop.explained("bad").attempts == 2


def test_retry_re_arms(loop: Loop) -> None:
    """``retry`` takes a machine out of quarantine: the outcome that is recorded is run again, and now commits.
    (semantics 20)"""
    loop.add("bad", Trying(1), Trying(2))
    loop.executor.signal("bad", word, "raise")
    loop.until(lambda: len(aside(loop)) == 1, "it to be set aside")
    assert loop.executor.retry("bad") == 1
    assert aside(loop) == {}
    loop.until(lambda: len(aside(loop)) == 1, "it to be set aside once more")
    fixed["all"] = True
    assert loop.executor.retry("bad") == 1
    loop.until(lambda: len(loop.active("bad")) == 1, "it to have moved")
    assert loop.executor.retry("bad") == 0
    ended = [machine.state for machine, found in loop.executor.get_inactive_states("bad") if found.terminal]
    assert ended == [Fine(1)]


def test_what_fell_due_in_quarantine_goes_on_after_retry(loop: Loop) -> None:
    """After ``retry``, and a handler that stays, the machine's other triggers run on at once: not an hour later.
    (semantics 20)"""
    loop.add("bad", Asking(1))
    loop.executor.signal("bad", word, "undecided")
    quarantined(loop, "bad")
    entry = loop.stored("bad", Asking(1)).entry
    loop.make_due(f"{entry}:asked")
    loop.run()
    fixed["all"] = True
    loop.executor.retry("bad")
    loop.until(lambda: loop.explained("bad").status == "waiting", "its handler to have stayed")
    polls = loop.explained("bad").triggers[1].attempts
    loop.until(lambda: loop.explained("bad").triggers[1].attempts > polls, "it to poll on", timeout_s=8)


def test_nothing_to_wait_for(loop: Loop) -> None:
    """A handler that returns None with no trigger left: quarantined with NothingToWaitFor; nothing committed.
    (semantics 20)"""
    from datetime import timedelta

    loop.add("bad", Bound(1, timedelta(milliseconds=1)))
    found = quarantined(loop, "bad")
    assert found.status == "quarantined"
    assert found.last_error.startswith("NothingToWaitFor: ")
    assert "spent" in found.last_error
    assert "Bound" in found.last_error
    fixed["all"] = True
    loop.executor.retry("bad")
    loop.settle("bad")


def test_a_write_that_would_fail_is_the_handlers_error(loop: Loop) -> None:
    """A write that would fail inside EXEC is the handler's typed error, retried and quarantined; nothing is
    written. (semantics 20)"""
    loop.add("bad", Bad("wrong kind"))
    assert quarantined(loop, "bad").last_error.startswith("WrongKind: ")
    assert loop.redis.get(loop.keys.data("faulty", "text")) is None


def test_conflicts_never_quarantine(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose commits conflict for ever is given back with back-off, never set aside, and others go on.
    (semantics 20)"""
    monkeypatch.setattr("smqueue.protocols.transition.MAX_ATTEMPTS", 3)
    loop.add("bad", Trying(1))
    loop.executor.signal("bad", word, "go")
    disturbed = loop.keys.watchers("bad")

    def disturb() -> None:
        loop.redis.sadd(disturbed, "x")
        loop.redis.srem(disturbed, "x")
        if loop.driver.acted < 12:
            loop.driver.before_commit(disturb)

    loop.driver.before_commit(disturb)
    loop.run()
    assert loop.explained("bad").status == "decided"
    assert "CommitFailed" in (loop.explained("bad").last_error or "")
    loop.until(lambda: not loop.executor.has_active_states("bad"), "it to commit at last")
    assert loop.driver.acted == 12
    assert aside(loop) == {}


# --- handlers that take their worker with them, or never return ------------------------------------------------------


def worker(server: EmbeddedServer, namespace: str, *options: str) -> Worker:
    env = {"TEST_BROKER_URL": server.broker_url, "TEST_STATE_URL": server.url, "TEST_NAMESPACE": namespace}
    env |= {"TEST_QUEUE": namespace, "TEST_DIR": tempfile.gettempdir()}
    return Worker("tests.apps.faulty", env, ["-c", "2", *options])


def test_a_handler_that_kills_its_worker_is_quarantined(loop: Loop, server: EmbeddedServer, namespace: str) -> None:
    """A machine whose handler kills its process is set aside after three claims; all others go on meanwhile, and each
    once. (semantics 20)"""
    with running(one := worker(server, namespace)):
        one.wait_ready()
        loop.add("bad", Bad("kill"))
        for n in range(40):
            loop.add(f"good{n}", Trying(n))
            loop.executor.signal(f"good{n}", word, "go")
        for n in range(40):
            loop.executor.await_operation(f"good{n}", 30)
        wait_until(lambda: aside(loop), "it to be set aside", timeout_s=60)
        found = loop.explained("bad")
        assert found.status == "quarantined"
        assert found.last_error.startswith("WorkerKilled: 3 attempts")
        assert loop.redis.get(loop.keys.data("faulty", "tried")) == b"40"
        loop.add("later", Trying(1))
        loop.executor.signal("later", word, "go")
        loop.executor.await_operation("later", 20)


def test_a_handler_that_never_returns_is_interrupted(loop: Loop, server: EmbeddedServer, namespace: str) -> None:
    """One that never returns is interrupted at its limit, retried, then quarantined with HandlerTimeout; others go on.
    (semantics 20)"""
    with running(one := worker(server, namespace)):
        one.wait_ready()
        loop.add("bad", Bad("sleep"))
        loop.add("good", Trying(1))
        loop.executor.signal("good", word, "go")
        loop.executor.await_operation("good", 20)
        wait_until(lambda: aside(loop), "it to be set aside", timeout_s=40)
        assert loop.explained("bad").last_error == "HandlerTimeout: handler began ran longer than its limit of 0.3 s."


def test_a_handler_that_cannot_be_interrupted_is_quarantined(
    loop: Loop, server: EmbeddedServer, namespace: str
) -> None:
    """On a pool of threads, where nothing interrupts it, a handler that never returns loses its lease, is tried
    elsewhere and is set aside; others go on. (semantics 20)"""
    with running(one := worker(server, namespace, "-P", "threads", "-c", "6")):
        one.wait_ready()
        loop.add("bad", Bad("deaf"))
        loop.add("good", Trying(1))
        loop.executor.signal("good", word, "go")
        loop.executor.await_operation("good", 30)
        wait_until(lambda: aside(loop), "it to be set aside", timeout_s=90)
        assert loop.explained("bad").last_error.startswith("WorkerKilled: ")
        loop.add("later", Trying(1))
        loop.executor.signal("later", word, "go")
        loop.executor.await_operation("later", 20)
        one.kill()  # its threads would never let it end


# --- records that cannot be read -------------------------------------------------------------------------------------

Spoil = Callable[[Loop, Any], None]


def active_value(raw: bytes) -> Spoil:
    return lambda loop, placed: loop.redis.hset(loop.keys.active("bad"), placed.field, raw)


def machine_value(raw: bytes) -> Spoil:
    return lambda loop, placed: loop.redis.set(loop.keys.machine(placed.record), raw)


def machine_list(loop: Loop, placed: Any) -> None:
    loop.redis.delete(loop.keys.machine(placed.record))
    loop.redis.rpush(loop.keys.machine(placed.record), "x")


def race_list(loop: Loop, placed: Any) -> None:
    loop.redis.delete(loop.keys.race(placed.record))
    loop.redis.rpush(loop.keys.race(placed.record), "x")


def race_value(loop: Loop, placed: Any) -> None:
    loop.redis.hset(loop.keys.race(placed.record), mapping={"won": "told", "value": b"\xff", "at": "never"})


def no_active_record(loop: Loop, placed: Any) -> None:
    loop.redis.hset(loop.keys.active("bad"), "rest", loop.redis.hget(loop.keys.active("bad"), placed.field))
    loop.redis.hdel(loop.keys.active("bad"), placed.field)


SPOILT = {
    "text under the active field": active_value(b"garbage"),
    "bytes under the active field": active_value(b"\xff\xfe"),
    "another JSON under the active field": active_value(b'{"version":1}'),
    "an empty object under the active field": active_value(b"{}"),
    "text under the machine key": machine_value(b"garbage"),
    "bytes under the machine key": machine_value(b"\xff\xfe"),
    "another JSON under the machine key": machine_value(b'{"a":1}'),
    "a list under the machine key": machine_list,
    "a list under the race key": race_list,
    "garbage in the race": race_value,
    "another field in the active hash": no_active_record,
}


@pytest.mark.parametrize("how", list(SPOILT))
def test_garbage_is_set_aside(loop: Loop, caplog: pytest.LogCaptureFixture, how: str) -> None:
    """A record that cannot be decoded is set aside and reported; nothing else stops, and nothing of it is lost.
    (semantics 32)"""
    loop.add("bad", Trying(1))
    placed, stored = loop.placed("bad", Trying(1)), loop.stored("bad", Trying(1))
    SPOILT[how](loop, placed)
    loop.redis.hsetnx(loop.keys.race(placed.record), "won", "told") if "active" in how else None
    loop.make_due(stored.entry)
    loop.run()
    (why,) = aside(loop).values()
    assert why["entry"] == stored.entry
    assert UndecodableRecord.__name__ in why["error"]
    assert "a record is set aside" in caplog.text
    assert loop.explained("bad").status in {"quarantined", "unreadable"}
    assert loop.explained("bad").last_error
    assert loop.redis.zscore(loop.keys.schedule, stored.entry) > loop.now_ms() + 3_000_000
    finishes(loop, "good")
    list(loop.executor.get_active_states())
    list(loop.executor.get_operation_states("bad"))
    assert loop.executor.has_active_states("bad")
    assert len(aside(loop)) == 1


@pytest.mark.parametrize("how", list(SPOILT))
def test_garbage_can_be_cancelled(loop: Loop, how: str) -> None:
    """An operation with a record that cannot be decoded can be cancelled, and its subscribers go on. (semantics 32)"""
    loop.add("bad", Trying(1), Trying(2))
    placed, stored = loop.placed("bad", Trying(1)), loop.stored("bad", Trying(1))
    SPOILT[how](loop, placed)
    loop.make_due(stored.entry)
    loop.run()
    loop.executor.cancel("bad", "no use")
    assert not loop.executor.has_active_states("bad")
    assert aside(loop) == {}
    assert [update.cancelled for update in loop.history("bad") if update.terminal] == ["no use", "no use"]


@pytest.mark.parametrize("how", list(SPOILT))
def test_a_repaired_record_goes_on_after_retry(loop: Loop, how: str) -> None:
    """Once it is repaired, ``retry`` lets the machine go on. (semantics 32)"""
    loop.add("bad", Trying(1))
    placed, stored = loop.placed("bad", Trying(1)), loop.stored("bad", Trying(1))
    value, machine = (
        loop.redis.hget(loop.keys.active("bad"), placed.field),
        loop.redis.get(loop.keys.machine(placed.record)),
    )
    SPOILT[how](loop, placed)
    loop.redis.hsetnx(loop.keys.race(placed.record), "won", "told") if "active" in how else None
    loop.make_due(stored.entry)
    loop.run()
    assert len(aside(loop)) == 1
    loop.redis.delete(loop.keys.active("bad"), loop.keys.machine(placed.record), loop.keys.race(placed.record))
    loop.redis.hset(loop.keys.active("bad"), placed.field, value)
    loop.redis.set(loop.keys.machine(placed.record), machine)
    assert loop.executor.retry("bad") == 1
    assert aside(loop) == {}
    assert loop.executor.signal("bad", word, "go").value == "DELIVERED"
    loop.settle("bad")


@pytest.mark.parametrize("raw", [b"garbage", b"\xff\xfe", b'{"version":1}'])
def test_retry_of_what_is_still_garbage(loop: Loop, raw: bytes) -> None:
    """``retry`` of a record that is still unreadable looks at it again, and it is set aside again. (semantics 32)"""
    for spoil in (active_value(raw), machine_value(raw)):
        loop.executor.cancel("bad")
        loop.redis.delete(loop.keys.inactive("bad"))
        loop.add("bad", Trying(1))
        placed, stored = loop.placed("bad", Trying(1)), loop.stored("bad", Trying(1))
        loop.executor.signal("bad", word, "go")
        spoil(loop, placed)
        loop.make_due(stored.entry)
        loop.run()
        assert len(aside(loop)) == 1
        assert loop.executor.retry("bad") == 1
        loop.until(lambda: len(aside(loop)) == 1, "it to be set aside again")


def test_garbage_beside_others_of_its_operation(loop: Loop) -> None:
    """The other machines of the operation of a garbled record go on; one can be added, and they are told of.
    (semantics 32)"""
    loop.add("bad", Trying(1))
    active_value(b"garbage")(loop, loop.placed("bad", Trying(1)))
    loop.add("bad", Trying(2))
    loop.executor.signal("bad", word, "go")
    loop.until(lambda: aside(loop), "the first to be set aside")
    loop.executor.signal("bad", word, "go")
    loop.until(lambda: loop.active("bad") == [], "the second to have ended")
    assert Fine(2) in [update.state for update in loop.history("bad")]


def test_garbage_is_a_typed_error_to_who_asks_for_it(loop: Loop) -> None:
    """Adding, or looking at, a state whose record is garbage is an UndecodableRecord, no traceback. (semantics 32)"""
    loop.add("bad", Trying(1), Trying(2))
    active_value(b"garbage")(loop, loop.placed("bad", Trying(1)))
    with pytest.raises(UndecodableRecord):
        loop.executor.contains_active_state(StateMachine("bad", Trying(1)))
    with pytest.raises(UndecodableRecord):
        loop.executor.add_state_machines([StateMachine("bad", Trying(1))])


def test_a_subscriber_of_a_garbled_lone_machine_goes_on(loop: Loop) -> None:
    """A subscriber to an operation whose only record is garbage waits for what comes. (semantics 32)"""
    loop.add("bad", Trying(1))
    active_value(b"garbage")(loop, loop.placed("bad", Trying(1)))
    assert loop.history("bad") == []
    loop.executor.cancel("bad", "no use")
    assert [update.cancelled for update in loop.history("bad") if update.cancelled] == ["no use"]


@pytest.mark.parametrize(
    "field", [b"garbage", b"\xff\xfe", b"faulty Trying", b'faulty Trying {"n":"x"}', b"faulty Nope {}"]
)
def test_a_garbled_field_can_be_seen_and_cancelled(loop: Loop, field: bytes) -> None:
    """A field that is none is shown by ``explain``, left out of queries, and ended by ``cancel``. (semantics 32)"""
    loop.add("bad", Trying(1))
    loop.add("bad", Trying(2))
    value = loop.redis.hget(loop.keys.active("bad"), loop.placed("bad", Trying(1)).field)
    loop.redis.hset(loop.keys.active("bad"), field, value)
    assert len(loop.executor.explain("bad").active) == 3
    assert len(loop.active("bad")) == 2
    loop.executor.cancel("bad", "no use")
    assert not loop.executor.has_active_states("bad")
    assert len([update for update in loop.history("bad") if update.cancelled]) == 3
    assert len(list(loop.executor.get_inactive_states("bad"))) == 2
    loop.executor.explain("bad")

"""One bad machine or record is set aside and reported; all others go on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from smqueue import Module, Retry, State, StateMachine, Transaction, now
from smqueue.drain import Drain
from smqueue.embedded import EmbeddedServer
from smqueue.errors import UndecodableRecord
from smqueue.protocols.claim import Due, claim
from tests.apps.faulty import Asking, Bad, Bound, Fine, Trying, faulty, fixed, word
from tests.apps.wiring import environment
from tests.inprocess import Local, Play
from tests.waiting import wait_until
from tests.workers import Worker, running


@pytest.fixture
def local(play: Play) -> Iterator[Local]:
    fixed.clear()
    yield play(faulty=faulty)
    fixed.clear()


def quarantined(local: Local, op: str) -> Any:
    """The explanation of the one machine of an operation, once it is set aside."""
    return local.until(
        lambda: (found := local.explained(op)).status in {"quarantined", "unreadable"} and found,
        f"{op} to be set aside",
    )


def aside(local: Local) -> dict[str, dict[str, Any]]:
    """What is in quarantine: record → why."""
    return {record.decode(): json.loads(why) for record, why in local.redis.hgetall(local.keys().quarantine).items()}


def finishes(local: Local, op: str) -> None:
    """A machine of another operation goes its way, from its adding to its end."""
    local.add(op, Trying(7))
    local.executor.signal(op, word, "go")
    local.settle(op)
    assert [machine.state for machine, found in local.executor.get_inactive_states(op) if found.terminal] == [Fine(7)]


# --- handlers that fail ----------------------------------------------------------------------------------------------


def test_a_handler_that_raises_is_retried_then_quarantined(local: Local) -> None:
    """An exception is retried with back-off, then the machine is quarantined with its error, visible; its state and the
    handler's writes are as before. (semantics 20)"""
    local.add("bad", Trying(1))
    local.executor.signal("bad", word, "raise")
    local.run()
    found = quarantined(local, "bad")
    assert (found.status, found.attempts, found.won) == ("quarantined", 2, "told")
    assert found.last_error == "ValueError: broken on purpose"
    assert found.triggers[0].name == "faulty.Trying/told"
    assert found.triggers[0].last_error == "ValueError: broken on purpose"
    (why,) = aside(local).values()
    assert (why["op"], why["error"]) == ("bad", found.last_error)
    assert local.redis.get(local.keys().data("faulty", "tried")) is None
    assert local.active("bad") == [Trying(1)]
    assert local.executor.has_active_states("bad")
    finishes(local, "good")


def test_the_error_is_shown_from_the_first_failure_on(local: Local) -> None:
    """``explain`` shows the last error while the machine is still being retried. (semantics 20)"""
    local.add("bad", Trying(1))
    local.executor.signal("bad", word, "raise")
    drain = Drain(local.driver, local.keys(), local.instances, local.engine.leases, local.sent)
    drain._handle(Due(0, 1, False, False, claimed(local), [], [], [], [], 0.0))
    found = local.explained("bad")
    assert (found.status, found.attempts, found.last_error) == ("decided", 1, "ValueError: broken on purpose")


def claimed(local: Local) -> list[Any]:
    return local.driver.run(claim(local.keys(), local.instances, 10)).machines


def test_others_of_the_batch_commit(local: Local) -> None:
    """Of a batch in which some handlers raise, all others commit, in the same operation too. (semantics 20)"""
    machines = local.add("op", *[Trying(n) for n in range(20)])
    for n, machine in enumerate(machines):
        local.executor.signal("op", word, "raise" if n % 4 == 0 else "go", machine=machine)
    local.until(lambda: len(aside(local)) == 5, "five to be set aside")
    assert sorted(s.n for s in local.active("op")) == [0, 4, 8, 12, 16]  # pyright: ignore[reportAttributeAccessIssue]
    local.run()
    ended = [machine.state for machine, found in local.executor.get_inactive_states("op") if found.terminal]
    assert len(ended) == 15


def test_a_quarantined_machine_stays_aside(local: Local) -> None:
    """It is not run again, however often its entries fall due, until ``retry``. (semantics 20)"""
    local.add("bad", Asking(1))
    local.executor.signal("bad", word, "raise")
    quarantined(local, "bad")
    stored = local.stored("bad", Asking(1))
    for entry in (stored.entry, f"{stored.entry}:asked"):
        local.make_due(entry)
        assert local.run() == 0
        assert local.redis.zscore(local.keys().schedule, entry) > local.now_ms() + 3_000_000
    assert local.explained("bad").attempts == 2


def test_retry_re_arms(local: Local) -> None:
    """``retry`` takes a machine out of quarantine: the outcome that is recorded is run again, and now commits.
    (semantics 20)"""
    local.add("bad", Trying(1), Trying(2))
    local.executor.signal("bad", word, "raise")
    local.until(lambda: len(aside(local)) == 1, "it to be set aside")
    assert local.executor.retry("bad") == 1
    assert aside(local) == {}
    local.until(lambda: len(aside(local)) == 1, "it to be set aside once more")
    fixed["all"] = True
    assert local.executor.retry("bad") == 1
    local.until(lambda: len(local.active("bad")) == 1, "it to have moved")
    assert local.executor.retry("bad") == 0
    ended = [machine.state for machine, found in local.executor.get_inactive_states("bad") if found.terminal]
    assert ended == [Fine(1)]


def test_what_fell_due_in_quarantine_goes_on_after_retry(local: Local) -> None:
    """After ``retry``, and a handler that stays, the machine's other triggers run on at once: not an hour later.
    (semantics 20)"""
    local.add("bad", Asking(1))
    local.executor.signal("bad", word, "undecided")
    quarantined(local, "bad")
    entry = local.stored("bad", Asking(1)).entry
    local.make_due(f"{entry}:asked")
    local.run()
    fixed["all"] = True
    local.executor.retry("bad")
    local.until(lambda: local.explained("bad").status == "waiting", "its handler to have stayed")
    polls = local.explained("bad").triggers[1].attempts
    local.until(lambda: local.explained("bad").triggers[1].attempts > polls, "it to poll on", timeout_s=8)


def test_nothing_to_wait_for(local: Local) -> None:
    """A handler that returns None with no trigger left: quarantined with NothingToWaitFor; nothing committed.
    (semantics 20)"""
    from datetime import timedelta

    local.add("bad", Bound(1, timedelta(milliseconds=1)))
    found = quarantined(local, "bad")
    assert found.status == "quarantined"
    assert found.last_error.startswith("NothingToWaitFor: ")
    assert "spent" in found.last_error
    assert "Bound" in found.last_error
    fixed["all"] = True
    local.executor.retry("bad")
    local.settle("bad")


def test_a_write_that_would_fail_is_the_handlers_error(local: Local) -> None:
    """A write that would fail inside EXEC is the handler's typed error, retried and quarantined; nothing is
    written. (semantics 20)"""
    local.add("bad", Bad("wrong kind"))
    assert quarantined(local, "bad").last_error.startswith("WrongKind: ")
    assert local.redis.get(local.keys().data("faulty", "text")) is None


def test_conflicts_never_quarantine(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose commits conflict for ever is given back with back-off, never set aside, and others go on.
    (semantics 20)"""
    monkeypatch.setattr("smqueue.protocols.transition.MAX_ATTEMPTS", 3)
    local.add("bad", Trying(1))
    local.executor.signal("bad", word, "go")
    disturbed = local.keys().watchers("bad")

    local.redis.sadd(disturbed, "nobody")  # who watches, so that it takes a look to move it

    def disturb() -> None:
        local.redis.sadd(disturbed, "x")
        local.redis.srem(disturbed, "x")

    with local.before_moves(disturb, times=16):  # of four runs, each a script that refuses and three commits
        local.run()
        assert local.explained("bad").status == "decided"
        assert "CommitFailed" in (local.explained("bad").last_error or "")
        local.settle("bad")
    assert aside(local) == {}


# --- handlers that take their worker with them, or never return ------------------------------------------------------


def worker(server: EmbeddedServer, namespace: str, *options: str) -> Worker:
    return Worker("tests.apps.faulty", environment(server.url, server.broker_url, namespace), ["-c", "2", *options])


def test_a_handler_that_kills_its_worker_is_quarantined(local: Local, server: EmbeddedServer, namespace: str) -> None:
    """A machine whose handler kills its process is set aside after three claims; all others go on meanwhile, and each
    once. (semantics 20)"""
    with running(one := worker(server, namespace)):
        one.wait_ready()
        local.add("bad", Bad("kill"))
        for n in range(40):
            local.add(f"good{n}", Trying(n))
            local.executor.signal(f"good{n}", word, "go")
        for n in range(40):
            local.executor.await_operation(f"good{n}", 30)
        wait_until(lambda: aside(local), "it to be set aside", timeout_s=60)
        found = local.explained("bad")
        assert found.status == "quarantined"
        assert found.last_error.startswith("WorkerKilled: 3 attempts")
        assert local.redis.get(local.keys().data("faulty", "tried")) == b"40"
        local.add("later", Trying(1))
        local.executor.signal("later", word, "go")
        local.executor.await_operation("later", 20)


def test_a_handler_that_never_returns_is_interrupted(local: Local, server: EmbeddedServer, namespace: str) -> None:
    """One that never returns is interrupted at its limit, retried, then quarantined with HandlerTimeout; others go on.
    (semantics 20)"""
    with running(one := worker(server, namespace)):
        one.wait_ready()
        local.add("bad", Bad("sleep"))
        local.add("good", Trying(1))
        local.executor.signal("good", word, "go")
        local.executor.await_operation("good", 20)
        wait_until(lambda: aside(local), "it to be set aside", timeout_s=40)
        assert local.explained("bad").last_error == "HandlerTimeout: handler began ran longer than its limit of 0.3 s."


def test_a_handler_that_cannot_be_interrupted_is_quarantined(
    local: Local, server: EmbeddedServer, namespace: str
) -> None:
    """On a pool of threads, where nothing interrupts it, a handler that never returns loses its lease, is tried
    elsewhere and is set aside; others go on. (semantics 20)"""
    with running(one := worker(server, namespace, "-P", "threads", "-c", "6")):
        one.wait_ready()
        local.add("bad", Bad("deaf"))
        local.add("good", Trying(1))
        local.executor.signal("good", word, "go")
        local.executor.await_operation("good", 30)
        wait_until(lambda: aside(local), "it to be set aside", timeout_s=90)
        assert local.explained("bad").last_error.startswith("WorkerKilled: ")
        local.add("later", Trying(1))
        local.executor.signal("later", word, "go")
        local.executor.await_operation("later", 20)
        one.kill()  # its threads would never let it end


# --- records that cannot be read -------------------------------------------------------------------------------------

Spoil = Callable[[Local, Any], None]


def active_value(raw: bytes) -> Spoil:
    return lambda local, placed: local.redis.hset(local.keys().active("bad"), placed.field, raw)


def machine_value(raw: bytes) -> Spoil:
    return lambda local, placed: local.redis.set(local.keys().machine(placed.record), raw)


def machine_list(local: Local, placed: Any) -> None:
    local.redis.delete(local.keys().machine(placed.record))
    local.redis.rpush(local.keys().machine(placed.record), "x")


def race_list(local: Local, placed: Any) -> None:
    local.redis.delete(local.keys().race(placed.record))
    local.redis.rpush(local.keys().race(placed.record), "x")


def race_value(local: Local, placed: Any) -> None:
    local.redis.hset(local.keys().race(placed.record), mapping={"won": "told", "value": b"\xff", "at": "never"})


def no_active_record(local: Local, placed: Any) -> None:
    local.redis.hset(local.keys().active("bad"), "rest", local.redis.hget(local.keys().active("bad"), placed.field))
    local.redis.hdel(local.keys().active("bad"), placed.field)


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
def test_garbage_is_set_aside(local: Local, caplog: pytest.LogCaptureFixture, how: str) -> None:
    """A record that cannot be decoded is set aside and reported; nothing else stops, and nothing of it is lost.
    (semantics 32)"""
    local.add("bad", Trying(1))
    placed, stored = local.placed("bad", Trying(1)), local.stored("bad", Trying(1))
    SPOILT[how](local, placed)
    local.redis.hsetnx(local.keys().race(placed.record), "won", "told") if "active" in how else None
    local.make_due(stored.entry)
    local.run()
    (why,) = aside(local).values()
    assert why["entry"] == stored.entry
    assert UndecodableRecord.__name__ in why["error"]
    assert "a record is set aside" in caplog.text
    assert local.explained("bad").status in {"quarantined", "unreadable"}
    assert local.explained("bad").last_error
    assert local.redis.zscore(local.keys().schedule, stored.entry) > local.now_ms() + 3_000_000
    finishes(local, "good")
    list(local.executor.get_active_states())
    list(local.executor.get_operation_states("bad"))
    assert local.executor.has_active_states("bad")
    assert len(aside(local)) == 1


@pytest.mark.parametrize("how", list(SPOILT))
def test_garbage_can_be_cancelled(local: Local, how: str) -> None:
    """An operation with a record that cannot be decoded can be cancelled, and its subscribers go on. (semantics 32)"""
    local.add("bad", Trying(1), Trying(2))
    placed, stored = local.placed("bad", Trying(1)), local.stored("bad", Trying(1))
    SPOILT[how](local, placed)
    local.make_due(stored.entry)
    local.run()
    local.executor.cancel("bad", "no use")
    assert not local.executor.has_active_states("bad")
    assert aside(local) == {}
    assert [update.cancelled for update in local.history("bad") if update.terminal] == ["no use", "no use"]


@pytest.mark.parametrize("how", list(SPOILT))
def test_a_repaired_record_goes_on_after_retry(local: Local, how: str) -> None:
    """Once it is repaired, ``retry`` lets the machine go on. (semantics 32)"""
    local.add("bad", Trying(1))
    placed, stored = local.placed("bad", Trying(1)), local.stored("bad", Trying(1))
    active, machine = local.keys().active("bad"), local.keys().machine(placed.record)
    race = local.keys().race(placed.record)
    value, armed = local.redis.hget(active, placed.field), local.redis.get(machine)
    SPOILT[how](local, placed)
    local.redis.hsetnx(local.keys().race(placed.record), "won", "told") if "active" in how else None
    local.make_due(stored.entry)
    local.run()
    assert len(aside(local)) == 1
    local.redis.delete(active, machine, race)
    local.redis.hset(active, placed.field, value)
    local.redis.set(machine, armed)
    assert local.executor.retry("bad") == 1
    assert aside(local) == {}
    assert local.executor.signal("bad", word, "go").value == "DELIVERED"
    local.settle("bad")


@pytest.mark.parametrize("raw", [b"garbage", b"\xff\xfe", b'{"version":1}'])
def test_retry_of_what_is_still_garbage(local: Local, raw: bytes) -> None:
    """``retry`` of a record that is still unreadable looks at it again, and it is set aside again. (semantics 32)"""
    for spoil in (active_value(raw), machine_value(raw)):
        local.executor.cancel("bad")
        local.redis.delete(local.keys().inactive("bad"))
        local.add("bad", Trying(1))
        placed, stored = local.placed("bad", Trying(1)), local.stored("bad", Trying(1))
        local.executor.signal("bad", word, "go")
        spoil(local, placed)
        local.make_due(stored.entry)
        local.run()
        assert len(aside(local)) == 1
        assert local.executor.retry("bad") == 1
        local.until(lambda: len(aside(local)) == 1, "it to be set aside again")


def test_garbage_beside_others_of_its_operation(local: Local) -> None:
    """The other machines of the operation of a garbled record go on; one can be added, and they are told of.
    (semantics 32)"""
    local.add("bad", Trying(1))
    active_value(b"garbage")(local, local.placed("bad", Trying(1)))
    local.add("bad", Trying(2))
    local.executor.signal("bad", word, "go")
    local.until(lambda: aside(local), "the first to be set aside")
    local.executor.signal("bad", word, "go")
    local.until(lambda: local.active("bad") == [], "the second to have ended")
    assert Fine(2) in [update.state for update in local.history("bad")]


def test_garbage_is_a_typed_error_to_who_asks_for_it(local: Local) -> None:
    """Adding, or looking at, a state whose record is garbage is an UndecodableRecord, no traceback. (semantics 32)"""
    local.add("bad", Trying(1), Trying(2))
    active_value(b"garbage")(local, local.placed("bad", Trying(1)))
    with pytest.raises(UndecodableRecord):
        local.executor.contains_active_state(StateMachine("bad", Trying(1)))
    with pytest.raises(UndecodableRecord):
        local.executor.add_state_machines([StateMachine("bad", Trying(1))])


def test_a_subscriber_of_a_garbled_lone_machine_goes_on(local: Local) -> None:
    """A subscriber to an operation whose only record is garbage waits for what comes. (semantics 32)"""
    local.add("bad", Trying(1))
    active_value(b"garbage")(local, local.placed("bad", Trying(1)))
    assert local.history("bad") == []
    local.executor.cancel("bad", "no use")
    assert [update.cancelled for update in local.history("bad") if update.cancelled] == ["no use"]


@pytest.mark.parametrize(
    "field", [b"garbage", b"\xff\xfe", b"faulty Trying", b'faulty Trying {"n":"x"}', b"faulty Nope {}"]
)
def test_a_garbled_field_can_be_seen_and_cancelled(local: Local, field: bytes) -> None:
    """A field that is none is shown by ``explain``, left out of queries, and ended by ``cancel``. (semantics 32)"""
    local.add("bad", Trying(1))
    local.add("bad", Trying(2))
    value = local.redis.hget(local.keys().active("bad"), local.placed("bad", Trying(1)).field)
    local.redis.hset(local.keys().active("bad"), field, value)
    assert len(local.executor.explain("bad").active) == 3
    assert len(local.active("bad")) == 2
    local.executor.cancel("bad", "no use")
    assert not local.executor.has_active_states("bad")
    assert len([update for update in local.history("bad") if update.cancelled]) == 3
    assert len(list(local.executor.get_inactive_states("bad"))) == 2
    local.executor.explain("bad")


def test_what_one_machine_is_refused_is_its_own_error(play: Play, server: EmbeddedServer) -> None:
    """A handler that writes what the user of the store may not is set aside with that error, not as one that kills its
    worker; those of its group go on. (semantics 20)"""
    limits = Module("limits", retry=Retry(max_attempts=1))

    @limits.state
    class Writing(State):
        n: int

    @limits.state(terminal=True)
    class Wrote(State):
        n: int

    def write(tx: Transaction, state: Any, _: None) -> Any:
        if state.n == 1:
            tx.shared.set("forbidden", "x")
        return Wrote(state.n)

    write.__annotations__ = {"tx": Transaction, "state": Writing, "_": None, "return": Wrote}
    limits.on(Writing, now())(write)
    with redis.Redis.from_url(server.url) as admin:
        admin.execute_command("ACL", "SETUSER", "limited", "on", ">secret", "+@all", "~{*", "&*")
        try:
            local = play(limits=limits, url=server.url.replace("unix://", "unix://limited:secret@"))
            for n in (1, 2):
                local.add(f"op{n}", Writing(n))

            def again() -> bool:
                local.expire_leases()
                return local.explained("op1").status == "quarantined"

            local.until(again, "it to be set aside")
            assert "StoreRefused" in str(local.explained("op1").last_error)
            assert local.active("op2") == []
        finally:
            admin.execute_command("ACL", "DELUSER", "limited")

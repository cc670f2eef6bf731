"""Records of other versions and of modules that a worker lacks: left, taken, migrated."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from smqueue import Module, Retry, State, StateMachine, Transaction, Update, after, poll
from smqueue.embedded import EmbeddedServer
from smqueue.errors import NewerRecord, StateAlreadyExists, UndecodableRecord
from tests.inprocess import Local


@dataclass
class Code:
    """One release of a module."""

    module: Module[Any]
    waiting: Any
    ticket: Any
    done: Any
    go: Any


def release(version: int, *, broken: bool = False, extra: bool = False) -> Code:
    """Version 1 knows a ticket's name; version 2 splits it into two; ``extra`` is a new defaulted field."""
    module: Module[Any] = Module("shop", version=version, retry=Retry(max_attempts=2, base=timedelta(milliseconds=1)))
    go = module.signal("go", str)

    @module.state
    class Waiting(State):
        n: int

    if version == 1:

        @module.state
        class Ticket(State):
            name: str

    elif extra:

        @module.state(name="Ticket")
        class ExtraTicket(State):
            first: str
            last: str
            colour: str = "red"
            size: int | None = None

        Ticket = ExtraTicket  # type: ignore[misc,assignment]  # noqa: N806

    else:

        @module.state(name="Ticket")
        class NewTicket(State):
            first: str
            last: str

        Ticket = NewTicket  # type: ignore[misc,assignment]  # noqa: N806

    @module.state(terminal=True)
    class Done(State):
        what: str

    if version > 1:

        @module.migrate(Ticket, since=2)
        def split(old: dict[str, Any]) -> dict[str, Any]:
            if broken:
                raise LookupError("no such name")
            first, _, last = old["name"].partition(" ")
            return {"first": first, "last": last}

    @module.on(Ticket, go)
    def went(tx: Transaction, state: Ticket, what: str) -> Waiting | Ticket | Done | None:  # type: ignore[valid-type]
        tx.incrby("went")
        return {"stay": None, "same": state, "waiting": Waiting(1)}.get(what, Done(f"{version} {what}"))

    @module.on(Waiting, go)
    def waited(tx: Transaction, state: Waiting, what: str) -> Ticket:  # type: ignore[valid-type]
        if version == 1:
            return Ticket(what)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
        return Ticket(*what.split(" "))  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]

    @module.on(Ticket, after(hours=1))
    def late(tx: Transaction, state: Ticket, _: None) -> Done:  # type: ignore[valid-type]
        return Done("late")

    return Code(module, Waiting, Ticket, Done, go)


elsewhere = Module("elsewhere", version=1)


@elsewhere.state
class Sleeping(State):
    n: int


@elsewhere.state(terminal=True)
class Woken(State):
    n: int


@elsewhere.on(Sleeping, after(milliseconds=1))
def woke(tx: Transaction, state: Sleeping, _: None) -> Woken:
    return Woken(state.n)


polls: list[int] = []


@elsewhere.state
class Polling(State):
    n: int


def look(state: Polling, context: Any) -> int:
    polls.append(state.n)
    return state.n


@elsewhere.on(Polling, poll(look, every=timedelta(milliseconds=5)))
def polled(tx: Transaction, state: Polling, found: int) -> Woken:
    return Woken(found)


@dataclass
class Releases:
    """Processes of several releases on one namespace."""

    server: EmbeddedServer
    namespace: str

    def of(self, code: Code | None, **modules: Module[Any]) -> Local:
        given = {**modules, **({"shop": code.module} if code is not None else {})}
        return Local(self.server.url, self.namespace, given)


@pytest.fixture
def releases(server: EmbeddedServer, namespace: str) -> Releases:
    return Releases(server, namespace)


def ended(local: Local, op: str) -> list[Any]:
    return [machine.state for machine, found in local.executor.get_inactive_states(op) if found.terminal]


def entries(local: Local) -> dict[bytes, float]:
    return dict(local.redis.zrange(local.keys().schedule, 0, -1, withscores=True))


# --- what a worker cannot run ----------------------------------------------------------------------------------------


def test_a_newer_record_is_left_for_newer_code(releases: Releases, caplog: pytest.LogCaptureFixture) -> None:
    """A record of a newer version is left due, reported once and not quarantined, while all others go on; newer code
    takes it. (semantics 32)"""
    old_code, new_code = release(1), release(2)
    old, new = releases.of(old_code), releases.of(new_code)
    new.add("new", new_code.ticket("Ann", "Lee"))
    new.executor.signal("new", new_code.go, "done")
    old.add("old", old_code.waiting(1))
    old.executor.signal("old", old_code.go, "Bob")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            for entry in entries(old):
                old.make_due(entry.decode())
            old.run()
    assert old.active("old") == [old_code.ticket("Bob")]
    assert old.redis.hlen(old.keys().quarantine) == 0
    assert caplog.text.count("left for another worker") == 1
    (due,) = [score for entry, score in entries(old).items() if b":" in entry and score < old.now_ms() + 60_000]
    assert due <= old.now_ms() + 2_000
    found = old.explained("new")
    assert found.machine is None
    assert found.last_error.startswith("NewerRecord: ")
    for entry in entries(new):
        new.make_due(entry.decode())
    new.settle("new")
    assert ended(new, "new") == [new_code.done("2 done")]
    assert new.redis.get(new.keys().data("shop", "went")) == b"1"


def test_an_unknown_module_is_left_for_who_has_it(releases: Releases, caplog: pytest.LogCaptureFixture) -> None:
    """A machine of a module that a worker lacks is left due, however often it looks; one that has it runs it.
    (semantics 32)"""
    code = release(1)
    lacking, having = releases.of(code), releases.of(None, elsewhere=elsewhere)
    having.add("op", Sleeping(1))
    having.add("poll", Polling(7))
    having.wait_past(having.now_ms() + 2)
    lacking.add("good", code.waiting(1))
    lacking.executor.signal("good", code.go, "Bob")
    for _ in range(5):
        for entry in entries(lacking):
            lacking.make_due(entry.decode())
        lacking.run()
    assert lacking.active("good") == [code.ticket("Bob")]
    assert lacking.redis.hlen(lacking.keys().quarantine) == 0
    assert "left for another worker: No module elsewhere is registered here" in caplog.text
    assert list(lacking.executor.get_active_states("op")) == []
    assert lacking.executor.has_active_states("op")
    assert sorted(lacking.executor.get_active_operations()) == ["good", "op", "poll"]
    for entry in entries(having):
        having.make_due(entry.decode())
    having.settle("op")
    having.settle("poll")
    assert ended(having, "op") == [Woken(1)]
    assert polls[-1] == 7


def test_a_state_type_that_is_gone_is_set_aside(releases: Releases) -> None:
    """A state that a module of that very version does not know is set aside, not left. (semantics 32)"""
    code = release(1)
    local = releases.of(code)
    local.add("op", code.waiting(1))
    local.executor.signal("op", code.go, "Bob")
    gone = release(1)
    del gone.module.types["Waiting"]
    gone.module._registrations = [given for given in gone.module._registrations if given.name != "waited"]  # pyright: ignore[reportPrivateUsage]
    without = releases.of(gone)
    without.run()
    assert without.redis.hlen(without.keys().quarantine) == 1
    assert "no state Waiting" in without.explained("op").last_error


def test_older_code_may_not_move_a_newer_record(releases: Releases) -> None:
    """Asking older code about newer records is a typed error, or leaves them out; cancelling works. (semantics 32)"""
    old_code, new_code = release(1), release(2)
    old, new = releases.of(old_code), releases.of(new_code)
    new.add("op", new_code.waiting(1), new_code.ticket("Ann", "Lee"))
    assert list(old.executor.get_active_states("op")) == []
    assert [update.state for update in old.history("op")] == [None, None]
    with pytest.raises(NewerRecord):
        old.instances.load("op", new.placed("op", new_code.waiting(1)).field, 2)
    assert old.executor.cancel("op", "no use") == 2


# --- migration -------------------------------------------------------------------------------------------------------


def migrated(releases: Releases) -> tuple[Local, Code, str]:
    """A ticket of version 1, in the hands of version 2."""
    old_code, new_code = release(1), release(2)
    old = releases.of(old_code)
    (machine,) = old.add("op", old_code.ticket("Ann Lee"))
    return releases.of(new_code), new_code, machine


def test_an_older_record_is_migrated(releases: Releases) -> None:
    """Newer code reads older records by way of its migration: queries, updates, explain and handlers see the new
    form. (semantics 32)"""
    local, code, machine = migrated(releases)
    new = code.ticket("Ann", "Lee")
    assert local.active("op") == [new]
    assert local.executor.contains_active_state(StateMachine("op", new))
    assert local.executor.await_active_state(StateMachine("op", new), 5).machine_id == machine
    assert local.explained("op").machine == StateMachine("op", new, "shop")
    assert [update.state for update in local.history("op")] == [new]
    local.executor.signal("op", code.go, "done")
    local.settle("op")
    assert ended(local, "op") == [code.done("2 done")]
    assert local.executor.contains_inactive_state(StateMachine("op", new))
    assert [update.state for update in local.history("op")] == [new, code.done("2 done")]


def test_identity_is_compared_after_migration(releases: Releases) -> None:
    """The migrated form of a record is the same machine: adding it says that it exists, active or inactive.
    (semantics 13)"""
    local, code, machine = migrated(releases)
    new = StateMachine("op", code.ticket("Ann", "Lee"))
    with pytest.raises(StateAlreadyExists):
        local.executor.add_state_machines([new])
    assert local.executor.add_state_machines([new], exist_ok=True) == [machine]
    assert local.executor.add_state_machines([StateMachine("op", code.ticket("Ann", "Other"))]) != [machine]
    local.executor.signal("op", code.go, "done", machine=machine)
    local.run()
    with pytest.raises(StateAlreadyExists):
        local.executor.add_state_machines([new])


def test_entering_a_state_that_is_stored_in_its_older_form(releases: Releases) -> None:
    """A→A of a record of an older version leaves the old form and enters the new: one machine, one active record.
    (semantics 24)"""
    local, code, machine = migrated(releases)
    local.executor.signal("op", code.go, "same")
    local.run()
    ((found, active),) = local.executor.get_active_states("op")
    assert (found.state, active.machine_id, active.step) == (code.ticket("Ann", "Lee"), machine, 2)
    assert local.redis.hlen(local.keys().active("op")) == 1
    local.executor.signal("op", code.go, "done")
    local.settle("op")
    assert ended(local, "op") == [code.done("2 done")]


def test_merging_with_the_older_form(releases: Releases) -> None:
    """A machine that reaches a state stored in its older form merges with the machine there. (semantics 27)"""
    local, code, machine = migrated(releases)
    (second,) = local.add("op", code.waiting(1))
    local.executor.signal("op", code.go, "Ann Lee", machine=second)
    local.run()
    ((_, active),) = local.executor.get_active_states("op")
    assert active.machine_id == machine
    assert [update.merged_into for update in local.history("op") if update.machine_id == second] == [None, machine]


def test_a_migration_that_raises_sets_the_record_aside(releases: Releases) -> None:
    """A migration that raises is reported as such; that record is set aside, nothing else stops. (semantics 32)"""
    old_code, broken = release(1), release(2, broken=True)
    old = releases.of(old_code)
    old.add("op", old_code.ticket("Ann Lee"), old_code.waiting(1))
    old.executor.signal("op", old_code.go, "done", machine=old.executor.add_state_machines(
        [StateMachine("op", old_code.ticket("Ann Lee"))], exist_ok=True)[0])  # fmt: skip
    local = releases.of(broken)
    local.run()
    assert local.redis.hlen(local.keys().quarantine) == 1
    assert {found.status for found in local.executor.explain("op").active} == {"quarantined", "waiting"}
    assert any("migration" in (found.last_error or "") for found in local.executor.explain("op").active)
    with pytest.raises(UndecodableRecord):
        local.instances.load("op", 'shop Ticket {"name":"Ann Lee"}', 1)
    mended = releases.of(release(2))
    assert mended.executor.retry("op") == 1
    mended.until(lambda: len(mended.active("op")) == 1, "it to have gone on")


def test_a_new_defaulted_field_needs_no_bump(releases: Releases) -> None:
    """A record stored before a field with a default was added is the state with that default: it loads, and adding
    it says that it exists. (semantics 13)"""
    before, now = release(2), release(2, extra=True)
    releases.of(before).add("op", before.ticket("Ann", "Lee"))
    local = releases.of(now)
    assert local.active("op") == [now.ticket("Ann", "Lee", "red", None)]
    with pytest.raises(StateAlreadyExists):
        local.add("op", now.ticket("Ann", "Lee"))
    local.add("op", now.ticket("Ann", "Lee", "blue"))
    local.executor.signal("op", now.go, "same")
    local.run()
    assert len(local.active("op")) == 2
    for _ in range(2):
        local.executor.signal("op", now.go, "done")
    local.settle("op")
    assert local.executor.contains_inactive_state(StateMachine("op", now.ticket("Ann", "Lee")))


def test_a_history_across_versions(releases: Releases) -> None:
    """Each entry of a history is read by the version that wrote it. (semantics 36)"""
    local, code, _ = migrated(releases)
    local.executor.signal("op", code.go, "same")
    local.run()
    seen: list[Update] = local.history("op")
    assert [(update.sequence, update.state) for update in seen] == [
        (0, code.ticket("Ann", "Lee")),
        (1, code.ticket("Ann", "Lee")),
    ]


@pytest.mark.parametrize("newer", ["migrated", "with a new field"])
def test_visits_in_both_forms_are_one_record(releases: Releases, newer: str) -> None:
    """A state that was left in its older form, and is visited and left again in the newer one, has one inactive
    record that counts both visits. (semantics 25)"""
    before = release(1) if newer == "migrated" else release(2)
    code = release(2, extra=newer != "migrated")
    old = releases.of(before)
    old.add("op", before.ticket("Ann Lee") if newer == "migrated" else before.ticket("Ann", "Lee"))
    old.executor.signal("op", before.go, "waiting")
    old.run()
    local = releases.of(code)
    for what in ("Ann Lee", "waiting"):
        local.executor.signal("op", code.go, what)
        local.run()
    found = [(machine.state, past.visits) for machine, past in local.executor.get_inactive_states("op")]
    assert sorted(map(str, found)) == sorted(map(str, [(code.ticket("Ann", "Lee"), 2), (code.waiting(1), 1)]))

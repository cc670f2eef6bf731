"""Finding active machines a page at a time: each is found once, by what it is, however many others there are."""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from typing import Annotated

import pytest

from smqueue import InvalidInput, Module, Secret, State, StateMachine, Transaction, after
from smqueue.keys import digest
from smqueue.listing import Listed, Wanted
from smqueue.search import Found, active_machines, search
from tests.deployments import client_of
from tests.inprocess import Local, Play

shelf = Module("shelf", version=1)


@shelf.state
class Lying(State):
    n: int


@shelf.state
class Standing(State):
    n: int


@shelf.state(terminal=True)
class Gone(State):
    n: int


take = shelf.signal("take")
EVERYTHING = Wanted()


@shelf.on((Lying, Standing), take)
def taken(tx: Transaction, state: Lying | Standing, _: None) -> Gone:
    return Gone(state.n)


@shelf.on((Lying, Standing), after(hours=1))
def rotten(tx: Transaction, state: Lying | Standing, _: None) -> Gone:
    return Gone(-1)


@pytest.fixture
def local(play: Play) -> Local:
    """Seven hundred operations, every hundredth with a machine in the other state."""
    made = play(shelf=shelf)
    kinds = [Standing if n % 100 == 0 else Lying for n in range(700)]
    made.executor.add_state_machines([StateMachine(f"op-{n:03}", kind(n)) for n, kind in enumerate(kinds)])
    return made


def page(local: Local, wanted: Wanted = EVERYTHING, cursor: str | None = None, **more: float) -> Found:
    """One page."""
    deployment, instances = local.executor.deployment, local.executor.instances
    return search(deployment, instances, wanted, cursor, **{"limit": 50, "budget_s": 60, **more})  # type: ignore[arg-type]


def pages(local: Local, wanted: Wanted = EVERYTHING, **more: float) -> list[list[Listed]]:
    """All of them."""
    found = [page(local, wanted, **more)]
    while found[-1].cursor is not None:
        found.append(page(local, wanted, found[-1].cursor, **more))
    return [one.machines for one in found]


def together(found: list[list[Listed]]) -> list[Listed]:
    return [one for machines in found for one in machines]


def names(machines: list[Listed]) -> list[str]:
    return [one.operation_id for one in machines]


def test_pages_go_on_where_they_ended(local: Local) -> None:
    """Each machine is on one page, whether the oldest or the newest come first, also with equal times of beginning."""
    for newest in (False, True):
        found = pages(local, Wanted(newest=newest))
        assert {len(some) for some in found[:-1]} == {50}
        assert sorted(names(together(found))) == [f"op-{n:03}" for n in range(700)]


def test_pages_go_on_behind_what_has_ended(local: Local) -> None:
    """A page whose last operation has finished meanwhile is followed by all the others."""
    first = page(local)
    for op in names(first.machines):
        local.executor.signal(op, take)
    local.run()
    found = set[str]()
    cursor = first.cursor
    while cursor is not None:
        some = page(local, cursor=cursor)
        found.update(names(some.machines))
        cursor = some.cursor
    assert found == {f"op-{n:03}" for n in range(700)} - set(names(first.machines))


def test_what_is_rare_is_found(local: Local) -> None:
    """By state, module, the beginning of an id, or all of it; a page looks at as many operations as it takes."""
    rare = page(local, Wanted(state="Standing"))
    assert names(rare.machines) == [f"op-{n}00" for n in range(7)]
    assert rare.looked_at == 700
    assert page(local, Wanted(module="elsewhere")).machines == []
    assert sorted(names(page(local, Wanted(operation="op-12*")).machines)) == [f"op-12{n}" for n in range(10)]
    assert names(page(local, Wanted(operation="op-007")).machines) == ["op-007"]
    assert page(local, Wanted(operation="nobody")).machines == []


def test_a_page_takes_a_bounded_time(local: Local) -> None:
    """Where the time runs out a page ends, empty if need be, and the next one goes on: nothing is missed."""
    found = pages(local, Wanted(state="Standing"), budget_s=0)
    assert len(found) > 2
    assert names(together(found)) == [f"op-{n}00" for n in range(7)]


def test_only_those_that_are_old_enough(local: Local) -> None:
    """By how long a machine has been in its state, not its operation active."""
    keys = local.keys()
    assert page(local, Wanted(older_s=3600)).machines == []
    local.redis.zadd(keys.operations, {f"op-{n:03}": local.now_ms() - 7_200_000 for n in range(5)}, xx=True)
    assert page(local, Wanted(older_s=3600)).machines == []  # active for long, in this state for a moment
    assert page(local, Wanted(older_s=3600)).looked_at <= 200
    assert len(together(pages(local, Wanted(older_s=0)))) == 700


def test_quarantined_ones(local: Local) -> None:
    """What was set aside is found without a look at the others."""
    stored = local.stored("op-123", Lying(123))
    aside = f'{{"error":"ValueError: x","op":"op-123","entry":"{stored.entry}","at":0}}'
    local.redis.hset(local.keys().quarantine, stored.record, aside)
    found = page(local, Wanted(quarantined=True))
    assert [(one.operation_id, one.status, one.last_error) for one in found.machines] == [
        ("op-123", "quarantined", "ValueError: x")
    ]
    assert found.looked_at == 1


def many(play: Play, count: int) -> Local:
    """One operation of so many machines, every hundredth in the other state, before and behind others."""
    made = play(shelf=shelf)
    made.executor.add_state_machines([StateMachine("before", Lying(0))])
    kinds = [Standing if n % 100 == 0 else Lying for n in range(count)]
    for at in range(0, count, 500):
        made.executor.add_state_machines(
            [StateMachine("many", kind(n)) for n, kind in enumerate(kinds[at : at + 500], at)]
        )
    made.executor.add_state_machines([StateMachine("behind", Lying(0))])
    return made


def test_an_operation_of_many_machines_is_read_a_part_at_a_time(play: Play) -> None:
    """A page ends within an operation, and the next goes on there: each machine is on one page, and what a page asks
    the server for is bounded by what was asked for, not by the operation."""
    local = many(play, 3_000)
    client_of(local.settings.url).config_resetstat()
    page(local, limit=1)
    asked = client_of(local.settings.url).info("commandstats")
    assert sum(one["calls"] for one in asked.values()) < 20
    for wanted in (EVERYTHING, Wanted(newest=True), Wanted(operation="many"), Wanted(operation="m*")):
        found = pages(local, wanted)
        assert max(map(len, found)) <= 50 + 150
        assert max(map(len, pages(local, wanted, limit=700))) <= 700 + 150
        names_of = [(one.operation_id, one.state["n"]) for one in together(found)]
        assert sorted(names_of) == sorted({*names_of})
        assert len(names_of) == 3_000 + 2 * (wanted.operation is None)
    assert len(together(pages(local, Wanted(state="Standing"), budget_s=0))) == 30


def test_a_page_has_as_many_machines_as_were_asked_for(play: Play) -> None:
    """Although Redis gives all of an operation of some hundred machines at once; each is on one page, and what ends or
    begins meanwhile hides none of the others."""
    local = many(play, 300)
    for limit in (1, 7, 299, 300, 301):
        found = pages(local, limit=limit)
        assert {len(some) for some in found[:-1]} == {limit} if len(found) > 1 else True
        assert len({(one.operation_id, one.machine_id) for one in together(found)}) == len(together(found)) == 302
    first = page(local, Wanted(operation="many"), limit=100)
    for _ in range(30):
        local.executor.signal("many", take)
    local.run()
    local.add("many", *(Lying(n) for n in range(1_000, 1_600)))  # more than Redis gives at once
    shown = {one.state["n"] for one in first.machines}
    cursor = first.cursor
    while cursor is not None:
        some = page(local, Wanted(operation="many"), cursor, limit=100)
        shown |= {one.state["n"] for one in some.machines}
        cursor = some.cursor
    left = {machine.state.n for machine, _ in local.executor.get_active_states("many") if hasattr(machine.state, "n")}
    assert left <= shown


def put_aside(local: Local, op: str, count: int, note: str | None = None) -> None:
    """Quarantine the first so many machines of an operation."""
    notes = {}
    for n in range(count):
        stored = local.stored(op, Standing(n) if n % 100 == 0 else Lying(n))
        aside = {"error": "ValueError: x", "op": op, "entry": stored.entry, "at": 0}
        notes[stored.record] = note if note is not None else json.dumps(aside)
    local.redis.hset(local.keys().quarantine, mapping=notes)


def test_quarantined_machines_of_one_operation_come_in_pages(play: Play) -> None:
    """A page has what was asked for, not all of the operation, and none has what another has; by state, too, and of
    the one operation alone."""
    local = many(play, 1_000)
    for count in (300, 700):  # which Redis gives at once, and not
        put_aside(local, "many", count)
        for wanted in (Wanted(quarantined=True), Wanted(operation="many", quarantined=True)):
            found = pages(local, wanted)
            assert max(map(len, found)) < 200
            assert sum(map(len, pages(local, wanted, limit=count // 10))) == count
            assert sorted(one.state["n"] for one in together(found)) == list(range(count))
        assert len(page(local, Wanted(quarantined=True), limit=1).machines) < 50  # a few: what HSCAN gives at once
    rare = pages(local, Wanted(state="Standing", quarantined=True), limit=1)
    assert sorted(one.state["n"] for one in together(rare)) == [0, 100, 200, 300, 400, 500, 600]
    assert page(local, Wanted(module="elsewhere", quarantined=True)).machines == []
    assert page(local, Wanted(operation="b*", quarantined=True)).machines == []


@pytest.mark.parametrize("note", ["", "{", "[]", "7", '{"error": 7}', '{"op": ["many"]}', "[" * 100_000])
def test_a_note_that_is_garbage_hides_nothing(play: Play, note: str) -> None:
    """What a quarantined machine's note says may be anything: the machine is found, and so are the others."""
    local = many(play, 3)
    put_aside(local, "many", 2, note)
    assert len(page(local).machines) == 5
    for wanted in (Wanted(quarantined=True), Wanted(operation="many", quarantined=True)):
        found = page(local, wanted).machines
        assert sorted((one.operation_id, one.status, one.state["n"]) for one in found) == [
            ("many", "quarantined", 0), ("many", "quarantined", 1),
        ]  # fmt: skip


def test_what_is_of_another_type_hides_nothing(play: Play) -> None:
    """Keys of a type that is none of ours: the machines are found as far as they can be."""
    local = many(play, 3)
    local.redis.set(local.keys().quarantine, "x")
    local.redis.set(local.keys().race(local.stored("many", Lying(1)).record), "x")
    local.redis.hset(local.keys().control("before"), "x", "y")
    assert len(page(local).machines) == 5
    assert page(local, Wanted(quarantined=True)).machines == []


def test_an_unreadable_machine_that_is_set_aside_is_found(play: Play) -> None:
    """Although nothing but its note can be read."""
    local = many(play, 3)
    put_aside(local, "many", 1)
    local.redis.set(local.keys().machine(local.stored("many", Standing(0)).record), "x")
    (found,) = page(local, Wanted(quarantined=True)).machines
    assert (found.operation_id, found.status, found.last_error) == ("many", "quarantined", "ValueError: x")


vault = Module("vault", version=2)


@vault.state
class Locked(State):
    room: str
    word: Annotated[str, Secret]


@vault.on(Locked, vault.signal("open"))
def opened(tx: Transaction, state: Locked, _: None) -> None:
    return None


def test_what_cannot_be_loaded_shows_no_secret(play: Play) -> None:
    """Of a record of newer code, or that does not fit, or is garbage, the fields that its type keeps secret are hidden,
    and those that this code does not know; of an unknown state all are."""
    local = play(vault=vault)
    fine, newer, garbage = '["m",1,1,2]', '["m",1,1,99]', "x"
    state = '{"room":"attic","word":"hush"}'
    stored = {
        f"vault Locked {state}": newer,
        'vault Locked {"room":7,"word":"hush"}': fine,
        'vault Locked {"code":"hush","room":"attic"}': newer,
        f"vault Gone {state}": fine,
        'vault Locked ["hush"]': fine,
        'vault Locked "hush"': fine,
        "vault Locked {hush": fine,
        f"vault Locked {state[:-1]} ": garbage,
        f"vault Locked  {state}": garbage,
        "hush": fine,
        f"vault Locked {'[' * 100_000}": fine,
    }
    local.redis.hset(local.keys().active("op"), mapping=stored)
    local.redis.zadd(local.keys().operations, {"op": 1})
    for wanted in (EVERYTHING, Wanted(operation="op")):
        found = page(local, wanted).machines
        assert len(found) == len(stored)
        assert "hush" not in str(found)
        shown = [one.state for one in found if one.status == "waiting"]
        assert {"room": "attic", "word": "***"} in shown
        assert {"room": "attic", "code": "***"} in shown
        assert {"room": "***", "word": "***"} in shown
    note = json.dumps({"error": "UndecodableRecord: x", "op": "op", "entry": "x:y", "at": 0})
    local.redis.hset(local.keys().quarantine, mapping={digest("op", field): note for field in stored})
    assert "hush" not in str(page(local, Wanted(quarantined=True)))


def test_over_shards(play: Play) -> None:
    """Pages go on over the shards of a namespace."""
    local = play(shelf=shelf, shards=3)
    for n in range(30):
        local.add(f"op-{n:02}", Lying(n))
    found = pages(local, limit=7)
    assert sorted(names(together(found))) == [f"op-{n:02}" for n in range(30)]


def test_a_cursor_that_is_none_is_refused(local: Local) -> None:
    """It is the caller's error, with the field's name."""
    made_up = [
        '[0,"op",NaN,0,""]',
        '[0,"op",1e999,0,""]',
        '[0,"\\ud800",0,0,""]',
        '[0,"op",0,1e30,""]',
        '[0,"op",0,-1,""]',
    ]
    made_up += [
        '[-1,"op",0,0,""]',
        '["0","op",0,0,""]',
        "[" * 100_000,
        "{}",
        '[0,"op",0,0]',
        '[0,"op",0,18446744073709551616,""]',
    ]
    written = [urlsafe_b64encode(one.encode()).decode() for one in made_up]
    for cursor in ("x", "W10=", "bnVsbA==", "\ud800", "é", *written):
        with pytest.raises(InvalidInput, match="cursor"):
            page(local, cursor=cursor)


def test_all_of_them_streamed(local: Local) -> None:
    """Without pages: each once."""
    found = active_machines(local.executor.deployment, local.executor.instances, Wanted())
    assert sorted(one.operation_id for one in found) == [f"op-{n:03}" for n in range(700)]

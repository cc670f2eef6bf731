"""Finding active machines a page at a time: each is found once, by what it is, however many others there are."""

from __future__ import annotations

import pytest

from smqueue import InvalidInput, Module, State, StateMachine, Transaction, after
from smqueue.search import Found, Listed, Wanted, active_machines, search
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


def test_over_shards(play: Play) -> None:
    """Pages go on over the shards of a namespace."""
    local = play(shelf=shelf, shards=3)
    for n in range(30):
        local.add(f"op-{n:02}", Lying(n))
    found = pages(local, limit=7)
    assert sorted(names(together(found))) == [f"op-{n:02}" for n in range(30)]


def test_a_cursor_that_is_none_is_refused(local: Local) -> None:
    """It is the caller's error, with the field's name."""
    for cursor in ("x", "W10=", "bnVsbA=="):
        with pytest.raises(InvalidInput, match="cursor"):
            page(local, cursor=cursor)


def test_all_of_them_streamed(local: Local) -> None:
    """Without pages: each once."""
    found = active_machines(local.executor.deployment, local.executor.instances, Wanted())
    assert sorted(one.operation_id for one in found) == [f"op-{n:03}" for n in range(700)]

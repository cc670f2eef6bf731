"""What is told of an operation is true while it moves, whatever is stored of it, and costs little."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import pytest
from msgspec import structs

from smqueue import Context, Module, Retry, Secret, State, Transaction, call, poll
from smqueue.audit import audit
from smqueue.diagnosis import diagnose
from smqueue.drivers.line import keys_of
from smqueue.embedded import EmbeddedServer
from smqueue.errors import CancelUnfinished
from smqueue.explain import explain
from smqueue.instances import Instance, Instances
from smqueue.overview import overview
from smqueue.presence import Noted, note
from smqueue.queries import moment
from smqueue.records import Active, Field, label_of
from smqueue.roundtrip import Read, RoundTrip
from smqueue.rows import rows_of
from smqueue.words import told
from tests.inprocess import Local, Play
from tests.waiting import wait_until

asked = Module("asked", version=1, retry=Retry(max_attempts=9, base=timedelta(hours=1)))


@asked.state
class Asking(State):
    n: int


@asked.state
class Hearing(State):
    n: int


@asked.state
class Ringing(State):
    n: int


@asked.state
class Leaving(State):
    n: int


@asked.state(terminal=True)
class Over(State):
    n: int


go = asked.signal("go", str)


def found(state: Asking | Hearing, context: Context) -> int:
    return 1


def rings(state: Ringing, context: Context) -> None:
    return None


@asked.on(Asking, poll(found, every=timedelta(hours=1)))
def refused(tx: Transaction, state: Asking, what: int) -> Over:
    raise ValueError("on purpose")


@asked.on(Hearing, go)
def heard(tx: Transaction, state: Hearing, what: str) -> Hearing | Over | None:
    if what == "fail":
        raise ValueError("on purpose")
    return {"stay": None, "next": Hearing(state.n + 1)}.get(what, Over(state.n))


@asked.on(Hearing, call(found))
def called(tx: Transaction, state: Hearing, what: Any) -> Over:
    return Over(0)


@asked.on(Ringing, poll(rings, every=timedelta(hours=1)))
def rang(tx: Transaction, state: Ringing, what: None) -> Over:
    return Over(0)


@asked.on_cancel(Leaving)
def stays(tx: Transaction, state: Leaving, why: str | None) -> None:
    raise OSError("the door is locked")


@asked.on(Leaving, go)
def left(tx: Transaction, state: Leaving, what: str) -> Over:
    return Over(0)


@pytest.fixture
def local(play: Play) -> Local:
    return play(asked=asked)


def kinds(local: Local, op: str = "op") -> list[str]:
    """The kinds of an operation's causes but that there is no worker: none notes itself here."""
    return [cause.kind for cause in local.executor.diagnose(op).causes if cause.kind != "no_worker"]


# --- what wins takes its entry with it --------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [Asking(1), Hearing(1)])
def test_a_handler_that_fails_behind_code_is_told_as_that(local: Local, state: State) -> None:
    """The handler of a poll raises; or one of a signal that had come before a state with a call was entered. Neither
    has an entry of code any more: it is the handler that fails, and nothing was deleted."""
    local.executor.signal("op", go, "fail")
    local.add("op", state)
    local.until(lambda: local.explained("op").attempts)
    assert local.explained("op").status == "decided"
    assert kinds(local) == ["handler_fails"]


def test_code_whose_entry_was_deleted_is_told(local: Local) -> None:
    """While the race is open, its code needs an entry; what is advised brings it back."""
    local.add("op", Asking(1))
    entry = local.stored("op", Asking(1)).entry
    local.redis.zrem(local.keys().schedule, f"{entry}:refused")
    assert (local.explained("op").status, kinds(local)) == ("unscheduled", ["unscheduled"])
    (cause,) = [one for one in local.executor.diagnose("op").causes if one.kind == "unscheduled"]
    assert cause.remedy == "smqueue verify op --repair"
    audit(local.executor.deployment, local.instances, operations=["op"], repair=True)
    assert local.explained("op").status == "waiting"


def moves_before_look(local: Local, act: Callable[[], object], at: int) -> Callable[[RoundTrip], None]:
    """Act before one of the looks at machines."""
    looks = 0

    def hook(request: RoundTrip) -> None:
        nonlocal looks
        if isinstance(request, Read) and any(command[0] == "HGET" for command in request.commands):
            looks += 1
            if looks == at:
                act()

    return hook


@pytest.mark.parametrize("look", [1, 2])
@pytest.mark.parametrize(("what", "left_over"), [("over", []), ("next", []), ("stay", [("Hearing", "waiting")])])
def test_what_moves_meanwhile_is_no_trouble(
    local: Local, play: Play, look: int, what: str, left_over: list[tuple[str, str]]
) -> None:
    """A machine that goes on, or stays, between any two looks at it is left out, or told as it is now."""
    other = play(asked=asked)
    local.add("op", Hearing(1))

    def move() -> None:
        other.executor.signal("op", go, what)
        other.drain()

    with local.around_trips(before=moves_before_look(local, move, look)):
        active = local.executor.explain("op").active
    assert [(label_of(one.field).partition(".")[2], one.status) for one in active] == left_over


def test_one_that_is_decided_meanwhile_is_no_trouble(local: Local, play: Play) -> None:
    """An outcome that is recorded between two looks, and takes the entry of its code along."""
    other = play(asked=asked)
    local.add("op", Hearing(1))
    other.drain()

    def bring() -> None:
        other.attempt(other.sent.triggers.pop())

    with local.around_trips(before=moves_before_look(local, bring, 2)):
        assert local.explained("op").status == "decided"


# --- what cannot be decoded -------------------------------------------------------------------------------------------


def release(version: int, **fields: Any) -> tuple[Module[Any], type[State]]:
    """A module whose only state, which waits for a signal, has these fields."""
    module: Module[Any] = Module("vault", version=version)
    here: Any = type("Here", (State,), {"__annotations__": fields, "__module__": __name__})
    state = module.state(here)
    there: Any = module.state(terminal=True)(type("There", (State,), {"__module__": __name__}))
    came = module.signal("came")

    @module.on(state, came)
    def arrived(tx: Transaction, state: Any, _: None) -> there:  # type: ignore[valid-type]
        return there()

    if version > 1:

        @module.migrate(state, since=2)
        def renamed(old: dict[str, Any]) -> dict[str, Any]:
            return {"password": old["key"]}

    return module, state


def worker_of(local: Local, queue: str = "q", trigger_queue: str = "q", **modules: int) -> None:
    """A worker notes itself."""
    note(local.driver, local.keys(), Noted("w@test", (queue,), queue, trigger_queue, modules))


def test_a_record_whose_fields_have_changed_is_diagnosed_while_it_waits(play: Play) -> None:
    """Without a migration it cannot be decoded, which a worker finds out only when it is decided."""
    module, here = release(1, key=str)
    play(vault=module).add("op", here(key="a"))  # type: ignore[call-arg]
    changed, _ = release(1, name=str)
    local = play(vault=changed)
    worker_of(local, vault=1)
    diagnosis = local.executor.diagnose("op")
    cause = diagnosis.causes[0]
    assert (cause.kind, "UndecodableRecord" in cause.text) == ("unreadable", True)
    assert diagnosis.explanation.active[0].status == "waiting"
    assert any("UndecodableRecord" in line for line in told(diagnosis.explanation, diagnosis.at))


@pytest.mark.parametrize("without", [False, True])
def test_a_record_newer_than_all_workers_is_diagnosed(play: Play, without: bool) -> None:
    """By what workers note of themselves, also for who has no modules; one worker that is as new is enough."""
    module, here = release(2, password=str)
    local = play(vault=module)
    local.add("op", here(password="a"))  # type: ignore[call-arg]
    worker_of(local, vault=1)
    looking = Instances() if without else local.instances

    def causes() -> set[str]:
        return {cause.kind for cause in diagnose(local.executor.deployment, looking, "op").causes}

    assert "unreadable" in causes()
    worker_of(local, vault=2)
    assert "unreadable" not in causes()


def test_secrets_of_an_older_version_are_hidden(play: Play) -> None:
    """A record is shown as code of its own version has stored it, migrated: a new name hides the secret, too."""
    module, here = release(1, key=Annotated[str, Secret])
    play(vault=module).add("op", here(key="hush"))  # type: ignore[call-arg]
    migrated, _ = release(2, password=Annotated[str, Secret])
    local = play(vault=migrated)
    (row,) = rows_of(local.executor.explain("op"), local.instances)
    assert row["state"] == {"password": "***"}
    local.executor.cancel("op")
    (row,) = rows_of(local.executor.explain("op"), local.instances)
    assert row["state"] == {"password": "***"}


def test_a_module_that_cannot_be_imported_breaks_nothing(local: Local) -> None:
    """What it has is told as it is stored, and the others' as ever."""
    instances = Instances()
    instances.register(Instance("asked", asked, None, "here"))
    instances.register(Instance("gone", "tests.apps.no_such_file:machines", None, "here"))
    local.add("op", Ringing(1))
    local.executor.signal("op", go, "early")
    explained = explain(local.executor.deployment, instances, "op")
    assert [one.status for one in explained.active] == ["waiting"]
    assert [(one.module, one.signal) for one in explained.buffered] == [("asked", "go")]


# --- garbage ----------------------------------------------------------------------------------------------------------


def rubbish(local: Local) -> dict[str, Callable[[], object]]:
    """Things that nobody but smqueue should write, written by somebody else."""
    keys, redis = local.keys(), local.redis
    placed = local.placed("op", Hearing(1))
    race, field = keys.race(placed.record), placed.field
    value = Active.parse(redis.hget(keys.active("op"), field))
    return {
        "a note of the quarantine that is none": lambda: redis.hset(keys.quarantine, placed.record, "rubbish"),
        "a note of the quarantine with nothing in it": lambda: redis.hset(keys.quarantine, placed.record, "[]"),
        "a member of early": lambda: redis.zadd(keys.early, {"rubbish": 1, b"\xff a b": float("inf")}),
        "an early of another type": lambda: redis.set(keys.early, "rubbish"),
        "attempts that are no number": lambda: redis.hset(race, "attempts", "zz"),
        "a lease that is no number": lambda: redis.hset(race, "until:called", "zz"),
        "tries that are no number": lambda: redis.hset(race, "tries:called", "-"),
        "a race of another type": lambda: redis.set(race, "rubbish"),
        "a time that no calendar has": lambda: redis.hset(
            keys.active("op"), field, structs.replace(value, at_us=10**18 * 5).dump()
        ),
        "a score without end": lambda: redis.zadd(
            keys.schedule, {f"{local.stored('op', Hearing(1)).entry}:called": float("inf")}
        ),
        "a machine that is armed with nothing": lambda: redis.set(
            keys.machine(placed.record), json.dumps(["g", 0, "op", field, {"called": []}])
        ),
        "an inactive record with a strange time": lambda: redis.hset(
            keys.inactive("op"), field, '{"machine":"m","step":1,"at":1,"exited":1,"version":1,"visits":1,"won_at":"x"}'
        ),
        "a step of the history": lambda: redis.rpush(keys.history("op"), "rubbish", "[]", '{"to": 1}'),
        "a worker that was seen for ever": lambda: redis.zadd(
            keys.workers, {'["w",[],"q","q",{}]': float("inf"), "[]": 1}
        ),
    }


RUBBISH = (
    "a note of the quarantine that is none", "a note of the quarantine with nothing in it", "a member of early",
    "an early of another type", "attempts that are no number", "a lease that is no number",
    "tries that are no number", "a race of another type", "a time that no calendar has", "a score without end",
    "a machine that is armed with nothing", "an inactive record with a strange time", "a step of the history",
    "a worker that was seen for ever",
)  # fmt: skip


@pytest.mark.parametrize("what", RUBBISH)
def test_garbage_breaks_nothing(local: Local, what: str) -> None:
    """Of whatever is garbage the rest is told, of its own operation, of others and of the namespace."""
    local.executor.signal("elsewhere", go, "early")
    local.add("op", Hearing(1), Ringing(2))
    local.add("other", Hearing(1))
    rubbish(local)[what]()
    for past in (None, 10):
        for op, machines in (("op", 2), ("other", 1)):
            one = diagnose(local.executor.deployment, local.instances, op, past=past, active=past)
            assert len(one.explanation.active) == machines
            assert told(one.explanation, one.at, one.causes)
            assert (
                len([row for row in rows_of(one.explanation, local.instances) if row["kind"] == "active"]) == machines
            )
    assert local.executor.overview().operations == 2


def test_any_number_is_a_moment() -> None:
    """Also one that no calendar has."""
    assert moment(1_700_000_000_000_001) == datetime(2023, 11, 14, 22, 13, 20, 1, UTC)
    assert moment(10**30) > moment(1) > moment(float("-inf"))


# --- causes -----------------------------------------------------------------------------------------------------------


def test_a_queue_holds_up_only_who_sends_to_it(local: Local) -> None:
    """That nobody takes the queue of polls and calls is no cause for a machine that waits for a signal alone."""
    local.add("op", Leaving(1))
    local.add("rings", Ringing(1))
    worker_of(local, trigger_queue="nobody", asked=1)
    assert kinds(local) == ["no_signal"]
    assert kinds(local, "rings") == ["queue_without_worker"]
    assert [cause.kind for cause in local.executor.overview().causes] == ["queue_without_worker"]


def test_a_cancel_handler_that_fails_is_a_cause(local: Local) -> None:
    """With its error, and how to do without it."""
    local.add("op", Leaving(1))
    with pytest.raises(CancelUnfinished):
        local.executor.cancel("op")
    assert local.explained("op").status == "cancelling"
    (cause,) = [one for one in local.executor.diagnose("op").causes if one.kind == "handler_fails"]
    assert "OSError: the door is locked" in cause.text
    assert "smqueue cancel op --force" in cause.remedy


def test_commands_that_are_advised_say_of_what(local: Local) -> None:
    """No command is named without what it needs."""
    local.add("op", Leaving(1))
    local.executor.pause(module="asked")
    local.executor.pause("op")
    explained = local.executor.explain("op")
    (line,) = [line for line in told(explained, datetime.now(UTC)) if "is paused" in line]
    assert line.endswith("waits for smqueue resume op and smqueue resume --module asked.")
    aside = replace(explained.active[0], status="quarantined", last_error="ValueError: x", attempts=1)
    (line,) = [line for line in told(replace(explained, active=(aside,)), datetime.now(UTC)) if "quarantined" in line]
    assert "after 1 failed attempt: ValueError: x. Nothing moves it until: smqueue retry op" in line


# --- what it costs ----------------------------------------------------------------------------------------------------


@pytest.fixture
def trips(local: Local) -> Iterator[list[RoundTrip]]:
    """The round trips of this process."""
    made: list[RoundTrip] = []
    with local.around_trips(before=made.append):
        yield made


def test_many_machines_are_looked_at_together(local: Local, trips: list[RoundTrip]) -> None:
    """A handful of round trips, however many machines; a bounded look says how many more there are."""
    local.add("op", *[Hearing(n) for n in range(450)])
    trips.clear()
    explained = local.executor.explain("op")
    assert ({one.status for one in explained.active}, len(explained.active)) == ({"waiting"}, 450)
    assert len(trips) < 20
    trips.clear()
    some = explain(local.executor.deployment, local.instances, "op", past=10, active=50)
    assert (len(some.active), some.more) == (50, 400)
    assert len(trips) < 10


def test_a_long_history_is_looked_at_from_its_end(local: Local, trips: list[RoundTrip]) -> None:
    """The states of the last steps, and how many more there are."""
    local.add("op", Hearing(0))
    for _ in range(30):
        local.executor.signal("op", go, "next")
        local.drain()
    trips.clear()
    some = explain(local.executor.deployment, Instances(), "op", past=10, active=10)
    assert [Field.parse(field).state for field, _ in some.stored] == [f'{{"n":{n}}}' for n in range(21, 30)]
    assert some.more_past == 21
    assert not any(command[0] == "SCAN" for trip in trips if isinstance(trip, Read) for command in trip.commands)
    assert len(trips) < 10


# --- the store --------------------------------------------------------------------------------------------------------


def test_a_server_that_cannot_write_its_snapshots_is_told(tmp_path: Path) -> None:
    """It takes no writes, which keeps workers from noting themselves: the store is the cause, and not them. Where
    snapshots that fail stop nothing, or none are made, it is none."""
    with EmbeddedServer() as server:
        local = Local(server.url, "full", {"asked": asked})
        local.add("op", Hearing(1))
        config = local.redis.config_get
        target = Path(config("dir")["dir"]) / config("dbfilename")["dbfilename"]
        local.redis.config_set("save", "3600 1")
        (target / "in the way").mkdir(parents=True)
        local.redis.bgsave()
        wait_until(
            lambda: local.redis.info("persistence")["rdb_last_bgsave_status"] == "err", "the snapshot has failed"
        )

        def said() -> list[str]:
            return [cause.kind for cause in local.executor.diagnose("op").causes if cause.kind != "no_signal"]

        assert said() == ["store"]
        (cause,) = overview(local.executor.deployment).causes
        assert "snapshot" in cause.text
        local.redis.config_set("stop-writes-on-bgsave-error", "no")
        assert said() == ["no_worker"]
        local.redis.config_set("stop-writes-on-bgsave-error", "yes")
        local.redis.config_set("save", "")
        assert said() == ["no_worker"]


def test_what_a_server_is_asked_of_itself_names_no_key() -> None:
    """In a cluster it is asked of the node that has the keys beside it."""
    asked = (("INFO", "memory"), ("CONFIG", "GET", "save"), ("EXISTS", "{a}:meta"))
    assert list(keys_of(Read((), asked))) == ["{a}:meta"]

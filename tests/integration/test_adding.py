"""Adding machines: what is refused and in which order, all or nothing, conflicts, lost replies, races, being told."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import smqueue.roundtrip
from smqueue import (
    CommitFailed,
    Module,
    SmqueueError,
    State,
    StateAlreadyExists,
    StateAlreadyTerminal,
    StateMachine,
    StoreUnavailable,
    Transaction,
    UnknownModule,
)  # fmt: skip
from smqueue.embedded import EmbeddedServer
from smqueue.roundtrip import Commit, LostReply, Read, RoundTrip
from tests.inprocess import Local, Play, machines
from tests.proxy import Proxy

ROOT = Path(__file__).parents[2]

lamps = Module("lamps")
switch = lamps.signal("switch")
broken = lamps.signal("broken")


@lamps.state
class On(State):
    n: int


@lamps.state
class Off(State):
    n: int


@lamps.state(terminal=True)
class Gone(State):
    n: int


@lamps.on(On, switch)
def off(tx: Transaction, state: On, _: None) -> Off:
    return Off(state.n)


@lamps.on((On, Off), broken)
def gone(tx: Transaction, state: On | Off, _: None) -> Gone:
    return Gone(state.n)


@pytest.fixture
def local(play: Play) -> Local:
    return play(lamps=lamps)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Conflicts back off for no time at all, so that a hundred of them take none."""
    monkeypatch.setattr(smqueue.roundtrip, "uniform", lambda _low, _high: 0.0)


# --- what is refused --------------------------------------------------------------------------------------------------


def _passed_through(local: Local) -> None:
    """Operation ``op`` with ``On(1)`` and ``Off(1)`` passed through and ``Gone(1)`` finished; ``Off(2)`` active."""
    local.executor.add_state_machines(machines("op", On(1), Off(2)))
    local.executor.signal("op", switch)
    local.run()
    first = next(m for m, value in local.executor.get_active_states("op") if m.state == Off(1))
    assert first
    ids = {m.state: value.machine_id for m, value in local.executor.get_active_states("op")}
    local.executor.signal("op", broken, machine=ids[Off(1)])
    local.run()
    assert local.inactive("op") == [On(1), Off(1), Gone(1)]
    assert local.active("op") == [Off(2)]


REFUSED: list[tuple[str, StateMachine, type[SmqueueError]]] = [
    ("an unknown module, though the state exists", StateMachine("op", Off(2), "nobody"), UnknownModule),
    ("an unknown module, though the state is terminal", StateMachine("op", Gone(9), "nobody"), UnknownModule),
    ("an active state", StateMachine("op", Off(2)), StateAlreadyExists),
    ("a state passed through", StateMachine("op", On(1)), StateAlreadyExists),
    ("a terminal state that exists", StateMachine("op", Gone(1)), StateAlreadyExists),
    ("a terminal state", StateMachine("op", Gone(9)), StateAlreadyTerminal),
]


@pytest.mark.parametrize(("given", "error"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_reasons_to_refuse_come_in_order(local: Local, given: StateMachine, error: type[SmqueueError]) -> None:
    """Unknown module, then exists already (active or inactive), then terminal; each a typed error (semantics 6)."""
    _passed_through(local)
    before = local.everything()
    with pytest.raises(error) as caught:
        local.executor.add_state_machines([given])
    assert type(caught.value) is error
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), again.args, str(again)) == (error, caught.value.args, str(caught.value))
    if isinstance(caught.value, StateAlreadyExists | StateAlreadyTerminal):
        assert (caught.value.operation_id, caught.value.module) == ("op", "lamps")
        assert type(given.state).__name__ in caught.value.state
    else:
        assert caught.value.args == ("nobody", "lamps")
    assert local.everything() == before


def test_the_first_machine_that_cannot_be_added_is_the_one_reported(local: Local) -> None:
    """The checks run machine by machine: a terminal one that stands first is reported first (semantics 6)."""
    bad = [StateMachine("op", Gone(1)), StateMachine("op", On(1), "nobody")]
    with pytest.raises(StateAlreadyTerminal):
        local.executor.add_state_machines(bad)
    with pytest.raises(UnknownModule):
        local.executor.add_state_machines(bad[::-1])


def test_a_state_is_added_once(local: Local) -> None:
    """A state ever seen in its operation, passed through or finished, is a duplicate there (semantics 7)."""
    _passed_through(local)
    for state in (On(1), Off(1), Gone(1), Off(2)):
        with pytest.raises(StateAlreadyExists):
            local.executor.add_state_machines(machines("op", state))
    assert len(local.executor.add_state_machines([*machines("op", On(2)), *machines("another", On(1), Off(1))])) == 3


def test_an_idempotent_start(local: Local) -> None:
    """With exist_ok a start may be repeated: it gives the same ids and starts what is new only (semantics 7)."""
    first = local.executor.add_state_machines(machines("op", On(1), Off(2)))
    history = local.redis.llen(local.keys().history("op"))
    assert local.executor.add_state_machines(machines("op", On(1), Off(2)), exist_ok=True) == first
    assert local.redis.llen(local.keys().history("op")) == history
    local.executor.signal("op", broken)
    local.run()
    mixed = local.executor.add_state_machines(machines("op", Off(3), On(1), Off(2)), exist_ok=True)
    assert mixed[1:] == first
    assert mixed[0] not in first
    assert len(list(local.executor.get_active_states("op"))) == 2


def test_twice_in_one_call_is_a_duplicate(local: Local) -> None:
    """``[S, S]`` in one call is a duplicate, and nothing of the call is left (semantics 8)."""
    with pytest.raises(StateAlreadyExists):
        local.executor.add_state_machines(machines("op", Off(1), On(1), Off(1)))
    assert local.everything() == {}
    local.executor.add_state_machines(machines("op", Off(1), On(1)))


# --- all or nothing ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 25, 49])
def test_a_batch_is_added_as_a_whole_or_not_at_all(local: Local, at: int) -> None:
    """One duplicate anywhere in a batch over several operations leaves nothing of the batch (semantics 9)."""
    local.executor.add_state_machines(machines("there", On(1)))
    before = local.everything()
    batch = [StateMachine(f"op-{n % 7}", On(n)) for n in range(49)]
    batch.insert(at, StateMachine("there", On(1)))
    with pytest.raises(StateAlreadyExists):
        local.executor.add_state_machines(batch)
    assert local.everything() == before


def _touch(local: Local, op: str, state: State) -> Callable[[Commit], None]:
    """What another process does between look and commit: the state's guard comes and goes."""
    guard = local.keys().machine(local.instances.place(StateMachine(op, state)).record)

    def touch(_: Commit) -> None:
        local.redis.set(guard, "x")
        local.redis.delete(guard)

    return touch


def test_conflicts_are_retried(local: Local, hasty: None) -> None:
    """A call that meets 99 conflicts succeeds at its hundredth attempt (semantics 9)."""
    touch, left = _touch(local, "op", On(1)), iter(range(99))

    def meddle(commit: Commit) -> None:
        if next(left, None) is not None:
            touch(commit)

    with local.before_commits(meddle):
        local.executor.add_state_machines(machines("op", On(1), On(2)))
    assert next(left, None) is None
    assert local.active("op") == [On(1), On(2)]


def test_a_hundred_conflicts_are_reported(local: Local, hasty: None) -> None:
    """After 100 conflicts the call says so, with the count and the last error, and nothing is written (semantics 9)."""
    touch, attempts = _touch(local, "op", On(1)), list[Commit]()

    def meddle(commit: Commit) -> None:
        attempts.append(commit)
        touch(commit)

    with local.before_commits(meddle), pytest.raises(CommitFailed) as caught:
        local.executor.add_state_machines(machines("op", On(1), On(2)))
    assert caught.value.attempts == len(attempts) == 100
    assert caught.value.last_error == "conflict"
    assert "100" in str(caught.value)
    assert local.everything() == {}


def test_the_callers_own_error_is_not_retried(local: Local) -> None:
    """What the caller's function raises is raised at once, after one run, and nothing is written (semantics 9)."""
    runs: list[int] = []

    def fn(tx: Transaction) -> None:
        runs.append(1)
        tx.set("k", "v")
        tx.add_state_machines(machines("op", On(1)))
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        local.executor.autocommit(fn)
    assert len(runs) == 2  # the first run asked what there is of On(1)
    assert local.everything() == {}


# --- within the caller's transaction ----------------------------------------------------------------------------------


def test_adding_commits_with_the_callers_writes(local: Local) -> None:
    """Machines added within a transaction and the caller's writes are applied in one EXEC (semantics 10)."""
    commits: list[Commit] = []

    def fn(tx: Transaction) -> str:
        tx.set("order", "1")
        tx.add_state_machines(machines("op", On(1)))
        return "done"

    with local.before_commits(commits.append):
        assert local.executor.autocommit(fn) == "done"
    (commit,) = commits
    names = [(command[0], command[1]) for command in commit.commands]
    assert ("SET", local.keys().data("lamps", "order")) in names
    assert ("HSET", local.keys().active("op")) in names
    assert local.active("op") == [On(1)]


def test_an_error_leaves_nothing_of_the_batch_in_the_transaction(local: Local) -> None:
    """A caller who catches the refusal and goes on commits the rest, and nothing of that batch (semantics 10)."""
    local.executor.add_state_machines(machines("op", On(1)))

    def fn(tx: Transaction) -> str:
        tx.set("tried", "yes")
        tx.add_state_machines(machines("op", On(2)))
        try:
            tx.add_state_machines([*machines("op", On(3)), *machines("other", On(1)), *machines("op", On(1))])
        except StateAlreadyExists:
            return "refused"
        return "added"

    assert local.executor.autocommit(fn) == "refused"
    assert local.data("lamps", "tried") == b"yes"
    assert set(local.active("op")) == {On(1), On(2)}
    assert local.active("other") == []


def test_twice_in_one_transaction_is_a_duplicate(local: Local) -> None:
    """The same state in two calls within one transaction is a duplicate, too (semantics 8, 10)."""

    def fn(tx: Transaction) -> None:
        tx.add_state_machines(machines("op", On(1)))
        tx.add_state_machines(machines("op", On(1)))

    with pytest.raises(StateAlreadyExists):
        local.executor.autocommit(fn)
    assert local.everything() == {}


# --- races ------------------------------------------------------------------------------------------------------------


def test_of_two_concurrent_adds_the_one_that_commits_first_wins(local: Local, play: Play) -> None:
    """Both have found nothing; one commits, the other then finds it there, and adds nothing (semantics 11)."""
    other, added = play(lamps=lamps), list[str]()

    def meddle(_: Commit) -> None:
        if not added:
            added.extend(other.executor.add_state_machines(machines("op", On(1))))

    with local.before_commits(meddle), pytest.raises(StateAlreadyExists):
        local.executor.add_state_machines(machines("op", On(2), On(1)))
    ((_, there),) = local.executor.get_active_states("op")
    assert [there.machine_id] == added
    assert local.active("op") == [On(1)]


PRODUCER = """
import sys, redis
from smqueue import StateAlreadyExists, StateMachine
from tests.integration.test_adding import On, lamps
from tests.inprocess import Local
url, namespace, count = sys.argv[1:]
local = Local(url, namespace, {"lamps": lamps})
_ = local.executor.deployment.driver
print("ready", flush=True)
sys.stdin.readline()
for n in range(int(count)):
    try:
        print(n, *local.executor.add_state_machines([StateMachine("op", On(n)), StateMachine(f"op-{n}", On(n))]))
    except StateAlreadyExists:
        pass
"""


def test_of_many_producer_processes_exactly_one_adds_each_state(
    local: Local, server: EmbeddedServer, namespace: str
) -> None:
    """Three processes add the same states at once: each state is added by exactly one of them (semantics 11)."""
    count = 60
    command = [sys.executable, "-c", PRODUCER, server.url, namespace, str(count)]
    running = [
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    try:
        for process in running:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in running:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        answers = [process.communicate(timeout=60)[0].split("\n")[:-1] for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    added = {int(line.split()[0]): line.split()[1:] for lines in answers for line in lines}
    assert sum(map(len, answers)) == count == len(added)
    stored = {machine.state: value.machine_id for machine, value in local.executor.get_active_states("op")}
    assert stored == {On(n): ids[0] for n, ids in added.items()}


# --- a lost reply -----------------------------------------------------------------------------------------------------


@pytest.fixture
def shaky(play: Play, proxy: Proxy) -> Local:
    """A process behind the proxy; connected, so that only what a test does is hit."""
    local = play(lamps=lamps, url=proxy.url)
    local.executor.has_active_states("op")
    return local


Way = tuple[bytes, tuple[On, ...]]
WAYS = pytest.mark.parametrize("way", [(b"EVALSHA", (On(1),)), (b"EXEC", (On(1), On(2)))], ids=["script", "exec"])
"""What the request that adds holds, and what it adds: one that begins its operation, by a script, or two by EXEC."""


@pytest.fixture
def known(shaky: Local) -> None:
    """The server knows the script."""
    shaky.executor.add_state_machines(machines("known", On(1)))


def test_an_add_whose_reply_was_lost_is_not_denied(shaky: Local, proxy: Proxy) -> None:
    """The commit was applied, its reply lost: the call succeeds, with the stored ids, nothing twice (semantics 9)."""
    proxy.lose_replies(9)
    ids = shaky.executor.add_state_machines([*machines("op", On(1), On(2)), *machines("other", On(1))])
    assert proxy.lost == 1  # it looks, and commits no second time
    stored = {(m.operation_id, m.state): value.machine_id for m, value in shaky.executor.get_active_states()}
    assert stored == dict(zip([("op", On(1)), ("op", On(2)), ("other", On(1))], ids, strict=True))
    assert shaky.redis.llen(shaky.keys().history("op")) == 2


@WAYS
@pytest.mark.usefixtures("known")
def test_an_add_is_not_denied_although_its_machine_has_moved_on(
    shaky: Local, play: Play, proxy: Proxy, way: Way
) -> None:
    """The machine moves on before its producer, whose reply was lost, looks: its success stands (semantics 9)."""
    worker, moved = play(lamps=lamps), list[int]()

    def move_on(request: RoundTrip) -> None:
        if isinstance(request, Read) and proxy.lost and not moved:
            worker.executor.signal("op", broken)
            moved.append(worker.drain())

    proxy.lose_replies(1, to=way[0])
    with shaky.around_trips(before=move_on):
        machine, *_ = shaky.executor.add_state_machines(machines("op", *way[1]))
    assert moved == [1]
    ((_, past), (_, end)) = sorted(shaky.executor.get_inactive_states("op"), key=lambda pair: pair[1].step)
    assert past.machine_id == end.machine_id == machine


@WAYS
def test_a_lost_request_is_sent_again(shaky: Local, proxy: Proxy, way: Way) -> None:
    """The commit never reached the server: it is made again, once (semantics 9)."""
    proxy.lose_requests(1, holding=way[0])
    shaky.executor.add_state_machines(machines("op", *way[1]))
    assert proxy.lost == 1
    assert shaky.active("op") == list(way[1])


@WAYS
def test_anothers_add_is_not_taken_for_ones_own(shaky: Local, play: Play, proxy: Proxy, way: Way) -> None:
    """The commit was lost on its way, and another was first: that is a duplicate, not a success (semantics 11)."""
    other, added = play(lamps=lamps), list[str]()

    def first(request: RoundTrip) -> None:
        if isinstance(request, Read) and proxy.lost and not added:
            added.extend(other.executor.add_state_machines(machines("op", On(1))))

    proxy.lose_requests(1, holding=way[0])
    with shaky.around_trips(before=first), pytest.raises(StateAlreadyExists):
        shaky.executor.add_state_machines(machines("op", *way[1]))
    assert added


def test_a_server_that_stays_away_is_said_to(shaky: Local, proxy: Proxy) -> None:
    """No answer, time after time: the caller gets one typed error instead of a wait without end."""
    proxy.lose_requests(1_000, holding=b"HGET")
    with pytest.raises(StoreUnavailable):
        shaky.executor.add_state_machines(machines("op", On(1), On(2)))


def test_cut_connections_are_opened_again(shaky: Local, proxy: Proxy) -> None:
    """Connections that are cut between two calls cost the next call nothing but a new one."""
    for n in range(3):
        proxy.cut()
        shaky.executor.add_state_machines(machines("op", On(n)))
    assert set(shaky.active("op")) == {On(0), On(1), On(2)}


def test_the_last_attempt_may_lose_its_reply(shaky: Local, proxy: Proxy) -> None:
    """An autocommit with one attempt only, whose reply is lost, is recognised all the same (semantics 9)."""
    proxy.lose_replies(1)
    assert shaky.executor.autocommit(lambda tx: tx.incrby("n"), max_attempts=1) is None
    assert shaky.data("lamps", "n") == b"1"


@contextmanager
def arriving_late(shaky: Local, proxy: Proxy, trips: int, holding: bytes = b"EXEC") -> Iterator[None]:
    """A request is given up for lost, and reaches the server some trips later, or at the end."""
    left = iter(range(trips))

    def arrive(request: RoundTrip) -> None:
        if proxy.lost and next(left, None) is None:
            proxy.release()

    proxy.hold_requests(1, holding)
    with shaky.around_trips(before=arrive):
        yield
    proxy.release()


@pytest.mark.parametrize("trips", range(6))
def test_a_commit_that_arrives_late_is_not_made_twice(shaky: Local, proxy: Proxy, trips: int) -> None:
    """A commit given up for lost reaches the server some trips later: it counts once, not twice (semantics 9)."""
    with arriving_late(shaky, proxy, trips):
        assert shaky.executor.autocommit(lambda tx: tx.incrby("n"), max_attempts=1 + trips % 2) is None
    assert shaky.data("lamps", "n") == b"1"


@WAYS
@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("trips", range(6))
def test_an_add_that_arrives_late_is_not_denied(shaky: Local, proxy: Proxy, trips: int, way: Way) -> None:
    """An add given up for lost reaches the server some trips later: it succeeds, once (semantics 9, 11)."""
    with arriving_late(shaky, proxy, trips, way[0]):
        ids = shaky.executor.add_state_machines(machines("op", *way[1]))
    assert {there.machine_id for _, there in shaky.executor.get_active_states("op")} == set(ids)
    assert shaky.active("op") == list(way[1])


def test_lost_replies_are_no_conflicts(local: Local) -> None:
    """An error of the caller's function is raised, although the look before it was lost once (semantics 9)."""
    lost: list[int] = []

    def lose_one(request: RoundTrip) -> None:
        if isinstance(request, Read) and not lost:
            lost.append(1)
            raise LostReply

    def fn(tx: Transaction) -> None:
        raise KeyError(tx.get("nothing"))

    with local.around_trips(before=lose_one), pytest.raises(KeyError):
        local.executor.autocommit(fn)
    assert lost


# --- being told -------------------------------------------------------------------------------------------------------


def test_an_added_state_is_announced(local: Local) -> None:
    """Subscribers of the operation and of all operations are told of an added state (semantics 12)."""
    with local.executor.notifier.subscribe_all(timeout=5) as all_of_them:
        updates: Any = iter(all_of_them)
        (machine,) = local.executor.add_state_machines(machines("op", On(1)))
        told = next(updates)
        assert (told.operation_id, told.module, told.state, told.machine_id) == ("op", "lamps", On(1), machine)
        assert (told.step, told.terminal, told.won) == (1, False, None)
        second = local.executor.add_state_machines(machines("op", On(2)))
        assert [next(updates).machine_id] == second
    with local.executor.notifier.subscribe("op", timeout=0.2) as history:
        assert [(one.sequence, one.state) for one in history] == [(0, On(1)), (1, On(2))]


def test_a_waiting_subscriber_hears_of_an_add_at_once(local: Local) -> None:
    """A subscriber of an operation that does not exist yet hears of its first state when it is added (semantics 12)."""
    with local.executor.notifier.subscribe("op", timeout=5) as subscription:
        local.executor.add_state_machines(machines("op", On(1)))
        assert next(iter(subscription)).state == On(1)

"""What a process counts, and how it is added up: on a real server, or for nobody."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest
import redis

from smqueue.deployment import Deployment, Settings
from smqueue.embedded import EmbeddedServer
from smqueue.errors import StoreUnavailable
from smqueue.keys import Keys
from smqueue.protocols.claim import Claimed
from smqueue.roundtrip import Commit, LostReply, Read, Steps, commit, read
from smqueue.tallies import (
    COMMITS,
    CONFLICTS,
    DRAIN,
    HANDLER,
    HANDLER_FAILED,
    LATE,
    MARGIN,
    MOST,
    OUTCOME,
    Series,
    Tallies,
    parse_tallies,
)


@pytest.fixture
def deployment(server: EmbeddedServer, namespace: str) -> Deployment:
    return Deployment(lambda: Settings(server.url, namespace))


def summed(client: redis.Redis, keys: Keys) -> dict[str, list[Series]]:
    """What all processes have counted."""
    flat: list[bytes] = [part for pair in client.hgetall(keys.tallies).items() for part in pair]  # type: ignore
    return parse_tallies(flat)


def test_processes_are_added_up(deployment: Deployment, redis_client: redis.Redis) -> None:
    """What two processes count is added up in one hash, each thing once however often it is flushed; labels may hold
    anything."""
    keys = deployment.keys("any")
    both = [Tallies(deployment.driver, keys) for _ in range(2)]
    for tallies in both:
        tallies.count(COMMITS, "a b/é %", "moved")
        tallies.observe(HANDLER, 1_000, "m", "S", "t")
        tallies.observe(HANDLER, 1_001, "m", "S", "t")
        tallies.observe(HANDLER, 10**12, "m", "S", "t")
        for _ in range(3):
            tallies.flush()
    assert summed(redis_client, keys) == {
        "commits": [Series(("a b/é %", "moved"), {"": 2})],
        "handler": [Series(("m", "S", "t"), {"1000": 2, "2000": 2, "inf": 2, "sum": 2 * (2_001 + 10**12)})],
    }


def test_what_may_have_been_added_is_not_added_again(deployment: Deployment, redis_client: redis.Redis) -> None:
    """A batch whose answer was lost may have been applied: it is not sent again, and what comes after it is."""
    keys = deployment.keys("any")

    class Lossy:
        def run(self, steps: Steps[Any]) -> Any:
            deployment.driver.run(steps)
            raise StoreUnavailable("redis://…", "no answer")

    driver: Any = Lossy()
    tallies = Tallies(driver, keys)
    for _ in range(2):
        tallies.count(CONFLICTS)
        tallies.flush()
    assert summed(redis_client, keys)["conflicts"] == [Series((), {"": 2})]


def test_who_ends_waits_for_what_is_being_added(deployment: Deployment, redis_client: redis.Redis) -> None:
    """When a flush returns, what another thread had already taken is there, too: the process may end."""
    keys, taken, go = deployment.keys("any"), threading.Event(), threading.Event()

    class Held:
        def run(self, steps: Steps[Any]) -> Any:
            taken.set()
            go.wait(20)
            return deployment.driver.run(steps)

    driver: Any = Held()
    tallies = Tallies(driver, keys)
    tallies.count(COMMITS, "m", "moved")
    first, last = (threading.Thread(target=tallies.flush) for _ in range(2))
    first.start()
    assert taken.wait(20)
    last.start()
    last.join(0.2)  # enough to return, if it did not wait
    assert last.is_alive()
    go.set()
    last.join(20)
    assert summed(redis_client, keys)["commits"] == [Series(("m", "moved"), {"": 1})]
    first.join(20)


def test_a_forked_process_begins_at_zero(deployment: Deployment, redis_client: redis.Redis) -> None:
    """What a parent has counted is the parent's to tell: its children begin at zero."""
    tallies = Tallies(deployment.driver, deployment.keys("any"))
    tallies.count(CONFLICTS)
    if (child := os.fork()) == 0:
        try:
            tallies.flush()
            tallies.count(CONFLICTS)
            tallies.flush()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    tallies.flush()
    assert summed(redis_client, deployment.keys("any"))["conflicts"] == [Series((), {"": 2})]


def test_labels_are_bounded(deployment: Deployment, redis_client: redis.Redis) -> None:
    """A state whose errors have names without end has a hundred series, and one for all others, in which nothing is
    lost; other states are not affected."""
    keys = deployment.keys("any")
    tallies = Tallies(deployment.driver, keys)
    for n in range(1_000):
        tallies.count(HANDLER_FAILED, "m", "S", "t", f"Error{n}")
        tallies.flush() if n == 500 else None
    tallies.count(HANDLER_FAILED, "m", "T", "t", "Error")
    tallies.flush()
    found = summed(redis_client, keys)["handler_failed"]
    assert len([one for one in found if one.labels[1] == "S"]) == MOST + 1
    assert Series(("m", "S", "other", "other"), {"": 1_000 - MOST}) in found
    assert Series(("m", "T", "t", "Error"), {"": 1}) in found


def test_the_sums_of_all_processes_are_bounded(
    deployment: Deployment, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process has names of its own: once there are so many, new series are counted together, and nothing is lost;
    what is known goes on."""
    keys, most = deployment.keys("any"), 200
    monkeypatch.setattr("smqueue.tallies.KEPT", most)
    sizes: list[Any] = []
    for process in range(20):
        tallies = Tallies(deployment.driver, keys)
        for n in range(50):
            tallies.count(HANDLER_FAILED, "m", "S", "t", f"Error{process}/{n}")
            tallies.observe(HANDLER, n, "m", f"S{process}", "t")
        tallies.count(HANDLER_FAILED, "m", "S", "t", "Error0/0")
        tallies.flush()
        sizes.append(redis_client.hlen(keys.tallies))
    assert sizes[-1] == sizes[-5] < most + 100
    found = summed(redis_client, keys)
    failed = {one.labels: one.parts[""] for one in found["handler_failed"]}
    assert sum(failed.values()) == 20 * 51
    assert failed["m", "S", "t", "Error0/0"] == 21
    assert failed["other", "other", "other", "other"] > 500
    handled = {one.labels: one.parts for one in found["handler"]}
    assert handled["other", "other", "other"]["sum"] % sum(range(50)) == 0
    assert sum(parts["1000"] for parts in handled.values()) == 20 * 50


def test_what_an_exec_has_refused_is_counted() -> None:
    """A conflict is an EXEC that was refused: what a protocol returns and raises, its looks, its successes and lost
    replies are as without counting."""

    def protocol() -> Steps[str]:
        yield from read([], ("TIME",))
        while (yield from commit([("SET", "a", "1")])) is None:
            pass
        try:
            yield from read([], ("TIME",))
        except LostReply:
            return "lost"
        return "read"

    tallies = Tallies()
    steps = tallies.conflicts(protocol())
    assert isinstance(next(steps), Read)
    for reply in ([b"1"], None, None, None):
        assert isinstance(steps.send(reply), Commit)
    assert isinstance(steps.send([b"OK"]), Read)
    with pytest.raises(StopIteration) as ended:
        steps.throw(LostReply())
    assert ended.value.value == "lost"
    assert tallies._series["conflicts",] == [3]


@pytest.mark.parametrize(
    ("won", "armed", "told"),
    [
        ("paid", {"paid": "payment", "soon": 5_000, "later": 9_000}, {OUTCOME.name: 250_000, MARGIN.name: 4_000_000}),
        ("soon", {"paid": "payment", "soon": 1_000, "later": 9_000}, {LATE.name: 250_000, MARGIN.name: 8_000_000}),
        ("paid", {"paid": "payment"}, {OUTCOME.name: 250_000}),
    ],
)
def test_what_a_race_tells(won: str, armed: dict[str, Any], told: dict[str, int]) -> None:
    """Of a signal it is told how long it took from its arrival to the commit, of a deadline how late it was; and by how
    much the winner was before the next deadline."""
    machine: Any = type("M", (), {"armed": armed})
    placed: Any = type("P", (), {"module": "m", "type": type("T", (), {"name": "S"})})
    active: Any = None
    one = Claimed("entry", machine, active, placed, {}, won, "null", 1_000)
    tallies = Tallies()
    tallies.committed([(one, "moved")], claimed_us=1_200_000, elapsed_us=50_000)
    assert {name: series[-1] for (name, *_), series in tallies._series.items() if any(series)} == {
        "commits": 1, "commit": 50_000, **told,
    }  # fmt: skip


def test_a_drain_in_vain_is_counted() -> None:
    """Drains that found nothing have a bucket of their own: hints that were sent in vain."""
    tallies = Tallies()
    tallies.observe(DRAIN, 0)
    assert tallies._series["drain",][0] == 1

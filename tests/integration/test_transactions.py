"""What a transaction reads, writes, starts and sends: with its commit, or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import uuid4

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import smqueue.roundtrip
from smqueue import (
    CommitFailed,
    CrossShard,
    Delivery,
    InvalidInput,
    InvalidKey,
    InvalidPayload,
    Module,
    ReadAfterWrite,
    Retry,
    State,
    StateAlreadyExists,
    StateAlreadyTerminal,
    StateMachine,
    Transaction,
    UnknownModule,
    UnknownSignal,
    WrongKind,
    now,
)  # fmt: skip
from smqueue.drain import Drain
from smqueue.roundtrip import Commit
from tests.inprocess import Crash, Local, Play, machines
from tests.proxy import Proxy

notes = Module("notes", retry=Retry(max_attempts=2, base=timedelta(milliseconds=1)))


@dataclass(frozen=True)
class Amount:
    euros: int


go = notes.signal("go", str)
pay = notes.signal("pay", Amount)

steps: dict[str, Callable[[Transaction], object]] = {}
"""What the handler of ``Doing`` does, by the name that its signal carries."""


@notes.state
class Doing(State):
    n: int = 0


@notes.state
class Owing(State):
    n: int = 0


@notes.state(terminal=True)
class Done(State):
    n: int
    said: str


@notes.on(Doing, go)
def do(tx: Transaction, state: Doing, step: str) -> Done:
    return Done(state.n, str(steps[step](tx)))


@notes.on(Owing, pay)
def settle(tx: Transaction, state: Owing, amount: Amount) -> Done | None:
    tx.incrby("paid", amount.euros)
    tx.rpush("payments", amount.euros)
    return Done(state.n, "paid") if amount.euros else None


@pytest.fixture
def local(play: Play) -> Local:
    steps.clear()
    return play(notes=notes)


def in_handler(local: Local, step: Callable[[Transaction], object], op: str = "op") -> None:
    """Run a step in the handler of a machine of its own."""
    steps["step"] = step
    local.executor.add_state_machines(machines(op, Doing()))
    local.executor.signal(op, go, "step")
    stays = StateMachine(op, Doing())
    local.until(lambda: not local.executor.contains_active_state(stays) or quarantined(local, op))


def quarantined(local: Local, op: str = "op") -> str | None:
    """Why the machine of an operation was set aside."""
    return next((m.last_error for m in local.executor.explain(op).active if m.status == "quarantined"), None)


Runner = Callable[[Local, Callable[[Transaction], object]], None]


def in_autocommit(local: Local, step: Callable[[Transaction], object]) -> None:
    local.executor.autocommit(step)


both = pytest.mark.parametrize("run", [in_autocommit, in_handler], ids=["autocommit", "handler"])


# --- writes and reads -------------------------------------------------------------------------------------------------


def write_all(tx: Transaction) -> None:
    tx.set("text", "one")
    tx.set("bytes", b"\xff\x00")
    tx.set("number", 7)
    tx.set("gone", 1)
    tx.delete("gone")
    tx.incrby("count")
    tx.incrby("count", -3)
    tx.hset("hash", "a", "1")
    tx.hset("hash", {"b": "2"})
    tx.hset("hash", mapping={"c": 3})
    tx.hdel("hash", "a")
    tx.hincrby("hash", "n", 5)
    tx.sadd("set", "x", "y", b"z")
    tx.srem("set", "y")
    tx.zadd("zset", {"low": 1, "high": 2.5, "mid": 1.5})
    tx.zrem("zset", "mid")
    tx.rpush("list", "1", b"2", 3)
    tx.set("brief", "x")
    tx.expire("brief", timedelta(hours=1))
    tx.expire("count", 90)
    tx.set("over", "x")
    tx.expire("over", 0)


@both
def test_every_write_is_applied(local: Local, run: Runner) -> None:
    """Each kind of write does what the Redis command of its name does, under the module instance's keys."""
    run(local, write_all)
    r, k = cast("Any", local.redis), lambda name: local.keys().data("notes", name)
    assert [r.get(k(name)) for name in ("text", "bytes", "number", "gone", "over")] == [
        b"one",
        b"\xff\x00",
        b"7",
        None,
        None,
    ]
    assert r.get(k("count")) == b"-2"
    assert r.hgetall(k("hash")) == {b"b": b"2", b"c": b"3", b"n": b"5"}
    assert r.smembers(k("set")) == {b"x", b"z"}
    assert r.zrange(k("zset"), 0, -1, withscores=True) == [(b"low", 1.0), (b"high", 2.5)]
    assert r.lrange(k("list"), 0, -1) == [b"1", b"2", b"3"]
    assert 3_590_000 < r.pttl(k("brief")) <= 3_600_000
    assert 80_000 < r.pttl(k("count")) <= 90_000
    assert k("text") == f"{{{local.namespace}.0}}:data:notes:text"


@both
def test_every_read_gives_text(local: Local, run: Runner) -> None:
    """Reads give ``str``, ``None`` or containers of them; ``get_bytes`` gives what is stored, raw."""
    seen: list[object] = []

    def read_all(tx: Transaction) -> None:
        found = [
            tx.get("text"), tx.get("nothing"), tx.get_bytes("bytes"), tx.get_bytes("nothing"),
            tx.get_many(["text", "nothing", "number"]), tx.hget("hash", "b"), tx.hget("hash", "nothing"),
            tx.hgetall("hash"), tx.hgetall("nothing"), tx.exists("list"), tx.exists("nothing"), tx.smembers("set"),
            tx.smembers("nothing"), tx.sismember("set", "x"), tx.sismember("set", "y"), tx.zrange("zset"),
            tx.zrange("zset", 1), tx.zrange("zset", 0, 0), tx.zrange("nothing"),
        ]  # fmt: skip
        seen[:] = found

    local.executor.autocommit(write_all)
    run(local, read_all)
    assert seen == [
        "one", None, b"\xff\x00", None, ["one", None, "7"], "2", None, {"b": "2", "c": "3", "n": "5"}, {}, True, False,
        {"x", "z"}, set(), True, False, ["low", "high"], ["high"], ["low"], [],
    ]  # fmt: skip


def test_get_many_costs_one_round_trip(local: Local) -> None:
    """Any number of keys read by get_many cost one look."""
    looks: list[object] = []

    def fn(tx: Transaction) -> list[str | None]:
        looks.append(1)
        return tx.get_many([f"k{n}" for n in range(50)])

    assert local.executor.autocommit(fn) == [None] * 50
    assert len(looks) == 2


READS: dict[str, Callable[[Transaction], object]] = {
    "get": lambda tx: tx.get("k"),
    "get_bytes": lambda tx: tx.get_bytes("k"),
    "get_many": lambda tx: tx.get_many(["k", "other"]),
    "hget": lambda tx: tx.hget("k", "f"),
    "hgetall": lambda tx: tx.hgetall("k"),
    "exists": lambda tx: tx.exists("k"),
    "smembers": lambda tx: tx.smembers("k"),
    "sismember": lambda tx: tx.sismember("k", "f"),
    "zrange": lambda tx: tx.zrange("k"),
}
CHANGES: dict[str, Callable[[Any, str], object]] = {
    "get": lambda r, k: r.set(k, "new"), "get_bytes": lambda r, k: r.set(k, "new"),
    "get_many": lambda r, k: r.set(k, "new"),
    "hget": lambda r, k: r.hset(k, "f", "new"), "hgetall": lambda r, k: r.hset(k, "f", "new"),
    "exists": lambda r, k: r.set(k, "new"), "smembers": lambda r, k: r.sadd(k, "f"),
    "sismember": lambda r, k: r.sadd(k, "f"), "zrange": lambda r, k: r.zadd(k, {"f": 1}),
}  # fmt: skip


@both
@pytest.mark.parametrize("how", READS)
def test_reads_are_consistent_at_commit(local: Local, run: Runner, how: str) -> None:
    """Something that was read changes before the commit: the function runs again on the new value; only that counts."""
    seen: list[object] = []
    changed: list[int] = []

    def fn(tx: Transaction) -> None:
        seen.append(READS[how](tx))
        tx.rpush("committed", str(len(seen)))

    def meddle(commit: Commit) -> None:
        if not changed and any("committed" in str(command[1]) for command in commit.commands):
            changed.append(1)
            CHANGES[how](local.redis, local.keys().data("notes", "k"))

    with local.before_commits(meddle):
        run(local, fn)
    assert seen[0] in (None, [None, None], {}, False, set(), [])
    assert seen[1] in ("new", b"new", ["new", None], {"f": "new"}, True, {"f"}, ["f"])
    assert local.listed("notes", "committed") == [b"2"]


def test_shared_reads_are_consistent_at_commit(local: Local) -> None:
    """Keys outside, read by tx.shared, are watched too."""
    key, seen = f"outside-{uuid4().hex}", list[str | None]()

    def fn(tx: Transaction) -> None:
        seen.append(tx.shared.get(key))
        tx.set("k", "v")

    def meddle(_: Commit) -> None:
        if len(seen) == 1:
            local.redis.set(key, "new", ex=60)

    with local.before_commits(meddle):
        local.executor.autocommit(fn)
    assert seen == [None, "new"]
    local.redis.delete(key)


def test_concurrent_autocommits_lose_no_update(local: Local, play: Play) -> None:
    """Read, compute, write, from two processes in turn between each other's look and commit: no update is lost."""
    other = play(notes=notes)

    def double(tx: Transaction) -> int:
        value = int(tx.get("n") or 1) * 2
        tx.set("n", str(value))
        return value

    left = iter(range(5))
    with local.before_commits(lambda _: other.executor.autocommit(double) if next(left, None) is not None else None):
        for _ in range(5):
            local.executor.autocommit(double)
    assert local.data("notes", "n") == b"1024"


def test_handlers_of_one_group_lose_no_update(local: Local) -> None:
    """Thirty machines whose handlers read a value, add one and write it, drained together: it is thirty."""

    def count(tx: Transaction) -> None:
        tx.set("n", str(int(tx.get("n") or 0) + 1))

    steps["count"] = count
    ids = [f"op-{n}" for n in range(30)]
    local.executor.add_state_machines([StateMachine(op, Doing()) for op in ids])
    for op in ids:
        local.executor.signal(op, go, "count")
    local.run()
    assert local.data("notes", "n") == b"30"
    assert list(local.executor.get_active_operations()) == []


# --- a write that would fail ------------------------------------------------------------------------------------------

MAX = 2**63 - 1
FAILING: dict[str, tuple[Callable[[Any, str], object], Callable[[Transaction], object]]] = {
    "incrby of a list": (lambda r, k: r.rpush(k, "x"), lambda tx: tx.incrby("k")),
    "incrby of a text": (lambda r, k: r.set(k, "seven"), lambda tx: tx.incrby("k")),
    "incrby of a float": (lambda r, k: r.set(k, "1.5"), lambda tx: tx.incrby("k")),
    "incrby of a blank": (lambda r, k: r.set(k, ""), lambda tx: tx.incrby("k")),
    "incrby of a padded number": (lambda r, k: r.set(k, "007"), lambda tx: tx.incrby("k")),
    "incrby of two signs": (lambda r, k: r.set(k, "--5"), lambda tx: (tx.get("k"), tx.incrby("k"))),
    "incrby over the top": (lambda r, k: r.set(k, MAX), lambda tx: tx.incrby("k")),
    "incrby over the top, in two": (lambda r, k: r.set(k, MAX - 1), lambda tx: (tx.incrby("k"), tx.incrby("k"))),
    "incrby below the bottom": (lambda r, k: r.set(k, -MAX), lambda tx: tx.incrby("k", -2)),
    "incrby of 65 bits": (lambda r, k: r.set(k, 2**64), lambda tx: tx.incrby("k", -(2**63))),
    "incrby of what was read": (lambda r, k: r.set(k, "x"), lambda tx: (tx.get("k"), tx.incrby("k"))),
    "incrby of what was set": (lambda r, k: None, lambda tx: (tx.set("k", "x"), tx.incrby("k"))),
    "hincrby of a text": (lambda r, k: r.hset(k, "f", "x"), lambda tx: tx.hincrby("k", "f")),
    "hincrby over the top": (lambda r, k: r.hset(k, "f", MAX), lambda tx: tx.hincrby("k", "f")),
    "hincrby of what was set": (lambda r, k: None, lambda tx: (tx.hset("k", "f", "x"), tx.hincrby("k", "f"))),
    "hincrby of a string": (lambda r, k: r.set(k, "x"), lambda tx: tx.hincrby("k", "f")),
    "hset of a string": (lambda r, k: r.set(k, "x"), lambda tx: tx.hset("k", "f", "v")),
    "hdel of a set": (lambda r, k: r.sadd(k, "x"), lambda tx: tx.hdel("k", "f")),
    "sadd to a list": (lambda r, k: r.rpush(k, "x"), lambda tx: tx.sadd("k", "m")),
    "srem from a zset": (lambda r, k: r.zadd(k, {"x": 1}), lambda tx: tx.srem("k", "m")),
    "zadd to a set": (lambda r, k: r.sadd(k, "x"), lambda tx: tx.zadd("k", {"m": 1})),
    "zrem from a hash": (lambda r, k: r.hset(k, "f", "v"), lambda tx: tx.zrem("k", "m")),
    "rpush to a string": (lambda r, k: r.set(k, "x"), lambda tx: tx.rpush("k", "v")),
    "rpush to what was set": (lambda r, k: None, lambda tx: (tx.set("k", "x"), tx.rpush("k", "v"))),
    "get of a list": (lambda r, k: r.rpush(k, "x"), lambda tx: tx.get("k")),
    "hget of a string": (lambda r, k: r.set(k, "x"), lambda tx: tx.hget("k", "f")),
    "smembers of a string": (lambda r, k: r.set(k, "x"), lambda tx: tx.smembers("k")),
}


@both
@pytest.mark.parametrize("case", FAILING)
def test_a_write_that_would_fail_is_a_typed_error(local: Local, run: Runner, case: str) -> None:
    """What EXEC would refuse is the function's WrongKind, with command and key, and nothing is written."""
    prepare, fail = FAILING[case]
    key = local.keys().data("notes", "k")
    prepare(local.redis, key)
    before = local.redis.dump(key)

    def fn(tx: Transaction) -> None:
        tx.set("before", "x")
        fail(tx)
        tx.set("after", "x")

    if run is in_autocommit:
        with pytest.raises(WrongKind) as caught:
            run(local, fn)
        assert caught.value.key == key
        assert caught.value.command in case.upper()
    else:
        run(local, fn)
        assert (quarantined(local) or "").startswith("WrongKind: ")
        assert local.active("op") == [Doing()]
        assert local.inactive("op") == []
    assert (local.data("notes", "before"), local.data("notes", "after")) == (None, None)
    assert local.redis.dump(key) == before


WELL: dict[str, Callable[[Transaction], object]] = {
    "another type after delete": lambda tx: (tx.set("k", "x"), tx.delete("k"), tx.rpush("k", "v"), tx.delete("k")),
    "another type after expire(0)": lambda tx: (tx.hset("k", "f", "1"), tx.expire("k", 0), tx.incrby("k")),
    "a number after set": lambda tx: (tx.set("k", "x"), tx.set("k", 5), tx.incrby("k", -5)),
    "a field after hdel": lambda tx: (tx.hset("k", "f", "x"), tx.hdel("k", "f"), tx.hincrby("k", "f", 2)),
    "to the very top": lambda tx: (tx.set("k", MAX - 1), tx.incrby("k")),
    "up and down again": lambda tx: (tx.set("k", MAX), tx.incrby("k", -1), tx.incrby("k")),
    "nothing at all": lambda tx: (tx.sadd("k"), tx.rpush("k"), tx.hdel("k"), tx.zadd("k", {}), tx.hset("k", {})),
}


@pytest.mark.parametrize("case", WELL)
def test_a_write_that_would_succeed_is_not_refused(local: Local, case: str) -> None:
    """Writes that build on each other are judged by what EXEC will find, not by what is stored now."""
    local.executor.autocommit(WELL[case])


UNUSABLE: dict[str, tuple[type[Exception], Callable[[Any], object]]] = {
    "a float value": (InvalidInput, lambda tx: tx.set("k", 1.5)),
    "None as a value": (InvalidInput, lambda tx: tx.set("k", None)),
    "a bool as a value": (InvalidInput, lambda tx: tx.set("k", True)),
    "a list as a value": (InvalidInput, lambda tx: tx.rpush("k", ["x"])),
    "a lone surrogate as a value": (InvalidInput, lambda tx: tx.rpush("k", "\ud800")),
    "None as a field": (InvalidInput, lambda tx: tx.hdel("k", None)),
    "None as a field to read": (InvalidInput, lambda tx: tx.hget("k", None)),
    "None as a counter's field": (InvalidInput, lambda tx: tx.hincrby("k", None)),
    "None as a member": (InvalidInput, lambda tx: tx.sadd("k", None)),
    "None as a member to remove": (InvalidInput, lambda tx: tx.zrem("k", None)),
    "None as a ranked member": (InvalidInput, lambda tx: tx.zadd("k", {None: 1})),
    "a score that is no number": (InvalidInput, lambda tx: tx.zadd("k", {"m": "1"})),
    "a score without end": (InvalidInput, lambda tx: tx.zadd("k", {"m": float("inf")})),
    "a score that is not a number": (InvalidInput, lambda tx: tx.zadd("k", {"m": float("nan")})),
    "an amount that is no int": (InvalidInput, lambda tx: tx.incrby("k", 1.0)),
    "an amount of 65 bits": (InvalidInput, lambda tx: tx.incrby("k", 2**63)),
    "a rank that is no int": (InvalidInput, lambda tx: tx.zrange("k", None)),
    "a life that is no number": (InvalidInput, lambda tx: tx.expire("k", "1")),
    "a life without end": (InvalidInput, lambda tx: tx.expire("k", float("inf"))),
    "a life of 65 bits": (InvalidInput, lambda tx: tx.expire("k", 2**62)),
    "an empty key": (InvalidKey, lambda tx: tx.set("", "v")),
    "a key that is no text": (InvalidKey, lambda tx: tx.get(b"k")),
    "a lone surrogate in a key": (InvalidKey, lambda tx: tx.set("\ud800", "v")),
    "a lone surrogate in a shared key": (InvalidKey, lambda tx: tx.shared.set("\ud800", "v")),
    "an empty channel": (InvalidKey, lambda tx: tx.publish("", "v")),
    "a message that is no text": (InvalidInput, lambda tx: tx.publish("c", {})),
    "task arguments that are not JSON": (InvalidInput, lambda tx: tx.send_task("t", [object()])),
    "task options that are not JSON": (InvalidInput, lambda tx: tx.send_task("t", queue=object())),
}


@both
@pytest.mark.parametrize("case", UNUSABLE)
def test_what_cannot_be_written_is_refused_at_once(local: Local, run: Runner, case: str) -> None:
    """A value, field, member, score, life or key that Redis cannot take is a typed error at that line."""
    error, fail = UNUSABLE[case]
    raised: list[Exception] = []

    def fn(tx: Transaction) -> None:
        tx.set("before", "x")
        try:
            fail(tx)
        except Exception as caught:
            raised.append(caught)
            raise

    if run is in_autocommit:
        with pytest.raises(error):
            run(local, fn)
    else:
        run(local, fn)
        assert (quarantined(local) or "").startswith(f"{error.__name__}: ")
    assert all(type(one) is error for one in raised)
    assert local.data("notes", "before") is None


@pytest.mark.parametrize("looking", [True, False])
def test_members_of_one_group_are_checked_against_each_other(local: Local, looking: bool) -> None:
    """One machine makes a key a list, the next of the group increments it: that one fails alone, nothing is torn.
    After a look, and by a script."""
    steps["list"] = lambda tx: (looking and (tx.get("other"), tx.delete("k")), tx.rpush("k", "x"))
    steps["count"] = lambda tx: (looking and tx.get("other"), tx.incrby("k"), tx.incrby("sum"))
    if looking:
        local.redis.set(local.keys().data("notes", "k"), 5)
    local.executor.add_state_machines([*machines("a", Doing()), *machines("b", Doing())])
    local.executor.signal("a", go, "list")
    local.executor.signal("b", go, "count")
    local.due_in_order(*machines("a", Doing()), *machines("b", Doing()))
    local.until(lambda: quarantined(local, "b"))
    assert local.active("a") == []
    assert (quarantined(local, "b") or "").startswith("WrongKind: ")
    assert local.data("notes", "sum") is None


def test_counters_of_one_group_do_not_overflow_together(local: Local) -> None:
    """Two machines of one drain add one each to the last number but one: one fails, typed, and nothing is torn."""
    steps["count"] = lambda tx: tx.incrby("k")
    local.redis.set(local.keys().data("notes", "k"), MAX - 1)
    local.executor.add_state_machines([*machines("a", Doing()), *machines("b", Doing())])
    for op in ("a", "b"):
        local.executor.signal(op, go, "count")
    errors = local.until(
        lambda: [error for op in ("a", "b") if (error := quarantined(local, op))], "one of them is set aside"
    )
    assert [error.partition(":")[0] for error in errors] == ["WrongKind"]
    assert sum(local.executor.has_active_states(op) for op in ("a", "b")) == 1


# --- reads after writes -----------------------------------------------------------------------------------------------

KEYS, FIELDS = ("k", "l"), ("f", "g")
Step = tuple[str, tuple[Any, ...]]
texts = st.sampled_from(["x", "5", "-1", str(MAX)])


def _writes() -> st.SearchStrategy[Step]:
    key, field, amount = st.sampled_from(KEYS), st.sampled_from(FIELDS), st.integers(-2, 2)
    options: list[st.SearchStrategy[Step]] = [
        st.tuples(st.just(name), st.tuples(*given))
        for name, given in [
            ("set", (key, texts)), ("delete", (key,)), ("incrby", (key, amount)), ("hset", (key, field, texts)),
            ("hdel", (key, field)), ("hincrby", (key, field, amount)), ("sadd", (key, field)), ("srem", (key, field)),
            ("zadd", (key, st.fixed_dictionaries({"f": st.integers(0, 3)}))), ("zrem", (key, field)),
            ("rpush", (key, texts)), ("expire", (key, st.sampled_from([0, -1, 1000]))),
        ]
    ]  # fmt: skip
    return st.one_of(options)


def _reads() -> st.SearchStrategy[Step]:
    key, field = st.sampled_from(KEYS), st.sampled_from(FIELDS)
    options: list[st.SearchStrategy[Step]] = [
        st.tuples(st.just(name), st.tuples(*given))
        for name, given in [
            ("get", (key,)), ("get_bytes", (key,)), ("hget", (key, field)), ("hgetall", (key,)), ("exists", (key,)),
            ("smembers", (key,)), ("sismember", (key, field)), ("zrange", (key,)),
        ]
    ]  # fmt: skip
    return st.one_of(options)


def _directly(r: Any, key: str, step: Step) -> object:
    """The same command, at once; an error is a value."""
    name, (_, *rest) = step
    read: dict[str, Callable[[], object]] = {
        "get": lambda: _said(r.get(key)), "get_bytes": lambda: r.get(key), "hget": lambda: _said(r.hget(key, *rest)),
        "hgetall": lambda: {_said(f): _said(v) for f, v in r.hgetall(key).items()},
        "exists": lambda: bool(r.exists(key)),
        "smembers": lambda: {_said(m) for m in r.smembers(key)}, "sismember": lambda: bool(r.sismember(key, *rest)),
        "zrange": lambda: [_said(m) for m in r.zrange(key, 0, -1)],
        "expire": lambda: r.pexpire(key, rest[0] * 1000),
    }  # fmt: skip
    try:
        return read[name]() if name in read else getattr(r, name)(key, *rest)
    except redis.ResponseError as error:
        return error


def _said(raw: bytes | None) -> str | None:
    return None if raw is None else raw.decode()


WRITES = ("set", "delete", "incrby", "hset", "hdel", "hincrby", "sadd", "srem", "zadd", "zrem", "rpush", "expire")


def _emptied(r: Any, key: str, step: Step) -> bool:
    """Whether a removal has just taken the last part of a key."""
    return step[0] in {"hdel", "srem", "zrem"} and not r.exists(key)


@settings(
    max_examples=400, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(prepared=st.lists(_writes(), max_size=4), steps=st.lists(st.one_of(_writes(), _reads()), min_size=1, max_size=8))
def test_a_transaction_does_what_its_commands_do_one_by_one(
    local: Local, prepared: list[Step], steps: list[Step]
) -> None:
    """As in Redis itself, a read sees what was written before it, or is refused; it never gives a stale value. All is
    applied, or, when one command would fail, nothing."""
    r: Any = local.redis
    model = {key: local.keys().data("model", key) for key in KEYS}
    tested = {key: local.keys().data("notes", key) for key in KEYS}
    r.delete(*model.values(), *tested.values())
    for step in prepared:
        _directly(r, model[step[1][0]], step)
        _directly(r, tested[step[1][0]], step)
    before = {key: r.dump(tested[key]) for key in KEYS}
    expected: list[object] = []
    strict = (
        True  # a key that a removal has emptied keeps its type for the check: a later write of another may be refused
    )
    for step in steps:
        expected.append(_directly(r, model[step[1][0]], step))
        strict = strict and not _emptied(r, model[step[1][0]], step)
    fails = any(isinstance(answer, Exception) for answer in expected)

    def fn(tx: Transaction) -> str:
        for step, answer in zip(steps, expected, strict=True):
            try:
                got = getattr(tx, step[0])(*step[1])
            except ReadAfterWrite:
                return "refused"
            if step[0] in WRITES and isinstance(answer, Exception):
                return "doomed"  # what is read from here on is of no consequence
            if step[0] not in WRITES and got != answer:
                return f"{step} gave {got!r}, not {answer!r}"
        return "done"

    try:
        said = local.executor.autocommit(lambda tx: _raise_if_wrong(fn(tx)))
    except WrongKind:
        assert fails or not strict
        assert {key: r.dump(tested[key]) for key in KEYS} == before
        return
    assert said != "doomed"
    if said == "done":
        assert {key: r.dump(tested[key]) for key in KEYS} == {key: r.dump(model[key]) for key in KEYS}


def _raise_if_wrong(said: str) -> str:
    if said not in {"done", "refused", "doomed"}:
        raise AssertionError(said)
    return said


# --- keys -------------------------------------------------------------------------------------------------------------


def test_keys_are_the_module_instances_own(play: Play) -> None:
    """Each instance has its own keys; equal names in two do not meet, whatever their ids."""
    names = {"notes": "k", "notes:k": "k", "notes:": "k:k", "other": "k"}
    local = play(**dict.fromkeys(names, notes))
    for n, (module, key) in enumerate(names.items()):
        local.executor.autocommit(lambda tx, k=key, v=n: tx.set(k, v), module=module)
    for n, (module, key) in enumerate(names.items()):
        assert local.executor.autocommit(lambda tx, k=key: tx.get(k), module=module) == str(n)


def test_shared_reaches_keys_outside_but_not_smqueues_own(local: Local) -> None:
    """tx.shared takes a key's full name; smqueue's own records cannot be reached by it."""
    outside = f"outside-{uuid4().hex}"
    local.redis.set(outside, "1", ex=60)
    assert local.executor.autocommit(lambda tx: (tx.shared.get(outside), tx.shared.incrby(outside))[0]) == "1"
    assert local.redis.get(outside) == b"2"
    local.redis.delete(outside)
    for own in (local.keys().active("op"), local.keys().data("other", "k"), local.keys().schedule):
        with pytest.raises(InvalidKey):
            local.executor.autocommit(lambda tx, key=own: tx.shared.delete(key))


def test_without_a_module_only_shared_keys_can_be_used(play: Play) -> None:
    """With several modules and none named, a relative key says what to do; a module that is unknown is an error."""
    local = play(a=notes, b=notes)
    with pytest.raises(InvalidKey, match="module="):
        local.executor.autocommit(lambda tx: tx.set("k", "v"))
    with pytest.raises(UnknownModule):
        local.executor.autocommit(lambda tx: tx.set("k", "v"), module="c")
    assert local.executor.autocommit(lambda tx: tx.shared.get("no-such-key")) is None


NASTY = ["a:b", "a{b}c", "{x}", "100%", "%3A", "line\nfeed", "nul\0byte", "ключ", "🗝️", " ", "*", "é" * 3000, "\x7f\r\n"]


def test_keys_may_hold_anything(local: Local) -> None:
    """A key of any characters and length works in every read and write, and meets no other."""
    for n, key in enumerate(NASTY):
        local.executor.autocommit(lambda tx, k=key, v=n: (tx.set(k, v), tx.hset(k + "h", k, k), tx.sadd(k + "s", k)))
    for n, key in enumerate(NASTY):
        found = local.executor.autocommit(
            lambda tx, k=key: (tx.get(k), tx.hget(k + "h", k), tx.hgetall(k + "h"), tx.smembers(k + "s"))
        )
        assert found == (str(n), key, {key: key}, {key})
    prefix = f"{{{local.namespace}.0}}:data:notes:"
    stored = [key.decode() for key in local.everything() if key.startswith(prefix.encode())]
    assert len(stored) == 3 * len(NASTY)
    assert all(key.isascii() and key.isprintable() and " " not in key for key in stored)


# --- the clock --------------------------------------------------------------------------------------------------------


@both
def test_now_is_rediss_clock(local: Local, run: Runner) -> None:
    """tx.now() is Redis's clock in UTC, in a function that reads nothing else, too."""

    def clock() -> datetime:
        seconds, us = cast("tuple[int, int]", local.redis.time())
        return datetime.fromtimestamp(seconds, UTC) + timedelta(microseconds=us)

    seen: list[datetime] = []
    before = clock()
    run(local, lambda tx: seen.append(tx.now()))
    run_twice: list[datetime] = []
    if run is in_autocommit:
        run(local, lambda tx: (tx.get("k"), run_twice.append(tx.now())))
    assert all(before <= at <= clock() for at in [*seen, *run_twice])
    assert seen[0].tzinfo is UTC


# --- what takes effect with the commit --------------------------------------------------------------------------------


@contextmanager
def subscribed(local: Local, channel: str) -> Iterator[Callable[[], list[bytes]]]:
    with local.redis.pubsub() as pubsub:
        pubsub.subscribe(channel)
        assert cast("Any", pubsub.get_message(timeout=10))["type"] == "subscribe"

        def heard() -> list[bytes]:
            found: list[bytes] = []
            while (message := pubsub.get_message(timeout=0.1)) is not None:
                found.append(message["data"])
            return found

        yield heard


@both
def test_publish_takes_effect_with_the_commit(local: Local, run: Runner) -> None:
    """A message is published by the commit, once, whatever runs came before; not by a function that fails."""
    channel = f"channel-{uuid4().hex}"
    changed: list[int] = []

    def fn(tx: Transaction) -> None:
        tx.get("k")
        tx.publish(channel, "hello")

    def meddle(commit: Commit) -> None:
        if len(changed) < 3 and any(command[0] == "PUBLISH" and command[1] == channel for command in commit.commands):
            changed.append(1)
            local.redis.incr(local.keys().data("notes", "k"))

    def failing(tx: Transaction) -> None:
        tx.publish(channel, "no")
        raise ValueError

    with subscribed(local, channel) as heard:
        with local.before_commits(meddle):
            run(local, fn)
        with pytest.raises(ValueError):
            local.executor.autocommit(failing)
        assert heard() == [b"hello"]
    assert len(changed) == 3


@both
def test_a_task_is_sent_with_the_commit_or_not_at_all(local: Local, run: Runner) -> None:
    """send_task passes name, arguments and options on, once the commit is done; a function that fails sends nothing."""
    at = datetime(2030, 1, 1, tzinfo=UTC)

    def fn(tx: Transaction) -> None:
        tx.send_task("labels.print", args=["o", 1], kwargs={"copies": 2}, queue="printers", priority=3, eta=at)

    def failing(tx: Transaction) -> None:
        tx.send_task("no")
        raise ValueError

    with pytest.raises(ValueError):
        local.executor.autocommit(failing)
    run(local, fn)
    ((name, args, kwargs, task_id, options),) = local.sent.tasks
    assert (name, args, kwargs, options) == (
        "labels.print",
        ["o", 1],
        {"copies": 2},
        {"queue": "printers", "priority": 3, "eta": at.isoformat()},
    )
    assert task_id
    assert not local.redis.exists(local.keys().requests)


@both
def test_a_task_that_cannot_be_sent_is_sent_later_under_its_id(local: Local, run: Runner) -> None:
    """The broker is down at the commit: the task stays, with its id, and is sent once the broker is back."""
    local.sent.down = True
    run(local, lambda tx: tx.send_task("later", [1]))
    (stored,) = cast("list[bytes]", local.redis.lrange(local.keys().requests, 0, -1))
    local.requests_due()
    local.drain()
    assert local.sent.tasks == []
    local.sent.down = False
    local.requests_due()
    local.until(lambda: local.sent.tasks)
    assert [(name, args, task_id) for name, args, _, task_id, _ in local.sent.tasks] == [
        ("later", [1], json.loads(stored)["id"])
    ]
    local.requests_due()
    local.run()
    assert len(local.sent.tasks) == 1
    assert not local.redis.exists(local.keys().requests)


def test_a_task_sent_twice_has_one_id(local: Local, play: Play) -> None:
    """The worker dies between sending a task and noting it: another sends it again, under the same id."""

    def die(*given: Any) -> None:
        send(*given)
        raise Crash

    send = local.sent.send_task
    local.sent.send_task = die  # type: ignore[method-assign]
    with pytest.raises(Crash):
        local.executor.autocommit(lambda tx: tx.send_task("twice"))
    second = play(notes=notes)
    second.requests_due()
    second.until(lambda: second.sent.tasks)
    assert [task[3] for task in local.sent.tasks] == [task[3] for task in second.sent.tasks]


@both
def test_a_signal_is_delivered_right_after_the_commit(local: Local, run: Runner) -> None:
    """tx.signal reaches the machine that waits, once the commit is done; a function that fails signals nobody."""
    local.executor.add_state_machines(machines("debtor", Owing()))

    def failing(tx: Transaction) -> None:
        tx.signal("debtor", pay, Amount(1))
        raise ValueError

    with pytest.raises(ValueError):
        local.executor.autocommit(failing)
    run(local, lambda tx: tx.signal("debtor", pay, Amount(5)))
    local.settle("debtor")
    assert local.data("notes", "paid") == b"5"


@both
def test_a_signal_is_delivered_exactly_once_although_its_worker_dies(
    local: Local, play: Play, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process dies between commit and delivery; two others find the request: one signal arrives."""
    local.executor.add_state_machines(machines("debtor", Owing()))

    def die(*_: object) -> None:
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr("smqueue.relay.Relay.own", die)
        with pytest.raises(Crash):
            run(local, lambda tx: tx.signal("debtor", pay, Amount(0)))
    assert local.data("notes", "paid") is None
    two = [play(notes=notes), play(notes=notes)]
    two[0].requests_due()
    first = cast("list[bytes]", local.redis.lrange(local.keys().requests, 0, -1))
    drains = [Drain(p.engine.driver, p.keys(), p.instances, p.engine.leases, p.sent) for p in two]
    for drain in drains:  # both have read the list before either has done anything
        drain.relay.own(first)
        drain.run()
    two[0].requests_due()
    two[0].run()
    paid = cast("list[bytes]", local.listed("notes", "payments"))
    assert paid == [b"0"]
    assert not local.redis.exists(local.keys().requests)
    assert local.executor.explain("debtor").buffered == ()


def test_a_signal_to_nobody_yet_is_kept(local: Local) -> None:
    """A signal sent by a transaction before its operation starts is kept for it."""
    local.executor.autocommit(lambda tx: tx.signal("debtor", "pay", {"euros": 3}))
    local.executor.add_state_machines(machines("debtor", Owing()))
    local.run()
    assert local.data("notes", "paid") == b"3"


def test_a_signal_to_a_finished_operation_harms_nobody(local: Local) -> None:
    """A signal that comes too late is dropped; its sender has committed."""
    in_handler(local, lambda tx: None, "over")
    in_handler(local, lambda tx: (tx.signal(operation_id="over", signal=pay, payload=Amount(1)), tx.set("k", "v")))
    assert local.data("notes", "k") == b"v"
    assert not local.redis.exists(local.keys().requests)


def test_what_cannot_be_signalled_is_refused_at_once(local: Local) -> None:
    """An unknown signal, module or payload is an error where it is sent, and nothing is written."""
    wrong: list[tuple[type[Exception], Callable[[Any], object]]] = [
        (UnknownSignal, lambda tx: tx.signal("op", "nothing")),
        (UnknownModule, lambda tx: tx.signal("op", pay, Amount(1), module="nobody")),
        (InvalidPayload, lambda tx: tx.signal("op", pay, Amount("1"))),  # type: ignore[arg-type]
        (InvalidPayload, lambda tx: tx.signal("op", "pay", {"euros": 1.5})),
        (InvalidInput, lambda tx: tx.signal("", pay, Amount(1))),
    ]
    for error, signal in wrong:
        with pytest.raises(error):
            local.executor.autocommit(lambda tx, s=signal: (tx.set("k", "v"), s(tx)))
    assert local.everything() == {}


def test_machines_start_with_the_commit_of_a_handler(local: Local) -> None:
    """A handler's new machines are active with its transition; when it fails, there is none."""

    def start(tx: Transaction) -> None:
        tx.add_state_machines([*machines("op", Owing(1), Owing(2)), *machines("other", Owing(3))])

    in_handler(local, start)
    assert set(local.active("op")) == {Owing(1), Owing(2)}
    assert local.active("other") == [Owing(3)]

    def fail(tx: Transaction) -> None:
        start(tx)
        raise ValueError

    in_handler(local, fail, "failing")
    assert (quarantined(local, "failing") or "").startswith("StateAlreadyExists: ")


@pytest.mark.parametrize(
    ("error", "given"),
    [
        (StateAlreadyExists, StateMachine("there", Owing())),
        (StateAlreadyExists, StateMachine("op", Doing())),  # the very machine whose transition this is
        (StateAlreadyTerminal, StateMachine("new", Done(1, ""))),
        (UnknownModule, StateMachine("new", Owing(), "nobody")),
    ],
)
def test_a_handler_that_starts_what_cannot_be_started_fails(
    local: Local, error: type[Exception], given: StateMachine
) -> None:
    """The error of a spawned machine is the handler's: nothing of its transition is written (semantics 28)."""
    local.executor.add_state_machines(machines("there", Owing()))
    in_handler(local, lambda tx: (tx.set("k", "v"), tx.add_state_machines([*machines("new", Owing(7)), given])))
    assert (quarantined(local) or "").startswith(f"{error.__name__}: ")
    assert local.active("op") == [Doing()]
    assert local.active("new") == []
    assert local.data("notes", "k") is None


# --- autocommit -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2, 7, 100])
def test_conflicts_end_with_the_count_and_the_last_error(
    local: Local, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """autocommit runs its function max_attempts times, then reports the count and the last error (semantics 9)."""
    monkeypatch.setattr(smqueue.roundtrip, "uniform", lambda _low, _high: 0.0)
    runs: list[int] = []

    def fn(tx: Transaction) -> None:
        tx.get("k")
        runs.append(1)
        tx.set("l", "v")

    key = local.keys().data("notes", "k")
    with local.before_commits(lambda _: local.redis.incr(key)), pytest.raises(CommitFailed) as caught:
        local.executor.autocommit(fn, max_attempts=limit)
    assert (caught.value.attempts, caught.value.last_error) == (limit, "conflict")
    assert len(runs) == limit
    assert local.data("notes", "l") is None


def test_an_exception_counts_only_on_reads_that_held_still(local: Local) -> None:
    """A function that raises on a value which has changed meanwhile runs again; on one that has not, it is believed."""
    key, raised = local.keys().data("notes", "k"), list[str | None]()

    def fn(tx: Transaction) -> str:
        value = tx.get("k")
        if value != "good":
            if not raised:
                local.redis.set(key, "good")
            raised.append(value)
            raise ValueError(value)
        return value

    assert local.executor.autocommit(fn) == "good"
    assert raised == [None]
    local.redis.set(key, "bad")
    with pytest.raises(ValueError, match="bad"):
        local.executor.autocommit(fn)


def test_a_function_that_writes_nothing_leaves_nothing(local: Local) -> None:
    """Reading leaves no key behind, not even a marker."""
    assert local.executor.autocommit(lambda tx: tx.get("k")) is None
    assert local.everything() == {}


def test_users_except_exception_does_not_swallow_a_read(local: Local) -> None:
    """A function that catches every Exception around its reads still gets their values."""
    local.redis.set(local.keys().data("notes", "k"), "v")

    def fn(tx: Transaction) -> str | None:
        try:
            return tx.get("k")
        except Exception:
            return "swallowed"

    assert local.executor.autocommit(fn) == "v"


@pytest.mark.parametrize("trouble", ["lose_replies", "lose_requests"])
def test_a_lost_commit_is_made_once(play: Play, proxy: Proxy, trouble: str) -> None:
    """Whether its request or its reply is lost: the writes, the task and the signal of a commit happen once."""
    local = play(notes=notes, url=proxy.url)
    local.executor.add_state_machines(machines("debtor", Owing()))
    getattr(proxy, trouble)(1)

    def fn(tx: Transaction) -> str | None:
        before = tx.get("n")
        tx.incrby("n")
        tx.send_task("once")
        tx.signal("debtor", pay, Amount(0))
        return before

    assert local.executor.autocommit(fn) is None
    assert proxy.lost == 1
    local.run()
    assert local.data("notes", "n") == b"1"
    assert len(local.sent.tasks) == 1
    assert local.redis.llen(local.keys().data("notes", "payments")) == 1


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_a_transition_whose_reply_was_lost_is_made_once(play: Play, proxy: Proxy, lost: int) -> None:
    """A worker that loses the replies to its commits recognises them: writes happen once (semantics 5, 18)."""
    local, calm = play(notes=notes, url=proxy.url), play(notes=notes)
    ids = [f"op-{n}" for n in range(4)]
    calm.executor.add_state_machines([StateMachine(op, Owing()) for op in ids])
    for op in ids:
        calm.executor.signal(op, pay, Amount(1))
    local.executor.has_active_states("op")
    proxy.lose_replies(lost)
    local.until(lambda: not list(calm.executor.get_active_operations()))
    assert proxy.lost >= 1
    assert calm.data("notes", "paid") == b"4"
    for op in ids:
        assert calm.inactive(op) == [Owing(), Done(0, "paid")]


# --- shards -----------------------------------------------------------------------------------------------------------


def _apart(local: Local) -> tuple[str, str]:
    """Two operations that live in different shards."""
    names = [f"op-{n}" for n in range(50)]
    return names[0], next(name for name in names if local.keys(name).shard != local.keys(names[0]).shard)


def test_a_batch_that_spans_shards_is_refused(play: Play) -> None:
    """A batch over operations of different shards is CrossShard, and nothing of it is written."""
    local = play(notes=notes, shards=4)
    here, there = _apart(local)
    with pytest.raises(CrossShard):
        local.executor.add_state_machines([*machines(here, Owing()), *machines(there, Owing())])
    assert local.everything() == {}
    local.executor.add_state_machines(machines(here, Owing(1), Owing(2)))


def test_a_signal_to_another_shard_arrives_once(play: Play) -> None:
    """tx.signal to an operation of another shard travels by outbox, and is applied once."""
    local = play(notes=notes, shards=4)
    here, there = _apart(local)
    local.executor.add_state_machines(machines(there, Owing()))
    local.executor.autocommit(lambda tx: tx.signal(there, pay, Amount(5)), operation_id=here)
    local.settle(there)
    key = local.keys(there).data("notes", "payments")
    assert cast("Any", local.redis).lrange(key, 0, -1) == [b"5"]


def test_machines_for_another_shard_are_started_there(play: Play) -> None:
    """tx.add_state_machines for an operation of another shard travels by outbox, and is applied once."""
    local = play(notes=notes, shards=4)
    here, there = _apart(local)
    local.executor.autocommit(lambda tx: tx.add_state_machines(machines(there, Owing())), operation_id=here)
    local.until(lambda: local.active(there) == [Owing()], "the machine is active there", timeout_s=3)
    assert local.executor.signal(there, pay, Amount(1)) is Delivery.DELIVERED


def test_data_keys_are_per_shard(play: Play) -> None:
    """With several shards a data key belongs to the shard of the transaction's operation."""
    local = play(notes=notes, shards=4)
    here, there = _apart(local)
    local.executor.autocommit(lambda tx: tx.set("k", "here"), operation_id=here)
    assert local.executor.autocommit(lambda tx: tx.get("k"), operation_id=there) is None
    assert local.executor.autocommit(lambda tx: tx.get("k"), operation_id=here) == "here"


def test_a_signal_of_a_handler_means_its_own_instance(play: Play) -> None:
    """Where a module stands under two ids, a signal that a handler sends without naming one goes to its own."""
    local = play(left=notes, right=notes)
    steps["own"] = lambda tx: tx.signal("there", pay, Amount(7))
    local.executor.add_state_machines(
        [
            StateMachine("here", Doing(), "left"),
            StateMachine("there", Owing(), "left"),
            StateMachine("there", Owing(), "right"),
        ]
    )
    local.executor.signal("here", go, "own", module="left")
    local.run()
    local.until(lambda: local.executor.contains_inactive_state(StateMachine("there", Owing(), "left")), "it is paid")
    assert local.executor.contains_active_state(StateMachine("there", Owing(), "right"))


def test_two_of_one_group_that_make_one_key_of_two_kinds(play: Play) -> None:
    """Where one of a group makes a counter of a key that another is about to make a set, the second is refused before
    anything of it is written, as if they had come one after the other. (semantics 18)"""
    kinds = Module("two_kinds", retry=Retry(max_attempts=1))

    @kinds.state
    class Writing(State):
        n: int

    @kinds.state(terminal=True)
    class Wrote(State):
        n: int

    def write(tx: Transaction, state: Any, _: None) -> Any:
        if state.n == 1:
            tx.incrby("k")
        else:
            tx.sadd("k", "x")
        return Wrote(state.n)

    write.__annotations__ = {"tx": Transaction, "state": Writing, "_": None, "return": Wrote}
    kinds.on(Writing, now())(write)
    local = play(two_kinds=kinds)
    for n in (1, 2):
        local.add(f"op{n}", Writing(n))
    local.due_in_order(*[StateMachine(f"op{n}", Writing(n)) for n in (1, 2)])
    local.run()
    assert local.data("two_kinds", "k") == b"1"
    assert local.active("op2") == [Writing(2)]
    assert "WrongKind" in str(local.explained("op2").last_error)

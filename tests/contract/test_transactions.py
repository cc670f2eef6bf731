"""Reading and writing with ``autocommit`` and in handlers."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from smqueue import (
    CommitFailed,
    InvalidInput,
    InvalidKey,
    InvalidPayload,
    ReadAfterWrite,
    SmqueueError,
    StateAlreadyExists,
    StateMachine,
    Transaction,
    UnknownSignal,
    WrongKind,
)  # fmt: skip
from tests.contract.deployed import Deployed
from tests.contract.machines import End, Here, go

Do = Callable[[Callable[[Transaction], Any]], Any]


@pytest.fixture
def do(shop: Deployed, op: str) -> Do:
    """Run a function in a transaction of the module ``walk``."""
    return lambda fn: shop.executor.autocommit(fn, module="walk")


Act = Callable[[Transaction, str], Any]
WRITES: dict[str, tuple[Act, Act, Any]] = {
    "set": (lambda tx, k: tx.set(k, "é"), lambda tx, k: tx.get(k), "é"),
    "set bytes": (lambda tx, k: tx.set(k, b"\xff\0"), lambda tx, k: tx.get_bytes(k), b"\xff\0"),
    "delete": (lambda tx, k: (tx.set(k, 1), tx.delete(k)), lambda tx, k: tx.exists(k), False),
    "incrby": (lambda tx, k: (tx.incrby(k, 5), tx.incrby(k, -2)), lambda tx, k: tx.get(k), "3"),
    "hset": (lambda tx, k: tx.hset(k, {"a": 1, "b": 2}), lambda tx, k: tx.hgetall(k), {"a": "1", "b": "2"}),
    "hdel": (lambda tx, k: (tx.hset(k, {"a": 1, "b": 2}), tx.hdel(k, "a")), lambda tx, k: tx.hget(k, "a"), None),
    "hincrby": (lambda tx, k: tx.hincrby(k, "n", 7), lambda tx, k: tx.hget(k, "n"), "7"),
    "sadd": (lambda tx, k: tx.sadd(k, "x", "y"), lambda tx, k: tx.smembers(k), {"x", "y"}),
    "srem": (lambda tx, k: (tx.sadd(k, "x", "y"), tx.srem(k, "y")), lambda tx, k: tx.sismember(k, "y"), False),
    "zadd": (lambda tx, k: tx.zadd(k, {"b": 2, "a": 1}), lambda tx, k: tx.zrange(k), ["a", "b"]),
    "zrem": (lambda tx, k: (tx.zadd(k, {"b": 2, "a": 1}), tx.zrem(k, "b")), lambda tx, k: tx.zrange(k), ["a"]),
    "expire": (lambda tx, k: (tx.set(k, 1), tx.expire(k, 0)), lambda tx, k: tx.exists(k), False),
    "get_many": (lambda tx, k: tx.set(k, 1), lambda tx, k: tx.get_many([k, f"{k}/no"]), ["1", None]),
}


@pytest.mark.parametrize("what", WRITES)
def test_what_is_written_is_read(do: Do, op: str, what: str) -> None:
    """Each write is seen by a later transaction, as text."""
    write, read, expected = WRITES[what]
    do(lambda tx: write(tx, op))
    assert do(lambda tx: read(tx, op)) == expected


def test_the_result_is_what_the_function_returns(do: Do) -> None:
    """``autocommit`` returns what the function did."""
    assert do(lambda tx: {"any": ["thing"]}) == {"any": ["thing"]}


def test_a_read_sees_an_earlier_write(do: Do, op: str) -> None:
    """A key that was set is read as set; one whose value is known at commit only is ``ReadAfterWrite``."""

    def sees(tx: Transaction) -> str | None:
        tx.set(f"{op}/a", "new")
        return tx.get(f"{op}/a")

    def cannot(tx: Transaction) -> None:
        tx.rpush(f"{op}/b", 1)
        tx.exists(f"{op}/a")
        tx.incrby(f"{op}/c")
        tx.get(f"{op}/c")

    assert do(sees) == "new"
    with pytest.raises(ReadAfterWrite, match="%2Fc was written"):
        do(cannot)
    assert do(lambda tx: tx.exists(f"{op}/b")) is False


def test_an_error_of_the_function_writes_nothing(do: Do, op: str) -> None:
    """An exception is raised at once, and nothing is written. (semantics 9)"""
    runs: list[int] = []

    def fails(tx: Transaction) -> None:
        runs.append(1)
        tx.set(op, 1)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        do(fails)
    assert len(runs) == 1
    assert do(lambda tx: tx.exists(op)) is False


def test_conflicts_run_it_again(do: Do, op: str) -> None:
    """What was read has changed meanwhile: the function runs again, and no update is lost."""
    runs: list[str | None] = []

    def double(tx: Transaction) -> None:
        runs.append(read := tx.get(op))
        if len(runs) == 1:
            do(lambda tx: tx.set(op, 21))
        tx.set(op, 2 * int(read or 0))

    do(double)
    assert runs[-1] == "21"
    assert do(lambda tx: tx.get(op)) == "42"


def test_conflicts_end(shop: Deployed, do: Do, op: str) -> None:
    """After ``max_attempts`` conflicts: ``CommitFailed`` with their number; nothing is written. (semantics 9)"""

    def hopeless(tx: Transaction) -> None:
        tx.get(op)
        do(lambda tx: tx.incrby(op))
        tx.set(f"{op}/written", 1)

    with pytest.raises(CommitFailed) as caught:
        shop.executor.autocommit(hopeless, module="walk", max_attempts=3)
    assert caught.value.attempts == 3
    assert do(lambda tx: tx.exists(f"{op}/written")) is False


@pytest.mark.parametrize("held", ["a list", "a word"])
def test_a_write_that_would_fail(do: Do, op: str, held: str) -> None:
    """A write that Redis would refuse is a typed error, and nothing is written."""
    do(lambda tx: tx.rpush(op, 1) if held == "a list" else tx.set(op, "word"))

    def clashes(tx: Transaction) -> None:
        tx.set(f"{op}/other", 1)
        tx.incrby(op)

    with pytest.raises(WrongKind, match="INCRBY"):
        do(clashes)
    assert do(lambda tx: tx.exists(f"{op}/other")) is False


def test_keys_belong_to_the_instance(shop: Deployed, op: str) -> None:
    """Instances do not see each other's keys. (semantics 38)"""
    for module in ("left", "right", "walk"):
        shop.executor.autocommit(lambda tx, module=module: tx.set(op, module), module=module)
    assert [shop.read(module, op) for module in ("left", "right", "walk")] == ["left", "right", "walk"]


def test_shared_keys_are_outside(shop: Deployed, op: str) -> None:
    """``tx.shared`` is one space for all instances; smqueue's own records are out of its reach. (semantics 38)"""
    key = f"shared:{{{shop.namespace}.0}}:{op}"  # the tag: on a cluster all keys of a commit are in one slot
    shop.executor.autocommit(lambda tx: tx.shared.set(key, "seen"), module="left")
    assert shop.executor.autocommit(lambda tx: tx.shared.get(key), module="right") == "seen"
    shop.executor.autocommit(lambda tx: tx.shared.delete(key))
    with pytest.raises(InvalidKey):
        shop.executor.autocommit(lambda tx: tx.shared.delete(f"{{{shop.namespace}.0}}:schedule"))


def test_without_a_module_there_are_shared_keys_only(shop: Deployed, op: str) -> None:
    """Of several instances, ``autocommit`` must be told whose keys it means."""
    with pytest.raises(InvalidKey):
        shop.executor.autocommit(lambda tx: tx.set(op, 1))


def test_now_is_one_clock(shop: Deployed, do: Do, op: str) -> None:
    """``tx.now()`` is the clock of the records: aware, and between what is done before and after it. (semantics 22)"""
    shop.add(op, Here("a"))
    now: datetime = do(lambda tx: tx.now())
    shop.add(op, Here("b"))
    created = {machine.state: stands.created_at for machine, stands in shop.executor.get_active_states(op)}
    assert created[Here("a")] <= now <= created[Here("b")]
    assert now.tzinfo is UTC


def test_machines_start_with_the_commit(shop: Deployed, do: Do, op: str) -> None:
    """Machines are added with the caller's writes, or neither is. (semantics 10)"""

    def start(tx: Transaction, *names: str) -> None:
        tx.incrby(op)
        tx.add_state_machines([StateMachine(op, Here(name)) for name in names])

    do(lambda tx: start(tx, "a", "b"))
    with pytest.raises(StateAlreadyExists):
        do(lambda tx: start(tx, "c", "a"))
    assert shop.active(op) == [Here("a"), Here("b")]
    assert do(lambda tx: tx.get(op)) == "1"


def test_an_error_leaves_nothing_of_the_batch(shop: Deployed, do: Do, op: str) -> None:
    """A caller that goes on after a refused batch commits without any of it. (semantics 10)"""
    shop.add(op, Here("a"))

    def start(tx: Transaction) -> None:
        try:
            tx.add_state_machines([StateMachine(op, Here("b")), StateMachine(op, Here("a"))])
        except StateAlreadyExists:
            tx.set(op, "refused")

    do(start)
    assert do(lambda tx: tx.get(op)) == "refused"
    assert shop.active(op) == [Here("a")]


def test_a_signal_takes_effect_with_the_commit(shop: Deployed, do: Do, op: str) -> None:
    """``tx.signal`` is delivered with the commit, or not at all."""
    shop.add(op, Here("x"))

    def tells(tx: Transaction, fails: bool) -> None:
        tx.signal(op, go, "end failed" if fails else "end told")
        if fails:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        do(lambda tx: tells(tx, fails=True))
    do(lambda tx: tells(tx, fails=False))
    assert shop.ends(op) == [End("told")]


def test_a_task_is_sent_with_the_commit(shop: Deployed, do: Do, op: str) -> None:
    """``tx.send_task`` sends a Celery task with the commit, or not at all."""
    shop.add(op, Here("x"))

    def sends(tx: Transaction, to: str, fails: bool) -> None:
        tx.send_task("contract.ping", args=[to])
        if fails:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        do(lambda tx: sends(tx, f"{op}/failed", fails=True))
    do(lambda tx: sends(tx, op, fails=False))
    assert shop.ends(op) == [End("pinged")]
    assert not shop.executor.explain(f"{op}/failed").buffered


BAD: dict[str, tuple[Act, type[SmqueueError]]] = {
    "no such signal": (lambda tx, op: tx.signal(op, "nothing", 1, module="walk"), UnknownSignal),
    "a wrong payload": (lambda tx, op: tx.signal(op, "go", 1), InvalidPayload),
    "no JSON": (lambda tx, op: tx.send_task("contract.ping", args=[object()]), InvalidInput),
    "an empty key": (lambda tx, op: tx.set("", 1), InvalidInput),
    "no whole number": (lambda tx, op: tx.incrby(op, 1.5), InvalidInput),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
}


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_done_is_refused_at_once(do: Do, op: str, what: str) -> None:
    """Bad arguments are typed errors of the call that has them, and nothing is written."""
    does, error = BAD[what]

    def tries(tx: Transaction) -> None:
        tx.set(op, 1)
        does(tx, op)

    with pytest.raises(error):
        do(tries)
    assert do(lambda tx: tx.exists(op)) is False


# --- in handlers ---


def test_writes_commit_with_the_transition(shop: Deployed, op: str) -> None:
    """What a handler has written is there with its new state, once. (semantics 18)"""
    shop.add(op, Here("x"))
    shop.executor.signal(op, go, "here y")
    shop.executor.signal(op, go, "end z")
    assert shop.ends(op) == [End("z")]
    shop.executor.autocommit(lambda tx: tx.expire(f"log:{op}", 60), module="walk")  # a list, or this would be refused
    with pytest.raises(WrongKind):
        shop.executor.autocommit(lambda tx: tx.incrby(f"log:{op}"), module="walk")


@pytest.mark.parametrize("to", ["tell", "ping"])
def test_a_handler_reaches_others(shop: Deployed, op: str, to: str) -> None:
    """A handler's signals and tasks go out with its commit."""
    shop.add(op, Here("x"))
    shop.add(f"{op}/2", Here("x"))
    shop.executor.signal(op, go, f"{to} {op}/2")
    assert shop.ends(f"{op}/2") == [End("told" if to == "tell" else "pinged")]

"""The transaction's buffer: what it asks for, what it answers from what was written, and what it finds would fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from smqueue import InvalidKey, Module, ReadAfterWrite, State, StateMachine, Transaction, WrongKind, after
from smqueue.buffer import NeedRead
from smqueue.instances import Instance, Instances
from smqueue.keys import Keys
from smqueue.roundtrip import Command

keys = Keys("ns")
K = keys.data("m", "k")
module = Module("m")


@module.state
class Here(State):
    n: int


@module.state(terminal=True)
class There(State):
    pass


@module.on(Here, after(days=1))
def leave(tx: Transaction, state: Here, _: None) -> There:
    return There()


def transaction(known: dict[Command, Any] | None = None) -> Transaction:
    instances = Instances()
    instances.register(Instance("m", module, None, "here"))
    return Transaction(keys, instances, "m", known or {})


# --- asking -----------------------------------------------------------------------------------------------------------

ASKED: dict[str, tuple[Callable[[Transaction], object], Command]] = {
    "get": (lambda tx: tx.get("k"), ("GET", K)),
    "get_bytes": (lambda tx: tx.get_bytes("k"), ("GET", K)),
    "hget": (lambda tx: tx.hget("k", "f"), ("HGET", K, "f")),
    "hgetall": (lambda tx: tx.hgetall("k"), ("HGETALL", K)),
    "exists": (lambda tx: tx.exists("k"), ("EXISTS", K)),
    "smembers": (lambda tx: tx.smembers("k"), ("SMEMBERS", K)),
    "sismember": (lambda tx: tx.sismember("k", "m"), ("SISMEMBER", K, "m")),
    "zrange": (lambda tx: tx.zrange("k", 1, 5), ("ZRANGE", K, 1, 5)),
    "shared.get": (lambda tx: tx.shared.get("k"), ("GET", "k")),
}


@pytest.mark.parametrize("how", ASKED)
def test_a_read_that_is_not_known_is_asked_for_and_watched(how: str) -> None:
    """An unknown read names its command, and its key to watch; no ``except Exception`` of a handler can swallow it."""
    read, command = ASKED[how]
    with pytest.raises(NeedRead) as asked:
        read(transaction())
    assert asked.value.commands == (command,)
    assert asked.value.watch == (command[1],)
    assert not isinstance(asked.value, Exception)


def test_several_reads_are_asked_for_at_once() -> None:
    """get_many asks for all keys that are not known, and for nothing that was written."""
    tx = transaction({("GET", keys.data("m", "a")): b"1"})
    tx.set("c", "3")
    with pytest.raises(NeedRead) as asked:
        tx.get_many(["a", "b", "c", "d"])
    assert [command[1] for command in asked.value.commands] == [keys.data("m", "b"), keys.data("m", "d")]


def test_the_clock_is_asked_for_without_a_watch() -> None:
    """now() asks for Redis's time, and watches nothing for it."""
    with pytest.raises(NeedRead) as asked:
        transaction().now()
    assert (asked.value.commands, asked.value.watch) == ((("TIME",),), ())
    assert transaction({("TIME",): [b"1000000000", b"000001"]}).now().isoformat() == "2001-09-09T01:46:40.000001+00:00"


def test_new_machines_are_looked_for_with_their_guards() -> None:
    """Adding asks where each record stands, and watches its guard, present or not."""
    with pytest.raises(NeedRead) as asked:
        transaction().add_state_machines([StateMachine("op", Here(1)), StateMachine("op", Here(2))])
    watched = [key for key in asked.value.watch if key.startswith(keys.machine_prefix)]
    assert len(watched) == 2
    assert sum(command[0] == "HGET" and command[1] == keys.active("op") for command in asked.value.commands) == 2


# --- answering from what was written ----------------------------------------------------------------------------------

SEEN: dict[str, tuple[Callable[[Transaction], object], object]] = {
    "set, get": (lambda tx: (tx.set("k", 5), tx.get("k")), "5"),
    "set, exists": (lambda tx: (tx.set("k", 5), tx.exists("k")), True),
    "delete, get": (lambda tx: (tx.delete("k"), tx.get("k")), None),
    "delete, exists": (lambda tx: (tx.delete("k"), tx.exists("k")), False),
    "delete, hgetall": (lambda tx: (tx.delete("k"), tx.hgetall("k")), {}),
    "delete, sismember": (lambda tx: (tx.delete("k"), tx.sismember("k", "m")), False),
    "delete, smembers": (lambda tx: (tx.delete("k"), tx.smembers("k")), set()),
    "delete, incrby, get": (lambda tx: (tx.delete("k"), tx.incrby("k", 3), tx.get("k")), "3"),
    "set, incrby, get": (lambda tx: (tx.set("k", "5"), tx.incrby("k", -7), tx.get("k")), "-2"),
    "hset, hget": (lambda tx: (tx.hset("k", "f", b"v"), tx.hget("k", "f")), "v"),
    "hset, hdel, hget": (lambda tx: (tx.hset("k", "f", "v"), tx.hdel("k", "f"), tx.hget("k", "f")), None),
    "hset a number, hget": (lambda tx: (tx.hset("k", "1", 2), tx.hget("k", "1")), "2"),
    "sadd, sismember": (lambda tx: (tx.sadd("k", "m"), tx.sismember("k", "m")), True),
    "srem, sismember": (lambda tx: (tx.srem("k", "m"), tx.sismember("k", "m")), False),
    "sadd a number, sismember": (lambda tx: (tx.sadd("k", 7), tx.sismember("k", "7")), True),
    "expire at once, get": (lambda tx: (tx.set("k", "v"), tx.expire("k", 0), tx.get("k")), None),
    "expire at once, hget": (lambda tx: (tx.hset("k", "f", "v"), tx.expire("k", -1), tx.hget("k", "f")), None),
    "expire later, get": (lambda tx: (tx.set("k", "v"), tx.expire("k", 60), tx.get("k")), "v"),
    "publish, get": (lambda tx: (tx.set("k", "v"), tx.publish("c", "x"), tx.get("k")), "v"),
}


@pytest.mark.parametrize("case", SEEN)
def test_a_read_sees_what_was_written_before_it(case: str) -> None:
    """What is certain of a key after the writes so far is answered at once."""
    steps, answer = SEEN[case]
    done: Any = steps(transaction())
    assert done[-1] == answer


REFUSED: dict[str, Callable[[Transaction], object]] = {
    "incrby of what is not known": lambda tx: (tx.incrby("k"), tx.get("k")),
    "hincrby": lambda tx: (tx.hincrby("k", "f"), tx.hget("k", "f")),
    "hincrby of what was set": lambda tx: (tx.hset("k", "f", 1), tx.hincrby("k", "f"), tx.hget("k", "f")),
    "hset, then the whole": lambda tx: (tx.hset("k", "f", 1), tx.hgetall("k")),
    "hset, then exists": lambda tx: (tx.hset("k", "f", 1), tx.exists("k")),
    "hdel, then exists": lambda tx: (tx.hdel("k", "f"), tx.exists("k")),
    "sadd, then the whole": lambda tx: (tx.sadd("k", "m"), tx.smembers("k")),
    "sadd, then hget": lambda tx: (tx.sadd("k", "m"), tx.hget("k", "m")),
    "hset, then sismember": lambda tx: (tx.hset("k", "f", 1), tx.sismember("k", "f")),
    "zadd": lambda tx: (tx.zadd("k", {"m": 1}), tx.zrange("k")),
    "rpush, then get": lambda tx: (tx.rpush("k", "v"), tx.get("k")),
    "rpush, then exists": lambda tx: (tx.delete("k"), tx.rpush("k", "v"), tx.exists("k")),
    "set, then hget": lambda tx: (tx.set("k", "v"), tx.hget("k", "f")),
    "set, then the whole": lambda tx: (tx.set("k", "v"), tx.hgetall("k")),
    "delete and hset, then the whole": lambda tx: (tx.delete("k"), tx.hset("k", "f", 1), tx.hgetall("k")),
    "written by one name, read by another": lambda tx: (tx.incrby("k"), tx.get_many(["k"])),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_read_whose_answer_is_open_is_refused(case: str) -> None:
    """What is known only at commit is ReadAfterWrite, naming the key; never the value from before."""
    stored: dict[Command, Any] = {
        ("HGET", K, "f"): b"stale", ("HGET", K, "m"): b"stale", ("EXISTS", K): 0,
        ("HGETALL", K): [], ("SMEMBERS", K): [], ("SISMEMBER", K, "f"): 0, ("ZRANGE", K, 0, -1): [],
    }  # fmt: skip
    with pytest.raises(ReadAfterWrite) as caught:
        REFUSED[case](transaction(stored))
    assert caught.value.key == K


def test_another_key_is_not_affected() -> None:
    """A write to one key leaves reads of others, and of other parts of a hash or set, as they were."""
    tx = transaction({("HGET", K, "g"): b"2", ("SISMEMBER", keys.data("m", "s"), "y"): 1, ("GET", "k"): b"outside"})
    tx.hset("k", "f", "1")
    tx.sadd("s", "x")
    tx.set("other", "x")
    assert (tx.hget("k", "g"), tx.sismember("s", "y"), tx.shared.get("k")) == ("2", True, "outside")


def test_members_that_are_no_text_are_kept_apart() -> None:
    """Bytes that decode to nothing do not stand for one another."""
    tx = transaction({("SISMEMBER", K, "\ufffd"): 0})
    tx.sadd("k", b"\xff")
    assert tx.sismember("k", "\ufffd") is False


# --- what would fail --------------------------------------------------------------------------------------------------


def verified(tx: Transaction, **replies: Any) -> None:
    """Check the writes against what is stored: ``TYPE`` of the key, its value, its field."""
    kind = {"TYPE": b"none", "GET": None, "HGET": None, **replies}
    tx.buffer.verify({command: kind[str(command[0])] for command in tx.buffer.checks()})


@pytest.mark.parametrize(
    ("write", "kind"),
    [
        (lambda tx: tx.incrby("k"), "string"), (lambda tx: tx.hset("k", "f", 1), "hash"),
        (lambda tx: tx.hdel("k", "f"), "hash"), (lambda tx: tx.hincrby("k", "f"), "hash"),
        (lambda tx: tx.sadd("k", "m"), "set"), (lambda tx: tx.srem("k", "m"), "set"),
        (lambda tx: tx.zadd("k", {"m": 1}), "zset"), (lambda tx: tx.zrem("k", "m"), "zset"),
        (lambda tx: tx.rpush("k", "v"), "list"),
    ],
)  # fmt: skip
def test_a_write_fits_one_kind_of_key_only(write: Callable[[Transaction], object], kind: str) -> None:
    """Each write is checked against the type stored: its own and no key at all are fine, any other is WrongKind."""
    for stored in ("none", "string", "hash", "set", "zset", "list", "stream"):
        tx = transaction()
        write(tx)
        if stored in {"none", kind}:
            verified(tx, TYPE=stored.encode())
        else:
            with pytest.raises(WrongKind) as caught:
                verified(tx, TYPE=stored.encode())
            assert (caught.value.key, caught.value.found) == (K, f"a {stored}")


@pytest.mark.parametrize(
    "stored", [b"", b"x", b"1.0", b"+1", b"-0", b"01", b" 1", b"--1", b"9223372036854775808", b"1\n"]
)
def test_only_whole_numbers_of_64_bits_are_counted_on(stored: bytes) -> None:
    """What INCRBY and HINCRBY would refuse to add to is WrongKind."""
    for write, replies in [
        (lambda tx: tx.incrby("k"), {"TYPE": b"string", "GET": stored}),
        (lambda tx: tx.hincrby("k", "f"), {"TYPE": b"hash", "HGET": stored}),
    ]:
        tx = transaction()
        write(tx)
        with pytest.raises(WrongKind, match="64-bit integer"):
            verified(tx, **replies)


def test_sums_are_followed_through_the_transaction() -> None:
    """Increments add up: the one that leaves 64 bits is refused, though each alone would fit."""
    tx = transaction()
    tx.incrby("k", 2**62)
    verified(tx, TYPE=b"string", GET=b"1")
    tx.incrby("k", 2**62)
    with pytest.raises(WrongKind, match="64 bits"):
        verified(tx, TYPE=b"string", GET=b"1")


def test_reads_that_fail_are_typed() -> None:
    """An error reply to a read is WrongKind, with command and key."""
    with pytest.raises(WrongKind) as caught:
        transaction({("GET", K): ValueError("WRONGTYPE")}).get("k")
    assert (caught.value.command, caught.value.key) == ("GET", K)


# --- names ------------------------------------------------------------------------------------------------------------


def test_keys_of_smqueue_are_out_of_reach() -> None:
    """Neither a relative nor a shared key can name one of smqueue's records."""
    tx = transaction()
    tx.set("x}:active:op", "v")
    assert tx.buffer.writes[-1][1] == "{ns.0}:data:m:x%7D%3Aactive%3Aop"
    for own in (keys.active("op"), keys.schedule, keys.data("other", "k"), Keys("ns", 3).schedule):
        with pytest.raises(InvalidKey):
            tx.shared.set(own, "v")
    tx.shared.set("{nsx.0}:active:op", "v")


def test_a_request_has_an_id_and_no_effect_yet() -> None:
    """Signals and tasks are kept as requests, each with an id of its own; the writes hold nothing of them."""
    tx = transaction()
    tx.send_task("a", [1], {"k": 2}, queue="q")
    tx.send_task("a", [1], {"k": 2}, queue="q")
    assert [(one["kind"], one["name"], one["args"], one["kwargs"], one["options"]) for one in tx.requests] == [
        ("task", "a", [1], {"k": 2}, {"queue": "q"})
    ] * 2
    assert tx.requests[0]["id"] != tx.requests[1]["id"]
    assert tx.buffer.writes == []

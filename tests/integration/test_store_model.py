"""The model of Redis in memory answers as a real server does: what is shown on it holds for what runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smqueue.drivers.scripts import script
from smqueue.embedded import EmbeddedServer
from smqueue.testing.store import Store
from smqueue.testing.values import ReplyError

KEYS = st.sampled_from(["a", "b", "c"])
PARTS = st.sampled_from(["x", "y", "z", "1", "-7", "9223372036854775807", "é", ""])
NUMBERS = st.integers(-3, 3)
RANKS = st.sampled_from([-4, -2, -1, 0, 1, 2, 9])
BOUNDS = st.sampled_from(["-inf", "+inf", "0", "1", "(1", "2.5", "(-1"])
SCORES = st.sampled_from([0, 1, 1.5, -2, 1_767_225_600_123, 1e300])


def _command(name: str, *parts: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    """A command with these arguments; a list among them stands for several."""

    def flat(given: tuple[Any, ...]) -> tuple[Any, ...]:
        return (name, *[one for part in given for one in (part if isinstance(part, list) else [part])])

    return st.tuples(*parts).map(flat)


SOME = st.lists(PARTS, min_size=1, max_size=3)
PAIRS = st.lists(st.tuples(PARTS, PARTS), min_size=1, max_size=3).map(
    lambda pairs: [one for pair in pairs for one in pair]
)
SCORED = st.lists(st.tuples(SCORES, PARTS), min_size=1, max_size=3).map(lambda pairs: [one for p in pairs for one in p])
FLAGS = st.sampled_from([[], ["NX"], ["XX"], ["LT"], ["GT"], ["XX", "GT"], ["CH"]])
COMMANDS = st.one_of(
    _command("GET", KEYS), _command("MGET", st.lists(KEYS, min_size=1, max_size=3)),
    _command("SET", KEYS, PARTS), _command("SET", KEYS, PARTS, st.sampled_from(["NX", "XX"])),
    _command("SET", KEYS, PARTS, st.just(["NX", "PX", 3_600_000])),
    _command("SET", KEYS, PARTS, st.just(["EX", 3_600])),
    _command("DEL", st.lists(KEYS, min_size=1, max_size=3)), _command("UNLINK", KEYS), _command("TYPE", KEYS),
    _command("EXISTS", st.lists(KEYS, min_size=1, max_size=3)), _command("INCRBY", KEYS, st.integers(-9, 9)),
    _command("EXPIRE", KEYS, st.just(3_600)), _command("PEXPIRE", KEYS, st.just(3_600_000)),
    _command("HSET", KEYS, PAIRS), _command("HSETNX", KEYS, PARTS, PARTS), _command("HDEL", KEYS, SOME),
    _command("HGET", KEYS, PARTS), _command("HMGET", KEYS, SOME), _command("HEXISTS", KEYS, PARTS),
    _command("HLEN", KEYS), _command("HINCRBY", KEYS, PARTS, NUMBERS),
    _command("RPUSH", KEYS, SOME), _command("LPUSH", KEYS, SOME), _command("LPOP", KEYS), _command("LLEN", KEYS),
    _command("LINDEX", KEYS, RANKS), _command("LRANGE", KEYS, RANKS, RANKS), _command("LPOS", KEYS, PARTS),
    _command("LPOS", KEYS, PARTS, st.just("RANK"), st.sampled_from([-2, -1, 1, 2])),
    _command("LREM", KEYS, st.integers(0, 2), PARTS),
    _command("SADD", KEYS, SOME), _command("SREM", KEYS, SOME), _command("SISMEMBER", KEYS, PARTS),
    _command("SCARD", KEYS),
    _command("ZADD", KEYS, FLAGS, SCORED), _command("ZREM", KEYS, SOME), _command("ZSCORE", KEYS, PARTS),
    _command("ZCARD", KEYS), _command("ZCOUNT", KEYS, BOUNDS, BOUNDS), _command("ZRANGE", KEYS, RANKS, RANKS),
    _command("ZRANGE", KEYS, RANKS, RANKS, st.just("WITHSCORES")),
    _command("ZRANGE", KEYS, BOUNDS, BOUNDS, st.just(["BYSCORE", "LIMIT", 0, 2])),
    _command("ZRANGE", KEYS, BOUNDS, BOUNDS, st.just(["BYSCORE"])),
    _command("ZREMRANGEBYRANK", KEYS, RANKS, RANKS), _command("PUBLISH", st.just("bell"), PARTS),
)  # fmt: skip
UNORDERED = st.one_of(
    _command("HGETALL", KEYS), _command("HKEYS", KEYS), _command("SMEMBERS", KEYS),
    _command("HSCAN", KEYS, st.just(["0", "COUNT", 100])), _command("SSCAN", KEYS, st.just(["0", "COUNT", 100])),
    _command("ZSCAN", KEYS, st.just(["0", "COUNT", 100])),
)  # fmt: skip


@pytest.fixture
def real(server: EmbeddedServer, namespace: str, redis_client: redis.Redis) -> Iterator[Any]:
    with redis.Redis.from_url(server.url, protocol=2, socket_timeout=10) as client:
        yield Real(client.connection_pool.get_connection(), f"{{{namespace}.0}}:data:m:")


class Real:
    """A real server, with keys of one namespace only."""

    def __init__(self, connection: Any, prefix: str) -> None:
        self.connection, self.prefix = connection, prefix

    def do(self, *command: Any) -> Any:
        self.connection.send_command(*command)
        try:
            return self.connection.read_response(disable_decoding=True)
        except redis.ResponseError as error:
            return error

    def named(self, command: tuple[Any, ...]) -> tuple[Any, ...]:
        several = {"DEL", "UNLINK", "EXISTS", "MGET"}
        at = len(command) if command[0] in several else 2
        return (command[0], *[f"{self.prefix}{key}" for key in command[1:at]], *command[at:])


def same(reply: Any) -> Any:
    """A reply, so that two can be compared: of an error, what kind it is."""
    if isinstance(reply, Exception):
        return "WRONGTYPE" if "WRONGTYPE" in str(reply) or "wrong kind" in str(reply) else "ERR"
    return reply


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(commands=st.lists(st.one_of(COMMANDS, UNORDERED), min_size=1, max_size=25))
def test_every_command_answers_as_a_server_does(real: Real, commands: list[tuple[Any, ...]]) -> None:
    """Any sequence of the commands that smqueue uses gets, one by one, the same replies from the model."""
    real.do("DEL", *[f"{real.prefix}{key}" for key in "abc"])
    model = Store()
    for command in commands:
        there, here = same(real.do(*real.named(command))), same(model.do(*real.named(command)))
        if command[0] in {"HGETALL", "HKEYS", "SMEMBERS", "HSCAN", "SSCAN", "ZSCAN"}:
            there, here = _sorted(there), _sorted(here)
        assert here == there, command


def _sorted(reply: Any) -> Any:
    if not isinstance(reply, list):
        return reply
    return sorted(map(repr, _sorted_cells(reply)))


def _sorted_cells(reply: list[Any]) -> list[Any]:
    return [sorted(cell) if isinstance(cell, list) else cell for cell in reply]


def test_values_pass_through_lua_as_they_do_in_a_server(real: Real) -> None:
    """Nil, numbers, statuses, errors and nested tables cross between a script and its store as in Redis."""
    body = """
        redis.call('SET', KEYS[1], 3)
        local status = redis.call('SET', KEYS[1], ARGV[1])
        local none = redis.call('GET', KEYS[2])
        local wrong = redis.pcall('HGET', KEYS[1], 'f')
        local ok, decoded = pcall(cjson.decode, ARGV[2])
        local bad = pcall(cjson.decode, '{')
        return {status.ok, none, wrong.err and 1, ok, decoded[1], decoded[2].a, bad, 2.9, {1, {}, 'x'}, #decoded, nil}
    """
    command = ("EVAL", body, 2, f"{real.prefix}a", f"{real.prefix}b", "v", '["é",{"a":7}]')
    real.do("DEL", f"{real.prefix}a")
    assert Store().do(*command) == real.do(*command)


def test_an_error_in_a_script_is_an_error_reply(real: Real) -> None:
    """A script that fails answers with an error, and what it wrote before stands."""
    body = "redis.call('SET', KEYS[1], 1) redis.call('HGET', KEYS[1], 'f') return 1"
    model = Store()
    for store in (model, real):
        assert isinstance(store.do("EVAL", body, 1, f"{real.prefix}a"), ReplyError | redis.ResponseError)
        assert store.do("GET", f"{real.prefix}a") == b"1"


def test_streams_are_read_as_from_a_server(real: Real) -> None:
    """XADD, XRANGE and XINFO tell the same, but for the clock in the ids."""
    key, model = f"{real.prefix}s", Store()
    real.do("DEL", key)
    for store in (real, model):
        ids = [store.do("XADD", key, "MAXLEN", "~", 100, "*", "op", str(n)) for n in range(3)]
        assert store.do("TYPE", key) == b"stream"
        assert [id for id, _ in store.do("XRANGE", key, b"(" + ids[0], "+", "COUNT", 5)] == ids[1:]
        assert store.do("XRANGE", key, ids[1], ids[1]) == [[ids[1], [b"op", b"1"]]]
        info = store.do("XINFO", "STREAM", key)
        told = dict(zip(info[::2], info[1::2], strict=True))
        assert (told[b"length"], told[b"last-generated-id"], told[b"entries-added"]) == (3, ids[2], 3)
        assert isinstance(store.do("XINFO", "STREAM", f"{real.prefix}none"), Exception)


def test_keys_expire_by_the_models_clock() -> None:
    """A key with a time to live is there until the model's clock has passed it, and is no change before."""
    model = Store()
    model.do("SET", "k", "v", "PX", 1_500)
    model.advance(1_499_000)
    assert model.do("EXISTS", "k") == 1
    model.advance(1_000)
    assert model.do("GET", "k") is None
    assert model.do("PTTL", "k") == -2


def test_the_scripts_that_ship_run() -> None:
    """Every shipped script compiles in the model's Lua; a missing command would be an error reply."""
    from importlib.resources import files

    names = [f.name.removesuffix(".lua") for f in (files("smqueue") / "scripts").iterdir() if f.name[0] != "_"]
    model = Store()
    for name in names:
        reply = model.do("EVAL", f"local function shipped()\n{script(name).text}\nend return 1", 0)
        assert reply == 1, name

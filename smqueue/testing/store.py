"""A model of Redis in memory: the commands that smqueue and its transactions use.

It is checked against a real server, command by command (``tests/integration/test_store_model.py``). Where Redis is
free to choose (``SPOP``, orders of sets and hashes) it chooses the same every time.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Any

from smqueue.roundtrip import Arg
from smqueue.testing.keyspace import START_US, Keyspace
from smqueue.testing.lua import Scripts
from smqueue.testing.values import (
    KINDS,
    Hash,
    List,
    ReplyError,
    Set,
    Status,
    Stream,
    Zset,
    between,
    check_64_bits,
    encoded,
    flat,
    glob,
    number_of,
    options_of,
    page,
    ranked,
    score_of,
    span,
    stream_bound,
    stream_id,
)


class Store(Keyspace):
    """All keys of one server, and its commands: ``do("HGET", …)`` is the method ``_hget``."""

    def __init__(self, now_us: int = START_US) -> None:
        super().__init__(now_us)
        self._commands = {
            name[1:].upper(): getattr(self, name) for name in vars(Store) if name.startswith("_") and name[1] != "_"
        }
        self.scripts = Scripts(self)

    def do(self, *command: Arg) -> Any:
        """Run one command.

        Returns:
            The reply as redis-py's parser gives it (RESP2, bytes); an error reply is a ``ReplyError``, as a value.
        """
        name = command[0].decode() if isinstance(command[0], bytes) else str(command[0])
        known = self._commands.get(name) or self._commands.get(name.upper())
        if known is None:
            return ReplyError(f"ERR unknown command '{name}' in the model of Redis")
        try:
            return known(*[part if isinstance(part, bytes) else encoded(part) for part in command[1:]])
        except ReplyError as error:
            return error
        except (TypeError, ValueError, IndexError) as error:
            return ReplyError(f"ERR {name}: {error}")

    def call(self, script: str, keys: Sequence[str], args: Sequence[Arg]) -> Any:
        """Run one of the scripts that ship; the same reply as for ``do``."""
        return self.scripts.run(script, [encoded(key) for key in keys], [encoded(arg) for arg in args])

    # --- the server and its keys ---------------------------------------------------------------------------------

    def _ping(self) -> bytes:
        return Status(b"PONG")

    def _time(self) -> list[bytes]:
        self.looked.add("#clock")
        return [encoded(self.now_us // 1_000_000), encoded(self.now_us % 1_000_000)]

    def _exists(self, *keys: bytes) -> int:
        return sum(self.get(key) is not None for key in keys)

    def _type(self, key: bytes) -> bytes:
        value = self.get(key)
        return Status(b"none" if value is None else KINDS[type(value)])

    def _del(self, *keys: bytes) -> int:
        return sum(self.drop(key.decode(errors="surrogateescape")) for key in keys if self.get(key) is not None)

    _unlink = _del

    def _pexpire(self, key: bytes, ms: bytes) -> int:
        if self.get(key) is None:
            return 0
        self.expires[key.decode(errors="surrogateescape")] = self.now_ms + int(ms)
        self.looked.add("#clock")
        self.touch(key)
        return 1

    def _expire(self, key: bytes, s: bytes) -> int:
        return self._pexpire(key, encoded(int(s) * 1000))

    def _pttl(self, key: bytes) -> int:
        if self.get(key) is None:
            return -2
        gone_ms = self.expires.get(key.decode(errors="surrogateescape"))
        return -1 if gone_ms is None else gone_ms - self.now_ms

    def _scan(self, cursor: bytes, *options: bytes) -> list[Any]:
        given = options_of(options)
        pattern = given.get(b"MATCH", b"*").decode(errors="surrogateescape")
        names = [name for name in list(self.data) if self.get(name.encode(errors="surrogateescape")) is not None]
        found = [name for name in names if fnmatch.fnmatchcase(name, glob(pattern))]
        if kind := given.get(b"TYPE"):
            found = [name for name in found if KINDS[type(self.data[name])] == kind]
        return page(cursor, given, [[name.encode(errors="surrogateescape")] for name in found])

    def _publish(self, channel: bytes, message: bytes) -> int:
        self.published.append((channel.decode(errors="surrogateescape"), message))
        return 0

    _spublish = _publish

    def _eval(self, text: bytes, count: bytes, *rest: bytes) -> Any:
        at = int(count)
        return self.scripts.evaluate(text.decode(), list(rest[:at]), list(rest[at:]))

    # --- strings -------------------------------------------------------------------------------------------------

    def _get(self, key: bytes) -> bytes | None:
        return self.string(key)

    def _mget(self, *keys: bytes) -> list[bytes | None]:
        return [value if isinstance(value := self.get(key), bytes) else None for key in keys]

    def _mset(self, *pairs: bytes) -> bytes:
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            self._set(key, value)
        return Status(b"OK")

    def _set(self, key: bytes, value: bytes, *options: bytes) -> bytes | None:
        name, flags = key.decode(errors="surrogateescape"), {option.upper() for option in options}
        there = self.get(key) is not None
        if (b"NX" in flags and there) or (b"XX" in flags and not there):
            return None
        self.data[name] = value
        self.expires.pop(name, None)
        for unit, ms in ((b"EX", 1000), (b"PX", 1)):
            if unit in flags:
                self.expires[name] = self.now_ms + int(options[[o.upper() for o in options].index(unit) + 1]) * ms
                self.looked.add("#clock")
        self.touch(key)
        return Status(b"OK")

    def _incrby(self, key: bytes, by: bytes) -> int:
        total = number_of(self.string(key)) + number_of(by)
        check_64_bits(total)
        self.data[key.decode(errors="surrogateescape")] = encoded(total)
        self.touch(key)
        return total

    # --- hashes --------------------------------------------------------------------------------------------------

    def _hget(self, key: bytes, field: bytes) -> bytes | None:
        return self.of(Hash, key).get(field)

    def _hmget(self, key: bytes, *fields: bytes) -> list[bytes | None]:
        return [self.of(Hash, key).get(field) for field in fields]

    def _hexists(self, key: bytes, field: bytes) -> int:
        return int(field in self.of(Hash, key))

    def _hlen(self, key: bytes) -> int:
        return len(self.of(Hash, key))

    def _hkeys(self, key: bytes) -> list[bytes]:
        return list(self.of(Hash, key))

    def _hgetall(self, key: bytes) -> list[bytes]:
        return flat(self.of(Hash, key).items())

    def _hscan(self, key: bytes, cursor: bytes, *options: bytes) -> list[Any]:
        return page(cursor, options_of(options), [[f, v] for f, v in self.of(Hash, key).items()])

    def _hset(self, key: bytes, *pairs: bytes) -> int:
        held = self.of(Hash, key, make=True)
        before = len(held)
        held.update(zip(pairs[::2], pairs[1::2], strict=True))
        self.touch(key)
        return len(held) - before

    def _hsetnx(self, key: bytes, field: bytes, value: bytes) -> int:
        return 0 if field in self.of(Hash, key) else self._hset(key, field, value)

    def _hincrby(self, key: bytes, field: bytes, by: bytes) -> int:
        total = number_of(self.of(Hash, key).get(field), hashed=True) + number_of(by)
        check_64_bits(total)
        self._hset(key, field, encoded(total))
        return total

    def _hdel(self, key: bytes, *fields: bytes) -> int:
        return self.remove(self.of(Hash, key), key, fields)

    # --- lists ---------------------------------------------------------------------------------------------------

    def _llen(self, key: bytes) -> int:
        return len(self.of(List, key))

    def _lindex(self, key: bytes, index: bytes) -> bytes | None:
        held, at = self.of(List, key), int(index)
        return held[at] if -len(held) <= at < len(held) else None

    def _lrange(self, key: bytes, first: bytes, last: bytes) -> list[bytes]:
        held = self.of(List, key)
        return held[span(first, last, len(held))]

    def _lpos(self, key: bytes, item: bytes, *options: bytes) -> int | None:
        found = [place for place, one in enumerate(self.of(List, key)) if one == item]
        rank = int(options[1]) if options else 1
        found = found if rank > 0 else found[::-1]
        return found[abs(rank) - 1] if abs(rank) <= len(found) else None

    def _rpush(self, key: bytes, *items: bytes) -> int:
        held = self.of(List, key, make=True)
        held.extend(items)
        self.touch(key)
        return len(held)

    def _lpush(self, key: bytes, *items: bytes) -> int:
        held = self.of(List, key, make=True)
        held[:0] = items[::-1]
        self.touch(key)
        return len(held)

    def _lpop(self, key: bytes) -> bytes | None:
        held = self.of(List, key)
        if not held:
            return None
        item = held.pop(0)
        self.touch(key)
        return item

    def _blmove(self, key: bytes, to: bytes, take: bytes, put: bytes, _: bytes) -> bytes | None:
        if key != to or (take, put) != (b"LEFT", b"LEFT"):
            raise ReplyError("ERR BLMOVE from one place to another is not in the model of Redis")
        held = self.of(List, key)
        return held[0] if held else None

    def _lrem(self, key: bytes, count: bytes, item: bytes) -> int:
        held, most = self.of(List, key), int(count)
        if most < 0:
            raise ReplyError("ERR LREM from the end is not in the model of Redis")
        gone = [at for at, one in enumerate(held) if one == item][: most or None]
        for at in reversed(gone):
            del held[at]
        if gone:
            self.touch(key)
        return len(gone)

    # --- sets ----------------------------------------------------------------------------------------------------

    def _smembers(self, key: bytes) -> list[bytes]:
        return sorted(self.of(Set, key))

    def _sismember(self, key: bytes, member: bytes) -> int:
        return int(member in self.of(Set, key))

    def _scard(self, key: bytes) -> int:
        return len(self.of(Set, key))

    def _sscan(self, key: bytes, cursor: bytes, *options: bytes) -> list[Any]:
        return page(cursor, options_of(options), [[member] for member in self.of(Set, key)])

    def _sadd(self, key: bytes, *members: bytes) -> int:
        held = self.of(Set, key, make=True)
        before = len(held)
        held.update(dict.fromkeys(members))
        if len(held) > before:
            self.touch(key)
        return len(held) - before

    def _srem(self, key: bytes, *members: bytes) -> int:
        return self.remove(self.of(Set, key), key, members)

    def _spop(self, key: bytes, count: bytes) -> list[bytes]:
        gone = sorted(self.of(Set, key))[: int(count)]
        self._srem(key, *gone)
        return gone

    # --- sorted sets ---------------------------------------------------------------------------------------------

    def _zscore(self, key: bytes, member: bytes) -> bytes | None:
        score = self.of(Zset, key).get(member)
        return None if score is None else encoded(score)

    def _zcard(self, key: bytes) -> int:
        return len(self.of(Zset, key))

    def _zcount(self, key: bytes, low: bytes, high: bytes) -> int:
        return len(between(self.of(Zset, key), low, high))

    def _zrange(self, key: bytes, first: bytes, last: bytes, *options: bytes) -> list[bytes]:
        given = [option.upper() for option in options]
        if b"BYSCORE" in given:
            found = between(self.of(Zset, key), first, last)
            if b"LIMIT" in given:
                at = given.index(b"LIMIT")
                start, count = int(options[at + 1]), int(options[at + 2])
                found = found[start : None if count < 0 else start + count]
        else:
            found = ranked(self.of(Zset, key))
            found = found[span(first, last, len(found))]
        return flat((m, encoded(s)) for m, s in found) if b"WITHSCORES" in given else [member for member, _ in found]

    def _zscan(self, key: bytes, cursor: bytes, *options: bytes) -> list[Any]:
        return page(cursor, options_of(options), [[m, encoded(s)] for m, s in self.of(Zset, key).items()])

    def _zadd(self, key: bytes, *given: bytes) -> int:
        flags: set[bytes] = set()
        while given and given[0].upper() in {b"NX", b"XX", b"LT", b"GT", b"CH"}:
            flags.add(given[0].upper())
            given = given[1:]
        scores = [score_of(raw) for raw in given[::2]]
        held = self.of(Zset, key, make=True)
        fresh = changed = 0
        for score, member in zip(scores, given[1::2], strict=True):
            was = held.get(member)
            if (was is None and b"XX" in flags) or (was is not None and b"NX" in flags):
                continue
            if was is not None and ((b"LT" in flags and score >= was) or (b"GT" in flags and score <= was)):
                continue
            fresh += was is None
            changed += was is not None and was != score
            held[member] = score
        if fresh or changed or not held:
            self.touch(key)
        return fresh + (changed if b"CH" in flags else 0)

    def _zrem(self, key: bytes, *members: bytes) -> int:
        return self.remove(self.of(Zset, key), key, members)

    def _zremrangebyrank(self, key: bytes, first: bytes, last: bytes) -> int:
        held = ranked(self.of(Zset, key))
        return self._zrem(key, *[member for member, _ in held[span(first, last, len(held))]])

    # --- streams -------------------------------------------------------------------------------------------------

    def _xadd(self, key: bytes, *given: bytes) -> bytes:
        held, most = self.of(Stream, key, make=True), None
        if given[0].upper() == b"MAXLEN":
            at = 2 if given[1] in {b"~", b"="} else 1
            most, given = int(given[at]), given[at + 1 :]
        if given[0] != b"*":
            raise ReplyError("ERR XADD with an id is not in the model of Redis")
        self.looked.add("#clock")
        ms, number = held.last
        held.last = (self.now_ms, 0) if self.now_ms > ms else (ms, number + 1)
        held.append((held.last, list(given[1:])))
        held.added += 1
        if most is not None:
            del held[: max(0, len(held) - most)]
        self.touch(key)
        return stream_id(held.last)

    def _xlen(self, key: bytes) -> int:
        return len(self.of(Stream, key))

    def _xrange(self, key: bytes, first: bytes, last: bytes, *options: bytes) -> list[Any]:
        low, high = stream_bound(first, (0, 0), 0), stream_bound(last, (1 << 62, 0), 1 << 62)
        count = int(options[1]) if options else None
        within = [(id, pairs) for id, pairs in self.of(Stream, key) if low <= id <= high]
        found = [[stream_id(id), list(pairs)] for id, pairs in within if id > low or not first.startswith(b"(")]
        return found[:count]

    def _xinfo(self, _: bytes, key: bytes) -> list[Any]:
        held = self.of(Stream, key)
        if self.get(key) is None:
            raise ReplyError("ERR no such key")
        return [b"length", len(held), b"last-generated-id", stream_id(held.last), b"entries-added", held.added]

"""The reads and writes of a transaction, under one rule that names keys."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, cast, overload

from smqueue.buffer import INT64, Buffer, Value, plain_text
from smqueue.errors import InvalidInput, InvalidKey

LONGEST_MS = 2**62  # the server adds its clock, and refuses what then leaves 64 bits


class DataKeys:
    """Reads and writes of keys under one naming rule."""

    def __init__(self, buffer: Buffer) -> None:
        self._buffer = buffer

    def _name(self, key: str) -> str:
        """The full name of a key."""
        raise NotImplementedError

    # --- reads ---------------------------------------------------------------------------------------------------

    def get_bytes(self, key: str) -> bytes | None:
        """The string under ``key``, raw; ``None`` when there is none."""
        return self._buffer.string(self._name(key))

    def get(self, key: str) -> str | None:
        """The string under ``key``; ``None`` when there is none."""
        raw = self.get_bytes(key)
        return None if raw is None else raw.decode()

    def get_many(self, keys: Sequence[str]) -> list[str | None]:
        """The strings under several keys, in one round trip."""
        self._buffer.ask(*[("GET", self._name(key)) for key in keys if not self._buffer.written(self._name(key))])
        return [self.get(key) for key in keys]

    def hget(self, key: str, field: str) -> str | None:
        """One field of a hash."""
        return plain_text(self._buffer.part("HGET", self._name(key), checked_value(key, field)))

    def hgetall(self, key: str) -> dict[str, str]:
        """A whole hash."""
        flat = cast("Sequence[Any] | Mapping[Any, Any]", self._buffer.whole(("HGETALL", self._name(key))))
        pairs = flat.items() if isinstance(flat, Mapping) else zip(flat[::2], flat[1::2], strict=True)
        return {str(plain_text(name)): str(plain_text(value)) for name, value in pairs}

    def exists(self, key: str) -> bool:
        """Whether anything is stored under ``key``."""
        return self._buffer.exists(self._name(key))

    def smembers(self, key: str) -> set[str]:
        """All members of a set."""
        return {str(plain_text(member)) for member in self._buffer.whole(("SMEMBERS", self._name(key)))}

    def sismember(self, key: str, member: str) -> bool:
        """Whether ``member`` is in the set."""
        return bool(self._buffer.part("SISMEMBER", self._name(key), checked_value(key, member)))

    def zrange(self, key: str, start: int = 0, stop: int = -1) -> list[str]:
        """Members of a sorted set by rank, lowest first; ``stop`` is included."""
        command = ("ZRANGE", self._name(key), _integer(key, start), _integer(key, stop))
        return [str(plain_text(member)) for member in self._buffer.whole(command)]

    # --- writes --------------------------------------------------------------------------------------------------

    def set(self, key: str, value: Value) -> None:
        """Store a string."""
        self._buffer.write("SET", self._name(key), checked_value(key, value))

    def delete(self, *keys: str) -> None:
        """Remove keys of any type."""
        for key in keys:
            self._buffer.write("DEL", self._name(key))

    def incrby(self, key: str, amount: int = 1) -> None:
        """Add to a counter: a decimal string of 64 signed bits."""
        self._buffer.write("INCRBY", self._name(key), _integer(key, amount))

    @overload
    def hset(self, key: str, field: str, value: Value) -> None: ...
    @overload
    def hset(self, key: str, field: Mapping[str, Value]) -> None: ...
    @overload
    def hset(self, key: str, *, mapping: Mapping[str, Value]) -> None: ...
    def hset(
        self, key: str, field: str | Mapping[str, Value] = "", value: Value | None = None,
        *, mapping: Mapping[str, Value] | None = None,
    ) -> None:  # fmt: skip
        """Set one field of a hash, or several given as a mapping."""
        pairs = mapping if mapping is not None else field
        pairs = pairs if isinstance(pairs, Mapping) else {pairs: cast("Value", value)}
        flat = [part for name, one in pairs.items() for part in (checked_value(key, name), checked_value(key, one))]
        if flat:
            self._buffer.write("HSET", self._name(key), *flat)

    def hdel(self, key: str, *fields: str) -> None:
        """Remove fields of a hash."""
        if fields:
            self._buffer.write("HDEL", self._name(key), *[checked_value(key, field) for field in fields])

    def hincrby(self, key: str, field: str, amount: int = 1) -> None:
        """Add to a counter in a hash."""
        self._buffer.write("HINCRBY", self._name(key), checked_value(key, field), _integer(key, amount))

    def sadd(self, key: str, *members: Value) -> None:
        """Add to a set."""
        if members:
            self._buffer.write("SADD", self._name(key), *[checked_value(key, member) for member in members])

    def srem(self, key: str, *members: Value) -> None:
        """Remove from a set."""
        if members:
            self._buffer.write("SREM", self._name(key), *[checked_value(key, member) for member in members])

    def zadd(self, key: str, scores: Mapping[str, float]) -> None:
        """Add to a sorted set, or change scores."""
        flat: list[Value] = []
        for member, score in scores.items():
            flat += [_score(key, score), checked_value(key, member)]
        if flat:
            self._buffer.write("ZADD", self._name(key), *flat)

    def zrem(self, key: str, *members: str) -> None:
        """Remove from a sorted set."""
        if members:
            self._buffer.write("ZREM", self._name(key), *[checked_value(key, member) for member in members])

    def rpush(self, key: str, *values: Value) -> None:
        """Append to a list."""
        if values:
            self._buffer.write("RPUSH", self._name(key), *[checked_value(key, value) for value in values])

    def expire(self, key: str, after: timedelta | float) -> None:
        """Let a key go after a while (a timedelta, or seconds); at once when that is not above zero."""
        if (milliseconds := _milliseconds(key, after)) > 0:
            self._buffer.write("PEXPIRE", self._name(key), milliseconds)
        else:
            self._buffer.write("DEL", self._name(key))


class NamedKeys(DataKeys):
    """The same under a rule that somebody else has."""

    def __init__(self, buffer: Buffer, name: Callable[[str], str]) -> None:
        super().__init__(buffer)
        self._by = name

    def _name(self, key: str) -> str:
        return self._by(key)


def checked_key(key: object) -> str:
    """The key, if it can be one.

    Raises:
        InvalidKey: It is no text, empty, or cannot be encoded.
    """
    if not isinstance(key, str) or not key:
        raise InvalidKey("key", f"expected a non-empty str, got {type(key).__name__}")
    if not (key.isascii() or _encodable(key)):
        raise InvalidKey("key", "holds a lone surrogate, which cannot be encoded as UTF-8")
    return key


def checked_value(key: str, value: object) -> Value:
    """The value, if it can be stored.

    Raises:
        InvalidInput: It is of another type, or cannot be encoded.
    """
    if isinstance(value, bool) or not isinstance(value, str | bytes | int):
        raise InvalidInput(f"value for {key}", f"expected str, bytes or int, got {type(value).__name__}")
    if isinstance(value, str) and not (value.isascii() or _encodable(value)):
        raise InvalidInput(f"value for {key}", "holds a lone surrogate, which cannot be encoded as UTF-8")
    return value


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _milliseconds(key: str, after: object) -> int:
    seconds = after.total_seconds() if isinstance(after, timedelta) else after
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not abs(seconds) < LONGEST_MS / 1000:
        raise InvalidInput(f"life of {key}", f"expected a timedelta or seconds, less than {LONGEST_MS} ms")
    return round(seconds * 1000)


def _score(key: str, score: object) -> str:
    if isinstance(score, bool) or not isinstance(score, int | float) or not abs(score) < sys.float_info.max:
        raise InvalidInput(f"score for {key}", f"expected a finite number, got {type(score).__name__}")
    return repr(float(score))


def _integer(key: str, amount: object) -> int:
    if isinstance(amount, bool) or not isinstance(amount, int) or not -INT64 <= amount < INT64:
        raise InvalidInput(f"amount for {key}", f"expected an int of 64 bits, got {type(amount).__name__}")
    return amount

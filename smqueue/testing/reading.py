"""What handlers have written, and what a test gives them to read, as plain Python."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smqueue.buffer import Value
from smqueue.drivers.driver import Driver

Given = Value | Mapping[str, Value] | set[str] | list[str]
"""What a key may hold: text or a number, or a hash, a set or a list of these."""


def put(driver: Driver, key: str, value: Given) -> None:
    """Store a value under a key."""
    match value:
        case str() | bytes() | int():
            driver.command("SET", key, value)
        case set() if value:
            driver.command("SADD", key, *sorted(value))
        case list() if value:
            driver.command("RPUSH", key, *value)
        case Mapping() if value:
            driver.command("HSET", key, *[part for pair in value.items() for part in pair])
        case _:
            pass  # an empty container is no key


def read_key(driver: Driver, key: str) -> Any:
    """What a key holds: text, or a ``dict``, ``set`` or ``list`` of text; ``None``: there is no such key.

    A sorted set is a ``dict`` of scores. What is not UTF-8 stays bytes.
    """
    match driver.command("TYPE", key):
        case b"string":
            return _text(driver.command("GET", key))
        case b"hash":
            return dict(_pairs(driver.command("HGETALL", key)))
        case b"list":
            return [_text(item) for item in driver.command("LRANGE", key, 0, -1)]
        case b"set":
            return {_text(member) for member in driver.command("SMEMBERS", key)}
        case b"zset":
            return {m: float(score) for m, score in _pairs(driver.command("ZRANGE", key, 0, -1, "WITHSCORES"))}
        case _:
            return None


def _pairs(flat: Any) -> list[tuple[Any, Any]]:
    return list(zip(map(_text, flat[::2]), map(_text, flat[1::2]), strict=True))


def _text(raw: bytes) -> str | bytes:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw

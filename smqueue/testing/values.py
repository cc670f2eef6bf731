"""What a key of the model of Redis holds, and how values are spelled."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

INT64 = 1 << 63


class ReplyError(Exception):
    """An error reply of the server; never raised out of a protocol's request, but its value."""


class Status(bytes):
    """A reply such as ``OK``, which Lua sees as a table."""


class Hash(dict[bytes, bytes]):
    """Field → value."""


class Zset(dict[bytes, float]):
    """Member → score."""


class Set(dict[bytes, None]):
    """Its members; ordered, so that it is the same every time."""


class List(list[bytes]):
    """Its items."""


class Stream(list[tuple[tuple[int, int], list[bytes]]]):
    """Its entries by id, ms and number, and the number of all that were ever added."""

    added: int = 0
    last: tuple[int, int] = (0, 0)


Value = bytes | Hash | Zset | Set | List | Stream
V = TypeVar("V", Hash, Zset, Set, List, Stream)
KINDS = {bytes: b"string", Hash: b"hash", Zset: b"zset", Set: b"set", List: b"list", Stream: b"stream"}
WRONG_TYPE = "WRONGTYPE Operation against a key holding the wrong kind of value"


def encoded(value: Any) -> bytes:
    """A value as the server keeps it; a number without a fraction has none."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode(errors="surrogateescape")
    if isinstance(value, float):
        if math.isinf(value):
            return b"inf" if value > 0 else b"-inf"
        return str(int(value)).encode() if value.is_integer() and abs(value) < 1e17 else repr(value).encode()
    return str(int(value)).encode()


def copied(value: Any) -> Any:
    """A container of its own with the same content."""
    again = type(value)(value)
    if isinstance(value, Stream):
        again.added, again.last = value.added, value.last
    return again


def flat(pairs: Iterable[Iterable[bytes]]) -> list[bytes]:
    """Rows of parts as one list of parts, as RESP2 has them."""
    return [part for pair in pairs for part in pair]


def number_of(raw: bytes | None, hashed: bool = False) -> int:
    """A string or field as the number that INCRBY takes it for."""
    if raw is None:
        return 0
    digits = raw[1:] if raw[:1] == b"-" else raw
    if not digits.isdigit() or str(int(raw)).encode() != raw or not -INT64 <= int(raw) < INT64:
        raise ReplyError(
            "ERR hash value is not an integer" if hashed else "ERR value is not an integer or out of range"
        )
    return int(raw)


def check_64_bits(total: int) -> None:
    """Raises ReplyError for what would leave 64 bits."""
    if not -INT64 <= total < INT64:
        raise ReplyError("ERR increment or decrement would overflow")


def score_of(raw: bytes) -> float:
    """A score."""
    try:
        return float(raw)
    except ValueError:
        raise ReplyError("ERR value is not a valid float") from None


def ranked(held: Zset) -> list[tuple[bytes, float]]:
    """Members and scores, lowest first, ties by member."""
    return sorted(held.items(), key=lambda pair: (pair[1], pair[0]))


def between(held: Zset, low: bytes, high: bytes) -> list[tuple[bytes, float]]:
    """Those with a score in the interval; ``(`` in front of a bound leaves it out."""
    least, most = score_of(low.removeprefix(b"(")), score_of(high.removeprefix(b"("))

    def within(score: float) -> bool:
        above = score > least if low.startswith(b"(") else score >= least
        return above and (score < most if high.startswith(b"(") else score <= most)

    return [pair for pair in ranked(held) if within(pair[1])]


def span(first: bytes, last: bytes, length: int) -> slice:
    """``first`` to ``last``, both included, negative from the end, as a slice."""
    start, end = int(first), int(last)
    start = max(0, start + length) if start < 0 else start
    end = end + length if end < 0 else end
    return slice(start, max(start, end + 1))


def options_of(options: Sequence[bytes]) -> Mapping[bytes, bytes]:
    """Name → value."""
    return {name.upper(): value for name, value in zip(options[::2], options[1::2], strict=True)}


def page(cursor: bytes, options: Mapping[bytes, bytes], found: list[list[bytes]]) -> list[Any]:
    """A page from ``cursor``. Unlike Redis's its cursors count, so what is removed meanwhile can hide another."""
    at, count = int(cursor), int(options.get(b"COUNT", b"10"))
    until = at + count if at + count < len(found) else 0
    return [encoded(until), flat(found[at : at + count])]


def glob(pattern: str) -> str:
    """A pattern as Redis writes it (``\\`` escapes) in the words of fnmatch."""
    out, escaped = "", False
    for character in pattern:
        if escaped:
            out, escaped = out + (f"[{character}]" if character in "*?[" else character), False
        elif character == "\\":
            escaped = True
        else:
            out += character
    return out


def stream_id(id: tuple[int, int]) -> bytes:
    """The id of an entry, as it is written."""
    return b"%d-%d" % id


def stream_bound(raw: bytes, whole: tuple[int, int], number: int) -> tuple[int, int]:
    """A bound of XRANGE as an id; ``number`` where it names the ms only."""
    raw = raw.removeprefix(b"(")
    if raw in (b"-", b"+"):
        return whole
    ms, _, rest = raw.partition(b"-")
    return int(ms), int(rest) if rest else number

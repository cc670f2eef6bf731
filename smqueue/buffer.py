"""What a transaction has read and written so far, by full key; and whether its writes would fail in EXEC."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from smqueue.errors import ReadAfterWrite, WrongKind
from smqueue.roundtrip import Command

Value = str | bytes | int
INT64 = 2**63


class NeedRead(BaseException):
    """A handler asked for what is not known yet. A BaseException: users' ``except Exception`` must not swallow it."""

    def __init__(self, watch: Sequence[str], commands: Sequence[Command]) -> None:
        super().__init__(watch, commands)
        self.watch, self.commands = tuple(watch), tuple(commands)


INCREMENTS = frozenset({"INCRBY", "HINCRBY"})
KIND_OF_WRITE = {
    "HSET": "hash", "HDEL": "hash", "HINCRBY": "hash", "SADD": "set", "SREM": "set", "ZADD": "zset", "ZREM": "zset",
    "RPUSH": "list", "INCRBY": "string",
}  # fmt: skip


class Buffer:
    """What has been read and written so far, by full key."""

    def __init__(self, known: Mapping[Command, Any]) -> None:
        self.known = known
        self.writes: list[Command] = []
        self._strings: dict[str, bytes | None] = {}  # known values of keys written as strings; None: deleted
        self._parts: dict[tuple[str, str, bytes], bytes | int | None] = {}  # known fields and members written, by read
        self._touched: dict[str, bool] = {}  # keys written: whether in a way whose result is known only at commit

    # --- reads ---------------------------------------------------------------------------------------------------

    def ask(self, *commands: Command, watch: Sequence[str] | None = None) -> None:
        """Make sure that the replies to ``commands`` are known; all that are missing cost one round trip."""
        missing = [command for command in commands if command not in self.known]
        if missing:
            raise NeedRead([str(command[1]) for command in missing] if watch is None else watch, missing)

    def reply(self, command: Command) -> Any:
        """The reply to one look."""
        self.ask(command)
        reply = self.known[command]
        if isinstance(reply, Exception):
            raise WrongKind(command[0], command[1], found_by(reply))
        return reply

    def written(self, key: str) -> bool:
        """Whether this transaction has written to ``key``."""
        return key in self._touched

    def string(self, key: str) -> bytes | None:
        """The value of a string key, with what was written here."""
        if key in self._strings:
            return self._strings[key]
        if key in self._touched:
            raise ReadAfterWrite(key)
        return self.reply(("GET", key))

    def part(self, command: str, key: str, name: Value) -> bytes | int | None:
        """One field of a hash, or whether a member is in a set, with what was written here."""
        if (part := (key, command, encoded(name))) in self._parts:
            return self._parts[part]
        if any(written[0] == key and written[1] != command for written in self._parts):
            raise ReadAfterWrite(key)
        if self._strings.get(key, b"") is None and not self._touched.get(key):
            return None
        if self._touched.get(key) or key in self._strings:
            raise ReadAfterWrite(key)
        return self.reply((command, key, name))

    def whole(self, command: Command) -> Any:
        """A look at a whole key; refused once it was written to here."""
        key = str(command[1])
        if key in self._touched and self._strings.get(key, b"") is not None:
            raise ReadAfterWrite(key)
        if key in self._touched:
            if any(part[0] == key for part in self._parts) or self._touched[key]:
                raise ReadAfterWrite(key)
            return []
        return self.reply(command)

    def exists(self, key: str) -> bool:
        """Whether a key exists, with what was written here."""
        if key in self._strings and not any(part[0] == key for part in self._parts) and not self._touched.get(key):
            return self._strings[key] is not None
        if key in self._touched:
            raise ReadAfterWrite(key)
        return bool(self.reply(("EXISTS", key)))

    # --- writes --------------------------------------------------------------------------------------------------

    def write(self, name: str, key: str, *args: Value) -> None:
        """Buffer one command, and keep what a later read of the same key is to see."""
        self.writes.append((name, key, *args))
        if name == "PUBLISH":
            return
        if name == "INCRBY" and not (key in self._strings or (key not in self._touched and ("GET", key) in self.known)):
            self._unknown(key)
            return
        if name == "INCRBY":
            self._strings[key] = str(_number(name, key, self.string(key)) + int(args[0])).encode()
        self._touched.setdefault(key, False)
        match name:
            case "SET" | "DEL":
                self._parts = {part: value for part, value in self._parts.items() if part[0] != key}
                self._touched[key] = False
                self._strings[key] = encoded(args[0]) if name == "SET" else None
            case "HSET":
                for field, value in zip(args[::2], args[1::2], strict=True):
                    self._parts[key, "HGET", encoded(field)] = encoded(value)
            case "HDEL":
                self._parts.update({(key, "HGET", encoded(field)): None for field in args})
            case "SADD" | "SREM":
                self._parts.update({(key, "SISMEMBER", encoded(member)): int(name == "SADD") for member in args})
            case "INCRBY" | "PEXPIRE":
                pass
            case _:
                self._unknown(key)

    def _unknown(self, key: str) -> None:
        """What a key holds from now on is known only at commit."""
        self._touched[key] = True
        self._strings.pop(key, None)
        if self._parts:
            self._parts = {part: value for part, value in self._parts.items() if part[0] != key}

    # --- would they fail in EXEC? --------------------------------------------------------------------------------

    def checks(self) -> list[Command]:
        """Looks that tell whether a write would fail, where neighbours in the same EXEC are applied all the same."""
        asked: dict[Command, None] = {}
        for name, key, *args in self.writes:
            if name in KIND_OF_WRITE:
                asked["TYPE", str(key)] = None
            if name == "INCRBY":
                asked["GET", str(key)] = None
            elif name == "HINCRBY":
                asked["HGET", str(key), args[0]] = None
        return list(asked)

    def verify(self, replies: Mapping[Command, Any]) -> set[str]:
        """Go through the writes in order, as EXEC will.

        Returns:
            Keys of counters so near the end of 64 bits that increments by others, which are harmless to all the rest,
            could make these fail: they must be watched.

        Raises:
            WrongKind: A write that would fail: a key of another type, or an increment of what is no 64-bit number.
        """
        kinds = {str(c[1]): plain_text(replies[c]) or "none" for c in replies if c[0] == "TYPE"}
        numbers: dict[tuple[str, bytes], Any] = {
            (str(c[1]), encoded(c[2]) if len(c) > 2 else b""): reply
            for c, reply in replies.items()
            if c[0] in {"GET", "HGET"}
        }
        tight: set[str] = set()
        for name, raw_key, *args in self.writes:
            key, wanted = str(raw_key), KIND_OF_WRITE.get(str(name))
            if name in {"SET", "DEL"}:
                kinds[key] = "string" if name == "SET" else "none"
                numbers = {at: number for at, number in numbers.items() if at[0] != key}
                numbers[key, b""] = args[0] if name == "SET" else None
            elif name == "HSET":
                numbers.update(
                    {(key, encoded(field)): value for field, value in zip(args[::2], args[1::2], strict=True)}
                )
            elif name == "HDEL":
                numbers.update({(key, encoded(field)): None for field in args})
            if wanted and kinds.get(key, "none") not in {"none", wanted}:
                raise WrongKind(name, key, f"a {kinds[key]}")
            if wanted and name not in {"HDEL", "SREM", "ZREM"}:
                kinds[key] = wanted
            if name in {"INCRBY", "HINCRBY"}:
                at = (key, b"" if name == "INCRBY" else encoded(args[0]))
                total = _number(str(name), key, numbers.get(at)) + int(args[-1])
                if not -INT64 <= total < INT64:
                    raise WrongKind(name, key, "a number that would leave 64 bits")
                numbers[at] = str(total)
                if abs(total) > INT64 // 2:
                    tight.add(key)
        return tight


def _number(command: str, key: str, raw: Any) -> int:
    if isinstance(raw, Exception):
        raise WrongKind(command, key, found_by(raw))
    text = encoded(raw) if raw is not None else b"0"
    digits = text[1:] if text[:1] == b"-" else text
    if not digits.isdigit() or str(int(text)).encode() != text or not -INT64 <= int(text) < INT64:
        raise WrongKind(command, key, "not a 64-bit integer")
    return int(text)


def found_by(reply: Exception) -> str:
    """What a key holds, as far as an error reply of the server tells."""
    text = str(reply)
    return "a value of another type" if text.startswith("WRONGTYPE") else text


def encoded(value: Value | float) -> bytes:
    """A value as the server keeps it."""
    return value if isinstance(value, bytes) else str(value).encode()


def plain_text(raw: Any) -> str | None:
    """A reply as text."""
    return raw.decode() if isinstance(raw, bytes) else None if raw is None else str(raw)

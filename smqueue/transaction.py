"""The transaction that handlers write into: reads are consistent at commit, writes are applied with it or not at all.

It does no I/O. A read that is not known yet raises ``NeedRead``; the protocol fetches it under WATCH and runs the
handler again. Writes are buffered as commands.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

from smqueue.errors import (
    CrossShard,
    InvalidInput,
    InvalidKey,
    ReadAfterWrite,
    SmqueueError,
    StateAlreadyExists,
    StateAlreadyTerminal,
    WrongKind,
)
from smqueue.instances import Instances
from smqueue.keys import Keys, new_id, shard_of
from smqueue.records import Placed
from smqueue.roundtrip import Command, time_us
from smqueue.standing import TIME, arrival_looks, standing

if TYPE_CHECKING:
    from smqueue.states import StateMachine
    from smqueue.triggers import Signal

P = TypeVar("P")

Value = str | bytes | int
INT64 = 2**63
LONGEST_MS = 2**62  # the server adds its clock, and refuses what then leaves 64 bits


class NeedRead(BaseException):
    """A handler asked for what is not known yet. A BaseException: users' ``except Exception`` must not swallow it."""

    def __init__(self, watch: Sequence[str], commands: Sequence[Command]) -> None:
        super().__init__(watch, commands)
        self.watch, self.commands = tuple(watch), tuple(commands)


KIND_OF_WRITE = {
    "HSET": "hash", "HDEL": "hash", "HINCRBY": "hash", "SADD": "set", "SREM": "set", "ZADD": "zset", "ZREM": "zset",
    "RPUSH": "list", "INCRBY": "string",
}  # fmt: skip


class DataKeys:
    """Reads and writes of keys under one naming rule."""

    def __init__(self, buffer: Buffer, name: Callable[[str], str]) -> None:
        self._buffer, self._name = buffer, name

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
        return _text(self._buffer.part("HGET", self._name(key), _value(key, field)))

    def hgetall(self, key: str) -> dict[str, str]:
        """A whole hash."""
        flat = cast("Sequence[Any] | Mapping[Any, Any]", self._buffer.whole(("HGETALL", self._name(key))))
        pairs = flat.items() if isinstance(flat, Mapping) else zip(flat[::2], flat[1::2], strict=True)
        return {str(_text(name)): str(_text(value)) for name, value in pairs}

    def exists(self, key: str) -> bool:
        """Whether anything is stored under ``key``."""
        return self._buffer.exists(self._name(key))

    def smembers(self, key: str) -> set[str]:
        """All members of a set."""
        return {str(_text(member)) for member in self._buffer.whole(("SMEMBERS", self._name(key)))}

    def sismember(self, key: str, member: str) -> bool:
        """Whether ``member`` is in the set."""
        return bool(self._buffer.part("SISMEMBER", self._name(key), _value(key, member)))

    def zrange(self, key: str, start: int = 0, stop: int = -1) -> list[str]:
        """Members of a sorted set by rank, lowest first; ``stop`` is included."""
        command = ("ZRANGE", self._name(key), _integer(key, start), _integer(key, stop))
        return [str(_text(member)) for member in self._buffer.whole(command)]

    # --- writes --------------------------------------------------------------------------------------------------

    def set(self, key: str, value: Value) -> None:
        """Store a string."""
        self._buffer.write("SET", self._name(key), _value(key, value))

    def delete(self, *keys: str) -> None:
        """Remove keys of any type."""
        for key in keys:
            self._buffer.write("DEL", self._name(key))

    def incrby(self, key: str, amount: int = 1) -> None:
        """Add to a counter: a decimal string of 64 signed bits."""
        self._buffer.write("INCRBY", self._name(key), _integer(key, amount))

    @overload
    def hset(self, key: str, field: str, value: Value, /) -> None: ...
    @overload
    def hset(self, key: str, mapping: Mapping[str, Value], /) -> None: ...
    def hset(self, key: str, field: str | Mapping[str, Value], value: Value | None = None, /) -> None:
        """Set one field of a hash, or several given as a mapping."""
        pairs = field if isinstance(field, Mapping) else {field: cast("Value", value)}
        flat = [part for name, one in pairs.items() for part in (_value(key, name), _value(key, one))]
        if flat:
            self._buffer.write("HSET", self._name(key), *flat)

    def hdel(self, key: str, *fields: str) -> None:
        """Remove fields of a hash."""
        if fields:
            self._buffer.write("HDEL", self._name(key), *[_value(key, field) for field in fields])

    def hincrby(self, key: str, field: str, amount: int = 1) -> None:
        """Add to a counter in a hash."""
        self._buffer.write("HINCRBY", self._name(key), _value(key, field), _integer(key, amount))

    def sadd(self, key: str, *members: Value) -> None:
        """Add to a set."""
        if members:
            self._buffer.write("SADD", self._name(key), *[_value(key, member) for member in members])

    def srem(self, key: str, *members: Value) -> None:
        """Remove from a set."""
        if members:
            self._buffer.write("SREM", self._name(key), *[_value(key, member) for member in members])

    def zadd(self, key: str, scores: Mapping[str, float]) -> None:
        """Add to a sorted set, or change scores."""
        flat: list[Value] = []
        for member, score in scores.items():
            flat += [_score(key, score), _value(key, member)]
        if flat:
            self._buffer.write("ZADD", self._name(key), *flat)

    def zrem(self, key: str, *members: str) -> None:
        """Remove from a sorted set."""
        if members:
            self._buffer.write("ZREM", self._name(key), *[_value(key, member) for member in members])

    def rpush(self, key: str, *values: Value) -> None:
        """Append to a list."""
        if values:
            self._buffer.write("RPUSH", self._name(key), *[_value(key, value) for value in values])

    def expire(self, key: str, after: timedelta | float) -> None:
        """Let a key go after a while (a timedelta, or seconds); at once when that is not above zero."""
        if (milliseconds := _milliseconds(key, after)) > 0:
            self._buffer.write("PEXPIRE", self._name(key), milliseconds)
        else:
            self._buffer.write("DEL", self._name(key))


class Transaction(DataKeys):
    """What a handler, or a function given to ``autocommit``, reads and writes Redis with.

    Keys are relative to the module instance; ``shared`` reaches keys outside, by their full name.
    """

    def __init__(
        self,
        keys: Keys,
        instances: Instances,
        module: str | None,
        known: Mapping[Command, Any],
        begun: Collection[str] = (),
    ) -> None:
        self._keys, self._instances, self._module = keys, instances, module
        self._begun = begun  # operations whose history needs no watch: it has begun, and never un-begins
        self.buffer = Buffer(known)
        self.spawned: list[Placed] = []
        self.requests: list[dict[str, Any]] = []
        self.shared = DataKeys(self.buffer, self._outside)
        super().__init__(self.buffer, self._inside)

    def _inside(self, key: str) -> str:
        if self._module is None:
            raise InvalidKey("key", "this transaction has no module: give autocommit(module=…), or use tx.shared")
        return self._keys.data(self._module, _key(key))

    def _outside(self, key: str) -> str:
        if key.startswith("{" + self._keys.tag[1:].rpartition(".")[0] + "."):
            raise InvalidKey("key", "it belongs to smqueue's own records")
        return _key(key)

    def now(self) -> datetime:
        """Redis's clock, in UTC, as of this attempt; costs a round trip when nothing was read before."""
        self.buffer.ask(TIME, watch=())
        now_us = time_us(self.buffer.known[TIME])
        return datetime.fromtimestamp(now_us // 1_000_000, UTC).replace(microsecond=now_us % 1_000_000)

    def publish(self, channel: str, message: Value) -> None:
        """Publish on a plain pub/sub channel, at commit."""
        self.buffer.write("PUBLISH", _key(channel), _value(channel, message))

    def add_state_machines(self, machines: Iterable[StateMachine]) -> None:
        """Start machines with this commit, all or none.

        With several shards, machines of another one travel by outbox: they are started once, right after the commit,
        and one that exists there already is left alone.

        Raises:
            UnknownModule: For the first machine whose module is not registered.
            StateAlreadyExists: For the first whose state is or was in its operation, or stands twice in here.
            StateAlreadyTerminal: For the first whose state is terminal.
            CrossShard: They live in several shards.
        """
        batch, shards = list(machines), self._instances.shards
        elsewhere = {shard_of(one.operation_id, shards) for one in batch} - {self._keys.shard} if shards > 1 else set()
        if not elsewhere:
            self.spawned += self.fresh(batch)
            return
        if len({shard_of(one.operation_id, shards) for one in batch}) > 1:
            raise CrossShard(", ".join(one.operation_id for one in batch[:5]))
        told = [self._instances.as_json(self._instances.place(one)) for one in batch]
        self.requests.append({"id": new_id(), "kind": "add", "machines": told})

    def fresh(
        self,
        machines: Iterable[StateMachine],
        existing: dict[str, str] | None = None,
        own: str = "",
        exist_ok: bool = False,
    ) -> list[Placed]:
        """The records of machines to be added, each of them found to be new.

        Args:
            machines: What is to be added.
            existing: Takes record → machine id of those that are there already and no error.
            own: A commit id: what that has made is no error, for the call is a repetition of it.
            exist_ok: Nor is what anybody has made.
        """
        instances, keys = self._instances, self._keys
        placed: list[Placed] = []
        misplaced: SmqueueError | None = None
        for machine in machines:  # the checks run machine by machine: those before it come first
            try:
                placed.append(instances.place(machine))
            except SmqueueError as error:
                misplaced = error
                break
        looks = [arrival_looks(keys, instances, one) for one in placed]
        unbegun = {one.op for one in placed} - set(self._begun)
        beginnings = [key for op in unbegun for key in (keys.history(op), keys.active(op))]
        watch = [*{key for look in looks for key in look.watch}, *beginnings]
        self.buffer.ask(*dict.fromkeys(c for look in looks for c in look.commands), watch=watch)
        taken = {one.record for one in self.spawned}
        for one in placed:
            stands = standing(keys, instances, one, self.buffer.known)
            if stands.exists and existing is not None and (exist_ok or stands.made == own):
                existing[one.record] = stands.machine
                continue
            if stands.exists or one.record in taken:
                raise StateAlreadyExists(one.op, one.module, str(one))
            if one.type.terminal:
                raise StateAlreadyTerminal(one.op, one.module, str(one))
            taken.add(one.record)
        if misplaced is not None:
            raise misplaced
        return placed

    @overload
    def signal(self, operation_id: str, signal: Signal[None], /, *, module: str | None = None) -> None: ...
    @overload
    def signal(self, operation_id: str, signal: Signal[P], payload: P, /, *, module: str | None = None) -> None: ...
    @overload
    def signal(
        self, operation_id: str, signal: str, payload: object = None, /, *, module: str | None = None
    ) -> None: ...
    def signal(self, operation_id: str, signal: Any, payload: Any = None, /, *, module: str | None = None) -> None:
        """Send a signal with this commit; it is delivered right after, exactly once.

        Raises:
            UnknownSignal, InvalidPayload: As ``Executor.signal``.
        """
        told = self._instances.signal(operation_id, signal, payload, module)
        self.requests.append({"id": new_id(), "kind": "signal", **told._asdict()})

    def send_task(
        self, name: str, args: Sequence[object] = (), kwargs: Mapping[str, object] | None = None, **options: Any
    ) -> None:
        """Send a Celery task once this has committed: at least once, under one task id.

        Raises:
            InvalidInput: Arguments that are not JSON.
        """
        body = {"name": name, "args": list(args), "kwargs": dict(kwargs or {}), "options": options}
        try:
            json.dumps(body)
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"arguments of task {name}", f"not JSON: {error}") from None
        self.requests.append({"id": new_id(), "kind": "task", **body})


class Buffer:
    """What has been read and written so far, by full key."""

    def __init__(self, known: Mapping[Command, Any]) -> None:
        self.known = known
        self.writes: list[Command] = []
        self._strings: dict[str, bytes | None] = {}  # known values of keys written as strings; None: deleted
        self._parts: dict[tuple[str, str, bytes], bytes | int | None] = {}  # known fields and members written, by read
        self._opaque: set[str] = set()  # written in a way whose result is known only at commit
        self._touched: set[str] = set()

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
            raise WrongKind(command[0], command[1], str(reply))
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
        if (part := (key, command, _encoded(name))) in self._parts:
            return self._parts[part]
        if any(written[0] == key and written[1] != command for written in self._parts):
            raise ReadAfterWrite(key)
        if self._strings.get(key, b"") is None and key not in self._opaque:
            return None
        if key in self._opaque or key in self._strings:
            raise ReadAfterWrite(key)
        return self.reply((command, key, name))

    def whole(self, command: Command) -> Any:
        """A look at a whole key; refused once it was written to here."""
        key = str(command[1])
        if key in self._touched and self._strings.get(key, b"") is not None:
            raise ReadAfterWrite(key)
        if key in self._touched:
            if any(part[0] == key for part in self._parts) or key in self._opaque:
                raise ReadAfterWrite(key)
            return []
        return self.reply(command)

    def exists(self, key: str) -> bool:
        """Whether a key exists, with what was written here."""
        if key in self._strings and not any(part[0] == key for part in self._parts) and key not in self._opaque:
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
        known_string = key in self._strings or (key not in self._touched and ("GET", key) in self.known)
        total = _number("INCRBY", key, self.string(key)) + int(args[0]) if name == "INCRBY" and known_string else 0
        self._touched.add(key)
        match name:
            case "SET" | "DEL":
                self._parts = {part: value for part, value in self._parts.items() if part[0] != key}
                self._opaque.discard(key)
                self._strings[key] = _encoded(args[0]) if name == "SET" else None
            case "INCRBY" if known_string:
                self._strings[key] = str(total).encode()
            case "HSET":
                for field, value in zip(args[::2], args[1::2], strict=True):
                    self._parts[key, "HGET", _encoded(field)] = _encoded(value)
            case "HDEL":
                self._parts.update({(key, "HGET", _encoded(field)): None for field in args})
            case "SADD" | "SREM":
                self._parts.update({(key, "SISMEMBER", _encoded(member)): int(name == "SADD") for member in args})
            case "PEXPIRE":
                pass
            case _:
                self._opaque.add(key)
                self._strings.pop(key, None)
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
        kinds = {str(c[1]): _text(replies[c]) or "none" for c in replies if c[0] == "TYPE"}
        numbers: dict[tuple[str, bytes], Any] = {
            (str(c[1]), _encoded(c[2]) if len(c) > 2 else b""): reply
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
                    {(key, _encoded(field)): value for field, value in zip(args[::2], args[1::2], strict=True)}
                )
            elif name == "HDEL":
                numbers.update({(key, _encoded(field)): None for field in args})
            if wanted and kinds.get(key, "none") not in {"none", wanted}:
                raise WrongKind(name, key, f"a {kinds[key]}")
            if wanted and name not in {"HDEL", "SREM", "ZREM"}:
                kinds[key] = wanted
            if name in {"INCRBY", "HINCRBY"}:
                at = (key, b"" if name == "INCRBY" else _encoded(args[0]))
                total = _number(str(name), key, numbers.get(at)) + int(args[-1])
                if not -INT64 <= total < INT64:
                    raise WrongKind(name, key, "a number that would leave 64 bits")
                numbers[at] = str(total)
                if abs(total) > INT64 // 2:
                    tight.add(key)
        return tight


def _number(command: str, key: str, raw: Any) -> int:
    if isinstance(raw, Exception):
        raise WrongKind(command, key, str(raw))
    text = _encoded(raw) if raw is not None else b"0"
    digits = text[1:] if text[:1] == b"-" else text
    if not digits.isdigit() or str(int(text)).encode() != text or not -INT64 <= int(text) < INT64:
        raise WrongKind(command, key, "not a 64-bit integer")
    return int(text)


def _key(key: object) -> str:
    if not isinstance(key, str) or not key:
        raise InvalidKey("key", f"expected a non-empty str, got {type(key).__name__}")
    if not _encodable(key):
        raise InvalidKey("key", "holds a lone surrogate, which cannot be encoded as UTF-8")
    return key


def _value(key: str, value: object) -> Value:
    if isinstance(value, bool) or not isinstance(value, str | bytes | int):
        raise InvalidInput(f"value for {key}", f"expected str, bytes or int, got {type(value).__name__}")
    if isinstance(value, str) and not _encodable(value):
        raise InvalidInput(f"value for {key}", "holds a lone surrogate, which cannot be encoded as UTF-8")
    return value


def _encodable(text: str) -> bool:
    try:
        return bool(text.encode()) or not text
    except UnicodeEncodeError:
        return False


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


def _encoded(value: Value | float) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def _text(raw: Any) -> str | None:
    return raw.decode() if isinstance(raw, bytes) else None if raw is None else str(raw)

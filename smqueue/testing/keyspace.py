"""The keys of the model of Redis: types, expiry by a clock that others move, and who looked at and changed what."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from smqueue.testing.values import WRONG_TYPE, ReplyError, Stream, V, Value, copied

START_US = 1_767_225_600_000_000
"""Where the clock begins: 2026-01-01, in µs since the epoch."""


class Keyspace:
    """All keys of one server."""

    def __init__(self, now_us: int = START_US) -> None:
        self.data: dict[str, Value] = {}
        self.expires: dict[str, int] = {}
        """Key → when it goes, ms."""
        self.now_us = now_us
        self.watchers: list[Callable[[str], None]] = []
        """Called with each key that was changed."""
        self.published: list[tuple[str, bytes]] = []
        self.looked: set[str] = set()
        """Keys that were asked for since it was emptied; the clock is ``#clock``. So are those that were changed."""
        self.changed: set[str] = set()

    def advance(self, us: int) -> None:
        """Let time pass."""
        self.now_us += us
        self.changed.add("#clock")

    def snapshot(self) -> tuple[Any, ...]:
        """All that there is, for ``restore``."""
        data = {key: value if isinstance(value, bytes) else copied(value) for key, value in self.data.items()}
        return data, dict(self.expires), self.now_us, list(self.published)

    def restore(self, snapshot: tuple[Any, ...]) -> None:
        """Be as one was."""
        data, expires, self.now_us, published = snapshot
        self.data = {key: value if isinstance(value, bytes) else copied(value) for key, value in data.items()}
        self.expires, self.published = dict(expires), list(published)

    # --- what commands are made of -------------------------------------------------------------------------------

    @property
    def now_ms(self) -> int:
        """Its clock, ms since the epoch."""
        return self.now_us // 1000

    def get(self, key: bytes) -> Value | None:
        """What a key holds now."""
        name = key.decode(errors="surrogateescape")
        self.looked.add(name)
        gone_ms = self.expires.get(name)
        if gone_ms is not None:
            self.looked.add("#clock")
            if gone_ms <= self.now_ms:
                self.drop(name)
        return self.data.get(name)

    def of(self, kind: type[V], key: bytes, make: bool = False) -> V:
        """What a key holds, which must be of that kind; an empty one when there is none, kept if it is to be made."""
        value = self.get(key)
        if value is None:
            value = kind()
            if make:
                self.data[key.decode(errors="surrogateescape")] = value
        if not isinstance(value, kind):
            raise ReplyError(WRONG_TYPE)
        return value

    def string(self, key: bytes) -> bytes | None:
        """The string that a key holds."""
        value = self.get(key)
        if value is not None and not isinstance(value, bytes):
            raise ReplyError(WRONG_TYPE)
        return value

    def touch(self, key: bytes) -> None:
        """A key was changed; an empty container is no key."""
        name = key.decode(errors="surrogateescape")
        if name in self.data and not self.data[name] and not isinstance(self.data[name], bytes | Stream):
            del self.data[name]
            self.expires.pop(name, None)
        self.changed.add(name)
        for tell in self.watchers:
            tell(name)

    def drop(self, name: str) -> int:
        """Remove a key; returns how many that were."""
        self.expires.pop(name, None)
        if self.data.pop(name, None) is None:
            return 0
        self.touch(name.encode(errors="surrogateescape"))
        return 1

    def remove(self, held: Any, key: bytes, members: Iterable[bytes]) -> int:
        """Remove members of a container; returns how many that were."""
        gone = [member for member in dict.fromkeys(members) if member in held]
        for member in gone:
            del held[member]
        if gone:
            self.touch(key)
        return len(gone)

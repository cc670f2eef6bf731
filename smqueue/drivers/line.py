"""The connection of one run: which, and what Redis holds for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self

from smqueue.drivers.cluster import slot_of, tag_of
from smqueue.drivers.connect import ONE_SLOT, shown
from smqueue.drivers.nodes import Node, Nodes
from smqueue.errors import SmqueueError, StoreRefused
from smqueue.roundtrip import Call, Calls, Command, Commit, Read, RoundTrip

KEYLESS = frozenset({"TIME", "PING", "INFO", "CONFIG", "PUBLISH", "SPUBLISH", "UNWATCH", "WAIT"})
KEY_AT = {"SCAN": 3, "XINFO": 2, "EVAL": 3}
"""Where the first key is, if not at 1; of SCAN the pattern, whose slot is that of all that it matches."""


class Line:
    """A run's connection, to the server that has its keys; given back at the end.

    Args:
        nodes: The servers.
    """

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes
        self._node: Node | None = None
        self._connection: Any = None
        self.watching = False
        """Whether Redis holds a WATCH for it: then no other connection will do."""
        self.key: str | bytes | None = None
        """The first key that it was asked for."""
        self.renewed = False
        """Whether its connection is a new one because the one before was to a server that takes no writes."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.disconnect()  # its WATCHes, and replies that nobody read
        self.leave()

    @property
    def many(self) -> bool:
        """Whether there may be another server to ask."""
        return self._nodes.many

    def beside(self, name: str) -> str:
        """The key of that name with the tag of this run's shard."""
        return f"{{{tag_of(self.key or b'').decode(errors='surrogateescape')}}}:{name}"

    def guarded(self, keys: Sequence[str]) -> Sequence[str]:
        """The keys of a script; on a cluster with one that never exists.

        While a slot is moved key by key its keys are at two nodes, and a script finds only some of those that it does
        not name. A node refuses a script before it runs when some of its named keys exist and some do not.
        """
        return [*keys, self.beside("absent")] if self._nodes.many else keys

    def to(self, request: RoundTrip) -> Any:
        """A connection to where this request's keys are.

        Raises:
            StoreUnavailable, StoreRefused: It cannot be had.
        """
        if self.key is None:
            self.key = next(keys_of(request), None)
        if self._nodes.many:
            self._check(request)
        if not self.watching:
            self._reach()
        return self._connection

    def disconnect(self) -> None:
        """Hang up: a reply may still come that nobody waits for."""
        self.watching = False
        if self._connection is not None:
            self._connection.disconnect()
        self._nodes.look_again()

    def astray(self) -> None:
        """This server does not serve the keys now."""
        self._nodes.look_again()
        self.leave()

    def renew(self) -> None:
        """This server takes no writes any more: the name that it was found by may belong to another one by now."""
        node = self._node
        self.disconnect()
        self.leave()
        if node is not None:
            node.renew()
        self.renewed = True

    def leave(self) -> None:
        """Give the connection back; the next request finds its way anew."""
        connection, node, watching = self._connection, self._node, self.watching
        self._connection, self._node, self.watching = None, None, False  # first: it is given back but once
        if connection is not None and node is not None:
            if watching:
                connection.disconnect()
            node.release(connection)

    def _reach(self) -> None:
        node = self._nodes.node(self.key)
        if node is self._node:
            return
        self.leave()
        try:
            connection = node.connect()
        except SmqueueError:
            self._nodes.look_again()
            if (other := self._nodes.node(self.key)) is node:
                raise
            node, connection = other, other.connect()  # a replica of it has taken over
        self._node, self._connection = node, connection

    def _check(self, request: RoundTrip) -> None:
        """All keys of a run are in one slot: with two it would depend on the day whether one node has both."""
        if self.key is None:
            return
        tag = "{" + tag_of(self.key).decode(errors="surrogateescape") + "}"
        for key in keys_of(request):
            if not (isinstance(key, str) and key.startswith(tag)) and slot_of(key) != slot_of(self.key):
                names = " and ".join(k.decode(errors="replace") if isinstance(k, bytes) else k for k in (self.key, key))
                raise StoreRefused(shown(self._nodes.url), f"{names} are in two slots: {ONE_SLOT}")


def keys_of(request: RoundTrip) -> Iterator[str | bytes]:
    """The keys that a request names, one for each command."""
    match request:
        case Read(watch, commands):
            yield from watch
            yield from _named(commands)
        case Commit(commands):
            yield from _named(commands)
        case Call(_, keys, _):
            yield from keys
        case Calls(calls):
            for call in calls:
                yield from call.keys
        case _:
            return


def _named(commands: tuple[Command, ...]) -> Iterator[str | bytes]:
    for command in commands:
        name = str(command[0])
        if name not in KEYLESS:
            key = command[KEY_AT.get(name, 1)]
            if isinstance(key, str | bytes):
                yield key

"""A cluster: which node has a key, and connections to each node.

redis-py's own cluster client is no help: it repeats a MULTI/EXEC on another connection, which has no WATCH of it.
"""

from __future__ import annotations

import binascii
import threading
from bisect import bisect_right
from itertools import chain
from typing import Any

import redis
from redis.exceptions import RedisError

from smqueue.drivers.circuit import Circuit
from smqueue.drivers.connect import Greeting, exchange, one_each, options_of, shown, translated
from smqueue.drivers.nodes import Node, Nodes
from smqueue.errors import SmqueueError, StoreUnavailable

PORT = 6379
SLOTS = 16_384
Address = tuple[str, int]


def tag_of(key: str | bytes) -> bytes:
    """The part of a key that its slot comes from: what is in the first braces, else all of it."""
    raw = key.encode() if isinstance(key, str) else key
    _, opened, rest = raw.partition(b"{")
    tag, closed, _ = rest.partition(b"}")
    return tag if opened and closed and tag else raw


def slot_of(key: str | bytes) -> int:
    """The slot of a key."""
    return binascii.crc_hqx(tag_of(key), 0) % SLOTS


class Cluster(Nodes):
    """The nodes of a cluster, and who has which slots; asked of any of them at first use, and again when in doubt.

    Args:
        url: ``redis+cluster://[user:pw@]host:port[,host:port…]``, or ``rediss+cluster://…``.
        durability: As for ``Greeting``.

    Raises:
        StoreRefused: The URL makes no sense.
    """

    many = True

    def __init__(self, url: str, durability: str | None = None) -> None:
        super().__init__(url)
        seeds = [options_of(one, Greeting(url, durability)) for one in one_each(url, PORT)]
        self._seeds: list[Address] = [(one.pop("host"), one.pop("port")) for one in seeds]
        self._options = seeds[0]
        self._kind: Any = self._options.pop("connection_class", redis.Connection)
        self._nodes: dict[Address, Node] = {}
        self._lock = threading.Lock()
        self._map: tuple[list[int], list[tuple[int, Address]]] | None = None

    def node(self, key: str | bytes | None) -> Node:
        """See ``Nodes``."""
        starts, spans = self._map or self._ask()
        if key is None:
            return self._at(spans[0][1])
        slot = slot_of(key)
        last, address = spans[bisect_right(starts, slot) - 1]
        if slot > last or slot < starts[0]:
            self.look_again()
            raise StoreUnavailable(shown(self.url), f"no node of the cluster has slot {slot}")
        return self._at(address)

    def every(self) -> list[Node]:
        """See ``Nodes``."""
        _, spans = self._map or self._ask()
        return [self._at(address) for address in dict.fromkeys(address for _, address in spans)]

    def look_again(self) -> None:
        """See ``Nodes``."""
        self._map = None

    def close(self) -> None:
        """See ``Nodes``."""
        for node in list(self._nodes.values()):
            node.close()

    def _at(self, address: Address) -> Node:
        if (node := self._nodes.get(address)) is None:
            host, port = address
            pool = redis.ConnectionPool(connection_class=self._kind, host=host, port=port, **self._options)
            node = self._nodes.setdefault(address, Node(f"{host}:{port}", pool, Circuit()))
        return node

    def _ask(self) -> tuple[list[int], list[tuple[int, Address]]]:
        """Who has which slots, by the first node that answers."""
        with self._lock:
            if (known := self._map) is not None:
                return known
            problem: Exception | None = None
            for address in dict.fromkeys(chain(list(self._nodes), self._seeds)):
                try:
                    reply = self._ask_one(address)
                except (RedisError, OSError, SmqueueError) as error:
                    problem = error if problem is None or isinstance(problem, StoreUnavailable) else problem
                    continue
                if reply:
                    self._map = known = _parsed(reply, address[0])
                    return known
                problem = StoreUnavailable(shown(self.url), "no slot of the cluster is assigned to a node")
            assert problem is not None
            raise translated(self.url, problem) from None

    def _ask_one(self, address: Address) -> Any:
        node = self._at(address)
        connection = node.connect_now()
        try:
            (reply,) = exchange(connection, [("CLUSTER", "SLOTS")])
        except BaseException:
            connection.disconnect()
            raise
        finally:
            node.release(connection)
        if isinstance(reply, Exception):
            raise reply
        return reply


def _parsed(reply: Any, asked: str) -> tuple[list[int], list[tuple[int, Address]]]:
    """The reply to CLUSTER SLOTS: first slots, ascending, and for each the last one and the node that has them."""
    spans = sorted((int(span[0]), int(span[1]), span[2]) for span in reply)
    # A node that does not know its own name leaves it out: it is where we have asked.
    found = [(last, (primary[0].decode() if primary[0] else asked, int(primary[1]))) for _, last, primary in spans]
    return [first for first, _, _ in spans], found

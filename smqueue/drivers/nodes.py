"""Where the keys live: on one server, on the primary that sentinels name, or on the nodes of a cluster."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

import redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.sentinel import Sentinel, SentinelConnectionPool

from smqueue.drivers.circuit import Circuit
from smqueue.drivers.connect import SCHEMES, Greeting, odd, one_each, options_of, shown, translated
from smqueue.errors import StoreRefused

SENTINEL_PORT = 26379
SENTINEL_TIMEOUT_S = 1.0
"""How long one sentinel may take: there are others."""


class Node:
    """One server, as far as this process knows it, and the connections to it.

    They are not kept by redis-py's pool: to take one from there and give it back takes as long as all that an exchange
    asks of Python besides.

    Args:
        url: For errors.
        pool: What makes its connections.
        circuit: Of what is tried while it is away.
    """

    def __init__(self, url: str, pool: redis.ConnectionPool, circuit: Circuit) -> None:
        self.url, self.pool, self.circuit = url, pool, circuit
        self._answered = False  # what never did may be a wrong address
        self._open, self._idle = set[Any](), list[Any]()

    @property
    def in_use(self) -> int:
        """How many connections have been taken and not given back."""
        return len(self._open) - len(self._idle)

    def connect(self) -> Any:
        """A connection that nobody else uses, until it is released; a short absence of the server is waited out.

        Raises:
            StoreUnavailable, StoreRefused: Of this very server.
        """
        return self._rested() or self.circuit.run(self._connect, self._answered)

    def connect_now(self) -> Any:
        """The same, and nothing is waited out."""
        return self._rested() or self._connect()

    def release(self, connection: Any) -> None:
        """Give one back: for the next who connects, unless it leads nowhere any more, or elsewhere."""
        idle = self._idle
        if connection._sock is None:  # a reply was lost: those at rest may be as dead, without knowing it yet
            self._forget()
        elif connection in self._open and self._leads_here(connection):
            idle.append(connection)
        else:
            self._drop(connection)

    def apart(self) -> Any:
        """A connection of the caller's own; not connected yet, and to be disconnected by him."""
        return self.pool.connection_class(**self.pool.connection_kwargs)

    def renew(self) -> None:
        """Every connection from here on is a new one; what is in use is not taken back."""
        self._forget()
        self.pool.reset()

    def close(self) -> None:
        """Close all connections, also those in use."""
        for connection in list(self._open):
            connection.disconnect()

    def _forget(self) -> None:
        self._open, idle, self._idle = set(), self._idle, []
        for connection in idle:
            connection.disconnect()

    def _drop(self, connection: Any) -> None:
        self._open.discard(connection)
        connection.disconnect()

    def _rested(self) -> Any:
        """One that was released; none that the server has hung up meanwhile, or on which it has said more."""
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            try:
                if self._leads_here(connection) and _is_quiet(connection):
                    return connection
            except BaseException:  # such as a time limit, which may strike anywhere
                self._drop(connection)
                raise
            self._drop(connection)

    def _leads_here(self, connection: Any) -> bool:
        """Whether it is this process's, and not one to the primary before the one that sentinels have named last: that
        may still answer, and take writes that nobody will know of."""
        return connection.pid == os.getpid() and bool(self.pool.owns_connection(connection))

    def _connect(self) -> Any:
        connection = self.apart()
        try:
            if len(self._open) >= self.pool.max_connections:
                raise RedisConnectionError("too many connections: see max_connections in the URL")
            connection.connect()
        except (RedisError, OSError) as error:
            raise translated(self.url, error) from None
        self._answered = True
        self._open.add(connection)
        return connection


def _is_quiet(connection: Any) -> bool:
    """Whether there is nothing to read, not even an end."""
    try:
        return connection._sock is not None and not connection.can_read(0)
    except (RedisError, OSError, ValueError):  # another thread has closed it
        return False


class Nodes(ABC):
    """The servers of one deployment.

    Args:
        url: All of it.
    """

    many = False
    """Whether it is a cluster: keys have slots, and slots move."""

    def __init__(self, url: str) -> None:
        self.url = url

    @abstractmethod
    def node(self, key: str | bytes | None) -> Node:
        """The server that has this key; any when there is none.

        Raises:
            StoreUnavailable, StoreRefused: Nobody can be asked where it is.
        """

    @abstractmethod
    def every(self) -> list[Node]:
        """All servers that take writes; raises as ``node``."""

    @abstractmethod
    def look_again(self) -> None:
        """What was known may be wrong by now."""

    @abstractmethod
    def close(self) -> None:
        """Close all connections."""


class One(Nodes):
    """One server, or what the pool connects to."""

    def __init__(self, url: str, pool: redis.ConnectionPool, circuit: Circuit) -> None:
        super().__init__(url)
        self._node = Node(url, pool, circuit)

    def node(self, key: str | bytes | None) -> Node:  # noqa: ARG002
        """See ``Nodes``."""
        return self._node

    def every(self) -> list[Node]:
        """See ``Nodes``."""
        return [self._node]

    def look_again(self) -> None:
        """See ``Nodes``; nothing is known but where to ask."""

    def close(self) -> None:
        """See ``Nodes``."""
        self._node.close()


def nodes_of(url: str, durability: str | None, circuit: Circuit) -> Nodes:
    """The servers that a URL names; none is asked yet.

    Raises:
        StoreRefused: The URL makes no sense.
    """
    scheme, _, _ = url.partition("://")
    if scheme not in SCHEMES:
        options = options_of(url, Greeting(url, durability))
        kind = options.pop("connection_class", redis.Connection)
        return One(url, redis.ConnectionPool(connection_class=kind, **options), circuit)
    if scheme.endswith("+cluster"):
        from smqueue.drivers.cluster import Cluster

        return Cluster(url, durability)
    service, options, sentinels, theirs = sentinels_of(url, durability)
    pool = SentinelConnectionPool(service, Sentinel(sentinels, sentinel_kwargs=theirs), **options)
    return One(url, pool, circuit)


Options = dict[str, Any]


def sentinels_of(url: str, durability: str | None = None) -> tuple[str, Options, list[tuple[str, int]], Options]:
    """What a URL ``redis+sentinel://[user:pw@]host[:port][,…]/service?…`` says.

    Returns:
        The service; options of connections to its primary, where user and password belong; the sentinels; options of
        connections to these, with ``sentinel_username`` and ``sentinel_password`` of the query.

    Raises:
        StoreRefused: It makes no sense.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise odd(url, error) from None
    query = dict(parse_qsl(parts.query))
    login = {name: query.pop(f"sentinel_{name}") for name in ("username", "password") if f"sentinel_{name}" in query}
    service = unquote(parts.path.strip("/"))
    if not service or "/" in service:
        raise StoreRefused(shown(url), "it names no service: end it with /service, as in the sentinels' configuration")
    urls = one_each(urlunsplit(parts._replace(query=urlencode(query))), SENTINEL_PORT)
    each = [options_of(one, Greeting(url, durability, primary=True)) for one in urls]
    sentinels = [(one.pop("host"), one.pop("port")) for one in each]
    options = each[0]
    if secure := options.pop("connection_class", None) is not None:
        options["ssl"] = True
    theirs: Options = {"socket_timeout": SENTINEL_TIMEOUT_S, "socket_connect_timeout": SENTINEL_TIMEOUT_S, **login}
    theirs |= {"retry": options["retry"], "protocol": 2, "ssl": secure}
    theirs |= {name: value for name, value in options.items() if name.startswith("ssl_")}
    return service, options, sentinels, theirs

"""Connections to Redis, and its errors as ours."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple, cast
from urllib.parse import urlsplit, urlunsplit

import hiredis
from redis._parsers.base import BaseParser
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterCrossSlotError,
    ClusterDownError,
    InvalidResponse,
    NoPermissionError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from smqueue.errors import NotDurable, SmqueueError, StoreRefused, StoreTooOld, StoreUnavailable
from smqueue.roundtrip import Command

SOCKET_TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 5.0
SHORTEST_TIMEOUT_S = 3.0
"""What a URL may set at least: a blocking read or a WAIT takes 2 s, and a slow answer is no lost one."""
OLDEST = (7, 0)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_PASSWORDS = re.compile(r"([?&][a-z_]*password=)[^&]*")
SCHEMES = ("redis+cluster", "rediss+cluster", "redis+sentinel", "rediss+sentinel")
"""Of URLs that name several servers."""

LOST = (RedisConnectionError, RedisTimeoutError, OSError)
"""After these nobody knows whether the request was applied."""

ELSEWHERE = (AskError, TryAgainError, ClusterDownError)
"""What a node of a cluster says that cannot serve a request now, a MOVED among them: certainly it was not applied."""

RAISED = (RedisConnectionError, *ELSEWHERE, ReadOnlyError)
"""Error replies that are no answer to a command."""

pack, _Reader = cast("Any", hiredis).pack_command, cast("Any", hiredis).Reader
CHUNK = 65_536
"""Bytes read at a time."""


def options_of(url: str, greet: Greeting) -> dict[str, Any]:
    """What a pool makes its connections with; they never repeat a command by themselves, or a commit would be applied
    twice.

    Args:
        url: ``redis://``, ``rediss://``, ``unix://`` or Celery's ``redis+socket://``.
        greet: Called with each new connection.

    Raises:
        StoreRefused: The URL makes no sense.
    """
    retry = cast("Any", Retry(NoBackoff(), 0))
    options: dict[str, Any] = {"socket_timeout": SOCKET_TIMEOUT_S, "socket_connect_timeout": CONNECT_TIMEOUT_S}
    options |= {"retry": retry, "retry_on_error": [], "health_check_interval": 0, "protocol": 2}
    options["redis_connect_func"] = greet
    try:
        options |= verification(url) | parse_url(plain(url))
    except ValueError as error:
        raise odd(url, error) from None
    options["socket_timeout"] = max(options["socket_timeout"], SHORTEST_TIMEOUT_S)
    if "path" in options:
        options.pop("socket_connect_timeout")
    return options


def verification(url: str) -> dict[str, Any]:
    """Options of a connection with TLS: the server's name is checked, which not every version of redis-py does."""
    return {"ssl_check_hostname": True} if url.startswith("rediss://") and "ssl_cert_reqs=none" not in url else {}


def odd(url: str, error: ValueError) -> StoreRefused:
    """For a URL that cannot be taken apart; the text of the error may hold half a password."""
    encode = "it cannot be taken apart: in user and password write # / ? : and @ percent-encoded"
    return StoreRefused(shown(url), encode if "@" in url else str(error))


def plain(url: str) -> str:
    """A URL in redis-py's spelling, given in Celery's."""
    if url.startswith("redis+socket://"):
        return "unix://" + url.removeprefix("redis+socket://").replace("virtual_host=", "db=")
    return url


def one_each(url: str, port: int) -> list[str]:
    """A URL that names several servers as one for each, without path.

    Args:
        url: ``redis+…://[user:pw@]host:port[,host:port…][/path][?option=…]``, or ``rediss+…``.
        port: Of those that are given without one.

    Raises:
        StoreRefused: It names none.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise odd(url, error) from None
    user, at, hosts = parts.netloc.rpartition("@")
    found = [host for host in hosts.split(",") if host]
    if not found:
        raise StoreRefused(shown(url), "it names no host")
    full = [host if host.rpartition("]")[2].count(":") else f"{host}:{port}" for host in found]
    scheme = parts.scheme.partition("+")[0]
    return [urlunsplit((scheme, f"{user}{at}{host}", "", parts.query, "")) for host in full]


def exchange(connection: Any, commands: Sequence[Command]) -> list[Any]:
    """Send commands in one write, and read a reply for each; an error reply is a value.

    Raises:
        redis.RedisError: One of ``LOST``, or one of ``ELSEWHERE`` or ReadOnlyError when any of the replies was that.
    """
    return receive(connection, send(connection, commands))


def send(connection: Any, commands: Sequence[Command]) -> int:
    """Send commands in one write; returns how many replies are to be read."""
    if connection._sock is None:
        connection.connect()
    socket: Any = connection._sock
    socket.sendall(b"".join([pack(command) for command in commands]))
    return len(commands)


def receive(connection: Any, count: int) -> list[Any]:
    """Read the replies to what was sent; see ``exchange``."""
    # Not over redis-py's parser, which takes 3 µs for each reply, a MULTI's QUEUED too. All replies are read, so that
    # nothing is left over between two exchanges, and either may go first.
    socket: Any = connection._sock
    errors, replies = list[Exception](), list[Any]()

    def refused(text: str) -> Exception:
        errors.append(_reply_error(text))
        return errors[-1]

    reader = _Reader(protocolError=InvalidResponse, replyError=refused)
    while len(replies) < count:
        if not (chunk := socket.recv(CHUNK)):
            raise RedisConnectionError("the server has closed the connection")
        reader.feed(chunk)
        while (reply := reader.gets(False)) is not False:
            replies.append(reply)
    for error in errors:
        if isinstance(error, RAISED):
            raise error
    return replies


def _reply_error(text: str) -> Exception:
    """An error reply as redis-py has it; what a server says that has just become a replica, always as READONLY."""
    if text.startswith("UNBLOCKED") or (text.startswith("EXECABORT") and "READONLY" in text):
        return ReadOnlyError(text)
    return BaseParser.parse_error(text)


def shown(url: str) -> str:
    """A URL without its passwords; also of one that holds unencoded what ends it, ``#``, ``/`` or ``?``."""
    scheme = _SCHEME.match(url)
    start = scheme[0] if scheme else ""
    user, at, host = url[len(start) :].rpartition("@")
    name, colon, _ = user.partition(":")
    return start + name + (":***" if colon else "") + at + _PASSWORDS.sub(r"\1***", host)


def translated(url: str, error: Exception) -> SmqueueError:
    """A library's error as one of ours, in one clear line."""
    text = str(error) or type(error).__name__
    match error:
        case SmqueueError():
            return error
        case AuthenticationError() | NoPermissionError():
            return StoreRefused(shown(url), f"{text} (check user and password in the URL, and the user's ACL)")
        case ReadOnlyError():
            return StoreRefused(shown(url), f"{text} (this is a replica: give the primary's address)")
        case BusyLoadingError() | RedisConnectionError() | RedisTimeoutError() | OSError():
            return StoreUnavailable(shown(url), text)
        case AskError() if not url.startswith(SCHEMES):
            return StoreRefused(shown(url), f"the key is at {text} (a cluster: begin its URL with redis+cluster://)")
        case AskError() | TryAgainError() | ClusterDownError():
            return StoreUnavailable(shown(url), f"no node of the cluster serves this slot now ({text})")
        case ClusterCrossSlotError():
            return StoreRefused(shown(url), f"{text} ({ONE_SLOT})")
        case ResponseError():
            return StoreRefused(shown(url), text)
        case RedisError():
            return StoreUnavailable(shown(url), text)
        case _:
            return StoreRefused(shown(url), f"{type(error).__name__}: {text}")


ONE_SLOT = "on a cluster a key that tx.shared reaches must have the tag of its shard, as in name:{namespace.0}"


class Greeting(NamedTuple):
    """Logs in, and sees that the server is one that we can use: at each connection, as it may be another by then.

    Attributes:
        url: For errors.
        durability: ``"fsync"``: refuse a server that answers before its disk has it.
        primary: Take no replica for an answer.
    """

    url: str
    durability: str | None = None
    primary: bool = False

    def __call__(self, connection: Any) -> None:
        """Greet one.

        Raises:
            StoreTooOld: It is too old.
            NotDurable: It does not promise what was asked for.
        """
        try:
            connection.on_connect()
            self._look(connection)
        except BaseException:
            connection.disconnect()
            raise

    def _look(self, connection: Any) -> None:
        looks: list[Command] = [("INFO", "server")]
        if self.primary:
            looks.append(("INFO", "replication"))
        if self.durability == "fsync":
            looks += [("CONFIG", "GET", "appendonly"), ("CONFIG", "GET", "appendfsync")]
        info, *more = exchange(connection, looks)
        if isinstance(info, Exception):
            raise translated(self.url, info)
        _check_version(self.url, info)
        if self.primary and b"role:master" not in cast("bytes", more.pop(0)):
            raise RedisConnectionError("the sentinels still name a server that is a replica by now")
        if self.durability == "fsync":
            _check_fsync(self.url, more)


def _check_version(url: str, info: bytes) -> None:
    """Raises StoreTooOld for a server without what the scripts need."""
    fields = dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)
    if fields.get("server_name") == "valkey":  # it reports Redis 7.2.4 for compatibility
        return
    version = fields.get("redis_version", "0")
    if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < OLDEST:
        raise StoreTooOld(shown(url), f"it is version {version}")


def _check_fsync(url: str, config: Sequence[Any]) -> None:
    found: dict[bytes, bytes] = {}
    for reply in config:
        if isinstance(reply, Exception):
            what = f"durability='fsync' cannot be checked ({reply}): allow this user +config|get"
            raise NotDurable(shown(url), what)
        found |= dict(zip(reply[::2], reply[1::2], strict=True))
    if found.get(b"appendonly") != b"yes" or found.get(b"appendfsync") != b"always":
        has = ", ".join(f"{name.decode()} {value.decode()}" for name, value in found.items())
        what = f"durability='fsync' needs appendonly yes and appendfsync always, and it has {has}: set them in its "
        raise NotDurable(shown(url), what + "configuration, and at once with CONFIG SET")

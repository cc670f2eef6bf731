"""Connections to Redis, and its errors as ours."""

from __future__ import annotations

from typing import Any, cast
from urllib.parse import urlsplit, urlunsplit

import redis
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    NoPermissionError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from smqueue.errors import SmqueueError, StoreRefused, StoreTooOld, StoreUnavailable

SOCKET_TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 5.0
OLDEST = (7, 0)

LOST = (RedisConnectionError, RedisTimeoutError, OSError)
"""After these nobody knows whether the request was applied."""


def pool_of(url: str) -> redis.ConnectionPool:
    """A pool of connections that never repeat a command by themselves: a repeated commit would be applied twice.

    Raises:
        StoreRefused: The URL makes no sense.
    """
    retry = cast("Any", Retry(NoBackoff(), 0))
    options: dict[str, Any] = {"socket_timeout": SOCKET_TIMEOUT_S, "socket_connect_timeout": CONNECT_TIMEOUT_S}
    options |= {"retry": retry, "retry_on_error": [], "health_check_interval": 0, "protocol": 2}
    if url.startswith("redis+socket://"):  # Celery's spelling
        url = "unix://" + url.removeprefix("redis+socket://").replace("virtual_host=", "db=")
    if url.startswith("unix://"):
        options.pop("socket_connect_timeout")
    try:
        return redis.ConnectionPool.from_url(url, **options)
    except ValueError as error:
        raise StoreRefused(shown(url), str(error)) from None


def shown(url: str) -> str:
    """A URL without its password."""
    parts = urlsplit(url)
    if "@" not in parts.netloc:
        return url
    user, _, host = parts.netloc.rpartition("@")
    name = user.partition(":")[0]
    return urlunsplit(parts._replace(netloc=f"{name}:***@{host}" if ":" in user else f"{name}@{host}"))


def translated(url: str, error: Exception) -> SmqueueError:
    """A library's error as one of ours, in one clear line."""
    text = str(error) or type(error).__name__
    match error:
        case AuthenticationError() | NoPermissionError():
            return StoreRefused(shown(url), f"{text} (check user and password in the URL, and the user's ACL)")
        case ReadOnlyError():
            return StoreRefused(shown(url), f"{text} (this is a replica: give the primary's address)")
        case BusyLoadingError() | RedisConnectionError() | RedisTimeoutError() | OSError():
            return StoreUnavailable(shown(url), text)
        case ResponseError():
            return StoreRefused(shown(url), text)
        case RedisError():
            return StoreUnavailable(shown(url), text)
        case _:
            return StoreRefused(shown(url), f"{type(error).__name__}: {text}")


def check_version(url: str, info: bytes) -> None:
    """Raises StoreTooOld for a server without what the scripts need."""
    fields = dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)
    if fields.get("server_name") == "valkey":  # it reports Redis 7.2.4 for compatibility
        return
    version = fields.get("redis_version", "0")
    if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < OLDEST:
        raise StoreTooOld(shown(url), f"it is version {version}")

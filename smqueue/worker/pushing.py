"""Hints as the broker stores them: what makes work due pushes them, where broker and state are one Redis."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit
from uuid import uuid4

from celery import Celery
from kombu.connection import Connection
from kombu.messaging import Producer
from kombu.transport import virtual
from kombu.utils.json import dumps

from smqueue import tracing
from smqueue.instances import Push
from smqueue.keys import Keys

log = logging.getLogger("smqueue.outbound")

FRESH_S = 600.0
"""How long a message is used, with another id each time: it says when it expires."""


class _Channel(virtual.Channel):
    """Where a message ends up that goes nowhere."""

    caught: list[tuple[str, Any]]

    def _put(self, queue: str, message: Any, **_: Any) -> None:
        self.caught.append((queue, message))


class _Transport(virtual.Transport):
    Channel = _Channel
    driver_type = driver_name = "caught"

    def __init__(self, client: Any, **options: Any) -> None:
        super().__init__(client, **options)
        self.state = virtual.base.BrokerState()


def rendered(app: Any, name: str, args: tuple[Any, ...], task_id: str, **options: Any) -> tuple[str, Any] | None:
    """What Celery itself would leave in a Redis broker: the queue and the message; ``None`` unless it is just that."""
    with Connection(transport=_Transport) as connection:
        channel: Any = connection.channel()
        channel.caught = []
        app.send_task(
            name, args=args, task_id=task_id, serializer="json", ignore_result=True, retry=False,
            producer=Producer(channel, auto_declare=False), **options,
        )  # fmt: skip
        caught = channel.caught
    if len(caught) != 1 or caught[0][1]["properties"].get("priority"):
        return None
    return caught[0]


class Pushing:
    """Makes what commits push.

    Args:
        app: Whose broker.
    """

    def __init__(self, app: Celery) -> None:
        self._app: Any = app
        self._made: dict[Keys, tuple[float, Push]] = {}
        self._possible: dict[str, bool] = {}

    def push(self, keys: Keys, url: str, options: Callable[[], dict[str, Any]]) -> Push | None:
        """A hint for a shard whose state is at ``url``; ``None`` when it has to be sent after the commit."""
        made = self._made.get(keys)
        if made is None or time.monotonic() - made[0] > FRESH_S:
            made = self._render(keys, url, options()) if self._allowed(url) else None
        return None if made is None else made[1]

    def _allowed(self, url: str) -> bool:
        known = self._possible.get(url)
        if known is None:
            known = self._possible[url] = self._look(url)
        return known

    def _look(self, url: str) -> bool:
        conf = self._app.conf
        wanted = conf.get("smqueue_push_hints")
        if wanted is not None:
            return bool(wanted)
        told = conf.task_send_sent_event or conf.broker_url is None  # Flower would not hear of it
        return not told and one_redis(url, self._broker)

    def _render(self, keys: Keys, url: str, options: dict[str, Any]) -> tuple[float, Push] | None:
        mark = uuid4().hex
        try:
            with tracing.apart():
                found = rendered(self._app, "smqueue.transition", (keys.namespace, keys.shard), mark, **options)
        except Exception:  # a signal handler of the user's, or a transport of another version
            log.warning("hints cannot be pushed by commits; they are sent after them", exc_info=True)
            found = None
        if found is None:
            self._possible[url] = False
            return None
        queue, message = found
        message["properties"]["delivery_tag"] = message["headers"]["root_id"] = mark
        message["headers"]["parent_id"] = None  # whichever task it was rendered in
        tracing.without(message["headers"])
        prefix = (self._app.conf.broker_transport_options or {}).get("global_keyprefix", "")
        push = Push(f"{prefix}{queue}", place[2] if (place := place_of(self._broker)) else "0", dumps(message), mark)
        made = self._made[keys] = (time.monotonic(), push)
        return made

    @property
    def _broker(self) -> str:
        return str(self._app.conf.broker_write_url or self._app.conf.broker_url)


def one_redis(state: str, broker: str) -> bool:
    """Whether state and broker are certainly one server, reached as one user."""
    here, there = place_of(state), place_of(broker)
    return here is not None and there is not None and here[:2] == there[:2] and here[3] == there[3]


def place_of(url: str) -> tuple[str, int, str, str] | None:
    """Host or socket, port, database and user of a URL in redis-py's or Celery's spelling; ``None`` for any other."""
    if ";" in url:  # several brokers
        return None
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    query = dict(parse_qsl(parts.query))
    user = unquote(parts.username or query.get("username", ""))
    match parts.scheme:
        case "redis" | "rediss":
            database = query.get("db") or query.get("virtual_host") or parts.path.strip("/") or "0"
            return parts.hostname or "localhost", port or 6379, database, user
        case "unix" | "redis+socket" | "socket":
            database = query.get("db") or query.get("virtual_host") or "0"
            return unquote(parts.path), 0, database.strip("/"), user
        case _:
            return None

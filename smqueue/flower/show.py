"""How pages write what they show: links, times, numbers, states."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import sha256
from importlib.resources import files
from typing import Any, cast
from urllib.parse import quote, urlencode

from tornado.escape import xhtml_escape

from smqueue.errors import SmqueueError
from smqueue.flower.forms import Words, readable
from smqueue.instances import Instances
from smqueue.words import span

TONES = {
    "quarantined": "danger",
    "unreadable": "danger",
    "unscheduled": "danger",
    "paused": "warning",
    "cancelling": "warning",
    "decided": "info",
}
"""Of the statuses of machines, in Bootstrap's words."""


class Show:
    """For one request.

    Args:
        prefix: Flower's ``--url-prefix``.
        namespace: What links keep asking for; ``None``: nothing.
        now: Against which times are told.
        instances: The modules that are known, by which states are told.
    """

    def __init__(
        self, prefix: str | None, namespace: str | None, now: datetime, instances: Instances | None = None
    ) -> None:
        self._prefix = "/" + prefix.strip("/") if prefix else ""
        self.namespace, self.now, self._instances = namespace, now, instances

    def at(self, *path: str, **query: object) -> str:
        """The address of a page below ``/machines``; what is ``None``, empty or false is left out of its query."""
        if path[:1] == ("op",) and path[1] in {".", ".."}:  # no path can hold them
            path, query = ("op", "_", *path[2:]), {"op": path[1], **query}
        asked = {name: value for name, value in {"namespace": self.namespace, **query}.items() if value}
        where = "/".join([f"{self._prefix}/machines", *(quote(part, safe="") for part in path)])
        return f"{where}?{urlencode(asked)}" if asked else where

    def asset(self, name: str) -> str:
        """The address of a file of ours, which changes with it."""
        return f"{self._prefix}/machines/static/{name}?v={_version(name)}"

    def ago(self, when: datetime | None, words: str = "{} ago") -> str:
        """A past time, as HTML that a script keeps true."""
        return "" if when is None else self._time("since", when, words.format(span(self.now - when)), words)

    def until(self, when: datetime | None) -> str:
        """A time to come, as HTML that a script counts down."""
        if when is None:
            return ""
        words = f"in {span(when - self.now)}" if when > self.now else f"due {span(self.now - when)} ago"
        return self._time("until", when, words)

    def clock(self, when: datetime) -> str:
        """A time of the day, UTC; with its date unless that is today's."""
        day = "" if when.date() == self.now.date() else f"{when:%Y-%m-%d} "
        return self._time("", when, f"{day}{when:%H:%M:%S}.{when.microsecond // 1000:03}")

    @staticmethod
    def moment(text: str) -> datetime:
        """A time of JSON."""
        return datetime.fromisoformat(text)

    @staticmethod
    def number(value: float) -> str:
        """With its thousands apart."""
        return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 100 else f"{value:.3g}"

    @staticmethod
    def tone(status: str) -> str:
        """The color of a status."""
        return TONES.get(status, "secondary")

    def state(self, value: Any, module: str = "", type_name: str = "") -> str:
        """The fields of a state in one line, secrets hidden already; durations as spans of time."""
        if self._instances is not None and module in self._instances:
            with suppress(SmqueueError):  # a module whose file cannot be imported
                if (known := self._instances.get(module).module.types.get(type_name)) is not None:
                    value = readable(known.codec, value)
        if not isinstance(value, dict):
            return "" if value is None else _told(value)
        return " ".join(f"{name}={_told(item)}" for name, item in cast("dict[str, Any]", value).items())

    @staticmethod
    def _time(kind: str, when: datetime, words: str, form: str = "") -> str:
        utc = when.astimezone(UTC)
        about = f' data-{kind}="{utc.timestamp():.3f}"' if kind else ""
        about += f' data-words="{xhtml_escape(form)}"' if form else ""
        title = f"{utc:%Y-%m-%d %H:%M:%S} UTC"
        return f'<time datetime="{utc.isoformat()}" title="{title}"{about}>{xhtml_escape(words)}</time>'


def _told(value: Any) -> str:
    return value if isinstance(value, Words) else json.dumps(value, ensure_ascii=False)


@lru_cache
def _version(name: str) -> str:
    return sha256(files("smqueue.flower").joinpath("static", name).read_bytes()).hexdigest()[:12]

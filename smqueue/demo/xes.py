"""A streaming reader of event logs in XES (IEEE 1849), plain or gzipped.

It holds one case at a time, and the names of those before. A document type declaration is refused before anything of
it is read: entities that expand for ever live there, and XES has none.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, NoReturn
from xml.etree.ElementTree import ParseError, XMLParser

from smqueue.errors import InvalidInput

CHUNK_BYTES = 64 * 1024
GZIP_MAGIC = b"\x1f\x8b"
NAME = "concept:name"
TIMESTAMP = "time:timestamp"
UNNAMED = "(unnamed)"

VALUES = frozenset({"string", "date", "int", "float", "boolean", "id", "list", "container"})
"""The elements that are attributes; each has a key and, but for the last two, a value."""


@dataclass(frozen=True)
class Event:
    """One event of a case.

    Attributes:
        activity: Its ``concept:name``; ``(unnamed)`` where it has none.
        at: Its ``time:timestamp``, as written; ``None`` where it has none, or one that cannot be read.
        attributes: All its attributes as text; those nested in others under ``outer/inner``.
    """

    activity: str
    at: datetime | None
    attributes: dict[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Case:
    """One case, which XES calls a trace.

    Attributes:
        name: Unique in the log: its ``concept:name``; the second of one name is ``name#2``; without one ``case-<n>``.
        events: In the order of the file.
    """

    name: str
    events: list[Event]


def read_log(path: Path | str) -> Iterator[Case]:
    """Read the cases of a log, one after the other, in the order of the file.

    Args:
        path: Of the file; whether it is gzipped is seen from its first bytes.

    Yields:
        The cases that are whole, also of a file that turns out to be broken further on.

    Raises:
        InvalidInput: The file cannot be read, or is not XES; it names the file.
    """
    try:
        with Path(path).open("rb") as file:
            zipped = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
            file.seek(0)
            yield from _cases(gzip.GzipFile(fileobj=file) if zipped else file)
    except _NotXes as error:
        raise InvalidInput(str(path), str(error)) from None
    except (ParseError, LookupError, ValueError) as error:  # the last two: an encoding that there is not
        raise InvalidInput(str(path), f"is not an XES log: {error}") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InvalidInput(str(path), f"is a broken gzip file: {error}") from error
    except OSError as error:
        raise InvalidInput(str(path), f"cannot be read: {error.strerror or error}") from error


class _NotXes(Exception):
    """The document is something else."""


def _cases(stream: BinaryIO | gzip.GzipFile) -> Iterator[Case]:
    cases = _Cases()
    parser = XMLParser(target=cases)  # noqa: S314 - _Cases.doctype refuses what makes it unsafe
    while chunk := stream.read(CHUNK_BYTES):
        parser.feed(chunk)
        yield from cases.whole()
    parser.close()
    yield from cases.whole()


class _Cases:
    """The target of an XML parser: takes elements as they come, and gives cases that are whole."""

    def __init__(self) -> None:
        self._path: list[str] = []  # names of the open elements
        self._keys: list[str] = []  # keys of the open attributes, outermost first
        self._events: list[Event] = []
        self._trace: dict[str, str] = {}
        self._event: dict[str, str] = {}
        self._whole: list[Case] = []
        self._names: dict[str, int] = {}  # how often each name has been given
        self._read = 0

    def whole(self) -> list[Case]:
        """Return the cases that have become whole since the last call."""
        whole, self._whole = self._whole, []
        return whole

    # --- called by the parser ----------------------------------------------------------------------------------------

    def doctype(self, name: str, pubid: str | None, system: str | None) -> NoReturn:  # noqa: ARG002
        """Refuse a document type declaration, at its first word."""
        raise _NotXes("is not an XES log: it has a document type declaration, which may hide entities that never end")

    def start(self, tag: str, attrib: dict[str, str]) -> None:
        """An element begins."""
        name = tag.rpartition("}")[2]
        if not self._path and name != "log":
            raise _NotXes(f"is not an XES log: its root element is <{name}>, not <log>")
        self._path.append(name)
        match self._path:
            case ["log", "trace"]:
                self._trace, self._events = {}, []
            case ["log", "trace", "event"]:
                self._event = {}
            case ["log", "trace", "event", *_] if name in VALUES:
                self._note(self._event, attrib)
            case ["log", "trace", *_] if name in VALUES:
                self._note(self._trace, attrib)
            case _:
                pass  # extensions, globals, classifiers, attributes of the log, events of no case

    def _note(self, attributes: dict[str, str], attrib: dict[str, str]) -> None:
        self._keys.append(attrib.get("key", ""))
        attributes["/".join(self._keys)] = attrib.get("value", "")

    def end(self, tag: str) -> None:  # noqa: ARG002 - it is the one opened last
        """An element ends."""
        match self._path:
            case ["log", "trace"]:
                self._read += 1
                self._whole.append(Case(self._unique(self._trace.get(NAME) or f"case-{self._read}"), self._events))
            case ["log", "trace", "event"]:
                given = self._event
                self._events.append(Event(given.get(NAME) or UNNAMED, _instant(given.get(TIMESTAMP)), given))
            case ["log", "trace", *_, name] if name in VALUES:
                self._keys.pop()
            case _:
                pass
        self._path.pop()

    def close(self) -> None:
        """The document ends."""

    def _unique(self, name: str) -> str:
        unique, seen = name, self._names.get(name, 0)
        while seen and unique in self._names:
            seen += 1
            unique = f"{name}#{seen}"
        self._names[name] = max(seen, 1)
        self._names.setdefault(unique, 1)
        return unique


def _instant(text: str | None) -> datetime | None:
    try:
        return None if text is None else datetime.fromisoformat(text)
    except ValueError:
        return None

"""Checks of what definitions are given: each returns the value, or raises an error that says what to write instead."""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from pathlib import PurePath
from typing import Any

from smqueue.errors import DefinitionError, InvalidInput
from smqueue.places import place_of

MAX_NAME_BYTES = 256
MILLISECOND = timedelta(milliseconds=1)


def check_name(field_name: str, value: object, limit: int = MAX_NAME_BYTES) -> str:
    """Check an id or name that becomes part of keys: any text of 1 to ``limit`` bytes.

    Args:
        field_name: What the error calls it.
        value: As given.
        limit: In bytes of UTF-8.

    Returns:
        The value, unchanged.

    Raises:
        InvalidInput: Not text, empty, too long, or with lone surrogates, which have no bytes.
    """
    if not isinstance(value, str):
        raise InvalidInput(field_name, f"expected str, got {type(value).__name__}")
    try:
        size = len(value) if value.isascii() else len(value.encode())
    except UnicodeEncodeError:
        raise InvalidInput(field_name, "holds a lone surrogate, which cannot be encoded as UTF-8") from None
    if not 1 <= size <= limit:
        raise InvalidInput(field_name, f"has {size} bytes as UTF-8; the limits are 1 and {limit}")
    return value


def defined_name(what: str, value: object, where: str) -> str:
    """Check a name given in a definition, as ``check_name`` does; raises ``DefinitionError``."""
    try:
        return check_name(what, value)
    except InvalidInput as error:
        raise DefinitionError(str(error), where) from error


def type_name(value: object) -> str:
    """Return the type of a value, as errors show it: never the value."""
    return type(value).__name__


def of_state(value: Any, state: Any) -> Any:
    """Return a value that may be a function of the state."""
    return value(state) if callable(value) else value


def duration(value: Any, what: str, where: str, *, least: timedelta | None = MILLISECOND) -> timedelta:
    """Check a duration; numbers are refused, as they have no unit."""
    if not isinstance(value, timedelta):
        raise DefinitionError(
            f"{what} got {type_name(value)}, which has no unit: give a timedelta, such as timedelta(seconds=30)", where
        )
    if least is not None and value < least:
        raise DefinitionError(f"{what} got {value}: give a duration of {least} or more", where)
    return value


def timeout_s_of(value: Any, what: str, where: str) -> float | None:
    """Check a time limit, which may also be given in seconds, and return it in seconds."""
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not (math.isfinite(value) and value > 0):
            raise DefinitionError(f"{what} got {value}: give seconds above zero, or a timedelta", where)
        return float(value)
    return duration(value, what, where).total_seconds()


def whole(value: Any, what: str, where: str, *, least: int) -> int:
    """Check a whole number."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise DefinitionError(f"{what} got {value!r}: give a whole number, {least} or more", where)
    return value


def instant(value: Any, where: str) -> datetime:
    """Check an instant: a datetime that has a time zone."""
    if not isinstance(value, datetime):
        raise DefinitionError(f"at(…) got {type_name(value)}: give a datetime; for a duration write after(…)", where)
    if value.utcoffset() is None:
        raise DefinitionError("at(…) got a datetime without a time zone: give one, as in datetime.now(UTC)", where)
    return value


def nonempty(value: Any, what: str, where: str) -> str:
    """Check the name of a channel or an operation."""
    if not isinstance(value, str):
        raise DefinitionError(f"{what} got {type_name(value)}: give a str, or a function of the state", where)
    if not value:
        raise DefinitionError(f"{what} got an empty str", where)
    return value


def function(fn: Any, what: str, where: str) -> None:
    """Check the function of a trigger."""
    if not callable(fn):
        raise DefinitionError(f"{what} got {type_name(fn)}: give a function (state, context)", where)


def is_signature(value: Any) -> bool:
    """Return whether something is a Celery signature; those are dicts, and callable."""
    return isinstance(value, dict) and "task" in value


def named(fn: Any) -> str:
    """Return the name of a function; of a nameless one its line."""
    name = getattr(fn, "__name__", None)
    return PurePath(place_of(fn)).name if name in (None, "<lambda>") else str(name)


def shown(value: Any) -> str:
    """Return a value that may be a function of the state, for diagrams."""
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, timedelta):
        return _spoken(value)
    return f"by {named(value)}" if callable(value) else str(value)


def _spoken(value: timedelta) -> str:
    """Return a duration such as ``1 h 30 min``."""
    minutes, seconds = divmod(value.seconds, 60)
    hours, minutes = divmod(minutes, 60)
    parts = [f"{count} {unit}" for count, unit in ((value.days, "d"), (hours, "h"), (minutes, "min")) if count]
    if seconds or value.microseconds or not parts:
        parts.append(f"{seconds + value.microseconds / 1_000_000:g} s")
    return " ".join(parts)

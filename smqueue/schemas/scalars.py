"""Strict marshmallow fields of single values. None of them coerces, in either direction.

Each has ``encode`` (value to JSON) and ``decode`` (JSON to value), which marshmallow's machinery calls as its
``_serialize`` and ``_deserialize``. A problem is raised outside ``except`` where the caught error's text holds the
value: a traceback would show it otherwise.
"""

# ruff: noqa: ARG002, D102 - what overrides a method of Strict is documented there, and need not use all it is given

from __future__ import annotations

import base64
import contextlib
import enum
import math
import re
import unicodedata
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any

from marshmallow import fields

from smqueue.schemas.problem import JsonValue, ValidationProblem, refusal
from smqueue.schemas.secrets import Cover, Path

MAX_INT_BITS = 14_000  # Python refuses to print integers of more than 4,300 digits, which json would run into
PLAIN_DECIMAL_DIGITS = 64  # 1E+999999 written out would be a megabyte

_SURROGATE = re.compile("[\ud800-\udfff]")
_DECIMAL = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
# fromisoformat alone would drop digits after the sixth and take week dates
_DATETIME = re.compile(_DATE.pattern + r"[T ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?(Z|[+-][0-9]{2}:[0-9]{2})?")
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_MICROSECOND = timedelta(microseconds=1)


class Strict(fields.Field[Any], ABC):
    """A field that refuses whatever is not exactly of its type.

    Attributes:
        python: The exact class of its values, or None where there are several.
        exact: Whatever it encodes comes back as it was: there is no need to try.
    """

    python: type | None = None
    exact: bool = False

    def __init__(self, *, allow_none: bool = False) -> None:
        super().__init__(required=True, allow_none=allow_none)

    @abstractmethod
    def encode(self, value: Any) -> JsonValue:
        """The JSON of ``value``; raises ``ValidationProblem``."""

    @abstractmethod
    def decode(self, data: Any) -> Any:
        """The value of ``data``; raises ``ValidationProblem``."""

    def veil(self, data: JsonValue, cover: Cover, path: Path = ()) -> JsonValue:
        """``data``, which stand at ``path``, with secrets covered; also what may hold one, not being of its form."""
        return data

    def secrets(self, within: frozenset[type]) -> Iterator[str]:
        """Dotted paths of the secrets below this field. ``within`` are the dataclasses around it, to end recursion."""
        yield from ()

    def _serialize(self, value: Any, attr: str | None, obj: Any, **kwargs: Any) -> JsonValue:
        return self.encode(value)

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> Any:
        return self.decode(value)


def text(value: Any, *, normal: bool) -> str:
    """Check a string, and bring it into normal form C if ``normal``."""
    if type(value) is not str:
        raise refusal("str", value)
    if value.isascii():
        return value
    if _SURROGATE.search(value):
        raise ValidationProblem("", "str is not valid Unicode: it holds a lone surrogate")
    return unicodedata.normalize("NFC", value) if normal else value


def integer(value: Any) -> int:
    """Check an integer."""
    if type(value) is not int:
        raise refusal("int", value)
    if value.bit_length() > MAX_INT_BITS:
        raise ValidationProblem("", f"int has more than {MAX_INT_BITS:,} bits")
    return value


def number(value: Any) -> float:
    """Check a float; an int is one if the float is exactly as large."""
    if type(value) is int:
        result = float(value) if value.bit_length() < 1000 else math.inf
        if result != value:
            raise ValidationProblem("", "int has no exact float")
        return result
    if type(value) is not float:
        raise refusal("float", value)
    if not math.isfinite(value):
        raise ValidationProblem("", "float is not finite")
    return value


class Text(Strict):
    """``str``."""

    python = str
    exact = True

    def __init__(self, *, normal: bool) -> None:
        super().__init__()
        self.normal = normal

    def encode(self, value: Any) -> str:
        return text(value, normal=self.normal)

    def decode(self, data: Any) -> str:
        return text(data, normal=self.normal)


class Integer(Strict):
    """``int`` of any size that prints."""

    python = int
    exact = True

    def encode(self, value: Any) -> int:
        return integer(value)

    def decode(self, data: Any) -> int:
        return integer(data)


class Number(Strict):
    """``float``, finite."""

    python = float

    def encode(self, value: Any) -> float:
        return number(value)

    def decode(self, data: Any) -> float:
        return number(data)


class Boolean(Strict):
    """``bool``."""

    python = bool
    exact = True

    def encode(self, value: Any) -> bool:
        if type(value) is not bool:
            raise refusal("bool", value)
        return value

    def decode(self, data: Any) -> bool:
        return self.encode(data)


class Nothing(Strict):
    """``None``."""

    python = type(None)
    exact = True

    def __init__(self) -> None:
        super().__init__(allow_none=True)

    def encode(self, value: Any) -> None:
        if value is not None:
            raise refusal("None", value)

    def decode(self, data: Any) -> None:
        self.encode(data)


class DecimalText(Strict):
    """``Decimal``, finite, as a string of its value: trailing zeros and how the exponent was written are dropped."""

    python = Decimal

    def encode(self, value: Any) -> str:
        if type(value) is not Decimal:
            raise refusal("Decimal", value)
        sign, digits, exponent = value.as_tuple()
        if not isinstance(exponent, int):  # the mark of an infinity or a NaN
            raise ValidationProblem("", "Decimal is not finite")
        if not value:
            return "0"
        # not Decimal.normalize(), which rounds to the precision of the thread's context
        kept = len(digits)
        while digits[kept - 1] == 0:
            kept -= 1
        reduced = Decimal((sign, digits[:kept], exponent + len(digits) - kept))
        return format(reduced, "f") if abs(reduced.adjusted()) < PLAIN_DECIMAL_DIGITS else str(reduced)

    def decode(self, data: Any) -> Decimal:
        if type(data) is not str:
            raise refusal("a decimal number as str", data)
        result = None
        if _DECIMAL.fullmatch(data):
            try:
                result = Decimal(data)
            except InvalidOperation:  # an exponent beyond what Decimal holds
                result = None
        if result is None or not result.is_finite():
            raise ValidationProblem("", "str is not a finite decimal number")
        return result


class Instant(Strict):
    """``datetime`` with a zone, as ISO 8601 in UTC with microseconds."""

    python = datetime

    def encode(self, value: Any) -> str:
        if type(value) is not datetime:
            raise refusal("datetime", value)
        return self._utc(value).isoformat(timespec="microseconds")

    def decode(self, data: Any) -> datetime:
        if type(data) is not str:
            raise refusal("an ISO 8601 datetime as str", data)
        result = None
        if _DATETIME.fullmatch(data):
            try:
                result = datetime.fromisoformat(data)
            except ValueError:
                result = None
        if result is None:
            raise ValidationProblem("", "str is not an ISO 8601 datetime")
        return self._utc(result)

    @staticmethod
    def _utc(value: datetime) -> datetime:
        if value.utcoffset() is None:
            raise ValidationProblem("", "datetime is naive: give it a time zone")
        try:
            return value.astimezone(UTC)
        except OverflowError:
            pass
        raise ValidationProblem("", "datetime lies outside the years 1 to 9999 in UTC")


class Day(Strict):
    """``date``, and no datetime."""

    python = date

    def encode(self, value: Any) -> str:
        if type(value) is not date:
            raise refusal("date", value)
        return value.isoformat()

    def decode(self, data: Any) -> date:
        if type(data) is not str:
            raise refusal("an ISO 8601 date as str", data)
        if _DATE.fullmatch(data):
            try:
                return date.fromisoformat(data)
            except ValueError:
                pass
        raise ValidationProblem("", "str is not an ISO 8601 date")


class Duration(Strict):
    """``timedelta``, as integer microseconds."""

    python = timedelta

    def encode(self, value: Any) -> int:
        if type(value) is not timedelta:
            raise refusal("timedelta", value)
        return value // _MICROSECOND

    def decode(self, data: Any) -> timedelta:
        if type(data) is not int:
            raise refusal("microseconds as int", data)
        try:
            return timedelta(microseconds=data)
        except OverflowError:
            pass
        raise ValidationProblem("", "int is out of the range of a timedelta")


class Uuid(Strict):
    """``UUID``, in its canonical form."""

    python = uuid.UUID

    def encode(self, value: Any) -> str:
        if type(value) is not uuid.UUID:
            raise refusal("UUID", value)
        return str(value)

    def decode(self, data: Any) -> uuid.UUID:
        if type(data) is not str:
            raise refusal("a UUID as str", data)
        if not _UUID.fullmatch(data):
            raise ValidationProblem("", "str is not a UUID")
        return uuid.UUID(data)


class Base64(Strict):
    """``bytes``, as base64."""

    python = bytes

    def encode(self, value: Any) -> str:
        if type(value) is not bytes:
            raise refusal("bytes", value)
        return base64.b64encode(value).decode("ascii")

    def decode(self, data: Any) -> bytes:
        if type(data) is not str:
            raise refusal("base64 as str", data)
        result = None
        with contextlib.suppress(ValueError):  # binascii.Error, or what is not ASCII
            result = base64.b64decode(data, validate=True)
        if result is None or base64.b64encode(result).decode("ascii") != data:  # stray bits after the last byte
            raise ValidationProblem("", "str is not base64")
        return result


class Member(Strict):
    """A member of an ``Enum``, by its name."""

    def __init__(self, members: type[enum.Enum]) -> None:
        super().__init__()
        self.python = self.members = members

    def encode(self, value: Any) -> str:
        if type(value) is not self.members:
            raise refusal(self.members.__name__, value)
        return value.name

    def decode(self, data: Any) -> enum.Enum:
        if type(data) is not str:
            raise refusal(f"the name of a {self.members.__name__} as str", data)
        member = self.members.__members__.get(data)
        if member is None:
            raise ValidationProblem(
                "", f"str names no {self.members.__name__}: there are {', '.join(self.members.__members__)}"
            )
        return member


class Choice(Strict):
    """One of the values of a ``Literal``."""

    def __init__(self, values: tuple[str | int | bool | None, ...]) -> None:
        super().__init__(allow_none=None in values)
        self.values = values

    def encode(self, value: Any) -> JsonValue:
        # by type first: True == 1
        if any(type(value) is type(allowed) and value == allowed for allowed in self.values):
            return value
        raise refusal(f"one of {', '.join(map(repr, self.values))}", value)

    def decode(self, data: Any) -> JsonValue:
        return self.encode(data)

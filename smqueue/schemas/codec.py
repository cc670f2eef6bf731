"""One codec a type: what others use of schemas."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import msgspec
from marshmallow import Schema

from smqueue.schemas.derive import Walker, marked_secrets
from smqueue.schemas.explicit import Explicit
from smqueue.schemas.problem import JsonValue, ValidationProblem
from smqueue.schemas.records import Record, RecordSchema
from smqueue.schemas.scalars import Strict
from smqueue.schemas.secrets import Cover, hidden

T = TypeVar("T")

# One encoder for ever: records are found by these bytes. Keys sort by code point.
_encode = msgspec.json.Encoder(order="deterministic").encode
_codecs: dict[Any, Codec[Any]] = {}


class Codec(Generic[T]):
    """Converts the values of one type to JSON-ready data and back, strictly.

    Attributes:
        schema: The marshmallow schema of a dataclass (derived or given), or the marshmallow field of any other hint.
        secret_fields: Dotted paths of what must not be shown; ``*`` stands for every item, the empty path for the
            value itself. A dataclass that holds itself is listed once; ``redact`` goes all the way.
    """

    def __init__(self, field: Strict, where: str) -> None:
        self._field = field
        self._where = where
        self.schema: Schema | Strict = field
        if isinstance(field, Record):
            self.schema = RecordSchema.of(field)
        elif isinstance(field, Explicit):
            self.schema = field.schema
        self.secret_fields = frozenset(field.secrets(frozenset()))

    def dump(self, value: T) -> JsonValue:
        """The JSON-ready data of a value, its types checked on the way.

        Raises:
            ValidationProblem: It does not fit; ``field`` is the dotted path within the value, or what the value is
                called when the value itself is wrong.
        """
        try:
            return self._field.encode(value)
        except (ValidationProblem, RecursionError) as error:
            found = error
        raise self._problem(found)

    def load(self, data: JsonValue) -> T:
        """The value of JSON-ready data, without coercion.

        Raises:
            ValidationProblem: As in ``dump``.
        """
        try:
            return self._field.decode(data)
        except (ValidationProblem, RecursionError) as error:
            found = error
        raise self._problem(found)

    def check(self, value: T) -> JsonValue:
        """Dump a value, and make sure that it will come back as it is: same type, same value, same bytes.

        Strings of a state come back in Unicode normal form C, so the data are compared and not the values. (This also
        holds where ``==`` misleads: ``eq=False``, or an hour that a change of clocks repeats.)

        Raises:
            ValidationProblem: As in ``dump``; or it comes back changed, say by a ``__post_init__``.
        """
        data = self.dump(value)
        if self._field.exact or isinstance(self._field, Explicit):  # whose dump has compared already
            return data
        loaded = self.load(data)
        if type(loaded) is not type(value) or self.dump(loaded) != data:
            raise ValidationProblem(self._where, "does not come back from its schema as it was")
        return data

    def redact(self, data: JsonValue) -> JsonValue:
        """A copy of dumped data with its secrets replaced by ``***``; see ``redact``."""
        return self.veil(data, hidden)

    def veil(self, data: JsonValue, cover: Cover) -> JsonValue:
        """A copy of dumped data with each of its secrets replaced by what ``cover`` returns for it."""
        return self._field.veil(data, cover) if self.secret_fields else data

    def _problem(self, found: ValidationProblem | RecursionError) -> ValidationProblem:
        if isinstance(found, RecursionError):
            return ValidationProblem(self._where, "nested too deeply, or in itself")
        return ValidationProblem(found.field or self._where, found.problem)


def codec_for(hint: Any, *, identity: bool, where: str) -> Codec[Any]:
    """The codec of a type hint, made once.

    Args:
        hint: A dataclass, any other hint that the package lists, ``None``, or a marshmallow schema (class or instance).
        identity: It describes a state, which is known by its value: no floats and no free JSON in it.
        where: What the value is called in errors; at definition also the prefix of its fields, as in
            ``Awaiting.total``.

    Raises:
        UnsupportedField: The hint, or a field below it, has no schema.
    """
    if isinstance(hint, Schema) or (isinstance(hint, type) and issubclass(hint, Schema)):
        return _given(hint, None, identity=identity, where=where)
    key = (hint, identity, where)
    try:
        known = _codecs.get(key)
    except TypeError:  # Annotated with something that cannot be hashed
        return Codec(Walker(identity=identity).field(hint, where), where)
    if known is None:
        codec = Codec[Any](Walker(identity=identity).field(hint, where), where)
        known = _codecs.setdefault(key, codec)  # another thread may have been first
    return known


def dataclass_codec(
    cls: type[T], *, identity: bool, schema: Schema | type[Schema] | None = None, where: str | None = None
) -> Codec[T]:
    """The codec of a dataclass, by a schema of its own if one is given.

    Args:
        cls: The dataclass.
        identity: As in ``codec_for``.
        schema: May load a dict of the fields or an instance. Unknown fields are refused whatever it says.
        where: As in ``codec_for``; the name of the class unless set.

    Raises:
        UnsupportedField: As in ``codec_for``.
    """
    where = where or cls.__name__
    if schema is not None:
        return _given(schema, cls, identity=identity, where=where)
    return codec_for(cls, identity=identity, where=where)


def _given(schema: Schema | type[Schema], record: type | None, *, identity: bool, where: str) -> Codec[Any]:
    key = (schema, record, identity, where)
    known = _codecs.get(key)
    if known is None:
        marked = frozenset[str]() if record is None else marked_secrets(record)
        instance = schema() if isinstance(schema, type) else schema
        codec = Codec[Any](Explicit(instance, record, identity=identity, marked=marked), where)
        known = _codecs.setdefault(key, codec)
    return known


def canonical(data: JsonValue) -> str:
    """The one text of dumped data: sorted keys, no spaces, no escapes that JSON does not ask for.

    Two equal states have the same text, in every process and version, so it must never change. Read it back with
    ``json`` or msgspec, not orjson, which turns integers beyond 64 bits into floats.
    """
    return _encode(data).decode()


def redact(data: JsonValue, codec: Codec[Any]) -> JsonValue:
    """Dumped data with its secrets replaced by ``***``.

    Data that do not have the shape of the schema are hidden where a secret may be in them.
    """
    return codec.redact(data)

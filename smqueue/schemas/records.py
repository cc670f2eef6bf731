"""The strict field of a dataclass, and the marshmallow schema that shows it."""

# ruff: noqa: ARG002, D102 - what overrides a method of Strict is documented there, and need not use all it is given

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from types import MemberDescriptorType
from typing import Any, cast

from marshmallow import RAISE, Schema

from smqueue.schemas.problem import JsonValue, ValidationProblem, refusal
from smqueue.schemas.scalars import Strict
from smqueue.schemas.secrets import Cover, Path

_MISSING = object()


class Record(Strict):
    """A dataclass, as an object with one key a field.

    Its members are set after it is made, so that a dataclass may hold itself.
    """

    def __init__(self, record: type) -> None:
        super().__init__()
        self.python = self.record = record
        self.members: dict[str, Strict] = {}
        self.optional: set[str] = set()  # those with a default, which data may leave out

    @cached_property
    def exact(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride] - known once its members are
        """Its class does nothing of its own, and its members are exact."""
        record: Any = self.record
        made = getattr(record.__dict__.get("__init__"), "__code__", None)
        plain = record.__new__ is object.__new__ and record.__getattribute__ is object.__getattribute__
        set_plainly = record.__dataclass_params__.frozen or record.__setattr__ is object.__setattr__
        return (
            plain and set_plainly and type(record) is type and made is not None and made.co_filename == "<string>"
            and not hasattr(record, "__post_init__")
            and not any(_sets(getattr(record, name, None)) for name in self.members)
            and all(type(member) is not Record and member.exact for member in self.members.values())
        )  # fmt: skip

    def encode(self, value: Any) -> JsonValue:
        if type(value) is not self.record:
            raise refusal(self.record.__name__, value)
        data: dict[str, JsonValue] = {}
        name = ""
        try:
            for name, member in self.members.items():
                item = getattr(value, name, _MISSING)
                if item is _MISSING:
                    raise ValidationProblem("", "missing")
                data[name] = member.encode(item)
        except ValidationProblem as problem:
            raise problem.under(name) from None
        return data

    def decode(self, data: Any) -> Any:
        if type(data) is not dict:
            raise refusal("dict", data)
        members, values = self.members, {}
        name = ""
        try:
            for name, member in members.items():
                if name in data:
                    values[name] = member.decode(data[name])
                elif name not in self.optional:
                    raise ValidationProblem("", "missing")
            if len(values) != len(data):
                name = next(key for key in data if key not in members)
                raise ValidationProblem("", "unknown field")
        except ValidationProblem as problem:
            raise problem.under(name) from None
        return build(self.record, values)

    def veil(self, data: JsonValue, cover: Cover, path: Path = ()) -> JsonValue:
        if not isinstance(data, dict):
            return cover(data, path)
        veiled: dict[str, JsonValue] = {}
        for key, item in data.items():
            below = (*path, key)
            veiled[key] = self.members[key].veil(item, cover, below) if key in self.members else cover(item, below)
        return veiled

    def secrets(self, within: frozenset[type]) -> Iterator[str]:
        if self.record in within:  # its paths have no end; redact() follows them all the same
            return
        for name, member in self.members.items():
            for path in member.secrets(within | {self.record}):
                yield f"{name}.{path}" if path else name


def _sets(attribute: object) -> bool:
    """Whether a class attribute decides what an instance has: a descriptor, other than that of a slot."""
    return hasattr(attribute, "__set__") and not isinstance(attribute, MemberDescriptorType)


def build(record: type, values: Mapping[str, Any]) -> Any:
    """Make the instance; what its ``__post_init__`` raises is a problem, by type (its text may hold a value)."""
    try:
        return record(**values)
    except Exception as error:
        problem = f"{record.__name__} refused its fields with {type(error).__name__}"
    raise ValidationProblem("", problem)


class RecordSchema(Schema):
    """A derived schema as marshmallow knows it: introspected and nested like any other, yet strict both ways.

    ``dump`` and ``load`` leave out marshmallow's hooks, which derived schemas do not have, and which cost more than the
    fields themselves.
    """

    record_field: Record

    @classmethod
    def of(cls, record_field: Record) -> RecordSchema:
        """The one schema of a dataclass."""
        made = cls.from_dict(dict(record_field.members), name=f"{record_field.record.__name__}Schema")
        schema = cast("RecordSchema", made())
        for name, member in schema.fields.items():
            member.required = name not in record_field.optional
        schema.record_field = record_field
        return schema

    def dump(self, obj: Any, *, many: bool | None = None) -> Any:
        """JSON-ready data of an instance; raises ``ValidationProblem``."""
        if self.many if many is None else many:
            return [self.record_field.encode(item) for item in obj]
        return self.record_field.encode(obj)

    def load(
        self,
        data: Any,
        *,
        many: bool | None = None,
        partial: bool | Iterable[str] | None = None,
        unknown: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """An instance; raises ``ValidationProblem``. There is no partial load, and unknown fields are refused."""
        if partial or unknown not in (None, RAISE):
            raise ValueError("a derived schema is strict: it takes neither partial data nor unknown fields")
        if self.many if many is None else many:
            return [self.record_field.decode(item) for item in data]
        return self.record_field.decode(data)

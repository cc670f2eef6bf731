"""A marshmallow schema of the user's own, held to what derived ones promise: JSON, canonical, and nothing lost.

marshmallow validates on load only, drops what an object lacks, and dumps ``{}`` for a class it does not know. So every
dump is loaded again and compared.
"""

# ruff: noqa: ARG002, D102 - what overrides a method of Strict is documented there, and need not use all it is given

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

from marshmallow import RAISE, Schema, ValidationError, fields

from smqueue.schemas.containers import json_ready
from smqueue.schemas.problem import JsonValue, ValidationProblem, refusal
from smqueue.schemas.records import build
from smqueue.schemas.scalars import Strict
from smqueue.schemas.secrets import Cover, Path, cover_at, covers

_OURS = {"Missing data for required field.": "missing", "Unknown field.": "unknown field"}


class Explicit(Strict):
    """What a given schema describes.

    Args:
        schema: The schema. A field with ``metadata={"secret": True}`` is never shown, nor is its problem's text.
        record: The dataclass of its values, if any; the schema may load a dict or an instance.
        identity: Whether it describes a state.
        marked: Further secret paths, from the annotations of ``record``.
    """

    def __init__(self, schema: Schema, record: type | None, *, identity: bool, marked: frozenset[str]) -> None:
        super().__init__(allow_none=True)
        self.schema = schema
        self.record = self.python = record
        self.identity = identity
        keys = {field.attribute or name: field.data_key or name for name, field in schema.fields.items()}
        renamed: set[str] = set()
        for path in marked:
            first, dot, rest = path.partition(".")
            renamed.add(keys.get(first, first) + dot + rest)
        self.secret_paths = frozenset(renamed) | frozenset(_secret_paths(schema, frozenset()))

    def encode(self, value: Any) -> JsonValue:
        if self.record is not None and type(value) is not self.record:
            raise refusal(self.record.__name__, value)
        try:
            raw = self._run(self.schema.dump, value)
        except ValidationProblem:
            if self.record is None and isinstance(value, dict):
                self._run(self.schema.load, value, unknown=RAISE)  # dumping names no field; loading does
            raise
        data = self._ready(raw)
        if self._same(self.decode(data), value):
            return data
        # a string was brought into normal form C: then what it came from must come back
        if data != raw and self._same(self._load(raw), value):
            return data
        raise ValidationProblem("", "does not come back from its schema as it was")

    def decode(self, data: Any) -> Any:
        return self._load(self._ready(data))

    def _load(self, data: Any) -> Any:
        loaded = self._run(self.schema.load, data, unknown=RAISE)
        if self.record is None or type(loaded) is self.record:
            return loaded
        if not isinstance(loaded, Mapping):
            raise ValidationProblem(
                "", f"the schema loaded a {type(loaded).__name__}, neither a dict nor a {self.record.__name__}"
            )
        return build(self.record, cast("Mapping[str, Any]", loaded))

    def _ready(self, data: Any) -> JsonValue:
        try:
            return json_ready(data, identity=self.identity)
        except ValidationProblem as problem:
            raise self._quiet(problem.field, problem.problem) from None

    def _run(self, step: Any, value: Any, **options: Any) -> Any:
        try:
            return step(value, **options)
        except ValidationError as error:
            found = _first(error.messages)
        except Exception as error:  # a hook of the user's; its text may hold a value
            found = ("", f"the schema raised {type(error).__name__}")
        raise self._quiet(*found)

    def _quiet(self, field: str, problem: str) -> ValidationProblem:
        """Neither a schema's own words nor keys below a secret field may get out."""
        for secret in self.secret_paths:
            if covers(secret, field):
                return ValidationProblem(".".join(field.split(".")[: secret.count(".") + 1]), "does not fit its schema")
        return ValidationProblem(field, _OURS.get(problem, problem))

    @staticmethod
    def _same(loaded: Any, value: Any) -> bool:
        return type(loaded) is type(value) and bool(loaded == value)

    def veil(self, data: JsonValue, cover: Cover, path: Path = ()) -> JsonValue:
        for secret in sorted(self.secret_paths, key=lambda one: one.count(".")):  # the outermost first
            data = cover_at(data, secret.split(".") if secret else [], cover, path)
        return data

    def secrets(self, within: frozenset[type]) -> Iterator[str]:
        yield from self.secret_paths


def _first(messages: Any) -> tuple[str, str]:
    """The first of marshmallow's messages, with its dotted path."""
    path: list[str] = []
    while isinstance(messages, (dict, list)) and messages:
        if isinstance(messages, dict):
            step, messages = next(iter(messages.items()))
            if step != "_schema":
                path.append(str(step))
        else:
            messages = messages[0]
    return ".".join(path), messages if isinstance(messages, str) else "does not fit its schema"


def _secret_paths(schema: Schema, within: frozenset[type]) -> Iterator[str]:
    if type(schema) in within:
        return
    start = "*." if schema.many else ""
    for name, field in schema.fields.items():
        for path in _field_secrets(field, within | {type(schema)}):
            yield f"{start}{field.data_key or name}{path}"


def _field_secrets(field: fields.Field[Any], within: frozenset[type]) -> Iterator[str]:
    if field.metadata.get("secret"):
        yield ""
    elif isinstance(field, Strict):
        for path in field.secrets(frozenset()):
            yield f".{path}" if path else ""
    elif isinstance(field, fields.Nested):
        for path in _secret_paths(field.schema, within):
            yield f".{path}"
    elif isinstance(field, fields.List):
        for path in _field_secrets(field.inner, within):
            yield f".*{path}"
    elif isinstance(field, fields.Mapping) and field.value_field is not None:
        for path in _field_secrets(field.value_field, within):
            yield f".*{path}"

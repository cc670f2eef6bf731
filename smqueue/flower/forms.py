"""A form from a payload's schema: one control for each field, and JSON for what has no control of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

from marshmallow import Schema, fields

from smqueue.flower.spans import span_of, spelled
from smqueue.records import loads
from smqueue.schemas import Codec
from smqueue.schemas import containers as held
from smqueue.schemas import scalars as plain
from smqueue.schemas.records import Record

WHOLE = "payload"
"""The name of the control of a payload that is no record."""


@dataclass(frozen=True)
class Control:
    """One field of a form.

    Attributes:
        name: Of the field.
        kind: ``text``, ``number``, ``date``, ``password``, ``select``, ``span`` (of time) or ``json``.
        hint: What it takes, in a few words.
        required: Whether it has to be given.
        options: Of ``select``: JSON value → what is shown.
        step: Of ``number``: ``1``, or ``any``.
    """

    name: str
    kind: str = "json"
    hint: str = "JSON"
    required: bool = True
    options: tuple[tuple[str, str], ...] = ()
    step: str = "1"

    def read(self, text: str) -> Any:
        """What was entered, as JSON-ready data; raises ValueError."""
        if self.kind in {"text", "date", "password"}:
            return text
        if self.kind == "span":
            return span_of(text) // timedelta(microseconds=1)
        return loads(text)


class Misread(Exception):
    """What was entered into a control is not of its kind."""

    def __init__(self, name: str, problem: str) -> None:
        self.name, self.problem = name, problem
        super().__init__(name, problem)


def controls(codec: Codec[Any] | None) -> tuple[Control, ...]:
    """The controls for a payload; none for a signal without one. Without a codec its JSON is asked for."""
    if codec is None:
        return (Control(WHOLE, hint="JSON; nothing for a signal without payload", required=False),)
    if isinstance(codec.schema, Schema):
        return tuple(_control(field.data_key or name, field) for name, field in codec.schema.fields.items())
    return () if isinstance(codec.schema, plain.Nothing) else (_control(WHOLE, codec.schema),)


def payload(codec: Codec[Any] | None, entered: Mapping[str, str]) -> Any:
    """JSON-ready data from what was entered; raises Misread."""
    wanted = controls(codec)
    read = dict(_entered(wanted, entered))
    if codec is None or not isinstance(codec.schema, Schema):
        return read.get(WHOLE)
    return read


def _entered(wanted: tuple[Control, ...], entered: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    for control in wanted:
        text = entered.get(control.name, "")
        if not text.strip() and (control.kind != "text" or not control.required):
            continue  # left out: the schema says whether it may be
        try:
            yield control.name, control.read(text)
        except ValueError:
            raise Misread(control.name, f"not {_WANTED.get(control.kind, _WANTED['json'])}") from None


_WANTED = {
    "number": "a number",
    "span": "a span of time: write 90s, 30min, 2h or 1d",
    "json": "JSON: text needs quotes of its own",
}


def _control(name: str, field: Any, required: bool | None = None) -> Control:
    required = bool(field.required) if required is None else required
    if isinstance(field, held.Nullable):
        return _control(name, field.item, required=False)
    if isinstance(field, held.Hidden):
        inner = _control(name, field.item, required)
        return Control(name, "password", f"{inner.hint}; secret", required) if inner.kind == "text" else inner
    if isinstance(field, plain.Member):
        named = [(json.dumps(member), member) for member in field.members.__members__]
        return Control(name, "select", field.members.__name__, required, tuple(named))
    if isinstance(field, plain.Choice):
        values = [json.dumps(value) for value in field.values]
        return Control(name, "select", "one of these", required, tuple(zip(values, values, strict=True)))
    for kinds, kind, hint, step in _KINDS:
        if isinstance(field, kinds):
            options = (("true", "true"), ("false", "false")) if kind == "select" else ()
            return Control(name, kind, hint, required, options, step)
    return Control(name, required=required)


_KINDS: tuple[tuple[Any, str, str, str], ...] = (
    (plain.Boolean, "select", "true or false", ""),
    (plain.Duration, "span", "a span of time: 90s, 30min, 2h, 1d 4h", ""),
    (plain.Integer, "number", "whole number", "1"),
    (plain.Number, "number", "number", "any"),
    (plain.DecimalText, "text", "decimal number", ""),
    (plain.Instant, "text", "time with its zone: 2026-01-31T12:00:00Z", ""),
    (plain.Day, "date", "date", ""),
    (plain.Uuid, "text", "UUID", ""),
    (plain.Base64, "text", "base64", ""),
    (plain.Text, "text", "text", ""),
    (fields.Boolean, "select", "true or false", ""),
    (fields.Integer, "number", "whole number", "1"),
    (fields.Float, "number", "number", "any"),
    (fields.String, "text", "text", ""),
)


# --- showing ---------------------------------------------------------------------------------------------------------


class Words(str):
    """A value as it is to be read: not JSON."""

    __slots__ = ()


def readable(codec: Codec[Any], data: Any) -> Any:
    """Dumped data for people: durations as spans of time. What does not fit stays as it is."""
    if isinstance(codec.schema, Schema):
        return _members(codec.schema.fields, data)
    return _readable(codec.schema, data)


def _readable(field: Any, data: Any) -> Any:
    match field:
        case plain.Duration() if type(data) is int:
            return Words(spelled(data))
        case held.Nullable() | held.Hidden():
            return _readable(field.item, data)
        case held.Items() if isinstance(data, list):
            return [_readable(field.item, one) for one in cast("list[Any]", data)]
        case held.Entries() if isinstance(data, dict):
            return {name: _readable(field.item, one) for name, one in cast("dict[str, Any]", data).items()}
        case Record():
            return _members(field.members, data)
        case _:
            return data


def _members(members: Mapping[str, Any], data: Any) -> Any:
    if not isinstance(data, dict):
        return data
    return {name: _readable(members.get(name), one) for name, one in cast("dict[str, Any]", data).items()}

"""Strict marshmallow fields of values that hold others. Each adds its step to the path of a problem below it."""

# ruff: noqa: ARG002, D102 - what overrides a method of Strict is documented there, and need not use all it is given

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from smqueue.schemas.problem import JsonValue, ValidationProblem, refusal
from smqueue.schemas.scalars import Strict, integer, number, text
from smqueue.schemas.secrets import Cover, Path

MAX_DEPTH = 100  # of free JSON; json's own encoder gives up near Python's recursion limit


class Items(Strict):
    """``list[T]`` or ``tuple[T, ...]``, as an array."""

    def __init__(self, python: type[list[Any]] | type[tuple[Any, ...]], item: Strict) -> None:
        super().__init__()
        self.python = self.container = python
        self.item = item

    def encode(self, value: Any) -> JsonValue:
        if type(value) is not self.container:
            raise refusal(self.container.__name__, value)
        return self._each(value, self.item.encode)

    def decode(self, data: Any) -> Any:
        if type(data) is not list:
            raise refusal("list", data)
        return self.container(self._each(data, self.item.decode))

    @staticmethod
    def _each(values: Any, convert: Any) -> list[Any]:
        converted: list[Any] = []
        try:
            for value in values:
                converted.append(convert(value))  # noqa: PERF401 - its length is the index of the one that fails
        except ValidationProblem as problem:
            raise problem.under(len(converted)) from None
        return converted

    def veil(self, data: JsonValue, cover: Cover, path: Path = ()) -> JsonValue:
        if not isinstance(data, list):
            return cover(data, path)
        return [self.item.veil(item, cover, (*path, str(index))) for index, item in enumerate(data)]

    def secrets(self, within: frozenset[type]) -> Iterator[str]:
        yield from _below("*", self.item, within)


class Fixed(Strict):
    """``tuple[A, B]``, as an array of that length."""

    python = tuple

    def __init__(self, items: list[Strict]) -> None:
        super().__init__()
        self.items = items

    def encode(self, value: Any) -> JsonValue:
        if type(value) is not tuple:
            raise refusal("tuple", value)
        return self._each(value, [item.encode for item in self.items])

    def decode(self, data: Any) -> tuple[Any, ...]:
        if type(data) is not list:
            raise refusal("list", data)
        return tuple(self._each(data, [item.decode for item in self.items]))

    def _each(self, values: Any, converts: list[Any]) -> list[Any]:
        if len(values) != len(converts):
            raise ValidationProblem("", f"expected {len(converts)} items, got {len(values)}")
        converted: list[Any] = []
        try:
            for convert, value in zip(converts, values, strict=True):
                converted.append(convert(value))
        except ValidationProblem as problem:
            raise problem.under(len(converted)) from None
        return converted

    def veil(self, data: JsonValue, cover: Cover, path: Path = ()) -> JsonValue:
        if not isinstance(data, list) or len(data) != len(self.items):
            return cover(data, path)
        pairs = zip(self.items, data, strict=True)
        return [field.veil(item, cover, (*path, str(index))) for index, (field, item) in enumerate(pairs)]

    def secrets(self, within: frozenset[type]) -> Iterator[str]:
        for index, item in enumerate(self.items):
            yield from _below(str(index), item, within)


class Entries(Strict):
    """``dict[str, T]``, as an object."""

    python = dict

    def __init__(self, item: Strict, *, normal: bool) -> None:
        super().__init__()
        self.item = item
        self.normal = normal

    def encode(self, value: Any) -> JsonValue:
        return self._each(value, self.item.encode)

    def decode(self, data: Any) -> dict[str, Any]:
        return self._each(data, self.item.decode)

    def _each(self, values: Any, convert: Any) -> dict[str, Any]:
        if type(values) is not dict:
            raise refusal("dict", values)
        converted: dict[str, Any] = {}
        for key, value in values.items():
            name = _key(key, converted, normal=self.normal)
            try:
                converted[name] = convert(value)
            except ValidationProblem as problem:
                raise problem.under(name) from None
        return converted

    def veil(self, data: JsonValue, cover: Cover, path: Path = ()) -> JsonValue:
        if not isinstance(data, dict):
            return cover(data, path)
        return {key: self.item.veil(item, cover, (*path, key)) for key, item in data.items()}

    def secrets(self, within: frozenset[type]) -> Iterator[str]:
        yield from _below("*", self.item, within)


class Nullable(Strict):
    """``T | None``."""

    def __init__(self, item: Strict) -> None:
        super().__init__(allow_none=True)
        self.item = item

    def encode(self, value: Any) -> JsonValue:
        return None if value is None else self.item.encode(value)

    def decode(self, data: Any) -> Any:
        return None if data is None else self.item.decode(data)

    def veil(self, data: JsonValue, cover: Cover, path: Path = ()) -> JsonValue:
        return None if data is None else self.item.veil(data, cover, path)

    def secrets(self, within: frozenset[type]) -> Iterator[str]:
        return self.item.secrets(within)


class Tagged(Strict):
    """``A | B``, as an object with one key, the name of the class: a worker in any language sees which it is."""

    def __init__(self, alternatives: dict[type, Strict]) -> None:
        super().__init__()
        self.alternatives = alternatives
        self.tags = {python.__name__: item for python, item in alternatives.items()}
        self.expected = " or ".join(self.tags)

    def encode(self, value: Any) -> JsonValue:
        item = self.alternatives.get(type(value))
        if item is None:
            raise refusal(self.expected, value)
        return {type(value).__name__: item.encode(value)}

    def decode(self, data: Any) -> Any:
        if type(data) is not dict or len(data) != 1:
            raise refusal(f"a dict with the one key {self.expected}", data)
        [(tag, inner)] = data.items()
        item = self.tags.get(tag)
        if item is None:
            raise ValidationProblem("", f"expected a dict with the one key {self.expected}, got another key")
        try:
            return item.decode(inner)
        except ValidationProblem as problem:
            raise problem.under(tag) from None

    def veil(self, data: JsonValue, cover: Cover, path: Path = ()) -> JsonValue:
        if not isinstance(data, dict):
            return cover(data, path)
        veiled: dict[str, JsonValue] = {}
        for tag, inner in data.items():
            below = (*path, tag)
            veiled[tag] = self.tags[tag].veil(inner, cover, below) if tag in self.tags else cover(inner, below)
        return veiled

    def secrets(self, within: frozenset[type]) -> Iterator[str]:
        for tag, item in self.tags.items():
            yield from _below(tag, item, within)


class Hidden(Strict):
    """``Annotated[T, Secret]``: dumped as T, never shown."""

    def __init__(self, item: Strict) -> None:
        super().__init__(allow_none=item.allow_none)
        self.python = item.python
        self.item = item

    def encode(self, value: Any) -> JsonValue:
        return self._quietly(self.item.encode, value)

    def decode(self, data: Any) -> Any:
        return self._quietly(self.item.decode, data)

    @staticmethod
    def _quietly(convert: Any, value: Any) -> Any:
        try:
            return convert(value)
        except ValidationProblem as problem:
            found = problem.problem
        raise ValidationProblem("", found)  # without the path below: keys of a secret dict are secret too

    def veil(self, data: JsonValue, cover: Cover, path: Path = ()) -> JsonValue:
        return cover(data, path)

    def secrets(self, within: frozenset[type]) -> Iterator[str]:
        yield ""


class Free(Strict):
    """``Any``: whatever JSON can hold, as it is."""

    def __init__(self) -> None:
        super().__init__(allow_none=True)

    def encode(self, value: Any) -> JsonValue:
        return json_ready(value, identity=False)

    def decode(self, data: Any) -> JsonValue:
        return json_ready(data, identity=False)


def json_ready(value: Any, *, identity: bool, depth: int = 0) -> JsonValue:
    """Check that a value is JSON through and through, and copy it.

    Args:
        value: What a schema of the user's dumped, or free JSON.
        identity: Refuse floats, and bring strings into normal form C.
        depth: How many containers are around it.
    """
    kind = type(value)
    if value is None or kind is bool:
        return value
    if kind is str:
        return text(value, normal=identity)
    if kind is int:
        return integer(value)
    if kind is float and not identity:
        return number(value)
    if kind is float:
        raise ValidationProblem("", "float has no place in a state: use Decimal or int")
    if kind is not list and kind is not dict:
        raise refusal("a JSON value", value)
    if depth == MAX_DEPTH:
        raise ValidationProblem("", f"nested deeper than {MAX_DEPTH} levels")
    return _json_items(value, identity, depth + 1) if kind is list else _json_entries(value, identity, depth + 1)


def _json_items(values: list[Any], identity: bool, depth: int) -> JsonValue:
    items: list[JsonValue] = []
    try:
        for value in values:
            items.append(json_ready(value, identity=identity, depth=depth))  # noqa: PERF401 - as in Items
    except ValidationProblem as problem:
        raise problem.under(len(items)) from None
    return items


def _json_entries(values: dict[Any, Any], identity: bool, depth: int) -> JsonValue:
    entries: dict[str, JsonValue] = {}
    for key, value in values.items():
        name = _key(key, entries, normal=identity)
        try:
            entries[name] = json_ready(value, identity=identity, depth=depth)
        except ValidationProblem as problem:
            raise problem.under(name) from None
    return entries


def _key(key: Any, taken: dict[str, Any], *, normal: bool) -> str:
    if type(key) is not str:
        raise refusal("keys of type str", key)
    name = text(key, normal=normal)
    if name in taken:
        raise ValidationProblem("", "two keys are the same in Unicode normal form C")
    return name


def _below(step: str, item: Strict, within: frozenset[type]) -> Iterator[str]:
    for path in item.secrets(within):
        yield f"{step}.{path}" if path else step

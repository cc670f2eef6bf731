"""Schemas of outcomes that no type hint alone describes: a value or ``Failed``, and the state of another machine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from smqueue.retry import Failed
from smqueue.schemas import Codec, JsonValue, ValidationProblem
from smqueue.schemas.derive import Walker
from smqueue.schemas.problem import refusal
from smqueue.schemas.scalars import Strict
from smqueue.schemas.secrets import Cover, Path
from smqueue.states import StateType

_FAILED = "$failed"
_VALUE = "$value"


def failed_or(hint: Any, where: str) -> Codec[Any]:
    """Return the codec of ``hint | Failed``.

    Raises:
        UnsupportedField: The hint has no schema.
    """
    return Codec(_FailedOr(Walker(identity=False).field(hint, where)), where)


def state_of(types: tuple[StateType, ...], where: str) -> Codec[Any]:
    """Return the codec of a state of one of some types, of any module; with its version, as newer code may read it."""
    return Codec(_StateOf(types), where)


class _FailedOr(Strict):
    """``{"$failed": {...}}``, or the value itself: wrapped as ``{"$value": ...}`` where it could be mistaken."""

    def __init__(self, value: Strict) -> None:
        super().__init__(allow_none=True)
        self.value = value

    def encode(self, value: Any) -> JsonValue:
        if isinstance(value, Failed):
            return {_FAILED: {"error": value.error, "attempts": value.attempts}}
        data = self.value.encode(value)
        return {_VALUE: data} if _tag(data) else data

    def decode(self, data: Any) -> Any:
        match _tag(data):
            case None:
                return self.value.decode(data)
            case "$value":
                return self.value.decode(data[_VALUE])
            case _:
                match data[_FAILED]:
                    case {"error": str(error), "attempts": int(attempts)}:
                        return Failed(error, attempts)
                    case other:
                        raise refusal("error and attempts", other).under(_FAILED)

    def veil(self, data: JsonValue, cover: Cover, path: Path = ()) -> JsonValue:
        match _tag(data):
            case None:
                return self.value.veil(data, cover, path)
            case "$value":
                inner = cast("dict[str, JsonValue]", data)[_VALUE]
                return {_VALUE: self.value.veil(inner, cover, (*path, _VALUE))}
            case _:
                return data

    def secrets(self, within: frozenset[type]) -> Iterator[str]:
        yield from self.value.secrets(within)


def _tag(data: Any) -> str | None:
    """Return the tag of tagged data: an object whose only key it is."""
    if type(data) is dict and len(cast("dict[str, Any]", data)) == 1:
        return next((tag for tag in (_FAILED, _VALUE) if tag in data), None)
    return None


class _StateOf(Strict):
    """``{"module", "type", "version", "state"}``: what is needed to load it by way of its module's migrations."""

    def __init__(self, types: tuple[StateType, ...]) -> None:
        super().__init__()
        self.types = types

    def encode(self, value: Any) -> JsonValue:
        for known in self.types:
            if type(value) is known.cls:
                return {
                    "module": known.module.name,
                    "type": known.name,
                    "version": known.module.version,
                    "state": known.codec.dump(value),
                }
        raise refusal(" or ".join(known.cls.__name__ for known in self.types), value)

    def decode(self, data: Any) -> Any:
        match data:
            case {"module": str(module), "type": str(name), "version": int(version), "state": state}:
                for known in self.types:
                    if known.name == name and known.module.name == module:
                        return known.module.load(name, version, state)
                raise ValidationProblem("type", f"no state {name} of module {module} is expected here")
            case _:
                raise refusal("a state with its module, type and version", data)

    def veil(self, data: JsonValue, cover: Cover, path: Path = ()) -> JsonValue:
        if isinstance(data, dict):
            for known in self.types:
                if data.get("type") == known.name and data.get("module") == known.module.name:
                    state = known.codec.veil(data.get("state"), lambda one, at: cover(one, (*path, "state", *at)))
                    return {**data, "state": state}
        return cover(data, path)  # not of the form that is stored: whatever it holds may be a secret

    def secrets(self, within: frozenset[type]) -> Iterator[str]:  # noqa: ARG002 - states end their own recursion
        for known in self.types:
            for path in known.codec.secret_fields:
                yield f"state.{path}" if path else "state"

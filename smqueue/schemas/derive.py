"""The walker: from a type hint to its strict field, or ``UnsupportedField`` at definition."""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
import uuid
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

from smqueue.errors import UnsupportedField
from smqueue.schemas import containers, scalars
from smqueue.schemas.records import Record
from smqueue.schemas.scalars import Strict
from smqueue.schemas.secrets import is_secret

_PLAIN: dict[Any, type[Strict]] = {
    int: scalars.Integer,
    bool: scalars.Boolean,
    None: scalars.Nothing,
    type(None): scalars.Nothing,
    Decimal: scalars.DecimalText,
    datetime: scalars.Instant,
    date: scalars.Day,
    timedelta: scalars.Duration,
    uuid.UUID: scalars.Uuid,
    bytes: scalars.Base64,
}
_PAYLOADS_ONLY: dict[Any, type[Strict]] = {float: scalars.Number, Any: containers.Free}
_BARE: dict[Any, type[Any]] = {
    list: list,
    typing.List: list,  # noqa: UP006 - users may write it
    dict: dict,
    typing.Dict: dict,  # noqa: UP006
    tuple: tuple,
    typing.Tuple: tuple,  # noqa: UP006
}


class Walker:
    """Derives the fields of one hint; a dataclass met again within it is the same field.

    Args:
        identity: The hint describes a state, which is known by its value: no floats, no free JSON, no unions.
    """

    def __init__(self, *, identity: bool) -> None:
        self.identity = identity
        self.records: dict[type, Record] = {}

    def field(self, hint: Any, where: str) -> Strict:
        """The strict field of ``hint``.

        Args:
            hint: A resolved type hint.
            where: Dotted name of what it annotates, for the error.

        Raises:
            UnsupportedField: The hint has no schema.
        """
        hint = _unwrap(hint)
        if typing.get_origin(hint) is typing.Annotated:  # first: its metadata need not be hashable
            field = self.field(typing.get_args(hint)[0], where)
            return containers.Hidden(field) if is_secret(hint.__metadata__) else field
        if not _hashable(hint):
            raise UnsupportedField(type_text(hint), where)
        if hint is str:
            return scalars.Text(normal=self.identity)
        if hint in _PLAIN:
            return _PLAIN[hint]()
        if hint in _PAYLOADS_ONLY and not self.identity:
            return _PAYLOADS_ONLY[hint]()
        if hint in _BARE and not self.identity:
            return self._bare(_BARE[hint])
        if isinstance(hint, type) and not isinstance(hint, types.GenericAlias):
            return self._class(hint, where)
        return self._generic(hint, typing.get_origin(hint), typing.get_args(hint), where)

    def _bare(self, container: type[Any]) -> Strict:
        if container is dict:
            return containers.Entries(containers.Free(), normal=False)
        return containers.Items(container, containers.Free())

    def _class(self, hint: type, where: str) -> Strict:
        if issubclass(hint, enum.Enum) and not issubclass(hint, enum.Flag):  # combined flags have no name of their own
            return scalars.Member(hint)
        if dataclasses.is_dataclass(hint):
            return self.record(hint, where)
        raise UnsupportedField(type_text(hint), where)

    def _generic(self, hint: Any, origin: Any, arguments: tuple[Any, ...], where: str) -> Strict:
        match origin:
            case typing.Literal if all(value is None or type(value) in (str, int, bool) for value in arguments):
                return scalars.Choice(arguments)
            case typing.Union | types.UnionType:
                return self._union(hint, arguments, where)
            case builtin if builtin is list and len(arguments) == 1:
                return containers.Items(list, self.field(arguments[0], where))
            case builtin if builtin is tuple and len(arguments) == 2 and arguments[1] is ...:
                return containers.Items(tuple, self.field(arguments[0], where))
            case builtin if builtin is tuple and hint not in _BARE:
                return containers.Fixed([self.field(argument, where) for argument in arguments])
            case builtin if builtin is dict and len(arguments) == 2 and arguments[0] is str:
                return containers.Entries(self.field(arguments[1], where), normal=self.identity)
            case _:
                raise UnsupportedField(type_text(hint), where)

    def _union(self, hint: Any, arguments: tuple[Any, ...], where: str) -> Strict:
        others = [argument for argument in arguments if argument not in (None, type(None))]
        if len(others) == 1:
            inner = self.field(others[0], where)
        elif self.identity:
            raise UnsupportedField(type_text(hint), where)
        else:
            fields = [self.field(argument, where) for argument in others]
            alternatives = {field.python: field for field in fields if field.python is not None}
            if len({python.__name__ for python in alternatives}) != len(others):  # some cannot be told apart
                raise UnsupportedField(type_text(hint), where)
            inner = containers.Tagged(alternatives)
        return inner if len(others) == len(arguments) else containers.Nullable(inner)

    def record(self, record: type, where: str) -> Record:
        """The field of a dataclass."""
        if record in self.records:
            return self.records[record]
        field = self.records[record] = Record(record)
        try:
            # its own name: a dataclass within a function may hold itself
            hints = typing.get_type_hints(record, localns={record.__name__: record}, include_extras=True)
        except (NameError, TypeError, AttributeError, SyntaxError) as error:
            unresolved = f"{record.__name__}, whose annotations cannot be resolved ({error}),"
            raise UnsupportedField(unresolved, where) from None
        for name, hint in hints.items():
            if isinstance(hint, dataclasses.InitVar):
                raise UnsupportedField("InitVar", f"{where}.{name}")
        for attribute in dataclasses.fields(record):
            name, path = attribute.name, f"{where}.{attribute.name}"
            if not attribute.init:
                raise UnsupportedField("field(init=False)", path)
            field.members[name] = self.field(hints[name], path)
            if attribute.default is not dataclasses.MISSING or attribute.default_factory is not dataclasses.MISSING:
                field.optional.add(name)
        return field


def marked_secrets(record: type) -> frozenset[str]:
    """Dotted paths of the secrets of a dataclass that has a schema of its own, so that some fields may have none."""
    walker = Walker(identity=False)
    paths: set[str] = set()
    for name, hint in typing.get_type_hints(record, localns={record.__name__: record}, include_extras=True).items():
        try:
            paths.update(f"{name}.{path}" if path else name for path in walker.field(hint, name).secrets(frozenset()))
        except UnsupportedField:
            if _mentions_secret(hint):
                paths.add(name)
    return frozenset(paths)


def _mentions_secret(hint: Any) -> bool:
    return is_secret(getattr(hint, "__metadata__", ())) or any(map(_mentions_secret, typing.get_args(hint)))


def _unwrap(hint: Any) -> Any:
    """What a NewType or a ``type X = ...`` stands for."""
    while not isinstance(hint, type) and (hasattr(hint, "__supertype__") or hasattr(hint, "__value__")):
        hint = hint.__supertype__ if hasattr(hint, "__supertype__") else hint.__value__
    return hint


def _hashable(hint: Any) -> bool:
    try:
        hash(hint)
    except TypeError:
        return False
    return True


def type_text(hint: Any) -> str:
    """A hint as a user wrote it, nearly."""
    if isinstance(hint, type) and not isinstance(hint, types.GenericAlias):
        return hint.__name__
    return str(hint).replace("typing.", "")

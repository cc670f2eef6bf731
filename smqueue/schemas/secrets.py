"""Which fields must not be shown, and how their values are hidden."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from smqueue.schemas.problem import JsonValue

HIDDEN = "***"


class Secret:
    """Marks a field that must not be shown: ``token: Annotated[str, Secret]``.

    It is stored as it is, and shown as ``***`` by listings, ``explain``, logs and the ``repr`` of a state.
    """


def is_secret(metadata: Iterable[Any]) -> bool:
    """Whether the metadata of an ``Annotated`` hint holds the mark, as a class or an instance."""
    return any(mark is Secret or isinstance(mark, Secret) for mark in metadata)


def hide(data: JsonValue, path: list[str]) -> JsonValue:
    """A copy of ``data`` with what stands at ``path`` hidden; ``*`` in the path is every item."""
    if not path:
        return HIDDEN
    step, rest = path[0], path[1:]
    if isinstance(data, list):
        return [hide(item, rest) if step in ("*", str(index)) else item for index, item in enumerate(data)]
    if isinstance(data, dict):
        return {key: hide(item, rest) if step in ("*", key) else item for key, item in data.items()}
    return HIDDEN if data is not None else None  # garbage where a container of secrets belongs


def covers(secret: str, field: str) -> bool:
    """Whether the dotted path ``field`` is the secret path ``secret`` or lies within it."""
    wanted, given = secret.split("."), field.split(".")
    return len(given) >= len(wanted) and all(step in ("*", name) for step, name in zip(wanted, given, strict=False))

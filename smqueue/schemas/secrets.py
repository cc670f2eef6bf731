"""Which fields must not be shown, and how their values are covered: hidden, or replaced by ciphertext."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from smqueue.schemas.problem import JsonValue

HIDDEN = "***"

Path = tuple[str, ...]
"""The steps to a value within data; of an item of a list its index."""
Cover = Callable[[JsonValue, Path], JsonValue]
"""What stands in the place of a secret, given the secret and where it is."""


class Secret:
    """Marks a field that must not be shown: ``token: Annotated[str, Secret]``.

    It is shown as ``***`` by listings, ``explain``, logs and the ``repr`` of a state. It is stored as it is, unless the
    executor was given a codec by ``ExecutorBuilder.with_secrets``: then it is stored encrypted.
    """


class Token(str):
    """A ciphertext in the place of a secret."""

    __slots__ = ()


def hidden(_secret: JsonValue, _path: Path) -> JsonValue:
    """Covers a secret by ``***``."""
    return HIDDEN


def is_secret(metadata: Iterable[Any]) -> bool:
    """Whether the metadata of an ``Annotated`` hint holds the mark, as a class or an instance."""
    return any(mark is Secret or isinstance(mark, Secret) for mark in metadata)


def cover_at(data: JsonValue, steps: list[str], cover: Cover, path: Path = ()) -> JsonValue:
    """A copy of ``data`` with what stands at ``steps`` covered; ``*`` among them is every item."""
    if isinstance(data, Token):  # an overlapping path has been there
        return data
    if not steps:
        return cover(data, path)
    step, rest = steps[0], steps[1:]
    if isinstance(data, list):
        return [
            cover_at(item, rest, cover, (*path, str(index))) if step in ("*", str(index)) else item
            for index, item in enumerate(data)
        ]
    if isinstance(data, dict):
        return {
            key: cover_at(item, rest, cover, (*path, key)) if step in ("*", key) else item for key, item in data.items()
        }
    return cover(data, path) if data is not None else None  # garbage where a container of secrets belongs


def covers(secret: str, field: str) -> bool:
    """Whether the dotted path ``field`` is the secret path ``secret`` or lies within it."""
    wanted, given = secret.split("."), field.split(".")
    return len(given) >= len(wanted) and all(step in ("*", name) for step, name in zip(wanted, given, strict=False))

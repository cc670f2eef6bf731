"""How data are stored whose secrets are encrypted: ``{"$sealed": data}``, with ``{"$": ciphertext}`` for each secret.

Which parts are ciphertext is told by the data, not by a schema: a record of an earlier version is opened before its
migrations see it, and a worker that has no key for it sees what it lacks. So that nothing of a user's can be taken for
ciphertext, other keys that begin with ``$`` get another one, and data that look sealed and are not are sealed too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from smqueue.schemas.codec import Codec, canonical
from smqueue.schemas.problem import JsonValue
from smqueue.schemas.secrets import HIDDEN, Path, Token

MARK = "$sealed"
_TOKEN = "$"  # noqa: S105 - the key of a ciphertext, not one

Encrypt = Callable[[str, Path], str]
"""The canonical JSON of a secret and where it is → its ciphertext."""


def is_sealed(data: Any) -> bool:
    """Whether data have the form of sealed ones."""
    return type(data) is dict and len(data) == 1 and MARK in data  # pyright: ignore[reportUnknownArgumentType]


def sealed(data: JsonValue, codec: Codec[Any], encrypt: Encrypt) -> JsonValue:
    """Dumped data with their secrets encrypted."""
    covered = codec.veil(data, lambda secret, path: Token(encrypt(canonical(secret), path)))
    return escaped(covered)


def escaped(data: JsonValue) -> JsonValue:
    """Data that have the form of sealed ones and are not: so that they come back as they are."""
    return {MARK: _marked(data)}


def opened(data: JsonValue, decrypt: Callable[[str, Path], JsonValue]) -> JsonValue:
    """Sealed data as they were dumped; others as they are."""
    return _opened(data[MARK], decrypt, ()) if isinstance(data, dict) and is_sealed(data) else data


def shown(data: JsonValue) -> JsonValue:
    """Stored data for the eyes of those without a key: sealed ones with their secrets hidden, others as they are."""
    return opened(data, lambda _token, _path: HIDDEN)


def _marked(data: JsonValue) -> JsonValue:
    if isinstance(data, Token):
        return {_TOKEN: str(data)}
    if isinstance(data, list):
        return [_marked(item) for item in data]
    if isinstance(data, dict):
        return {"$" + key if key.startswith("$") else key: _marked(item) for key, item in data.items()}
    return data


def _opened(data: JsonValue, decrypt: Callable[[str, Path], JsonValue], path: Path) -> JsonValue:
    if isinstance(data, list):
        return [_opened(item, decrypt, (*path, str(index))) for index, item in enumerate(data)]
    if not isinstance(data, dict):
        return data
    if isinstance(token := data.get(_TOKEN), str):
        return decrypt(token, path)
    found: dict[str, JsonValue] = {}
    for marked, item in data.items():
        key = marked.removeprefix("$")
        found[key] = _opened(item, decrypt, (*path, key))
    return found

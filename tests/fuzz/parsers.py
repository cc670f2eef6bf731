"""Coverage-guided fuzzing of all that reads bytes from Redis or JSON: ``python -m tests.fuzz.parsers``.

Takes libFuzzer's options: ``-runs=N`` attempts, ``-max_total_time=S`` seconds, ``-seed=N``. Ends at the first error
that is not one of those which a parser may raise, with a traceback, and the input in a file ``crash-…``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Any

import atheris

with atheris.instrument_imports(include=["smqueue.schemas", "smqueue.records", "smqueue.secrets"]):
    from smqueue.records import Active, Field, Item, Machine
    from smqueue.schemas import Secret, ValidationProblem, canonical, codec_for
    from smqueue.schemas.sealed import escaped, opened, shown
    from smqueue.secrets import Secrets

from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from uuid import UUID

from smqueue.drivers.connect import shown as shown_url
from smqueue.errors import SmqueueError
from smqueue.protocols.requests import parse as parse_request


@dataclass(frozen=True)
class Everything:
    """A payload of every kind of field."""

    f0: dict[str, Any]
    f1: list[tuple[int, Decimal]] | None = None
    f2: Annotated[str, Secret] = ""
    at: datetime | None = None
    span: timedelta | None = None
    id: UUID | None = None
    raw: bytes = b""
    ratio: float = 0.0


CODECS = [codec_for(hint, identity=False, where="x") for hint in (Everything, Any, list[Everything], int | str)]
MAY = (ValueError, KeyError, TypeError, RecursionError, SmqueueError, ValidationProblem)
"""What callers of the parsers of stored values expect, and turn into a record that is set aside."""


def json_of(raw: bytes) -> Any:
    """The JSON of bytes, or their text as a string."""
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return raw.decode(errors="replace")


def load(raw: bytes) -> None:
    """JSON to a codec: loads, and dumps to what loads again; or is a ValidationProblem."""
    data = json_of(raw)
    for codec in CODECS:
        codec.redact(data)
        try:
            value = codec.load(data)
        except ValidationProblem as problem:
            _ = str(problem).encode()
            continue
        assert canonical(codec.dump(codec.load(codec.dump(value)))) == canonical(codec.dump(value))


def seal(raw: bytes) -> None:
    """Sealed data: what is escaped comes back; what is not ours is no ciphertext."""
    data = json_of(raw)
    shown(data)
    try:
        text = canonical(data)
    except ValueError:  # NaN, which Python's json reads
        return
    assert canonical(opened(escaped(data), lambda token, _: token)) == text
    with suppress(SmqueueError):
        Secrets().opened("value", data, "op")


PARSERS: list[Callable[[bytes], object]] = [
    load,
    seal,
    Active.parse,
    Machine.parse,
    Item.parse,
    parse_request,
    lambda raw: Field.parse(raw.decode(errors="replace")),
    lambda raw: shown_url(raw.decode(errors="replace")),
]
STRICT = 2
"""The first so many may raise nothing at all."""


def test_one(data: bytes) -> None:
    """One attempt: the first byte says of what."""
    if not data:
        return
    which = data[0] % len(PARSERS)
    try:
        PARSERS[which](data[1:])
    except MAY:
        if which < STRICT:
            raise


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one)
    atheris.Fuzz()

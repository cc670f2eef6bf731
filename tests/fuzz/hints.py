"""Type hints and values for them, of every kind that a schema can be derived from."""

from __future__ import annotations

import dataclasses
import enum
import itertools
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID

from hypothesis import strategies as st

from smqueue import Secret

Pair = tuple[Any, st.SearchStrategy[Any]]
"""A hint, and what makes values of it."""


class Color(enum.Enum):
    RED = 1
    BLUE = "b"


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
SCALARS: list[Pair] = [
    (str, text),
    (int, st.integers(-(2**200), 2**200)),
    (bool, st.booleans()),
    (Decimal, st.decimals(allow_nan=False, allow_infinity=False)),
    (datetime, st.datetimes(datetime(2, 1, 1), datetime(9998, 1, 1), timezones=st.just(UTC))),
    (date, st.dates()),
    (timedelta, st.timedeltas()),
    (UUID, st.uuids()),
    (Color, st.sampled_from(Color)),
    (bytes, st.binary(max_size=8)),
]
FLOATS: list[Pair] = [(float, st.floats(allow_nan=False, allow_infinity=False))]
_numbers = itertools.count()


def pairs(identity: bool, depth: int = 2) -> st.SearchStrategy[Pair]:
    """Hints up to some depth."""
    plain = st.sampled_from(SCALARS if identity else SCALARS + FLOATS)
    if depth == 0:
        return plain
    inner = pairs(identity, depth - 1)
    return st.one_of(
        plain,
        inner.map(lambda one: (list[one[0]], st.lists(one[1], max_size=3))),
        inner.map(lambda one: (tuple[one[0], ...], st.lists(one[1], max_size=3).map(tuple))),
        st.tuples(inner, inner).map(lambda two: (tuple[two[0][0], two[1][0]], st.tuples(two[0][1], two[1][1]))),
        inner.map(lambda one: (dict[str, one[0]], st.dictionaries(text, one[1], max_size=3))),
        inner.map(lambda one: (one[0] | None, st.none() | one[1])),
        inner.map(lambda one: (Annotated[one[0], Secret], one[1])),
        st.lists(inner, min_size=1, max_size=3).map(record),
    )


def record(members: list[Pair]) -> Pair:
    """A dataclass with these fields."""
    fields = [(f"f{n}", hint) for n, (hint, _) in enumerate(members)]
    made = dataclasses.make_dataclass(f"Record{next(_numbers)}", fields, frozen=True)
    return made, st.tuples(*(values for _, values in members)).map(lambda values: made(*values))


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["$", "$sealed"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["f0", "f1", "f2", "$", "$sealed", "$$", "A", ""]) | text, inner, max_size=3)
    ),
    max_leaves=8,
)
"""Any JSON that Python can read, with names in it that mean something to us."""

"""Schemas are strict both ways, lose nothing, and give equal states equal bytes."""

import copy
import enum
import json
import math
import pickle
import traceback
import uuid
from dataclasses import InitVar, dataclass, field
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal, localcontext
from typing import Annotated, Any, Literal, NewType, Optional
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from marshmallow import INCLUDE, Schema, ValidationError, fields, post_load

from smqueue.errors import UnsupportedField
from smqueue.records import loads
from smqueue.schemas import Codec, Secret, ValidationProblem, canonical, codec_for, dataclass_codec, redact

HUSH = "correct-horse-battery"  # no problem may ever show it
COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"
OrderId = NewType("OrderId", str)


class Colour(enum.Enum):
    RED = 1
    CRIMSON = 1  # noqa: PIE796 - an alias
    BLUE = "b"


class Number(enum.IntEnum):
    ONE = 1


class Shades(enum.Flag):
    DARK = 1
    LIGHT = 2


class MyStr(str): ...


@dataclass(frozen=True)
class Line:
    sku: str
    price: Decimal


@dataclass(frozen=True)
class Order:
    order_id: OrderId
    lines: list[Line]
    paid: bool = False
    note: str | None = None
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rush(Order):
    pass


@dataclass(frozen=True)
class Tree:
    name: str
    children: "list[Tree]" = field(default_factory=list)


@dataclass(frozen=True)
class Login:
    user: str
    token: Annotated[str, Secret]
    pin: Annotated[int, Secret()] | None = None
    keys: dict[str, Annotated[str, Secret]] = field(default_factory=dict)
    answers: Annotated[dict[str, int], Secret] = field(default_factory=dict)


@dataclass(frozen=True)
class Node:
    secret: Annotated[str, Secret]
    next: Optional["Node"] = None


def codec(hint: Any, *, identity: bool = True) -> Codec[Any]:
    return codec_for(hint, identity=identity, where="value")


def through_json(data: Any) -> Any:
    return json.loads(canonical(data))


# --- round trips -----------------------------------------------------------------------------------------------------

texts = st.text()  # hypothesis leaves lone surrogates out
aware = st.datetimes(
    min_value=datetime(2, 1, 1),
    max_value=datetime(9998, 1, 1),
    timezones=st.timezones() | st.integers(-1439, 1439).map(lambda m: timezone(timedelta(minutes=m))),
)
decimals = st.decimals(allow_nan=False, allow_infinity=False) | st.builds(
    lambda sign, digits, exponent: Decimal((sign, tuple(digits), exponent)),
    st.integers(0, 1),
    st.lists(st.integers(0, 9), min_size=1, max_size=60),
    st.integers(-200, 200),
)
free = st.recursive(
    st.none() | st.booleans() | st.integers() | texts | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
    max_leaves=10,
)
payload_values = [
    (str, texts),
    (int, st.integers()),
    (bool, st.booleans()),
    (Decimal, decimals),
    (date, st.dates()),
    (timedelta, st.timedeltas()),
    (uuid.UUID, st.uuids()),
    (Colour, st.sampled_from(Colour)),
    (Number, st.sampled_from(Number)),
    (bytes, st.binary()),
    (None, st.none()),
    (list[int], st.lists(st.integers())),
    (tuple[int, ...], st.lists(st.integers()).map(tuple)),
    (tuple[int, str], st.tuples(st.integers(), texts)),
    (dict[str, bool], st.dictionaries(texts, st.booleans())),
    (int | None, st.integers() | st.none()),
    (Literal["a", 1, True, None], st.sampled_from(["a", 1, True, None])),
    (OrderId, texts),
    (Line, st.builds(Line, texts, decimals)),
    (Tree, st.recursive(st.builds(Tree, texts), lambda inner: st.builds(Tree, texts, st.lists(inner)), max_leaves=5)),
    (float, st.floats(allow_nan=False, allow_infinity=False)),
    (Any, free),
    (list, st.lists(free)),
    (dict, st.dictionaries(texts, free)),
    (tuple, st.lists(free).map(tuple)),
    (int | str | Line | None, st.integers() | texts | st.builds(Line, texts, decimals) | st.none()),
]


@pytest.mark.parametrize(("hint", "values"), payload_values, ids=[str(hint) for hint, _ in payload_values])
def test_a_payload_comes_back_exactly(hint: Any, values: st.SearchStrategy[Any]) -> None:
    """Whatever a payload holds comes back through JSON with the same type and value, code point by code point."""
    its = codec(hint, identity=False)

    @given(values)
    def comes_back(value: Any) -> None:
        data = its.check(value)
        loaded = its.load(through_json(data))
        assert loaded == value
        assert type(loaded) is type(value)
        assert canonical(its.dump(loaded)) == canonical(data)

    comes_back()


@given(st.builds(Order, texts, st.lists(st.builds(Line, texts, decimals)), st.booleans(), st.none() | texts))
def test_a_state_comes_back_in_normal_form(order: Order) -> None:
    """A state is stable: what is loaded has the bytes of what was dumped, also for strings that were not in NFC."""
    its = codec(Order)
    data = its.check(order)
    assert canonical(its.dump(its.load(through_json(data)))) == canonical(data)


@given(aware)
def test_an_instant_comes_back_in_utc(value: datetime) -> None:
    """A datetime of any zone comes back as the same instant."""
    loaded = codec(datetime).load(codec(datetime).check(value))
    assert loaded.tzinfo is UTC
    assert loaded.timestamp() == value.astimezone(UTC).timestamp()


def test_an_hour_that_repeats_comes_back() -> None:
    """Python calls a repeated hour unequal to itself in UTC; it is the same instant all the same."""
    value = datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin"))
    assert value != value.astimezone(UTC)
    assert codec(datetime).check(value) == "2024-10-27T01:30:00.000000+00:00"


# --- refusals --------------------------------------------------------------------------------------------------------

refused_dumps: list[tuple[Any, Any]] = [
    (int, 3.9), (int, 3.0), (int, True), (int, "3"), (int, None), (int, Number.ONE), (int, Decimal(3)),
    (int, 1 << 20_000),
    (bool, 1), (bool, 0), (bool, "true"), (bool, None),
    (str, b"x"), (str, 3), (str, None), (str, MyStr("x")), (str, "\ud800"), (str, Colour.RED),
    (Decimal, 1), (Decimal, 1.5), (Decimal, "1.5"), (Decimal, Decimal("NaN")), (Decimal, Decimal("-Infinity")),
    (Decimal, Decimal("sNaN")),
    (datetime, datetime(2024, 1, 1)), (datetime, date(2024, 1, 1)), (datetime, "2024-01-01T00:00:00Z"),
    (datetime, datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=1)))),
    (date, datetime(2024, 1, 1, tzinfo=UTC)), (date, "2024-01-01"),
    (timedelta, 5), (timedelta, 5.0),
    (uuid.UUID, "00000000-0000-0000-0000-000000000000"), (uuid.UUID, bytes(16)),
    (Colour, "RED"), (Colour, 1), (Colour, Number.ONE), (Number, 1),
    (bytes, "x"), (bytes, bytearray(b"x")),
    (list[int], (1,)), (list[int], [1.0]), (tuple[int, ...], [1]), (tuple[int, str], (1,)), (tuple[int, str], ("a", 1)),
    (dict[str, int], {1: 1}), (dict[str, int], {"a": True}), (dict[str, int], [("a", 1)]),
    (int | None, "x"), (Literal[1], True), (Literal[True], 1), (Literal["a"], "b"), (None, 0), (None, False),
    (Line, {"sku": "a", "price": "1"}), (Line, Line("a", 1)), (Order, Rush(OrderId("a"), [])), (Line, Line),
]  # fmt: skip
refused_loads: list[tuple[Any, Any]] = [
    (int, 3.9), (int, 3.0), (int, True), (int, "3"), (int, None),
    (bool, 1), (bool, 0), (bool, "true"), (bool, None),
    (str, b"x"), (str, 3), (str, None), (str, "\udfff"),
    (Decimal, 1), (Decimal, 1.5), (Decimal, "NaN"), (Decimal, "Infinity"), (Decimal, " 1"), (Decimal, "1_0"),
    (Decimal, "\u0661"), (Decimal, ""), (Decimal, "1E+99999999999999999999"), (Decimal, "1\n"),
    (datetime, "2024-01-01T00:00:00"), (datetime, "2024-01-01"), (datetime, 0),
    (datetime, "2024-01-01T00:00:00.1234567Z"),
    (datetime, "2024-02-30T00:00:00Z"), (datetime, "2024-W01-1T00:00:00Z"), (datetime, "0001-01-01T00:00:00+01:00"),
    (date, "2024-01-01T00:00:00Z"), (date, "20240101"), (date, "2024-02-30"), (date, 20240101),
    (timedelta, 1.5), (timedelta, True), (timedelta, "1"), (timedelta, 10**30),
    (uuid.UUID, "0" * 32), (uuid.UUID, "{00000000-0000-0000-0000-000000000000}"), (uuid.UUID, bytes(16)),
    (uuid.UUID, 0), (Colour, 1), (Colour, "b"), (Colour, "GREEN"), (Colour, "__class__"),
    (bytes, "x"), (bytes, "eA"), (bytes, "eB=="), (bytes, "e A=="), (bytes, b"eA=="), (bytes, "\u00e9"),
    (list[int], {"0": 1}), (list[int], "1"), (list[int], (1,)), (tuple[int, str], [1]), (tuple[int, str], [1, "a", 2]),
    (dict[str, int], []), (dict[str, int], {1: 1}), (int | None, ""), (Literal[1], True), (Literal[1], 1.0),
    (None, False), (Line, []), (Line, None), (Line, {"sku": "a"}), (Line, {"sku": "a", "price": "1", "colour": "red"}),
    (Line, Line("a", Decimal(1))),
]  # fmt: skip
refused_payloads: list[tuple[Any, Any]] = [
    (float, "1.5"), (float, True), (float, math.nan), (float, math.inf), (float, Decimal(1)), (float, 2**53 + 1),
    (float, 10**400), (float, None),
    (Any, math.nan), (Any, {1: 2}), (Any, (1,)), (Any, {"a": b"x"}), (Any, {"a": [Decimal(1)]}), (Any, "\ud800"),
    (list, {}), (dict, []), (tuple, 1),
    (int | str, 1.5), (int | str, {"float": 1.5}), (int | str, {"int": "x"}), (int | str, {}), (int | str, True),
    (int | str, {"int": 1, "str": "x"}), (int | str, None), (int | str, {"int": None}),
]  # fmt: skip


def names(cases: list[tuple[Any, Any]]) -> list[str]:
    """Names of cases, short and the same in every process; some values do not even print."""
    return [f"{getattr(hint, '__name__', hint)}-{type(given).__name__}-{n}" for n, (hint, given) in enumerate(cases)]


@pytest.mark.parametrize(("hint", "value"), refused_dumps, ids=names(refused_dumps))
def test_dump_refuses(hint: Any, value: Any) -> None:
    """Nothing is coerced on the way out, where marshmallow itself never looks."""
    for identity in (True, False):
        with pytest.raises(ValidationProblem):
            codec(hint, identity=identity).dump(value)


@pytest.mark.parametrize(("hint", "data"), refused_loads, ids=names(refused_loads))
def test_load_refuses(hint: Any, data: Any) -> None:
    """Nothing is coerced on the way in, whoever wrote the JSON."""
    for identity in (True, False):
        with pytest.raises(ValidationProblem):
            codec(hint, identity=identity).load(data)


@pytest.mark.parametrize(("hint", "value"), refused_payloads, ids=names(refused_payloads))
def test_payloads_refuse(hint: Any, value: Any) -> None:
    """Floats, free JSON and unions are as strict as the rest, in both directions."""
    its = codec(hint, identity=False)
    with pytest.raises(ValidationProblem):
        its.dump(value)
    with pytest.raises(ValidationProblem):
        its.load(value)


def test_an_exact_int_is_a_float() -> None:
    """JavaScript writes 3.0 as 3: a float field takes the int that it represents exactly, as typing does."""
    loaded = codec(float, identity=False).load(3)
    assert (type(loaded), loaded) == (float, 3.0)
    assert canonical(codec(float, identity=False).dump(3)) == "3.0"


def test_a_loop_is_a_problem() -> None:
    """A value within itself, or nested beyond reason, is a problem and no crash."""
    loop = Tree("a")
    loop.children.append(loop)
    with pytest.raises(ValidationProblem, match="nested too deeply"):
        codec(Tree).dump(loop)
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(ValidationProblem, match="nested deeper than 100 levels"):
        codec(Any, identity=False).dump(endless)


def test_missing_and_unknown_fields_are_named() -> None:
    """A field that is missing or unknown is named; one with a default may be left out of data."""
    its = codec(Order)
    with pytest.raises(ValidationProblem) as missing:
        its.load({"order_id": "a"})
    assert (missing.value.field, missing.value.problem) == ("lines", "missing")
    with pytest.raises(ValidationProblem) as unknown:
        its.load({"order_id": "a", "lines": [], "colour": 1})
    assert (unknown.value.field, unknown.value.problem) == ("colour", "unknown field")
    assert its.load({"order_id": "a", "lines": []}) == Order(OrderId("a"), [])
    bare = object.__new__(Line)
    object.__setattr__(bare, "sku", "a")
    with pytest.raises(ValidationProblem) as absent:
        codec(Line).dump(bare)
    assert (absent.value.field, absent.value.problem) == ("price", "missing")


@pytest.mark.parametrize(
    ("hint", "data", "path", "problem"),
    [
        (
            Order,
            {"order_id": "a", "lines": [{"sku": "x", "price": 3}]},
            "lines.0.price",
            "a decimal number as str, got int",
        ),
        (Order, {"order_id": "a", "lines": [], "tags": ["a", 2]}, "tags.1", "expected str, got int"),
        (dict[str, list[int]], {"a": [1, None]}, "a.1", "expected int, got None"),
        (
            Tree,
            {"name": "a", "children": [{"name": "b", "children": [{"name": 1}]}]},
            "children.0.children.0.name",
            "str",
        ),
        (int, "3", "value", "expected int, got str"),
        (int | Line, {"Line": {"sku": 1, "price": "1"}}, "Line.sku", "expected str, got int"),
        (Any, {"a": [{"b": b"x"}]}, "a.0.b", "got bytes"),
    ],
)
def test_problems_name_the_dotted_field_and_the_type(hint: Any, data: Any, path: str, problem: str) -> None:
    """A problem names the field, to the bottom of what is nested, and the type of what was given."""
    with pytest.raises(ValidationProblem) as found:
        codec(hint, identity=False).load(data)
    assert found.value.field == path
    assert problem in found.value.problem


def test_a_post_init_that_changes_or_refuses_is_a_problem() -> None:
    """What would come back changed is refused before it is stored; what a constructor says is not repeated."""

    @dataclass
    class Growing:
        total: int

        def __post_init__(self) -> None:
            if self.total > 5:
                raise ValueError(f"too large: {self.total} {HUSH}")
            self.total += 1

    with pytest.raises(ValidationProblem, match="does not come back"):
        codec(Growing).check(Growing(1))
    with pytest.raises(ValidationProblem, match="Growing refused its fields with ValueError") as refused:
        codec(Growing).load({"total": 6})
    assert HUSH not in "".join(traceback.format_exception(refused.value))


# --- identity --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hint", "values", "text"),
    [
        (Decimal, [Decimal("12.5"), Decimal("12.50"), Decimal("1.25E+1"), Decimal("12500E-3")], '"12.5"'),
        (Decimal, [Decimal("1E+2"), Decimal(100), Decimal("100.0")], '"100"'),
        (Decimal, [Decimal(0), Decimal("-0"), Decimal("0E+9"), Decimal("0.00")], '"0"'),
        (Decimal, [Decimal("1E+999999"), Decimal("10E+999998")], '"1E+999999"'),
        (
            datetime,
            [datetime(2024, 7, 1, 12, tzinfo=UTC), datetime(2024, 7, 1, 14, tzinfo=ZoneInfo("Europe/Berlin"))],
            '"2024-07-01T12:00:00.000000+00:00"',
        ),
        (str, [COMPOSED, DECOMPOSED], f'"{COMPOSED}"'),
        (dict[str, int], [{COMPOSED: 1, "a": 2}, {"a": 2, DECOMPOSED: 1}], f'{{"a":2,"{COMPOSED}":1}}'),
        (Colour, [Colour.RED, Colour.CRIMSON], '"RED"'),
        (uuid.UUID, [uuid.UUID("ABCDEF00-0000-0000-0000-000000000000")], '"abcdef00-0000-0000-0000-000000000000"'),
        (timedelta, [timedelta(seconds=1), timedelta(microseconds=1_000_000)], "1000000"),
        (bytes, [b"\x00\xff"], '"AP8="'),
        (int, [2**70], str(2**70)),
    ],
)
def test_equal_values_have_one_text(hint: Any, values: list[Any], text: str) -> None:
    """Equal states have the same bytes, however they were written, for ever: the texts are spelled out here."""
    assert {canonical(codec(hint).check(value)) for value in values} == {text}


@given(decimals, st.integers(0, 30))
def test_decimals_keep_every_digit(value: Decimal, zeros: int) -> None:
    """Equal decimals have one text, whatever the precision of the thread's context."""
    sign, digits, exponent = value.as_tuple()
    assert isinstance(exponent, int)
    longer = Decimal((sign, digits + (0,) * zeros, exponent - zeros))
    with localcontext() as context:
        context.prec = 3
        assert codec(Decimal).dump(longer) == codec(Decimal).dump(value)
        assert codec(Decimal).load(codec(Decimal).dump(value)) == value


def test_texts_of_payloads_keep_their_spelling() -> None:
    """A payload keeps its code points; a state is stored, and loaded, in normal form C."""
    assert codec(str, identity=False).check(DECOMPOSED) == DECOMPOSED
    assert codec(str).load(DECOMPOSED) == COMPOSED
    both = {COMPOSED: 1, DECOMPOSED: 2}
    assert codec(dict[str, int], identity=False).check(both) == both
    with pytest.raises(ValidationProblem, match="two keys are the same"):
        codec(dict[str, int]).dump(both)


def test_canonical_is_what_it_always_was() -> None:
    """Sorted keys, no spaces, no needless escapes: the one text of a state must never change."""
    data = {"b": [1, True, None, '\u00e9\u2028\U0001f600"\\\n'], "a": {"\uffff": 1, "\U00010000": 2}}
    text = '{"a":{"\uffff":1,"\U00010000":2},"b":[1,true,null,"\u00e9\u2028\U0001f600\\"\\\\\\n"]}'
    assert canonical(data) == text


plain = st.text(st.characters(exclude_categories=["Cs"]))
states = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**200), 2**200) | plain,
    lambda inner: st.lists(inner) | st.dictionaries(plain, inner),
)


@given(states)
def test_canonical_is_what_json_writes(data: Any) -> None:
    """Byte for byte the standard library's text: a faster encoder must find what the one before it has stored."""
    text = canonical(data)
    assert text == json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert loads(text) == json.loads(text) == data


# --- definitions -----------------------------------------------------------------------------------------------------


@dataclass
class Measured:
    value: float


@dataclass
class Outer:
    inner: list[Measured]


@dataclass
class Computed:
    total: int
    double: int = field(init=False, default=0)


@dataclass
class Seeded:
    total: int
    seed: InitVar[int]


@dataclass
class Dangling:
    other: "Nowhere"  # noqa: F821  # pyright: ignore


@pytest.mark.parametrize(
    ("hint", "named", "where"),
    [
        (float, "float", "value"), (Measured, "float", "value.value"), (Outer, "float", "value.inner.value"),
        (Any, "Any", "value"), (list, "list", "value"), (dict, "dict", "value"), (tuple, "tuple", "value"),
        (list[float], "float", "value"), (int | str, "int | str", "value"),
    ],
)  # fmt: skip
def test_states_refuse_at_definition(hint: Any, named: str, where: str) -> None:
    """A state is known by its value, so what has no one text is refused in states when they are defined."""
    with pytest.raises(UnsupportedField) as found:
        codec(hint)
    assert (found.value.type, found.value.field) == (named, where)
    codec(hint, identity=False)


@pytest.mark.parametrize(
    ("hint", "named", "where"),
    [
        (set[int], "set[int]", "value"), (set, "set", "value"), (frozenset[str], "frozenset[str]", "value"),
        (object, "object", "value"), (complex, "complex", "value"), (dict[int, str], "dict[int, str]", "value"),
        (Shades, "Shades", "value"), (Literal[b"x"], "Literal[b'x']", "value"), (MyStr, "MyStr", "value"),
        (Computed, "field(init=False)", "value.double"), (Seeded, "InitVar", "value.seed"),
        (Line | dict[str, int] | dict[str, str], None, "value"), ("Line", "Line", "value"), (3, "3", "value"),
        (Dangling, None, "value"), ([int], "[<class 'int'>]", "value"),
    ],
)  # fmt: skip
def test_other_hints_are_refused_at_definition(hint: Any, named: str | None, where: str) -> None:
    """A hint without a schema is named when it is defined, with its field, in states and payloads alike."""
    for identity in (True, False):
        with pytest.raises(UnsupportedField) as found:
            codec(hint, identity=identity)
        assert found.value.field == where
        assert named is None or found.value.type == named


def test_there_is_one_codec_a_type() -> None:
    """A codec and its marshmallow schema are made once."""
    assert codec(Order) is codec(Order)
    assert codec(Order) is not codec(Order, identity=False)
    assert codec_for(Annotated[str, []], identity=True, where="value").dump("a") == "a"


# --- secrets ---------------------------------------------------------------------------------------------------------


def test_secrets_are_found_and_hidden() -> None:
    """Marked fields are listed and hidden, within containers too; all else is shown."""
    its = codec(Login)
    assert its.secret_fields == {"token", "pin", "keys.*", "answers"}
    login = Login("ann", HUSH, 1234, {"k": HUSH}, {HUSH: 1})
    data = its.check(login)
    assert its.load(data) == login
    assert redact(data, its) == {"user": "ann", "token": "***", "pin": "***", "keys": {"k": "***"}, "answers": "***"}
    assert HUSH in canonical(data)  # the data themselves are untouched


def test_secrets_are_hidden_in_recursive_and_broken_data() -> None:
    """Recursion is followed to its end, and what does not fit the schema is hidden rather than shown."""
    its = codec(Node)
    assert redact(its.dump(Node(HUSH, Node(HUSH, Node(HUSH)))), its) == {
        "secret": "***",
        "next": {"secret": "***", "next": {"secret": "***", "next": None}},
    }
    for broken in (HUSH, [HUSH], {"next": HUSH}, {"next": [HUSH]}, {"old_secret": HUSH}):
        assert HUSH not in canonical(redact(broken, its))
    assert redact({"anything": 1}, codec(Line)) == {"anything": 1}


HiddenText = Annotated[str, Secret]


@pytest.mark.parametrize(
    ("hint", "value", "paths", "shown"),
    [
        (HiddenText, HUSH, {""}, "***"),
        (list[HiddenText], [HUSH, HUSH], {"*"}, ["***", "***"]),
        (tuple[int, HiddenText], (1, HUSH), {"1"}, [1, "***"]),
        (Node | int, Node(HUSH), {"Node.secret"}, {"Node": {"secret": "***", "next": None}}),
        (list[Login], [Login("ann", HUSH)], None, None),
    ],
)
def test_secrets_are_hidden_in_every_container(hint: Any, value: Any, paths: Any, shown: Any) -> None:
    """A secret is found and hidden wherever a hint may put it, also in data of the wrong shape."""
    its = codec(hint, identity=False)
    hidden = redact(its.check(value), its)
    assert HUSH not in canonical(hidden)
    assert paths is None or (set(its.secret_fields), hidden) == (paths, shown)
    for broken in (HUSH, [HUSH], {"other": HUSH}):
        assert HUSH not in canonical(redact(broken, its))


@pytest.mark.parametrize(
    "data",
    [
        {"user": "ann", "token": [HUSH]},
        {"user": "ann", "token": HUSH + "\ud800"},
        {"user": "ann", "token": "x", "pin": HUSH},
        {"user": "ann", "token": "x", "keys": {"k": {HUSH: 1}}},
        {"user": "ann", "token": "x", "answers": {HUSH: "x"}},
        {"user": "ann", "token": "x", "answers": HUSH},
    ],
)
def test_no_problem_shows_a_secret(data: Any) -> None:
    """Neither the problem nor its traceback's text holds the value of a secret field, or a key within it."""
    with pytest.raises(ValidationProblem) as found:
        codec(Login).load(data)
    assert HUSH not in "".join(traceback.format_exception(found.value))
    assert HUSH not in repr((found.value.field, found.value.problem, found.value.messages, found.value.args))
    assert found.value.field.split(".")[0] in Login.__dataclass_fields__


@pytest.mark.parametrize(
    "hint", [int, bool, Decimal, datetime, date, timedelta, uuid.UUID, Colour, bytes, list[int], Literal["a"], Line]
)
def test_no_problem_shows_any_value(hint: Any) -> None:
    """No problem shows what was given, marked or not: in a log, each value may be somebody's."""
    for operation in (codec(hint).load, codec(hint).dump):
        with pytest.raises(ValidationProblem) as found:
            operation(HUSH)
        assert HUSH not in "".join(traceback.format_exception(found.value))


# --- marshmallow -----------------------------------------------------------------------------------------------------


class LineSchema(Schema):
    sku = fields.String(required=True)
    price = fields.Decimal(required=True, as_string=True, data_key="cost")


class BuildingSchema(LineSchema):
    class Meta:
        unknown = INCLUDE

    @post_load
    def build(self, data: dict[str, Any], **_: Any) -> Line:
        return Line(**data)


@pytest.mark.parametrize("schema", [LineSchema, LineSchema(), BuildingSchema])
def test_a_given_schema_is_used(schema: Any) -> None:
    """A given schema may load a dict or an instance; unknown fields are refused whatever its Meta says."""
    its = dataclass_codec(Line, identity=True, schema=schema)
    line = Line("a", Decimal("1.50"))
    assert its.check(line) == {"sku": "a", "cost": "1.50"}
    assert its.load({"sku": "a", "cost": "1.50"}) == line
    assert isinstance(its.schema, LineSchema)
    for data, path, problem in [
        ({"sku": "a"}, "cost", "missing"),
        ({"sku": "a", "cost": "1", "x": 1}, "x", "unknown field"),
        ({"sku": 3, "cost": "1"}, "sku", "Not a valid string."),
        ([], "Line", "Invalid input type."),
        ({"sku": "a", "cost": 1.5}, "cost", "float has no place in a state: use Decimal or int"),
    ]:
        with pytest.raises(ValidationProblem) as found:
            its.load(data)
        assert (found.value.field, found.value.problem) == (path, problem)


def test_a_given_schema_that_loses_something_is_refused() -> None:
    """marshmallow dumps what it likes: what would not come back equal is refused before it is stored."""

    class Lossy(Schema):
        sku = fields.String()
        price = fields.Integer()

    class Raw(Schema):
        sku = fields.String()
        price = fields.Decimal()

    with pytest.raises(ValidationProblem, match="does not come back"):
        dataclass_codec(Line, identity=True, schema=Lossy).dump(Line("a", Decimal("1.5")))
    with pytest.raises(ValidationProblem, match="price: expected a JSON value, got Decimal"):
        dataclass_codec(Line, identity=True, schema=Raw).dump(Line("a", Decimal("1.5")))
    with pytest.raises(ValidationProblem, match="expected Line, got Order"):
        dataclass_codec(Line, identity=True, schema=LineSchema).dump(Order(OrderId("a"), []))  # type: ignore[arg-type]


def test_a_given_schema_without_a_class_describes_what_it_loads() -> None:
    """A payload may be described by a schema alone; its values are what the schema loads."""
    its = codec_for(LineSchema(many=True), identity=False, where="lines")
    value = [{"sku": DECOMPOSED, "price": Decimal(1)}]
    assert its.load(its.check(value)) == value
    with pytest.raises(ValidationProblem) as found:
        its.load([{"sku": "a", "cost": "1"}, {"sku": "a"}])
    assert found.value.field == "1.cost"


def test_strings_of_a_given_schema_are_normalised_in_states() -> None:
    """One state, one text: also where the schema is the user's."""
    its = dataclass_codec(Line, identity=True, schema=LineSchema)
    assert its.check(Line(DECOMPOSED, Decimal(1))) == {"sku": COMPOSED, "cost": "1"}


def test_secrets_of_a_given_schema() -> None:
    """A given schema's secrets are marked in its metadata or in the dataclass; their messages are not repeated."""

    def talkative(value: str) -> None:
        raise ValidationError(f"{value} is wrong")

    class Account(Schema):
        name = fields.String()
        token = fields.String(data_key="Token", validate=talkative)
        extra = fields.List(fields.Nested(Schema.from_dict({"k": fields.Integer(metadata={"secret": True})})))

    @dataclass
    class Login2:
        name: str
        token: Annotated[str, Secret]
        extra: set[int]  # has no derived schema: a reason to give one

    its = dataclass_codec(Login2, identity=True, schema=Account)
    assert its.secret_fields == {"Token", "extra.*.k"}
    assert redact({"name": "a", "Token": HUSH, "extra": [{"k": 1}]}, its) == {
        "name": "a", "Token": "***", "extra": [{"k": "***"}],
    }  # fmt: skip
    with pytest.raises(ValidationProblem) as found:
        its.load({"name": "a", "Token": HUSH, "extra": []})
    assert (found.value.field, found.value.problem) == ("Token", "does not fit its schema")
    assert HUSH not in "".join(traceback.format_exception(found.value))


def test_a_given_schema_that_crashes_is_a_problem() -> None:
    """A hook's exception is a problem, by its type."""

    class Crashing(LineSchema):
        @post_load
        def build(self, data: dict[str, Any], **_: Any) -> Line:
            raise RuntimeError(HUSH)

    with pytest.raises(ValidationProblem, match="the schema raised RuntimeError") as found:
        dataclass_codec(Line, identity=True, schema=Crashing).load({"sku": "a", "cost": "1"})
    assert HUSH not in "".join(traceback.format_exception(found.value))


def test_a_payload_without_a_class_names_its_field_on_the_way_out() -> None:
    """A dict that its schema cannot dump is refused by the field that does not fit, as on the way in."""
    its = codec_for(Schema.from_dict({"amount": fields.Integer(required=True)}), identity=False, where="payment")
    with pytest.raises(ValidationProblem) as caught:
        its.check({"amount": "many"})
    assert caught.value.field == "amount"


def test_a_derived_schema_is_marshmallows() -> None:
    """Users see a marshmallow schema, which nests in their own and is as strict there."""
    schema = codec(Order).schema
    assert isinstance(schema, Schema)
    assert {name: field.required for name, field in schema.fields.items()} == {
        "order_id": True, "lines": True, "paid": False, "note": False, "tags": False,
    }  # fmt: skip
    order = Order(OrderId("a"), [Line("x", Decimal("1.5"))])
    assert schema.load(schema.dump(order)) == order

    class Basket(Schema):
        order = fields.Nested(schema)

    assert Basket().load(Basket().dump({"order": order})) == {"order": order}
    with pytest.raises(ValidationError) as found:
        Basket().load({"order": {"order_id": "a", "lines": [{"sku": 1, "price": "1"}]}})
    assert found.value.messages == {"order": {"lines": {"0": {"sku": ["expected str, got int"]}}}}
    with pytest.raises(ValueError, match="strict"):
        schema.load({}, partial=True)


def test_each_derived_field_is_strict_under_marshmallow_too() -> None:
    """The fields do the work, so marshmallow's own machinery over them is just as strict."""
    plain = Schema.from_dict({name: copy.copy(member) for name, member in codec(Line).schema.fields.items()})()  # type: ignore[union-attr]
    assert plain.load(plain.dump(Line("a", Decimal("1.50")))) == {"sku": "a", "price": Decimal("1.5")}
    with pytest.raises(ValidationError, match="expected str, got int"):
        plain.load({"sku": 1, "price": "1"})
    with pytest.raises(ValidationError, match="expected Decimal, got float"):
        plain.dump(Line("a", 1.5))  # type: ignore[arg-type]


def test_a_problem_survives_pickling_and_prints_what_it_names() -> None:
    """A problem may cross processes; the name of an unknown field always prints, and never fills a log."""
    problem = ValidationProblem("lines.0.price", "expected int, got str")
    again = pickle.loads(pickle.dumps(problem))
    assert (again.field, again.problem, str(again)) == (problem.field, problem.problem, str(problem))
    with pytest.raises(ValidationProblem) as found:
        codec(Line).load({"sku": "a", "price": "1", "\ud800" + "x" * 1000: 1})
    assert len(found.value.field.encode()) < 120

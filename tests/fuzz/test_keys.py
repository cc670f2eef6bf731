"""Ids against key injection: whatever an id holds, it stays within its key, and its key is nobody else's."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from hypothesis import assume, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from smqueue.keys import Keys, decode, encode, shard_of
from smqueue.records import Field, compact
from tests.docs.pages import ROOT

SIGNS = st.sampled_from(
    [*":{}%*?[]~ /\\\"'\n\r\t\0$.|", "{a.0}", "}:", "%3A", "%7B", "module", "\u00e9", "e\u0301", "\U0001f600"]
)
ids = st.one_of(st.lists(SIGNS, min_size=1, max_size=6).map("".join), st.text(min_size=1, max_size=20))
"""What an operation, a module, a signal or a namespace may be called; most of it chosen to break out."""

Make = Callable[..., str]
KINDS: dict[str, tuple[Make, int]] = {
    "active": (Keys.active, 1),
    "inactive": (Keys.inactive, 1),
    "history": (Keys.history, 1),
    "bell": (Keys.bell, 1),
    "machine": (lambda keys, record: keys.machine(encode(record)), 1),  # a digest, never an id
    "waiting": (Keys.waiting, 3),
    "inbox": (Keys.inbox, 3),
    "seen": (Keys.seen, 1),
    "marker": (Keys.marker, 1),
    "reply": (Keys.reply, 1),
    "control": (Keys.control, 1),
    "control-module": (Keys.control_module, 1),
    "control-type": (Keys.control_module, 2),
    "watchers": (Keys.watchers, 1),
    "children": (Keys.children, 1),
    "data": (Keys.data, 2),
}
FIXED = (
    "schedule",
    "hosted",
    "operations",
    "requests",
    "updates",
    "moves",
    "tallies",
    "early",
    "controls",
    "workers",
    "hint",
    "watched",
    "watch",
    "roused",
    "quarantine",
    "finished",
    "meta",
)


@st.composite
def named(draw: st.DrawFn) -> tuple[str, tuple[str, ...]]:
    """A kind of key, and the ids in it."""
    kind = draw(st.sampled_from(sorted(KINDS)))
    return kind, tuple(draw(ids) for _ in range(KINDS[kind][1]))


def made(keys: Keys, one: tuple[str, tuple[str, ...]]) -> str:
    """The key of a kind with its ids."""
    return KINDS[one[0]][0](keys, *one[1])


def hash_tag(key: str) -> str:
    """What a cluster hashes of a key: between the first brace and the next closing one."""
    found = re.search(r"\{([^}]+)\}", key)
    return found[1] if found else key


@given(ids, named(), named())
@examples(max_examples=300, deadline=None)
def test_two_names_have_two_keys(
    namespace: str, one: tuple[str, tuple[str, ...]], other: tuple[str, tuple[str, ...]]
) -> None:
    """Of any two different kinds or ids the keys differ, held ones too, and differ from those without an id."""
    keys = Keys(namespace)
    fixed = {getattr(keys, name) for name in FIXED}
    assert made(keys, one) not in fixed
    if one != other:
        assert made(keys, one) != made(keys, other)
    if one[0].startswith("control"):
        assert keys.held(made(keys, one)) not in {made(keys, other), *fixed}


@given(ids, ids, st.integers(0, 20), named())
@examples(max_examples=300, deadline=None)
def test_a_key_stays_in_its_namespace(namespace: str, other: str, shard: int, one: tuple[str, tuple[str, ...]]) -> None:
    """All keys of a shard have its hash tag, so one slot, and no key of another namespace or shard."""
    keys = Keys(namespace, shard)
    key = made(keys, one)
    assert hash_tag(key) == keys.tag[1:-1]
    assert key.startswith(f"{{{encode(namespace)}.{shard}}}:")
    assert not key.startswith(Keys(namespace, shard + 1).prefix)
    if other != namespace:
        assert not key.startswith(Keys(other, shard).prefix)
        assert keys.tag != Keys(other, shard).tag


@given(ids)
@examples(max_examples=300, deadline=None)
def test_an_id_comes_back(identifier: str) -> None:
    """What was encoded is decoded to the same; it holds nothing that a key, a field or a pattern gives a meaning."""
    part = encode(identifier)
    assert decode(part) == identifier
    assert re.fullmatch(r"[A-Za-z0-9_.~%-]+", part)
    assert 0 <= shard_of(identifier, 7) < 7


@given(ids, ids, st.text(max_size=20))
@examples(max_examples=300, deadline=None)
def test_a_field_is_taken_apart_as_it_was_put_together(module: str, type_name: str, text: str) -> None:
    """No module or type name can reach into another part of a hash field, whatever stands in the state."""
    state = compact({"text": text})
    assert Field.parse(f"{encode(module)} {encode(type_name)} {state}") == (module, type_name, state)


SCRIPTS = sorted(path for path in (ROOT / "smqueue/scripts").glob("*.lua") if "%%%02X" in path.read_text())
ENCODER = re.compile(r"(\w+(?:\.\w+)*):gsub\(('.+?', function\(c\) return .+? end)\)")


@pytest.mark.parametrize("path", [pytest.param(path, id=path.name) for path in SCRIPTS])
def test_scripts_encode_as_python_does(path: Path, redis_client: redis.Redis) -> None:
    """A script that makes a key of an operation's id, read from a machine's JSON, makes the one that Python makes."""
    encoders = ENCODER.findall(path.read_text())
    assert encoders
    (arguments,) = {arguments for _, arguments in encoders}
    encoder = redis_client.register_script(f"local op = cjson.decode(ARGV[1])[1] return (op:gsub({arguments}))")

    @given(st.one_of(ids, st.text(min_size=1, max_size=200)))
    @examples(max_examples=300, deadline=None)
    def agree(identifier: str) -> None:
        assert encoder(args=[compact([identifier])]) == encode(identifier).encode()

    agree()


@given(st.text(st.characters(categories=["Cs"]), min_size=1, max_size=3))
def test_what_is_no_text_has_no_key(identifier: str) -> None:
    """A lone surrogate, which JSON can carry and no encoding can, is refused where ids are checked."""
    from smqueue import InvalidInput
    from smqueue.states import check_operation_id

    assume(identifier)
    with pytest.raises(InvalidInput):
        check_operation_id(identifier)

"""The codec of any type: what is dumped comes back, and nothing else gets in."""

from __future__ import annotations

import json
from typing import Any

from cryptography.fernet import Fernet
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from smqueue import FernetCodec
from smqueue.schemas import ValidationProblem, canonical, codec_for
from smqueue.schemas.sealed import shown
from smqueue.secrets import Secrets, scrubbed
from tests.fuzz.hints import Pair, json_values, pairs

SECRETS = Secrets(FernetCodec([Fernet.generate_key(), Fernet.generate_key()]))
some = examples(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))


@given(st.booleans(), st.data())
@some
def test_what_is_dumped_comes_back(identity: bool, data: st.DataObject) -> None:
    """For every type and value, ``load(dump(x))`` is x, over JSON text too, and its text is the same a second time."""
    hint, values = data.draw(pairs(identity))
    codec = codec_for(hint, identity=identity, where="x")
    value = data.draw(values)
    try:
        dumped = codec.check(value)
    except ValidationProblem as problem:
        dumped, refused = None, problem
    else:
        refused = None
    if refused is not None:
        assert identity
        assert "two keys are the same in Unicode normal form C" in str(refused)
        return
    text = canonical(dumped)
    loaded = codec.load(json.loads(text))
    assert type(loaded) is type(value)
    assert canonical(codec.dump(loaded)) == text
    if not identity:  # else strings may come back in normal form C
        assert loaded == value


@given(st.booleans(), st.data(), json_values)
@some
def test_any_json_is_loaded_strictly_or_refused(identity: bool, data: st.DataObject, given_json: Any) -> None:
    """Any JSON either makes a value that is dumped to JSON which makes it again, or is a ValidationProblem that prints;
    never another error."""
    hint, _ = data.draw(pairs(identity))
    codec = codec_for(hint, identity=identity, where="x")
    codec.redact(given_json)
    loaded, refused = None, None
    try:
        loaded = codec.load(given_json)
    except ValidationProblem as problem:
        refused = problem
    if refused is not None:
        assert refused.field
        assert str(refused).encode()
        return
    again = codec.dump(loaded)
    assert canonical(codec.dump(codec.load(again))) == canonical(again)


@given(st.booleans(), st.data(), st.lists(st.text(max_size=5), min_size=1, max_size=3))
@some
def test_what_is_sealed_comes_back(identity: bool, data: st.DataObject, about: list[str]) -> None:
    """For every type and value, with secrets anywhere in it, what is stored encrypted is opened to what was dumped;
    deterministically for a state; and to those without a key it is shown as what is hidden is shown."""
    hint, values = data.draw(pairs(identity))
    codec = codec_for(hint, identity=identity, where="x")
    try:
        dumped = codec.check(data.draw(values))
    except ValidationProblem:
        return
    value = json.loads(canonical(SECRETS.value(codec, dumped, *about)))
    assert canonical(SECRETS.opened("value", value, *about)) == canonical(dumped)
    forms = [canonical(form) for form in SECRETS.state(codec, dumped, *about)]
    assert forms == [canonical(form) for form in SECRETS.state(codec, dumped, *about)]
    for form in forms:
        assert canonical(SECRETS.opened("state", json.loads(form), *about)) == canonical(dumped)
        if codec.secret_fields:
            assert canonical(shown(json.loads(form))) == canonical(codec.redact(dumped))
    scrubbed(canonical(dumped), (codec, dumped))


@given(json_values)
@some
def test_free_json_is_never_taken_for_ciphertext(given_json: Any) -> None:
    """Free JSON of any form, with or without a codec, is stored and opened to itself."""
    codec = codec_for(Any, identity=False, where="x")
    try:
        dumped = codec.check(codec.load(given_json))
    except ValidationProblem:
        return
    for secrets in (SECRETS, Secrets()):
        stored = json.loads(canonical(secrets.value(codec, dumped, "op")))
        assert canonical(secrets.opened("value", stored, "op")) == canonical(dumped)


@given(pairs(identity=True))
@some
def test_every_hint_has_a_codec(pair: Pair) -> None:
    """The hints that are tried here all have one: none of these tests passes for want of a schema."""
    assert codec_for(pair[0], identity=True, where="x").schema is not None

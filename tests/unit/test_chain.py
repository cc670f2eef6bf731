"""The seal of a step."""

from __future__ import annotations

from typing import Any

import pytest

from smqueue.chain import Chain
from smqueue.records import Active

ENTRY: dict[str, Any] = {"machine": "x", "step": 2, "to": 'm A {"n":1}', "at": 5, "commit": "c", "version": 1}


def test_a_seal_holds_the_key_the_operation_the_step_before_and_all_of_the_step() -> None:
    """Whatever of these differs, the seal does; the seal itself is not part of what is sealed."""
    chain = Chain("k" * 16)
    seal = chain.seal("op", "before", ENTRY)
    assert len(seal) == 22
    assert chain.seal("op", "before", {**ENTRY, "seal": seal}) == seal
    others = [
        Chain("l" * 16).seal("op", "before", ENTRY),
        chain.seal("op2", "before", ENTRY),
        chain.seal("op", "befor", ENTRY),
        chain.seal("op", "", ENTRY),
        chain.seal("op", "before", {**ENTRY, "terminal": True}),
        *(chain.seal("op", "before", {**ENTRY, name: 7}) for name in ENTRY),
    ]
    assert seal not in others
    assert len(set(others)) == len(others)


def test_the_key_is_not_shown() -> None:
    """A key is a secret: no repr has it."""
    assert "secret" not in repr(Chain("a secret that is long"))


@pytest.mark.parametrize("seal", ["", "s" * 22])
@pytest.mark.parametrize("made", ["m" * 16, "other"])
@pytest.mark.parametrize("lone", [False, True])
def test_an_active_record_is_read_as_it_was_written(seal: str, made: str, lone: bool) -> None:
    """With and without a seal; without one it stays under 64 bytes, as it was."""
    active = Active("m" * 16, 3, 1_700_000_000_000_000, 2, made, lone, seal)
    assert Active.parse(active.dump()) == active
    assert seal or len(active.dump()) < 64

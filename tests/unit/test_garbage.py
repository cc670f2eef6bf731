"""The collector looks less often while drains run, and as before when none does."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from smqueue.worker.garbage import AT_EASE, DEFAULTS, at_ease


@pytest.fixture(autouse=True)
def thresholds() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)


@pytest.mark.parametrize("default", sorted(DEFAULTS))
def test_the_last_of_several_restores_it(default: tuple[int, int, int]) -> None:
    """Drains of several threads overlap as they like."""
    gc.set_threshold(*default)
    expected = gc.get_threshold()
    first, second = at_ease(), at_ease()
    first.__enter__()
    second.__enter__()
    eased = gc.get_threshold()
    first.__exit__(None, None, None)
    assert gc.get_threshold() == eased
    assert eased[0] == AT_EASE[0]
    second.__exit__(None, None, None)
    assert gc.get_threshold() == expected


def test_who_has_set_it_keeps_it() -> None:
    """Thresholds that are none of Python's own have a reason."""
    gc.set_threshold(1_234, 5, 6)
    with at_ease():
        assert gc.get_threshold()[0] == 1_234
    assert gc.get_threshold()[0] == 1_234

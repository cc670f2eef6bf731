"""Retry: how long it waits, when it gives up, and that it says no to nonsense."""

from __future__ import annotations

import random
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smqueue import Retry
from smqueue.errors import DefinitionError

MS = timedelta(milliseconds=1)
spans = st.timedeltas(min_value=MS, max_value=timedelta(days=3650))
short = st.timedeltas(min_value=MS, max_value=timedelta(seconds=10))
retries = st.builds(Retry, max_attempts=st.integers(1, 1000), base=short | spans, cap=spans)
attempts = st.integers(1, 12) | st.integers(1, 10_000)


@given(retries, attempts)
def test_the_delay_doubles_up_to_the_cap(retry: Retry, attempt: int) -> None:
    """The delay after attempt n is base · 2ⁿ⁻¹, never over the cap; at least a millisecond, so that nothing spins."""
    exact_ms = retry.base / MS * 2 ** min(attempt - 1, 200)
    wanted_ms = min(exact_ms, retry.cap / MS)
    assert 1 <= retry.delay_ms(attempt) <= max(1, retry.cap // MS)
    assert abs(retry.delay_ms(attempt) - max(1, wanted_ms)) <= 1


def test_the_default_delays() -> None:
    """1, 2, 4, … seconds, up to ten minutes."""
    delays = [Retry().delay_ms(attempt) // 1000 for attempt in range(1, 13)]
    assert delays == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600]


@given(retries, attempts)
def test_no_later_attempt_comes_sooner(retry: Retry, attempt: int) -> None:
    """Without jitter the delays never fall."""
    assert retry.delay_ms(attempt) <= retry.delay_ms(attempt + 1)


@given(retries, attempts, st.integers())
def test_jitter_takes_up_to_half(retry: Retry, attempt: int, seed: int) -> None:
    """With jitter a delay is a half to the whole of it, and at least a millisecond."""
    random.seed(seed)
    whole = retry.delay_ms(attempt)
    assert max(1, whole // 2) <= retry.jittered_ms(attempt) <= whole


def test_what_failed_together_does_not_return_together() -> None:
    """A thousand machines that failed at one moment are spread over the half: no tenth of it gets a fifth of them."""
    retry = Retry(base=timedelta(seconds=10))
    random.seed(3)
    tenths = [0] * 10
    for _ in range(1000):
        tenths[min(9, (retry.jittered_ms(1) - 5_000) // 500)] += 1
    assert all(0 < count < 200 for count in tenths)


@given(st.integers(1, 50), st.integers(1, 60))
def test_it_gives_up_after_so_many(most: int, attempt: int) -> None:
    """``max_attempts`` counts the first one, too."""
    assert Retry(max_attempts=most).exhausted(OSError(), attempt) is (attempt >= most)


def test_other_errors_are_final_at_once() -> None:
    """An error that ``on`` does not name, itself or by a base class, is not worth a second attempt."""
    retry = Retry(max_attempts=5, on=(OSError,))
    assert not retry.exhausted(ConnectionRefusedError(), 1)
    assert retry.exhausted(ValueError(), 1)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_attempts", 0), ("max_attempts", 1.5), ("max_attempts", True), ("base", -MS), ("base", 3), ("cap", None),
        ("on", OSError), ("on", (OSError, "ValueError")), ("on", (int,)),
    ],
)  # fmt: skip
def test_nonsense_is_a_definition_error(field: str, value: Any) -> None:
    """A field of the wrong type or range is refused when it is written down, with the place."""
    with pytest.raises(DefinitionError) as caught:
        Retry(**{field: value})
    assert field in str(caught.value)
    assert "test_retry.py:" in str(caught.value)

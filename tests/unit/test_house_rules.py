"""The rules that tests/conftest.py lays on every test."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import unlisted_keys
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]


def test_only_listed_kinds_of_keys_may_stay() -> None:
    """Keys of a listed kind pass; another kind, another shape, and a shard that is no number are named."""
    good = [b"{t-1.0}:schedule", b"{t-1.12}:active:op", b"{t-1.0}:data:m:\xff"]
    bad = [b"{t-1.0}:scratch", b"{t-1.0}", b"{t-1}:active:op", b"t-1:active", b"{t-1.0}:schedules"]
    assert unlisted_keys("t-1", good + bad) == sorted(key.decode() for key in bad)


SKIPS = """
import pytest
def test_called(): pytest.skip("no server")
@pytest.mark.skip(reason="marked")
def test_marked(): pass
@pytest.mark.xfail(strict=True)
def test_expected(): raise ValueError
"""


@pytest.mark.parametrize(("ci", "says"), [("true", "1 failed, 1 xfailed, 2 errors"), ("", "3 skipped, 1 xfailed")])
def test_a_skip_is_a_failure_in_ci(tmp_path: Path, ci: str, says: str) -> None:
    """With CI set a skipped test or module fails, an expected failure does not; elsewhere they are skipped."""
    (tmp_path / "test_skips.py").write_text(SKIPS)
    (tmp_path / "test_module.py").write_text("import pytest\npytest.skip('all of it', allow_module_level=True)\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "tests.conftest", "--rootdir", tmp_path]
    run = subprocess.run(
        [*command, "--continue-on-collection-errors", tmp_path],
        env={**os.environ, "CI": ci, "PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert says in run.stdout.splitlines()[-1], run.stdout


def test_waiting_says_what_for() -> None:
    """A wait in vain names what was waited for and the last answer; one that succeeds hands the answer on."""
    assert wait_until(lambda: [1], "there is one") == [1]
    with pytest.raises(AssertionError, match=r"until the list fills .last answer: \[\]"):
        wait_until(list, "the list fills", timeout_s=0.05)

"""A short run of the coverage-guided fuzzer; ``make fuzz`` runs it for as long as one likes."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT

RUNS = 20_000


def test_parsers_stand_coverage_guided_fuzzing(tmp_path: Path) -> None:
    """Of 20,000 inputs that atheris finds, guided by what they reach, none makes a parser raise what it may not."""
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed: it has wheels for Linux on x86-64 alone")
    seeds = tmp_path / "seeds"
    seeds.mkdir()
    for n, text in enumerate(
        ('{"f0":{},"f2":"x"}', '{"$sealed":{"$":"a"}}', '["m",1,2,3]', '["g",0,"op","f",{}]', "a b c")
    ):
        for which in range(8):
            (seeds / f"{n}-{which}").write_bytes(bytes([which]) + text.encode())
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.fuzz.parsers", f"-runs={RUNS}", "-seed=1"),
            *(f"-artifact_prefix={tmp_path}/", str(seeds)),
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"Done {RUNS} runs" in done.stderr

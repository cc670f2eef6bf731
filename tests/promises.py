"""Which promises have no test; run by ``make check``. A test holds promise N that has "(semantics N)" in its docstring.

The numbers are those of the list of behaviours that this project re-creates and improves on.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

PROMISES = range(1, 39)
MARK = re.compile(r"\(semantics ([0-9]+(?:,\s*[0-9]+)*)\)")


def docstrings(source: str) -> Iterator[tuple[str, str]]:
    """Names and docstrings of the test functions in a file; those of parametrized ones and in classes, too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            yield node.name, ast.get_docstring(node) or ""


def promises_of(docstring: str) -> set[int]:
    """The numbers that a docstring claims: ``(semantics 5)`` or ``(semantics 5, 18)``."""
    return {int(number) for found in MARK.findall(docstring) for number in found.split(",")}


def main(root: Path) -> int:
    """Print what is missing; returns the exit status."""
    kept: set[int] = set()
    unknown: list[str] = []
    for path in sorted(root.rglob("test_*.py")):
        for name, docstring in docstrings(path.read_text()):
            claimed = promises_of(docstring)
            kept |= claimed
            unknown += [f"{path.relative_to(root.parent)}::{name} claims {n}" for n in sorted(claimed - {*PROMISES})]
    missing = [str(number) for number in PROMISES if number not in kept]
    if missing:
        print(f'no test has "(semantics N)" in its docstring for N = {", ".join(missing)}', file=sys.stderr)
    for line in unknown:
        print(f"{line}, which is no promise: they are {PROMISES[0]} to {PROMISES[-1]}", file=sys.stderr)
    return 1 if missing or unknown else 0


if __name__ == "__main__":
    sys.exit(main(Path(__file__).parent))

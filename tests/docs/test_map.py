"""What the pages name is there: each file, each function in it, each test."""

from __future__ import annotations

import ast
import re
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from tests.docs.pages import FENCE, PAGES, ROOT

REFERENCE = re.compile(
    r"`((?:smqueue|tests|workers|examples)/[\w/.]+\.(?:py|lua)|celeryconfig\.py|pyproject\.toml)(?::([\w.]+))?`"
)
FOLDER = re.compile(r"`((?:smqueue|tests|workers|examples)/[\w/]*)`")


@cache
def _names(path: Path) -> frozenset[str]:
    """The names that a Python file defines at its top, and in its classes as ``Class.name``."""
    found: set[str] = set()

    def take(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            match node:
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                    found.add(prefix + name)
                case ast.ClassDef(name=name, body=inner):
                    found.add(prefix + name)
                    take(inner, f"{prefix}{name}.")
                case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                    found.add(prefix + name)
                case _:
                    pass

    take(ast.parse(path.read_text()).body, "")
    return frozenset(found)


def _missing(text: str) -> list[str]:
    """The references in a text that lead nowhere."""
    missing: list[str] = []
    for name, function in REFERENCE.findall(text):
        path = ROOT / name
        if not path.is_file() or (function and function not in _names(path)):
            missing.append(f"{name}:{function}" if function else name)
    return missing + [name for name in FOLDER.findall(text) if not (ROOT / name).is_dir()]


def _tables(page: str) -> list[list[list[str]]]:
    """The cells of all tables of a page, the head's first."""
    lines = (ROOT / page).read_text().splitlines()
    found = [list(rows) for is_row, rows in groupby(lines, lambda line: line.startswith("|")) if is_row]
    return [[_cells(row) for row in (table[0], *table[2:])] for table in found]


def _cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("|").split("|")]


def _rows(table: list[list[str]]) -> list[Any]:
    return [pytest.param(row, id=row[0][:60]) for row in table[1:]]


MAP = _tables("ARCHITECTURE.md")[0]
TRAPS = _tables("docs/traps.md")


def test_the_map_comes_first() -> None:
    """ARCHITECTURE.md opens with the map of one transition."""
    assert MAP[0] == ["step", "file:function", "round trips", "a crash here leaves", "healed by", "test"]


@pytest.mark.parametrize("row", _rows(MAP))
def test_each_row_of_the_map_resolves(row: list[str]) -> None:
    """Each step names its file and function, or script, and the test that holds it; all are there."""
    _, code, trips, leaves, healed, test = row
    assert any(function for _, function in REFERENCE.findall(code))
    assert all((trips, leaves, healed))
    assert _names_a_test(test)
    assert _missing(" ".join(row)) == []


def _names_a_test(cell: str) -> bool:
    return any(name.startswith("tests/") and "test_" in function for name, function in REFERENCE.findall(cell))


@pytest.mark.parametrize("row", [row for table in TRAPS for row in _rows(table)])
def test_each_trap_has_a_remedy_and_a_test(row: list[str]) -> None:
    """Each names what we do, where, and the test that fails without it; or says why there is none. All are there."""
    trap, remedy, where, test = row
    assert all((trap, remedy, test))
    assert test.startswith("cannot be tested: ") or (REFERENCE.search(where) and _names_a_test(test))
    assert _missing(" ".join(row)) == []


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md"])
def test_what_a_page_names_is_there(page: str) -> None:
    """Every file, function and folder that a page names exists."""
    assert _missing((ROOT / page).read_text()) == []


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md"])
def test_links_lead_somewhere(page: str) -> None:
    """Links to other pages of the project exist."""
    links = re.findall(r"\]\(([^)#]+)\)", FENCE.sub("", (ROOT / page).read_text()))
    assert [link for link in links if "://" not in link and not ((ROOT / page).parent / link).exists()] == []


def test_a_name_that_is_gone_is_found() -> None:
    """The check itself: functions, methods and scripts that are not there are named."""
    text = "`smqueue/keys.py:gone` `smqueue/keys.py:Keys.gone` `smqueue/scripts/gone.lua` `smqueue/keys.py:Keys.held`"
    assert _missing(text) == ["smqueue/keys.py:gone", "smqueue/keys.py:Keys.gone", "smqueue/scripts/gone.lua"]


def test_each_promise_names_its_test() -> None:
    """Every row of the tables of promises has a test."""
    rows = [line for line in (ROOT / "docs/guarantees.md").read_text().splitlines() if line.count("|") == 3]
    promises = [row for row in rows if not row.startswith(("| promise |", "|---"))]
    assert len(promises) > 25
    assert [row for row in promises if not re.search(r"`tests/[\w/]+\.py:test_\w+`", row)] == []

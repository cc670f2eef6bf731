"""What ARCHITECTURE.md names is there: each file, each function in it, each test."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT

REFERENCE = re.compile(r"`((?:smqueue|tests|workers|examples)/[\w/.]+\.(?:py|lua))(?::([\w.]+))?`")
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


def _map() -> list[list[str]]:
    """The cells of the table at the top of ARCHITECTURE.md, without its head."""
    table = (ROOT / "ARCHITECTURE.md").read_text().partition("\n| step |")[2].partition("\n\n")[0]
    rows = [line.strip("|").split("|") for line in table.splitlines()[2:]]
    return [[cell.strip() for cell in row] for row in rows]


def test_the_map_comes_first() -> None:
    """ARCHITECTURE.md opens with the map of one transition."""
    first_table = next(line for line in (ROOT / "ARCHITECTURE.md").read_text().splitlines() if line.startswith("|"))
    head = ["step", "file:function", "round trips", "a crash here leaves", "healed by", "test"]
    assert [cell.strip() for cell in first_table.strip("|").split("|")] == head


@pytest.mark.parametrize("row", [pytest.param(row, id=row[0]) for row in _map()])
def test_each_row_of_the_map_resolves(row: list[str]) -> None:
    """Each step names its file and function, or script, and the test that holds it; all are there."""
    _, code, trips, leaves, healed, test = row
    assert any(function for _, function in REFERENCE.findall(code))
    assert all((trips, leaves, healed))
    assert any(name.startswith("tests/") and function for name, function in REFERENCE.findall(test))
    assert _missing(" ".join(row)) == []


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md"])
def test_what_a_page_names_is_there(page: str) -> None:
    """Every file, function and folder that a page names exists."""
    assert _missing((ROOT / page).read_text()) == []


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md"])
def test_links_lead_somewhere(page: str) -> None:
    """Links to other pages of the project exist."""
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text())
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def test_a_name_that_is_gone_is_found() -> None:
    """The check itself: functions, methods and scripts that are not there are named."""
    text = "`smqueue/keys.py:gone` `smqueue/keys.py:Keys.gone` `smqueue/scripts/gone.lua` `smqueue/keys.py:Keys.held`"
    assert _missing(text) == ["smqueue/keys.py:gone", "smqueue/keys.py:Keys.gone", "smqueue/scripts/gone.lua"]

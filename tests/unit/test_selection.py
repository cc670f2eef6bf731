"""``select``: which modules a line of text names."""

from __future__ import annotations

from pathlib import Path

import pytest

from smqueue import Module
from smqueue.errors import DefinitionError, DuplicateModule
from smqueue.selection import select


@pytest.fixture(autouse=True)
def machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package to select from."""
    (tmp_path / "selected_machines.py").write_text(
        "from smqueue import Module\nmodule = Module('orders')\nother = Module('parcels')\nnone = 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))


def test_an_entry_without_an_id_has_its_modules_name() -> None:
    """It is imported at once, since nothing else knows that name."""
    [(module_id, module)] = select("selected_machines:module")
    assert module_id == "orders"
    assert isinstance(module, Module)


def test_an_entry_with_an_id_is_imported_late() -> None:
    """It stays text, so that it need not be importable here."""
    assert select("shop=not.there:orders.main") == [("shop", "not.there:orders.main")]


def test_several_entries_keep_their_order() -> None:
    """Blanks and empty entries are passed over; one module may run under several ids, which may hold any sign."""
    selected = select(" a=selected_machines:module,\n b = x = selected_machines:module, selected_machines:other,, ")
    assert [module_id for module_id, _ in selected] == ["a", "b = x", "parcels"]


@pytest.mark.parametrize("nothing", ["", " ", " , "])
def test_nothing_selects_nothing(nothing: str) -> None:
    """No entry is no error: Flower and tools that only read need no modules."""
    assert select(nothing) == []


@pytest.mark.parametrize(
    "entry",
    ["orders", "orders:", ":orders", "a=", "a=orders", "a/b:c", "a..b:c", "a:b:c", "1a:b", "a b:c", "=", "a;b:c"],
)
def test_another_form_is_refused(entry: str) -> None:
    """The error names the part, the form wanted and where it was given."""
    with pytest.raises(DefinitionError) as refused:
        select(f"ok=a:b,{entry}", "--modules")
    text = str(refused.value)
    assert repr(entry) in text
    assert "package.module:object" in text
    assert "--modules" in text


def test_an_empty_or_long_id_is_refused() -> None:
    """As any other name; the limit is in the text."""
    for module_id in ("", "x" * 257):
        with pytest.raises(DefinitionError, match="256"):
            select(f"{module_id}=a:b")


def test_one_id_twice_is_refused() -> None:
    """The error names both entries, also where an id is a module's name (semantics 1)."""
    with pytest.raises(DuplicateModule) as refused:
        select("orders=a:b,selected_machines:module")
    assert "orders=a:b in SMQUEUE_MODULES" in str(refused.value)
    assert "selected_machines:module in SMQUEUE_MODULES" in str(refused.value)


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ("not.there:orders", "No module named 'not'"),
        ("selected_machines:absent", "no attribute 'absent'"),
        ("selected_machines:none", "is a int, not a Module"),
    ],
)
def test_what_cannot_be_imported_is_refused(entry: str, why: str) -> None:
    """One without an id must be a module that can be imported; the error says which and why not."""
    with pytest.raises(DefinitionError) as refused:
        select(entry)
    assert entry in str(refused.value)
    assert why in str(refused.value)

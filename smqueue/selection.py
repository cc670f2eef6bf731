"""Modules named in one line of text, as in ``SMQUEUE_MODULES`` and ``--modules``."""

from __future__ import annotations

import re
from typing import Any

from smqueue.checks import defined_name
from smqueue.errors import DefinitionError, DuplicateModule
from smqueue.imports import load_object
from smqueue.modules import Module

VARIABLE = "SMQUEUE_MODULES"
FORMAT = "package.module:object, or id=package.module:object; several are separated by commas"

_NAME = r"[^\W\d]\w*(\.[^\W\d]\w*)*"
_OBJECT = re.compile(rf"{_NAME}:{_NAME}")


def select(spec: str, source: str = VARIABLE) -> list[tuple[str, Module[Any] | str]]:
    """Read which modules to run, and under which ids.

    Args:
        spec: Entries ``package.module:object`` or ``id=package.module:object``, separated by commas; blanks around
            them and empty ones are passed over.
        source: Where ``spec`` comes from, for errors: the name of a variable or an option.

    Returns:
        Pairs of an id and what ``ExecutorBuilder.with_module`` takes, in the order given. An entry with an id stays
        text and is imported at first use. One without is imported now, as its id is the name of its ``Module``.

    Raises:
        DefinitionError: An entry of another form, an id that is empty or too long, or, of those imported now, one that
            cannot be or is no ``Module``.
        DuplicateModule: Two entries with one id, naming both.
    """
    selected: dict[str, Module[Any] | str] = {}
    written: dict[str, str] = {}
    for entry in filter(None, map(str.strip, spec.split(","))):
        module_id, module = _read(entry, source)
        if module_id in selected:
            raise DuplicateModule(module_id, f"{written[module_id]} in {source}", f"{entry} in {source}")
        selected[module_id], written[module_id] = module, entry
    return list(selected.items())


def _read(entry: str, source: str) -> tuple[str, Module[Any] | str]:
    given_id, separator, name = (part.strip() for part in entry.rpartition("="))
    if not _OBJECT.fullmatch(name):
        raise DefinitionError(f"{entry!r} names no module: write {FORMAT}", source)
    if separator:
        return defined_name(f"the id in {entry!r}", given_id, source), name
    module: Module[Any] = load_object(name, Module)
    return module.name, module

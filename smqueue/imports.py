"""What is given by name, as ``package.module:attribute``."""

from __future__ import annotations

import importlib
from typing import Any, TypeVar

from smqueue.errors import DefinitionError

T = TypeVar("T")


def load_object(name: str, kind: type[T]) -> T:
    """Import ``package.module:attribute``.

    Raises:
        DefinitionError: It cannot be imported, or is something else.
    """
    path, _, attribute = name.partition(":")
    try:
        found: Any = importlib.import_module(path)
        for part in attribute.split(".") if attribute else ():
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise DefinitionError(f"cannot load {name}: {error}", path) from error
    if not isinstance(found, kind):
        raise DefinitionError(f"{name} is a {type(found).__name__}, not a {kind.__name__}", path)
    return found

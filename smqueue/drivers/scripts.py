"""The Lua scripts: one verb a file, each with the common part in front."""

from __future__ import annotations

from functools import cache
from hashlib import sha1
from importlib.resources import files
from typing import NamedTuple


class Script(NamedTuple):
    """A script's text and what Redis knows it by."""

    text: str
    sha: str


@cache
def script(name: str) -> Script:
    """The script of that name, as it is loaded."""
    folder = files("smqueue") / "scripts"
    text = (folder / "_common.lua").read_text() + (folder / f"{name}.lua").read_text()
    return Script(text, sha1(text.encode(), usedforsecurity=False).hexdigest())

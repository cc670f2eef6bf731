"""The Lua scripts: one verb a file, each with what it uses of the common part in front."""

from __future__ import annotations

import re
from functools import cache
from hashlib import sha1
from importlib.resources import files
from typing import NamedTuple

_COMMENT = re.compile(r"--.*")
_DEFINED = re.compile(r"^local (?:function )?(\w+(?:, \w+)*)", re.MULTILINE)
_WORD = re.compile(r"\w+")


class Script(NamedTuple):
    """A script's text and what Redis knows it by."""

    text: str
    sha: str


@cache
def script(name: str) -> Script:
    """The script of that name, as it is loaded."""
    folder = files("smqueue") / "scripts"
    text = with_common((folder / "_common.lua").read_text(), (folder / f"{name}.lua").read_text())
    return Script(text, sha1(text.encode(), usedforsecurity=False).hexdigest())


def with_common(common: str, text: str) -> str:
    """A script, and in front of it those paragraphs of the common part that it, or one of them, uses.

    The first is the clock, which all use. Redis makes all functions of a script anew each time it runs: those that were
    not used took 3 % of what a single caller costs.
    """
    clock, *paragraphs = common.split("\n\n")
    taken, used = [text], set(_WORD.findall(_COMMENT.sub("", text)))
    for paragraph in reversed(paragraphs):  # each uses only what stands above it
        code = _COMMENT.sub("", paragraph)
        if not used.isdisjoint(name for names in _DEFINED.findall(code) for name in names.split(", ")):
            taken.append(paragraph)
            used.update(_WORD.findall(code))
    return "\n\n".join([clock, *reversed(taken)])

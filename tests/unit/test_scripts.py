"""What of the common part of all Lua scripts stands in front of each."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

from smqueue.drivers.scripts import script, with_common

FOLDER = files("smqueue") / "scripts"
COMMON = (FOLDER / "_common.lua").read_text()
NAMES = sorted(one.name[:-4] for one in FOLDER.iterdir() if one.name.endswith(".lua") and one.name[0] != "_")


def test_a_script_has_what_it_uses_and_what_that_uses() -> None:
    """In the order in which it stands, with the clock first; a name in a comment is no use of it."""
    common = "clock\n\nlocal a, b\n\nlocal function far() return b end\n\n-- near: far\nlocal function near() far() end"
    assert with_common(common, "near()") == f"{common}\n\nnear()"
    assert with_common(common, "x = a") == "clock\n\nlocal a, b\n\nx = a"
    assert with_common(common, "done()  -- near") == "clock\n\ndone()  -- near"


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_the_common_part_is_missing_in_a_script(name: str) -> None:
    """What a script does not have of it, it does not mention: Redis would refuse that only where it comes to it."""
    text = script(name).text
    words = set(re.findall(r"\w+", re.sub(r"--.*", "", text)))
    for paragraph in COMMON.split("\n\n"):
        if paragraph not in text:
            defined = re.findall(r"^local (?:function )?(\w+(?:, \w+)*)", paragraph, re.MULTILINE)
            assert defined
            assert words.isdisjoint(", ".join(defined).split(", "))

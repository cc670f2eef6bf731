"""The pages of documentation, taken apart."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = (
    "README.md",
    "ARCHITECTURE.md",
    "GLOSSARY.md",
    "CONTRIBUTING.md",
    *sorted(page.relative_to(ROOT).as_posix() for page in (ROOT / "docs").rglob("*.md")),
)
FENCE = re.compile(r"^```(?P<language>\w*)(?P<more>[^\n]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
ANY_FENCE = re.compile(r"^[ \t>]*(?:```|~~~)", re.MULTILINE)
"""Those too that FENCE passes over: indented, quoted, of tildes."""


class Block(NamedTuple):
    """A fenced block of a page."""

    page: str
    line: int
    """Of its first line, from 1."""
    language: str
    text: str


def blocks(page: str) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    text = (ROOT / page).read_text()
    for found in FENCE.finditer(text):
        yield Block(page, text.count("\n", 0, found.start("text")) + 1, found["language"], found["text"])

"""Words of the command line."""

from __future__ import annotations

from smqueue.words import left, span, told

__all__ = ["left", "span", "told"]

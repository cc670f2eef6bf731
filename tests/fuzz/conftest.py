"""The fixture of tests/inprocess.py."""

from __future__ import annotations

from tests.inprocess import play

__all__ = ["play"]

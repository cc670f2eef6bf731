"""The fixture of tests/inprocess.py, for the tests of pages."""

from __future__ import annotations

from tests.inprocess import play

__all__ = ["play"]

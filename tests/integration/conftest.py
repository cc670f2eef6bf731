"""The fixtures of tests/inprocess.py and tests/proxy.py, for all integration tests."""

from __future__ import annotations

from tests.inprocess import play
from tests.proxy import proxy

__all__ = ["play", "proxy"]

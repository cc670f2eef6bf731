"""The application of tests/apps/shop.py, of a user whose own tasks take pickle, and who sends it by default."""

from __future__ import annotations

from tests.apps.shop import app

app.conf.update(accept_content=["json", "pickle"], task_serializer="pickle")

__all__ = ["app"]

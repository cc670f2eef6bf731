"""What tests of scripts share."""

from __future__ import annotations

import pytest


@pytest.fixture
def even(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is parked comes back after just an hour."""

    def least(_most: int) -> int:
        return 0

    for module in ("begin", "arming", "move"):
        monkeypatch.setattr(f"smqueue.protocols.{module}.randrange", least)

"""The application of ``smqueue worker`` is the same as the one of ``workers``."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from smqueue.worker.application import settings

CELERYCONFIG = Path(__file__).parents[2] / "celeryconfig.py"


@pytest.mark.parametrize(
    "broker", ["redis://h:1/2", "amqp://h", "memory://", "", "redis+socket:///s.sock?virtual_host=1"]
)
def test_it_has_the_settings_of_celeryconfig(monkeypatch: pytest.MonkeyPatch, broker: str) -> None:
    """Every setting of celeryconfig.py has the same value in the library's default application, on any broker."""
    from smqueue.worker.application import broker_beside

    url = "unix:///some/where.sock?db=3"
    monkeypatch.setenv("SMQUEUE_URL", url)
    monkeypatch.setenv("SMQUEUE_NAMESPACE", "shop")
    monkeypatch.setenv("CELERY_BROKER_URL", broker)
    found = {
        name: value for name, value in runpy.run_path(str(CELERYCONFIG)).items()
        if name.islower() and not name.startswith("_") and name not in {"annotations", "os"} and not callable(value)
    }  # fmt: skip
    assert settings(url, "shop", broker or broker_beside(url)) == found

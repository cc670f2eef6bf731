"""Machines in Flower: pages, an API for scripts and live updates, behind Flower's own login.

``celery -A … flower`` has them with no option: Celery imports :mod:`smqueue.cli.plugin` for each of its commands, just
where it imports Flower's, and that calls :func:`plug`. Tornado imports what is named here when Flower is started, and
nothing before: in a worker this costs a look at a list.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

HANDLERS = (
    (r"/machines", "pages.Overview"),
    (r"/machines/events", "live.OverviewEvents"),
    (r"/machines/static/(.+)", "pages.Static"),
    (r"/machines/module/([^/]+)", "pages.ModulePage"),
    (r"/machines/module/([^/]+)/(pause|resume)", "pages.SteerModule"),
    (r"/machines/op/([^/]+)", "pages.OperationPage"),
    (r"/machines/op/([^/]+)/events", "live.OperationEvents"),
    (r"/machines/op/([^/]+)/(signal|cancel|pause|resume|retry)", "pages.Steer"),
    (r"/api/machines", "api.Search"),
    (r"/api/machines-overview", "api.OverviewApi"),  # where no operation can be
    (r"/api/machines/module/([^/]+)/(pause|resume)", "api.SteerModuleApi"),
    (r"/api/machines/([^/]+)", "api.OperationApi"),
    (r"/api/machines/([^/]+)/(signal|cancel|pause|resume|retry)", "api.SteerApi"),
)
"""Paths and handlers; an id in a path is percent-encoded. Operations named ``.`` or ``..``, which no path can hold, are
``?op=..`` of any other: ``/machines/op/_?op=..``."""


def plug() -> None:
    """Put machines into Flower, if it is installed and has no Machines yet: before it is started."""
    if find_spec("flower") is None:
        return
    from flower import urls

    settings: dict[str, Any] = urls.settings
    if "smqueue" in settings:
        return
    from smqueue.flower.loader import Overlay

    settings["smqueue"] = {}
    settings["template_loader"] = Overlay(settings["template_path"])
    ours = [(path, f"{__name__}.{handler}") for path, handler in HANDLERS]
    handlers: list[Any] = urls.handlers
    handlers[-1:-1] = ours  # before the one that takes all other paths
    handlers.insert(0, (r"/metrics", f"{__name__}.metrics.Metrics"))  # before Flower's, which it includes


__all__ = ["plug"]

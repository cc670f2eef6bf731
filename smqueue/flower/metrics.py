"""Flower's ``/metrics`` with what is told of machines, and Redis asked off the loop."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from flower.views.monitor import Metrics as FlowersMetrics

from smqueue.errors import SmqueueError
from smqueue.metrics import register

log = logging.getLogger("smqueue.flower")


class Metrics(FlowersMetrics):
    """Flower's own metrics, and those of the namespaces on its application."""

    async def get(self) -> None:
        """All of them, in Prometheus' format; as Flower's own they need no login."""
        flower: Any = self.application
        for engine in getattr(flower.capp, "smqueue_engines", ()):
            try:
                await asyncio.to_thread(register(engine.executor).look)
            except SmqueueError as error:
                log.debug("no metrics of an executor: %s", error)
        await super().get()

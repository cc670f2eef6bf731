"""Installing smqueue on a Celery application, once."""

from __future__ import annotations

from typing import Any

from celery import Celery
from celery.signals import worker_process_init, worker_process_shutdown, worker_shutdown

from smqueue.tallies import flush_all
from smqueue.worker.engine import Engine
from smqueue.worker.steps import Pump, settle
from smqueue.worker.tasks import Engines, register


def install(app: Celery, engine: Engine) -> None:
    """Add an executor to an application; the first one brings tasks and worker steps."""
    owner: Any = app
    if not hasattr(owner, "smqueue_engines"):
        owner.smqueue_engines = Engines(app)
        register(app, owner.smqueue_engines)
        owner.steps["worker"].add(Pump)
        worker_process_init.connect(settle, weak=False, dispatch_uid="smqueue")  # of the prefork pool
        for ends in (worker_process_shutdown, worker_shutdown):
            ends.connect(flush_all, weak=False, dispatch_uid="smqueue")
    owner.smqueue_engines.add(engine)

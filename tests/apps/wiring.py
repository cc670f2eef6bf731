"""How the applications under test are wired: by the environment alone, as tests start their processes."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from celery import Celery

from smqueue import Executor, ExecutorBuilder, Module


def environment(url: str, broker_url: str, namespace: str, directory: Path | None = None) -> dict[str, str]:
    """What a process is started with; its queue has the namespace's name, and triggers count in the directory."""
    return {
        "TEST_STATE_URL": url, "TEST_BROKER_URL": broker_url, "TEST_NAMESPACE": namespace, "TEST_QUEUE": namespace,
        "TEST_DIR": str(directory or tempfile.gettempdir()),
    }  # fmt: skip


def application(name: str) -> Celery:
    """An application on the test's broker and queue."""
    app = Celery(name, broker=os.environ.get("TEST_BROKER_URL"), set_as_current=False)
    app.conf.update(
        task_ignore_result=True,
        broker_connection_retry_on_startup=True,
        worker_prefetch_multiplier=1,
        task_default_queue=os.environ.get("TEST_QUEUE", "celery"),
        smqueue_trigger_queue=os.environ.get("TEST_TRIGGER_QUEUE"),
        smqueue_shards=os.environ.get("TEST_SHARDS"),
        smqueue_durability=os.environ.get("TEST_DURABILITY"),
    )
    return app


def executor_on(app: Celery, **modules: Module[Any]) -> Executor:
    """The executor of these modules, by id, on the test's state server."""
    builder = ExecutorBuilder()
    for id, module in modules.items():
        builder = builder.with_module(id, module)
    return builder.build(app, url=os.environ.get("TEST_STATE_URL"), namespace=os.environ.get("TEST_NAMESPACE"))

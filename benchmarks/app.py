"""The Celery application of the measured workers, with the settings that we recommend: ``celeryconfig.py``."""

from __future__ import annotations

import os

from celery import Celery
from celery.signals import worker_ready

from benchmarks.machines import bench, connect
from smqueue import Executor, ExecutorBuilder

NAMESPACE = "bench"
READY = "ready to consume"
"""What a worker says: at its default log level, which says nothing of each task, Celery does not."""
SHARDS_VARIABLE, POLLED_VARIABLE = "BENCH_SHARDS", "BENCH_POLLED_URL"


def build(url: str, broker: str, namespace: str = NAMESPACE, shards: int = 1) -> tuple[Celery, Executor]:
    """An application and its executor, for the state and the broker at these addresses."""
    app = Celery("bench", set_as_current=False)
    app.config_from_object("celeryconfig")
    app.conf.update(
        smqueue_url=url, smqueue_namespace=namespace, smqueue_shards=shards, broker_url=broker,
        task_default_queue=namespace, smqueue_trigger_queue=namespace, smqueue_transition_queue=namespace,
    )  # fmt: skip
    return app, ExecutorBuilder().with_module("bench", bench, context=connect).build(app)


def from_environment() -> tuple[Celery, Executor]:
    """What a worker or a driver is told by whoever has started it."""
    env = os.environ
    shards = int(env.get(SHARDS_VARIABLE, "1"))
    return build(env["SMQUEUE_URL"], env["CELERY_BROKER_URL"], env["SMQUEUE_NAMESPACE"], shards)


def __getattr__(name: str) -> Celery:
    """``celery -A benchmarks.app`` asks for ``app``; importing this makes nothing."""
    if name != "app":
        raise AttributeError(name)
    made, _ = from_environment()
    worker_ready.connect(lambda **_: print(READY, flush=True), weak=False)
    globals()["app"] = made
    return made

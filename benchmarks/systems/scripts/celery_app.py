"""What Celery's workers run. It waits for no signal and keeps no state: an order is a task, or two."""

from __future__ import annotations

import os
from typing import Any

import redis
from celery import Celery
from celery.signals import worker_ready

app = Celery("orders", broker=os.environ["ORDERS_BROKER"], backend=os.environ.get("ORDERS_BACKEND"))
app.conf.update(
    worker_prefetch_multiplier=32, broker_connection_retry_on_startup=True, broker_pool_limit=60,
    task_ignore_result="ORDERS_BACKEND" not in os.environ, result_backend_always_retry=False,
)  # fmt: skip
COUNTER = "finished"
state = redis.Redis.from_url(os.environ["ORDERS_STATE"])


@worker_ready.connect
def tell(**_: Any) -> None:
    """At its default log level Celery does not say it."""
    print("ready to consume", flush=True)


@app.task
def ship(key: str) -> str:
    """The step."""
    return key


@app.task
def finish(key: str) -> str:
    """What follows it."""
    return key


@app.task
def count(_key: str) -> None:
    """What follows it when nobody asks for results."""
    state.incr(COUNTER)

"""The application of the demo's workers, wired by the environment that ``smqueue demo`` gives them."""

from __future__ import annotations

import os

from celery import Celery

from smqueue.builder import ExecutorBuilder
from smqueue.demo.machines import orders, parcels, refunds
from smqueue.demo.replay import replay

app = Celery("smqueue-demo", broker=os.environ.get("SMQUEUE_DEMO_BROKER"))
app.conf.update(
    task_ignore_result=True,
    broker_connection_retry_on_startup=True,
    worker_prefetch_multiplier=1,  # the queue holds hints only: the next one is as good as any
    task_default_queue=os.environ.get("SMQUEUE_DEMO_QUEUE", "smqueue-demo"),
)

executor = (
    ExecutorBuilder()
    .with_module(orders.name, orders)
    .with_module(parcels.name, parcels)
    .with_module(refunds.name, refunds)
    .with_module(replay.name, replay)
    .build(app, url=os.environ.get("SMQUEUE_DEMO_URL"), namespace=os.environ.get("SMQUEUE_DEMO_NAMESPACE"))
)

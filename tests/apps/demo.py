"""An application with the machines of the demo, wired by the environment alone."""

from __future__ import annotations

from celery import Celery

from smqueue import ExecutorBuilder
from smqueue.demo.machines import orders, parcels, refunds
from smqueue.demo.replay import replay

app = Celery("demo")
executor = (
    ExecutorBuilder()
    .with_module("orders", orders)
    .with_module("parcels", parcels)
    .with_module("refunds", refunds)
    .with_module("replay", replay)
    .build(app)
)

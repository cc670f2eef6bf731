"""What runs the orders: ``celery -A examples.orders.app worker``; and the executor for those who produce them.

The broker is taken from ``CELERY_BROKER_URL``, the state's Redis from ``SMQUEUE_URL`` and ``SMQUEUE_NAMESPACE``.
"""

from __future__ import annotations

from celery import Celery

from examples.orders import orders, parcels
from smqueue import ExecutorBuilder

app = Celery("orders")
executor = ExecutorBuilder().with_module("orders", orders).with_module("parcels", parcels).build(app)

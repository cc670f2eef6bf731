"""What runs the tickets: ``celery -A examples.helpdesk.app worker``; and the executor for the one who replays.

The broker is taken from ``CELERY_BROKER_URL``, the state's Redis from ``SMQUEUE_URL`` and ``SMQUEUE_NAMESPACE``.
"""

from __future__ import annotations

from celery import Celery

from examples.helpdesk import helpdesk
from smqueue import ExecutorBuilder

app = Celery("helpdesk")
executor = ExecutorBuilder().with_module("helpdesk", helpdesk).build(app)

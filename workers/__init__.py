"""The default Celery application: runs what ``SMQUEUE_MODULES`` names, with the settings in ``celeryconfig``.

``celery -A workers worker`` and ``celery -A workers flower``. Nothing but wiring: an application of one's own does the
same in a few lines.
"""

import os
import sys

from celery import Celery

from smqueue import ExecutorBuilder
from smqueue.errors import SmqueueError
from smqueue.selection import VARIABLE, select

app = Celery("workers")
app.config_from_object("celeryconfig")

try:
    builder = ExecutorBuilder()
    for module_id, module in select(os.environ.get(VARIABLE, "")):
        builder = builder.with_module(module_id, module)
    executor = builder.build(app)
except SmqueueError as error:
    sys.exit(f"workers: {error}")  # one line: Celery would print a traceback around any other error

"""Connections for what need not arrive: tried once, for somebody waits."""

from __future__ import annotations

import os
import threading
from typing import Any

from celery import Celery
from kombu.pools import ProducerPool

LIMIT = 10
"""Connections of one process, at most."""


class Senders:
    """Producers for hints and events; of their own, for Celery's try to connect for 6 s, and add and signal would wait.

    Args:
        app: Whose broker.
    """

    def __init__(self, app: Celery) -> None:
        self._app: Any = app
        self._lock = threading.Lock()
        self._pool: tuple[int, Any] | None = None

    def acquire(self) -> Any:
        """One producer, as a context manager; of this process, after a fork too.

        Raises:
            Exception: The broker does not answer; kombu has a dozen kinds.
        """
        with self._lock:
            if self._pool is None or self._pool[0] != os.getpid():
                connection = self._app.connection_for_write(transport_options={"max_retries": 0})
                self._pool = os.getpid(), ProducerPool(connection.Pool(LIMIT), LIMIT)
        return self._pool[1].acquire(block=True)

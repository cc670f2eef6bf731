"""The Celery application behind ``smqueue worker`` and ``smqueue dev``: an executor's own, or one made for modules.

``SMQUEUE_APP`` (``package.module:executor``) names an executor whose application it is; else one is made for the
modules in ``SMQUEUE_MODULES``. ``celery -A smqueue.worker.application:app`` needs the attribute ``app``, which is made
at its first use; importing this module makes nothing.
"""

from __future__ import annotations

import os
import sys
from typing import Any
from urllib.parse import parse_qs, urlsplit

from celery import Celery

from smqueue.builder import ExecutorBuilder
from smqueue.deployment import DEFAULT_NAMESPACE
from smqueue.errors import NoDeployment, SmqueueError
from smqueue.executor import Executor
from smqueue.imports import load_object
from smqueue.selection import VARIABLE, select

APP_VARIABLE = "SMQUEUE_APP"


def broker_beside(state_url: str) -> str:
    """The database of the state, as Celery spells it: only Unix sockets are spelled otherwise than by redis-py."""
    if not state_url.startswith("unix:"):  # what cannot be taken apart is told of where it is connected to
        return state_url
    parts = urlsplit(state_url)
    query = parse_qs(parts.query)
    return f"redis+socket://{parts.netloc}{parts.path}?virtual_host={query.get('db', ['0'])[0]}"


def verified(broker: str) -> str:
    """A broker's URL with its certificate checked unless it says otherwise: kombu alone takes any for ``rediss://``."""
    if not broker.startswith("rediss://") or "ssl_cert_reqs=" in broker:
        return broker
    return f"{broker}{'&' if '?' in broker else '?'}ssl_cert_reqs=required"


def settings(url: str, namespace: str, broker: str) -> dict[str, Any]:
    """The settings of the default application. ``celeryconfig.py`` has the same, each with its reason and unit."""
    queue = "celery"
    redis_options: dict[str, Any] = {
        "visibility_timeout": 3600,
        "unacked_key": "smqueue.unacked",
        "unacked_index_key": "smqueue.unacked_index",
        "unacked_mutex_key": "smqueue.unacked_mutex",
        "socket_timeout": 30,
        "socket_connect_timeout": 5,
        "socket_keepalive": True,
    }
    transport: dict[str, Any] = {}
    if broker.startswith(("redis", "sentinel")):
        transport = redis_options
    elif broker.startswith(("amqp", "pyamqp")):
        transport = {"confirm_publish": True}
    return {
        "smqueue_url": url,
        "smqueue_namespace": namespace,
        "smqueue_shards": 1,
        "broker_url": verified(broker),
        "task_default_queue": queue,
        "smqueue_trigger_queue": os.environ.get("SMQUEUE_TRIGGER_QUEUE") or queue,
        "smqueue_transition_queue": os.environ.get("SMQUEUE_TRANSITION_QUEUE") or queue,
        "task_acks_late": True,
        "task_reject_on_worker_lost": False,
        "task_retry_on_worker_lost": False,
        "worker_prefetch_multiplier": 1,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_transport_options": transport,
        "task_serializer": "json",
        "result_serializer": "json",
        "event_serializer": "json",
        "accept_content": ["json"],
        "timezone": "UTC",
        "enable_utc": True,
        "task_ignore_result": True,
        "worker_send_task_events": False,
        "task_send_sent_event": False,
        "event_queue_ttl": 5.0,
        "event_queue_expires": 60.0,
        "control_queue_expires": 10.0,
    }


def default_executor(modules: str, shards: int = 1) -> Executor:
    """An executor for ``modules``, as ``SMQUEUE_MODULES`` writes them, on an application of its own.

    Raises:
        NoDeployment: ``SMQUEUE_URL`` is not set.
        SmqueueError: The modules make no sense.
    """
    if not (url := os.environ.get("SMQUEUE_URL")):
        raise NoDeployment
    broker = os.environ.get("CELERY_BROKER_URL") or broker_beside(url)
    app = Celery("smqueue")
    app.conf.update(settings(url, os.environ.get("SMQUEUE_NAMESPACE") or DEFAULT_NAMESPACE, broker))
    app.conf.smqueue_shards = shards
    builder = ExecutorBuilder()
    for module_id, module in select(modules):
        builder = builder.with_module(module_id, module)
    return builder.build(app)


def application_of(executor: Executor) -> Celery:
    """The application that an executor was built on."""
    outbound: Any = executor.outbound
    return outbound._app


def load_executor(name: str) -> Executor:
    """Import ``package.module:executor``; without a colon the attribute is ``executor``.

    Raises:
        DefinitionError: It cannot be imported, or is no executor.
    """
    return load_object(name if ":" in name else f"{name}:executor", Executor)


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(name)
    try:
        given = os.environ.get(APP_VARIABLE)
        executor = load_executor(given) if given else default_executor(os.environ.get(VARIABLE, ""))
    except SmqueueError as error:
        sys.exit(f"smqueue: {error}")  # one line: Celery would print a traceback around any other error
    globals()["app"] = application_of(executor)
    return globals()["app"]

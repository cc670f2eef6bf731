"""Settings of the default application, ``workers``: each with its reason, and its unit where it has one.

What differs between deployments comes from the environment:

============================  ========================================================================================
``SMQUEUE_URL``               where the state is; default ``redis://localhost:6379/0``
``SMQUEUE_NAMESPACE``         the prefix of every key; default ``smqueue``
``CELERY_BROKER_URL``         where the messages are; default: the same database as the state
``SMQUEUE_TRIGGER_QUEUE``     the queue of triggers, which run I/O; default: ``task_default_queue``
``SMQUEUE_TRANSITION_QUEUE``  the queue of transitions, which run handlers; default: ``task_default_queue``
============================  ========================================================================================

What is not here is Celery's default: logging, concurrency and pool are the command line's business.
"""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import parse_qs, urlsplit


def _broker_beside(state_url: str) -> str:
    """The database of the state, as Celery spells it: only Unix sockets are spelled otherwise than by redis-py."""
    parts = urlsplit(state_url)
    if parts.scheme != "unix":
        return state_url
    query = parse_qs(parts.query)
    return f"redis+socket://{parts.netloc}{parts.path}?virtual_host={query.get('db', ['0'])[0]}"


def _verified(broker: str) -> str:
    """A broker's URL with its certificate checked unless it says otherwise: kombu alone takes any for ``rediss://``."""
    if not broker.startswith("rediss://") or "ssl_cert_reqs=" in broker:
        return broker
    return f"{broker}{'&' if '?' in broker else '?'}ssl_cert_reqs=required"


# --- where things are ------------------------------------------------------------------------------------------------

# The truth: every machine, timer and signal.
smqueue_url = os.environ.get("SMQUEUE_URL") or "redis://localhost:6379/0"

# Applications that share a database need a namespace each, and a broker or queues each too: queues know no namespace.
smqueue_namespace = os.environ.get("SMQUEUE_NAMESPACE") or "smqueue"

# Count of shards. With one, a transaction may span any operations; more are for a namespace that is too much for one
# server. Fixed when the namespace is first used: another number is refused.
smqueue_shards = 1

# Messages are hints and may be lost, so any broker will do; the server of the state does, and is there already.
broker_url = _verified(os.environ.get("CELERY_BROKER_URL") or _broker_beside(smqueue_url))

# --- queues ----------------------------------------------------------------------------------------------------------

# Celery's own name: a producer in another language, or one that knows only the broker's address, sends here.
task_default_queue = "celery"

# A plain `celery -A workers worker` consumes task_default_queue and nothing else, so that is where both go. Named apart
# they can be scaled apart: set both variables, everywhere, and run `worker -Q` for each queue, as docker-compose.yml
# does. A queue that no worker consumes stands still without an error.
smqueue_trigger_queue = os.environ.get("SMQUEUE_TRIGGER_QUEUE") or task_default_queue
smqueue_transition_queue = os.environ.get("SMQUEUE_TRANSITION_QUEUE") or task_default_queue

# --- the life of a message -------------------------------------------------------------------------------------------

# Acknowledged when done: a task of yours survives its worker. Ours would anyway: what a lost hint was about is found
# due in Redis, and what a repeated one is about is found done.
task_acks_late = True

# A task that kills its worker must not be delivered again at once and for ever (measured: 68 runs of one in 6 s).
# Machines have a count of their own, and are quarantined by it.
task_reject_on_worker_lost = False

# Nor sent again: a lease that runs out does the same, and is counted.
task_retry_on_worker_lost = False

# Messages reserved for each process of a pool. Reservation starts the visibility clock and keeps a message from idle
# workers, so no more than one.
worker_prefetch_multiplier = 1

# What runs when the broker goes away may end: leases, not the broker, see to it that nothing is applied twice.
worker_cancel_long_running_tasks_on_connection_loss = False

# --- the broker ------------------------------------------------------------------------------------------------------

# A worker that comes up before its broker waits for it, as it does when a broker goes away later.
broker_connection_retry_on_startup = True

# Attempts; None: for ever. A worker that gives up after 100 has to be noticed and started by somebody.
broker_connection_max_retries = None

_REDIS_OPTIONS: dict[str, Any] = {
    # Seconds after which an unacknowledged message is delivered again. The clock starts when a message is reserved and
    # is never extended, so a shorter one runs healthy tasks twice; no task may take longer than this.
    "visibility_timeout": 3600,
    # Unacknowledged messages are kept by database, not by queue: under Celery's names, any other application in this
    # database with a shorter visibility timeout would deliver ours again.
    "unacked_key": "smqueue.unacked",
    "unacked_index_key": "smqueue.unacked_index",
    "unacked_mutex_key": "smqueue.unacked_mutex",
    # Seconds. Without limits a connection whose other end has vanished hangs for ever. Blocking reads take 1 s, and
    # must end well before.
    "socket_timeout": 30,
    "socket_connect_timeout": 5,
    # So that firewalls do not cut idle connections.
    "socket_keepalive": True,
}

_AMQP_OPTIONS: dict[str, Any] = {
    # A task sent by a transition is struck from the outbox when it is sent: only a broker's confirmation says that.
    "confirm_publish": True,
}

# Options belong to a transport; those of another one are errors, or do nothing.
broker_transport_options: dict[str, Any] = (
    _REDIS_OPTIONS
    if broker_url.startswith(("redis", "sentinel"))
    else _AMQP_OPTIONS
    if broker_url.startswith(("amqp", "pyamqp"))
    else {}
)

# --- what messages hold ----------------------------------------------------------------------------------------------

# JSON only, in and out: any language can write it, and nobody who reaches the broker can run code by it, as pickle
# would let them.
task_serializer = "json"
result_serializer = "json"
event_serializer = "json"
accept_content = ["json"]

# Times are instants: no worker's time zone has a say in them.
timezone = "UTC"
enable_utc = True

# --- what would grow -------------------------------------------------------------------------------------------------

# What a machine has come to is its state. Results would pile up unread; a task of yours that needs one says
# `ignore_result=False`.
task_ignore_result = True

# Flower switches events on while it watches; when nobody does, they cost nothing.
worker_send_task_events = False

# An event for each message sent, hints included, would cost every producer; those of triggers are sent by smqueue.
task_send_sent_event = False

# Seconds that an unread event is kept, and that the queue of a watcher outlives it: bounds what a stopped Flower leaves
# on brokers that keep queues for it.
event_queue_ttl = 5.0
event_queue_expires = 60.0

# Seconds that the reply queue of an `inspect` or `control` command outlives its caller.
control_queue_expires = 10.0

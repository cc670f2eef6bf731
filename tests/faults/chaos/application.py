"""The application that producers and workers load: the demo's machines and errands; each commit is counted with it.

Keys written, in the commit of each handler, outside of any module:
    chaos:steps:<operation>  hash: handler → how often it has moved its machine; ``<handler>/kept`` → how often not
    chaos:total:<handler>    counter: the same for all operations
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from celery import Celery

from smqueue import Context, Executor, ExecutorBuilder, Module, State
from smqueue.demo.machines import orders, parcels, refunds
from smqueue.demo.replay import replay as tickets
from smqueue.handlers import Handler
from tests.faults.chaos.errands import errands, followers, listeners

QUEUE = "chaos"
NAMESPACE = "chaos"
HINTED_S = 0.05
"""Transition hints come twice at most so often: each may be answered by another, and all twice they would be legion."""
STEPS, TOTAL = "chaos:steps:", "chaos:total:"
MODULES: dict[str, Module[Any]] = {
    it.name: it for it in (orders, parcels, refunds, tickets, errands, listeners, followers)
}


def counted(module: Module[Any]) -> None:
    """Let each handler of a module count its commits."""
    module.resolve()
    for known in module.types.values():
        known.handlers = tuple(_counted(f"{module.name}.{handler.name}", handler) for handler in known.handlers)


def _counted(label: str, handler: Handler) -> Handler:
    fn: Callable[..., State | None] = handler.fn

    def count(tx: Any, state: State, outcome: Any, context: Context[Any, Any]) -> State | None:
        result = fn(tx, state, outcome, context) if handler.takes_context else fn(tx, state, outcome)
        name = f"{label}/kept" if result is None else label
        tx.shared.hincrby(f"{STEPS}{context.operation_id}", name, 1)
        tx.shared.incrby(f"{TOTAL}{name}", 1)
        return result

    return replace(handler, fn=count, takes_context=True)


def application(broker_url: str | None) -> Celery:
    """A Celery application on that broker."""
    made = Celery("chaos", broker=broker_url, set_as_current=False)
    made.conf.update(
        task_ignore_result=True,
        broker_connection_retry_on_startup=True,
        worker_prefetch_multiplier=1,
        task_default_queue=QUEUE,
    )
    return made


def executor_on(application: Celery, url: str | None) -> Executor:
    """An executor of all modules; the hints that it sends come twice."""
    builder = ExecutorBuilder()
    for module in MODULES.values():
        builder = builder.with_module(module.name, module)
    made = builder.build(application, url=url, namespace=NAMESPACE)
    outbound: Any = made.outbound
    outbound.hint, outbound.send_triggers = _twice(outbound.hint, HINTED_S), _twice(outbound.send_triggers, 0)
    return made


def _twice(send: Callable[..., None], every_s: float) -> Callable[..., None]:
    """Send again what was sent, unless that was done a moment ago."""
    last = [-every_s]

    def sent(*args: Any) -> None:
        send(*args)
        if (now := time.monotonic()) - last[0] >= every_s:
            last[0] = now
            send(*args)

    return sent


for one in MODULES.values():
    counted(one)
app = application(os.environ.get("CHAOS_BROKER_URL"))
executor = executor_on(app, os.environ.get("CHAOS_STATE_URL"))

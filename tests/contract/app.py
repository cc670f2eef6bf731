"""The application whose worker runs the machines, wired by the environment alone."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery

from smqueue import Executor, ExecutorBuilder, Module
from tests.contract.machines import Side, app, fleeting, kinds, ordered, orders, renewed, twins, walk

__all__ = ["app", "executor"]


INSTANCES: dict[str, Module[Any]] = {
    "orders": orders,
    "walk": walk,
    "kinds": kinds,
    "ordered": ordered,
    "left": twins,
    "right": twins,
    "fleeting": fleeting,
    "renewed": renewed,
}
CONTEXTS: dict[str, Any] = {"left": Side("on the left"), "right": lambda: Side("on the right")}


def shared(module_id: str, operation_id: str) -> str:
    """The global context."""
    return f"{module_id} of {operation_id}"


def built(app: Celery, url: str | None, namespace: str | None) -> Executor:
    """The executor of all machines, for the worker and for the tests."""
    builder = ExecutorBuilder()
    for id, module in INSTANCES.items():
        builder = builder.with_module(id, module, context=CONTEXTS.get(id))
    return builder.build(app, url=url, namespace=namespace, global_context=shared)


executor = built(app, os.environ.get("TEST_STATE_URL"), os.environ.get("TEST_NAMESPACE"))

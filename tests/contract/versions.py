"""Processes with another version of the module ``renewed`` than the worker's, which has version 2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from celery import Celery

from smqueue import Executor, ExecutorBuilder, Module, State, Transition
from tests.contract.deployed import Deployed


@dataclass(frozen=True)
class Versioned:
    """A producer of that version, and its state."""

    executor: Executor
    parcel: type[Any]


def _producer(shop: Deployed, version: int) -> Versioned:
    assert shop.app is not None
    module = Module("renewed", version=version)
    released = module.signal("release")

    class Parcel(State):
        kilos: int

        def transitions(self, context: Any, global_context: Any) -> Sequence[Transition[Any, Any]]:
            return [Transition(released, lambda tx, state, _: None, name="released")]

    module.state(Parcel)
    app: Any = Celery(f"{shop.namespace}-{version}", broker=shop.app.conf.broker_url, set_as_current=False)
    app.conf.update(task_default_queue=shop.namespace, task_ignore_result=True)
    builder = ExecutorBuilder().with_module("renewed", module)
    return Versioned(builder.build(app, url=shop.url, namespace=shop.namespace), Parcel)


@pytest.fixture
def older(shop: Deployed) -> Versioned:
    """A producer of version 1."""
    return _producer(shop, 1)


@pytest.fixture
def newer(shop: Deployed) -> Versioned:
    """A producer of version 3."""
    return _producer(shop, 3)

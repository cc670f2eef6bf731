"""An application of the shop with handlers that raise, again and again; for a Flower it has several namespaces."""

from __future__ import annotations

import json
import os
from datetime import timedelta

from smqueue import Context, ExecutorBuilder, Module, Retry, State, Transaction, now, poll
from tests.apps.shop import kinds, orders
from tests.apps.wiring import application, executor_on

app = application("stuck")

troubles = Module("troubles", version=1, retry=Retry(max_attempts=1_000_000, cap=timedelta(seconds=1)))
"""Its machines are never set aside."""


@troubles.state
class Raising(State):
    n: int


@troubles.state
class Refusing(State):
    n: int


@troubles.state(terminal=True)
class Over(State):
    n: int


@troubles.on(Raising, now())
def raised(tx: Transaction, state: Raising, _: None) -> Over:
    raise ValueError("broken on purpose")


def look(state: Refusing, context: Context) -> int:
    return state.n


@troubles.on(Refusing, poll(look, every=timedelta(hours=1)))
def refused(tx: Transaction, state: Refusing, found: int) -> Over:
    raise KeyError("refused on purpose")


executor = executor_on(app, orders=orders, kinds=kinds, troubles=troubles)
for url, namespace in json.loads(os.environ.get("TEST_SITES", "[]")):
    _ = (
        ExecutorBuilder()
        .with_module("orders", orders)
        .with_module("kinds", kinds)
        .with_module("troubles", troubles)
        .build(app, url=url, namespace=namespace)
    )

"""``celery -A … machines …``: the commands of ``smqueue`` on the application that Celery has loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from celery import Celery
from click.testing import CliRunner

from smqueue import Executor, ExecutorBuilder, StateMachine
from smqueue.cli import Exit
from smqueue.cli.commands import COMMANDS
from smqueue.cli.plugin import LEFT_OUT, machines
from smqueue.embedded import EmbeddedServer
from tests.apps.shop import Packing, orders
from tests.apps.wiring import environment
from tests.workers import ROOT


@pytest.fixture
def app() -> Celery:
    return Celery("plugged", broker="memory://", set_as_current=False)


@pytest.fixture
def other_namespace(namespace: str, redis_client: redis.Redis) -> Iterator[str]:
    """A second one on the same server."""
    name = f"other-{namespace}"
    yield name
    if keys := list(redis_client.scan_iter(match=f"{{{name}.*", count=1000)):
        redis_client.delete(*keys)


def built(app: Celery, url: str, namespace: str) -> Executor:
    """An executor on the application, with an order that is named after its namespace."""
    executor = ExecutorBuilder().with_module("orders", orders).build(app, url=url, namespace=namespace)
    executor.add_state_machines([StateMachine(f"order-of-{namespace}", Packing("1"))])
    return executor


def call(app: Celery, *arguments: str) -> Any:
    """Call the group as Celery does."""
    return CliRunner().invoke(machines, list(arguments), obj=SimpleNamespace(app=app, no_color=False))


def test_it_is_about_the_executor_of_the_application(server: EmbeddedServer, namespace: str, app: Celery) -> None:
    """Looking, steering and feeding go to the executor that was built on it, with its modules."""
    built(app, server.url, namespace)
    op = f"order-of-{namespace}"
    assert [one["operation_id"] for one in json.loads(call(app, "list", "--json").stdout)] == [op]
    assert call(app, "pause", "--module", "orders").stdout == "module orders paused\n"
    assert "paused" in call(app, "why", op).stdout
    assert call(app, "resume", "--module", "orders").exit_code == 0
    assert call(app, "signal", "o-2", "packed").stdout == "BUFFERED\n"
    assert "Awaiting --> Packing" in call(app, "graph", "orders").stdout
    assert json.loads(call(app, "stats", "--json").stdout)["active"] == 1


def test_several_executors(server: EmbeddedServer, namespace: str, other_namespace: str, app: Celery) -> None:
    """Of several --namespace chooses; without it their namespaces are named, and so they are for a wrong one."""
    names = [namespace, other_namespace]
    for name in names:
        built(app, server.url, name)
    refused(call(app, "list"), Exit.USAGE, *names, "--namespace")
    refused(call(app, "list", "--namespace", "other"), Exit.USAGE, *names)
    found = call(app, "list", "--json", "--namespace", names[1])
    assert [one["operation_id"] for one in json.loads(found.stdout)] == [f"order-of-{names[1]}"]


def refused(done: Any, status: int, *parts: str) -> None:
    assert done.exit_code == status
    assert done.stdout == ""
    assert done.stderr.startswith("smqueue: ")
    assert done.stderr.count("\n") == 1
    for part in parts:
        assert part in done.stderr


def test_errors_are_as_in_smqueue(server: EmbeddedServer, namespace: str, app: Celery) -> None:
    """One line and the same exit statuses: no executor, a wrong option, an operation that is not there, no server."""
    refused(call(app, "list"), Exit.USAGE, "no executor was built on this application")
    built(app, server.url, namespace)
    refused(call(app, "list", "--url", "redis://elsewhere"), Exit.USAGE, "--url")
    refused(call(app, "nonsense"), Exit.USAGE, "nonsense")
    refused(call(app, "show", "nobody"), Exit.NO_SUCH_OPERATION, "nobody")
    away = Celery("away", broker="memory://", set_as_current=False)
    ExecutorBuilder().with_module("orders", orders).build(away, url="redis://127.0.0.1:1/0", namespace=namespace)
    refused(call(away, "list"), Exit.UNAVAILABLE, "StoreUnavailable")


def test_it_has_all_commands_with_its_own_examples(app: Celery) -> None:
    """Each command, without the options that an application leaves no choice of; examples are of celery."""
    listed = call(app).stdout
    for name in COMMANDS:
        assert (f"  {name} " in listed) == (name not in LEFT_OUT)
    for name in set(COMMANDS) - LEFT_OUT:
        shown = call(app, name, "--help")
        assert shown.exit_code == 0
        assert f"celery -A shop.app machines {name}" in shown.stdout
        assert "smqueue " not in shown.stdout.partition("Examples:")[2].replace("'smqueue[", "")
        assert not {"--url", "--modules", "--app"} & set(shown.stdout.split())


def test_celery_has_it(server: EmbeddedServer, namespace: str) -> None:
    """The real celery looks at the application that -A names, and ends with the command's exit status."""
    (entry,) = (found for found in entry_points(group="celery.commands") if found.name == "machines")
    assert entry.load() is machines
    env = {**os.environ, **environment(server.url, server.broker_url, namespace), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "celery", "-A", "tests.apps.shop", "machines", "show", "nobody"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (Exit.NO_SUCH_OPERATION, "", 1)


def test_every_celery_command_pays_little_for_it() -> None:
    """Celery imports the plug-in whatever it is called for: it imports no command, and nothing that only they need."""
    code = (
        "import sys, smqueue; before = set(sys.modules); import smqueue.cli.plugin; "
        "print(*sorted(name for name in set(sys.modules) - before if name.startswith(('rich', 'smqueue.cli'))))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["smqueue.cli", "smqueue.cli.commands", "smqueue.cli.plugin"]

"""JSON is all that smqueue reads and writes: nobody who reaches the broker or Redis can have code run by it."""

from __future__ import annotations

import ast
import os
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import redis
from kombu import Connection, Exchange, Producer
from kombu.utils.uuid import uuid

import celeryconfig
from smqueue import StateMachine
from smqueue.embedded import EmbeddedServer
from smqueue.worker.application import settings
from tests.apps import shop
from tests.docs.pages import ROOT
from tests.monitor import monitoring
from tests.shopping import Shop
from tests.waiting import wait_until
from tests.workers import running

TASKS = ("smqueue.add", "smqueue.signal", "smqueue.transition", "smqueue.trigger", "smqueue.ended", "smqueue.failed")
REFUSED = re.compile(r"smqueue's tasks take JSON, not application/x-python-serialize|Refusing to deserialize .* pickle")
"""What our tasks say, and Celery itself where the application takes no pickle at all."""


class Bomb:
    """Makes a directory when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def send(url: str, queue: str, task: str, body: bytes, content_type: str, encoding: str) -> None:
    """Put a message into a queue as an attacker would: by hand."""
    headers = {"lang": "py", "task": task, "id": uuid(), "root_id": None, "parent_id": None, "group": None}
    with Connection(url) as connection:
        producer = Producer(connection, exchange=Exchange(""), routing_key=queue)
        producer.publish(body, content_type=content_type, content_encoding=encoding, headers=headers)


@pytest.mark.parametrize("app", ["tests.apps.shop", "tests.apps.pickling"])
def test_pickle_is_refused(server: EmbeddedServer, namespace: str, tmp_path: Path, app: str) -> None:
    """A message with a pickled body for any of smqueue's tasks is refused in the worker's log and never unpickled, also
    where the application takes pickle for tasks of its own; the worker goes on. What smqueue sends is JSON even where
    the application's default is pickle."""
    world = Shop(server.url, server.broker_url, namespace, tmp_path)
    world.env["C_FORCE_ROOT"] = "1"  # Celery refuses pickle to root, by whom tests may be run
    bombs = {task: tmp_path / task for task in TASKS}
    with running(worker := world.worker("-c", "1", app=app)), monitoring(world.redis) as monitor:
        worker.wait_ready()
        for task, path in bombs.items():
            body = pickle.dumps(([Bomb(path)], {}, {}))
            send(server.broker_url, namespace, task, body, "application/x-python-serialize", "binary")
        wait_until(lambda: len(REFUSED.findall(worker.output)) >= len(TASKS), "all are refused", 60)
        world.add("goes-on", shop.Tasking(4))
        world.add("goes-on-too", shop.Instant(3))
        assert world.ends("goes-on") == [shop.Done("sum 5")]
        assert world.ends("goes-on-too") == [shop.Done("instant")]
        kinds = {m["content-type"] for m in monitor.messages if m["headers"]["task"].startswith("smqueue.")} - {
            "application/x-python-serialize"
        }
    assert kinds == {"application/json"}
    assert [path for path in bombs.values() if path.exists()] == []


def test_the_settings_take_json_alone() -> None:
    """The settings of both applications that we ship accept and send JSON alone, tasks, results and events."""
    shipped = [
        {name: getattr(celeryconfig, name) for name in dir(celeryconfig)},
        settings("redis://x", "n", "redis://x"),
    ]
    for one in shipped:
        assert one["accept_content"] == ["json"]
        assert {one[f"{what}_serializer"] for what in ("task", "result", "event")} == {"json"}
        assert "result_backend" not in one
        assert one["task_ignore_result"] is True


def test_nothing_reads_code() -> None:
    """No module of ours imports what runs code when it reads data, nor calls ``eval`` or ``exec``."""
    for path in (*(ROOT / "smqueue").rglob("*.py"), *(ROOT / "workers").rglob("*.py"), ROOT / "celeryconfig.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names: list[str] = []
            match node:
                case ast.Import(names=found):
                    names = [one.name for one in found]
                case ast.ImportFrom(module=module):
                    names = [module or ""]
                case ast.Call(func=ast.Name(id=name)):
                    names = [name] if name in {"eval", "exec", "compile"} else []
                case _:
                    pass
            for name in names:
                assert name.partition(".")[0] not in {
                    "pickle",
                    "marshal",
                    "shelve",
                    "dill",
                    "yaml",
                    "eval",
                    "exec",
                    "compile",
                }, path


def test_stored_pickle_is_garbage(server: EmbeddedServer, namespace: str, tmp_path: Path) -> None:
    """Pickle in the place of a record, an outcome or a request is garbage like any other."""
    world = Shop(server.url, server.broker_url, namespace, tmp_path)
    world.add("op", shop.Packing("op"))
    body = pickle.dumps(Bomb(tmp_path / "bomb"))
    keys = world.keys
    record = world.executor.instances.place(StateMachine("op", shop.Packing("op"))).record
    world.redis.hset(keys.active("op"), b"orders Packing " + body, body)
    world.redis.set(keys.machine(record), body)
    world.redis.rpush(keys.requests, body)
    world.redis.zadd(keys.schedule, {"~requests": 0, **dict.fromkeys(world.redis.zrange(keys.schedule, 0, -1), 0)})
    client: redis.Redis = world.redis
    with running(worker := world.worker("-c", "1")):
        worker.wait_ready()
        wait_until(lambda: client.hlen(keys.quarantine) == 1 and client.llen(keys.requests) == 0, "it is set aside", 60)
        assert list(world.executor.get_active_states("op"))
    assert not (tmp_path / "bomb").exists()

"""The real Flower, asked over its API what it shows of our triggers."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from smqueue import Failed, Module, State, Transaction, after, call
from smqueue.embedded import EmbeddedServer
from smqueue.records import Active, Placed
from tests.apps import shop
from tests.brokers import free_port
from tests.inprocess import Play, machines
from tests.monitor import Monitor, monitoring
from tests.shopping import Shop
from tests.waiting import wait_until
from tests.workers import ROOT, running

STARTS_S = 60.0


class Flower:
    """What Flower's API says.

    Args:
        port: Where it listens, on loopback.
        process: Its own.
    """

    def __init__(self, port: int, process: subprocess.Popen[bytes]) -> None:
        self._port, self._process = port, process

    def get(self, path: str) -> Any:
        """The JSON under a path."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}{path}", timeout=10) as answer:
            return json.load(answer)

    def text(self, path: str) -> str:
        """What is under a path."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}{path}", timeout=10) as answer:
            return answer.read().decode()

    def answers(self) -> bool:
        """Whether it has started."""
        assert self._process.poll() is None
        try:
            return self.get("/api/tasks") is not None
        except (urllib.error.URLError, OSError):
            return False

    def find(self, op: str) -> dict[str, dict[str, Any]]:
        """What is found when one searches for an operation: trigger's name → task."""
        return {task["name"]: task for task in self.get(f"/api/tasks?search={quote(op)}").values()}

    def sees(self, op: str, **states: str) -> dict[str, dict[str, Any]]:
        """Wait until the triggers of an operation are shown in these states: handler's name → state."""
        expected = {f"/{name}": state for name, state in states.items()}

        def found() -> dict[str, dict[str, Any]] | None:
            tasks = self.find(op)
            shown = {f"/{name.partition('/')[2]}": task["state"] for name, task in tasks.items()}
            return tasks if shown == expected else None

        try:
            return wait_until(found, f"Flower shows {op} as {states}")  # type: ignore[return-value]
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.find(op)}") from None

    def workers(self) -> set[str]:
        """The workers that its dashboard lists."""
        return {worker["hostname"] for worker in self.get("/workers?json=1")["data"]}


@contextmanager
def flower(world: Shop) -> Generator[Flower]:
    """Run ``celery -A … flower``, until it answers and workers have noticed it."""
    port = free_port()
    command = [sys.executable, "-m", "celery", "-A", "tests.apps.shop", "flower", "--address=127.0.0.1"]
    env = {**os.environ, **world.env, "FLOWER_UNAUTHENTICATED_API": "1"}
    with (world.directory / "flower.log").open("wb") as out:
        process = subprocess.Popen(
            [*command, f"--port={port}"], cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            start_new_session=True,
        )  # fmt: skip
    try:
        api = Flower(port, process)
        wait_until(api.answers, "Flower answers", STARTS_S)
        wait_until(lambda: world.redis.exists(world.keys.watched), "a worker notices that Flower watches", 30)
        yield api
    except BaseException:
        print((world.directory / "flower.log").read_text()[-3000:])
        raise
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(10)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Shop]:
    with EmbeddedServer() as server:  # events know no namespace: other tests' workers would be shown, too
        yield Shop(server.url, server.broker_url, "flowers", tmp_path)


def test_triggers_are_found_by_operation(world: Shop) -> None:
    """While Flower watches, each trigger is found by its operation's id, with a telling name, its operation and machine
    as arguments, the state of its race and the worker's name; and no worker is shown that is none. Its ``/metrics``
    tells of machines, beside its own."""
    two = [world.worker("-c", "2") for _ in range(2)]
    names = {worker.name for worker in two}
    with running(*two):
        for worker in two:
            worker.wait_ready()
        with flower(world) as api:
            # armed by a producer: this process
            (machine,) = _ids(world, "op-signal", shop.Awaiting("op-signal", 5))
            found = api.sees("op-signal", paid="PENDING", expired="PENDING")
            assert set(found) == {"orders.Awaiting/paid", "orders.Awaiting/expired"}
            for task in found.values():
                assert task["args"] == repr(("op-signal", machine))
                assert task["sent"]
                assert "worker" not in task

            # won, lost, and what the next state is armed with, by a worker
            world.executor.signal("op-signal", shop.payment, shop.Payment(5))
            found = api.sees("op-signal", paid="SUCCESS", expired="REVOKED", handed_over="PENDING")
            assert found["orders.Awaiting/paid"]["worker"] in names
            assert found["orders.Awaiting/paid"]["runtime"] >= 0
            assert found["orders.Awaiting/expired"]["worker"] in names
            assert found["orders.Packing/handed_over"]["args"] == repr(("op-signal", machine))

            # a handler that wants more: the signal is awaited on, and the race goes on
            world.add("op-kept", shop.Awaiting("op-kept", 5))
            world.executor.signal("op-kept", shop.payment, shop.Payment(1))
            api.sees("op-kept", paid="PENDING", expired="PENDING")
            told = api.text("/metrics")
            assert "flower_events_total{" in told
            assert 'smqueue_active_machines{module="orders",namespace="flowers",state="Awaiting"} 1.0' in told

            # code: sent, received, started, retried, won
            world.add("op-poll", shop.Polling(4))
            world.add("op-call", shop.Calling(2))
            for op, name, tries in (("op-poll", "polled", 3), ("op-call", "called", 2)):
                (task,) = api.sees(op, **{name: "SUCCESS"}).values()
                assert task["sent"], task
                assert all(task[stamp] for stamp in ("received", "started", "retried", "succeeded")), task
                assert task["retries"] == tries
                assert task["worker"] in names
                assert op in task["args"]
            assert "ConnectionError: attempt 2" in task["exception"]
            world.add("op-polls", shop.Polling(10**9))
            (task,) = api.sees("op-polls", polled="RETRY").values()
            assert task["name"] == "kinds.Polling/polled"

            # a task of the user's: one with its trigger
            world.add("op-task", shop.Tasking(4))
            (task,) = api.sees("op-task", added_up="SUCCESS").values()
            assert task["name"] == "kinds.Tasking/added_up"
            assert "shop.add_up" in task["kwargs"]

            # on a worker's event loop
            world.add("op-wait", shop.Hosting(3_600_000))
            world.add("op-waits", shop.Hosting(50))
            world.add("op-channel", shop.Listening("room"))
            (task,) = api.sees("op-wait", lingered="STARTED").values()
            assert task["worker"] in names
            api.sees("op-channel", heard="STARTED")
            world.listening("op-channel")
            world.redis.publish("room", '"yes"')
            api.sees("op-channel", heard="SUCCESS")
            (task,) = api.sees("op-waits", lingered="SUCCESS").values()
            assert task["worker"] in names

            # armed by a worker, for a producer without our code
            given = {"operation_id": "op-json", "module": "orders", "type": "Packing", "state": {"order_id": "x"}}
            world.app.send_task("smqueue.add", [[given]])
            wait_until(lambda: "orders.Packing/handed_over" in api.find("op-json"), "what JSON has added is shown")

            assert api.workers() == names
            assert {task["worker"] for task in api.get("/api/tasks").values() if "worker" in task} <= names


def test_events_cost_nothing_when_nobody_watches(world: Shop) -> None:
    """Events are sent while Flower watches and at no other time: not before, and no longer once it has ended."""
    with running(worker := world.worker("-c", "1")):
        worker.wait_ready()
        with monitoring(world.redis) as monitor:
            _one_order(world, "before")
            assert not world.redis.exists(world.keys.watched)
            assert not _events(monitor)
            with flower(world) as api:
                _one_order(world, "during")
                api.sees("during", paid="SUCCESS", expired="REVOKED", handed_over="SUCCESS")
                repeated = lambda: sum(_is_enable(one.args) for one in monitor.asked) >= 2  # noqa: E731
                wait_until(repeated, "Flower has asked for events again")
            assert _events(monitor)
        wait_until(lambda: not world.redis.exists(world.keys.watched), "nobody watches", timeout_s=40)
        with monitoring(world.redis) as monitor:
            _one_order(world, "after")
            assert not _events(monitor)
        assert "nobody asks for events any more" in worker.output


def test_a_worker_told_to_send_events_does(world: Shop) -> None:
    """``worker -E`` sends events of triggers without being asked again, for a camera or another consumer."""
    with running(worker := world.worker("-P", "solo", "-E")), monitoring(world.redis) as monitor:
        worker.wait_ready()
        wait_until(lambda: world.redis.exists(world.keys.watched), "the worker says that it is watched")
        _one_order(world, "op")
        told = lambda: {event["type"] for args in _events(monitor) for event in _sent(args)}  # noqa: E731
        wait_until(lambda: told() >= {"task-sent", "task-succeeded", "task-revoked"}, "events are sent")


def test_a_trigger_that_is_over_while_the_race_goes_on(play: Play) -> None:
    """When a handler keeps its machine waiting, a trigger that has happened once is told as over; one that is awaited
    again is not, nor are the others."""
    local = play(kept=kept)
    ended: list[tuple[str, list[str]]] = []

    def note(_placed: Placed, _active: Active, _arming: str, armed: Mapping[str, Any], won: str | None) -> None:
        ended.append((str(won), sorted(armed)))

    local.sent.ended = note  # type: ignore[method-assign]
    local.redis.set(local.keys().watched, "1")
    local.executor.add_state_machines(machines("op", Keeping(1)))
    local.run()
    local.executor.signal("op", word, 1)
    local.run()
    local.executor.signal("op", word, 2)
    local.settle("op")
    assert [one for one in ended if one[1]] == [("asked", ["asked"]), ("told", ["late", "told"])]


kept = Module("kept", version=1)
word = kept.signal("word", int)


@kept.state
class Keeping(State):
    n: int


@kept.state(terminal=True)
class Over(State):
    n: int


@kept.on(Keeping, call(lambda state, context: state.n))
def asked(tx: Transaction, state: Keeping, got: int | Failed) -> Over | None:
    return None


@kept.on(Keeping, word)
def told(tx: Transaction, state: Keeping, got: int) -> Over | None:
    return Over(got) if got > state.n else None


@kept.on(Keeping, after(timedelta(hours=1)))
def late(tx: Transaction, state: Keeping, _: None) -> Over:
    return Over(0)


def _ids(world: Shop, op: str, state: Any) -> list[str]:
    world.add(op, state)
    return [str(active.machine_id) for _, active in world.executor.get_active_states(op)]


def _one_order(world: Shop, op: str) -> None:
    world.add(op, shop.Awaiting(op, 5))
    world.executor.signal(op, shop.payment, shop.Payment(5))
    world.executor.signal(op, shop.packed)
    world.ends(op)


def _events(monitor: Monitor) -> list[tuple[bytes, ...]]:
    """Events of tasks that were published; those of workers are heartbeats, which Celery sends anyhow."""
    return [
        o.args for o in monitor.asked if o.name == "PUBLISH" and b"celeryev" in o.args[1] and b"task-" in _body(o.args)
    ]


def _is_enable(args: tuple[bytes, ...]) -> bool:
    return args[0].upper() == b"PUBLISH" and b"pidbox" in args[1] and b"enable_events" in _body(args)


def _sent(args: tuple[bytes, ...]) -> list[dict[str, Any]]:
    """The events of one message: a worker sends several in one."""
    body = json.loads(_body(args))
    return body if isinstance(body, list) else [body]


def _body(args: tuple[bytes, ...]) -> bytes:
    return base64.b64decode(json.loads(args[2])["body"])

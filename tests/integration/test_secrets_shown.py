"""Secrets are shown nowhere: not in errors, logs, listings, explanations, events or a worker's banner."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, cast

import pytest
from celery import Celery

from smqueue import Failed, Module, Secret, SmqueueError, State, StateMachine, Transaction, call, poll
from smqueue.cli import Exit, run
from smqueue.client import Client
from smqueue.drivers.connect import shown
from smqueue.embedded import EmbeddedServer
from smqueue.worker.application import settings
from tests.apps import vault
from tests.apps.vault import HUSH, Locked, Open, Pin, opening
from tests.apps.wiring import environment
from tests.inprocess import Local, Play
from tests.waiting import wait_until
from tests.workers import Worker, running

PASSWORD = "hush-sesame"
LOCKED = Locked("door", f"{HUSH} key")
REFUSED: dict[str, Callable[[Local], object]] = {
    "a field of another type": lambda p: p.add("op", Locked("door", cast("Any", [HUSH]))),
    "a field of another type, in JSON": lambda p: add_json(p, {"name": "door", "key": {HUSH: HUSH}}),
    "a field too much": lambda p: add_json(p, {"name": "door", "key": HUSH, "more": HUSH}),
    "too large": lambda p: p.add("op", Locked("door", HUSH * 50_000)),
    "added twice": lambda p: [p.add("op", LOCKED), p.add("op", LOCKED)],
    "terminal": lambda p: p.add("op", Open("door", HUSH)),
    "a payload of another type": lambda p: p.executor.signal("op", "opening", {"pin": [HUSH]}),
    "a payload too large": lambda p: p.executor.signal("op", opening, Pin(HUSH * 50_000)),
    "waited in vain": lambda p: p.executor.await_active_state(StateMachine("op", LOCKED), timeout=0.01),
    "waited in vain by a client": lambda p: Client(p.settings.url, p.namespace).await_active_state(
        {"operation_id": "op", "module": "vault", "type": "Locked", "state": {"name": "door", "key": HUSH}}, 0.01
    ),
    "asked in vain by a client": lambda p: Client(p.settings.url, p.namespace).signal(
        "op", "opening", {"pin": HUSH}, timeout=0.01
    ),
}


def add_json(local: Local, state: Any) -> None:
    """As ``smqueue.add`` does."""
    machine = {"operation_id": "op", "module": "vault", "type": "Locked", "state": state}
    local.app.tasks["smqueue.add"]([machine])


@pytest.mark.parametrize("case", REFUSED)
def test_errors_show_no_secret(play: Play, case: str, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever is refused with a secret in hand, neither the error, its attributes and its repr nor the log show it."""
    caplog.set_level(logging.DEBUG)
    local = play(vault=vault.vault)
    with pytest.raises(SmqueueError) as caught:
        REFUSED[case](local)
    assert HUSH not in str(caught.value) + repr(caught.value) + repr(vars(caught.value)) + caplog.text


outcomes = Module("outcomes")


@outcomes.state
class Asking(State):
    key: Annotated[str, Secret]


@outcomes.state(terminal=True)
class Told(State):
    said: str


def wrong(state: Asking, context: Any) -> Any:
    return Pin(cast("Any", [state.key]))


def refuses(state: Asking, context: Any) -> str:
    raise KeyError(state.key)


@outcomes.on(Asking, poll(wrong, every=timedelta(milliseconds=1)))
def asked(tx: Transaction, state: Asking, got: Pin) -> Told:
    return Told("")


@outcomes.on(Asking, call(refuses))
def called(tx: Transaction, state: Asking, got: str | Failed) -> Told:
    return Told(got.error if isinstance(got, Failed) else got)


def test_what_triggers_bring_is_not_shown(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    """An outcome that does not fit, and an error of a trigger's code with a secret in its text, are logged, explained
    and given to the handler without the secret."""
    caplog.set_level(logging.DEBUG)
    local = play(outcomes=outcomes)
    local.add("op", Asking(HUSH))
    local.until(lambda: all(trigger.attempts for trigger in local.explained("op").triggers))
    errors = {trigger.kind: trigger.last_error for trigger in local.explained("op").triggers}
    assert errors["call"] == "KeyError: '***'"
    assert errors["poll"].startswith("InvalidOutcome: ")
    local.until(lambda: local.inactive("op") != [] or bump(local), timeout_s=60)
    assert HUSH not in caplog.text + repr(local.executor.explain("op"))


def bump(local: Local) -> None:
    """What waits for a retry is due."""
    for entry in local.redis.zrange(local.keys().schedule, 0, -1):
        local.redis.zadd(local.keys().schedule, {entry: 1}, xx=True)


def test_garbage_is_described_without_its_content(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    """A record whose parts are gone or garbage, and a request that cannot be read, are reported without what stands in
    them."""
    local = play(vault=vault.vault)
    keys = local.keys()
    for op in ("a", "b", "c"):
        local.add(op, LOCKED)
        local.executor.signal(op, opening, Pin(f"{HUSH} pin"))
    local.redis.delete(keys.active("a"))
    local.redis.set(keys.machine(local.placed("b", LOCKED).record), f'["{HUSH}')
    race = keys.race(local.placed("c", LOCKED).record)
    local.redis.delete(race)
    local.redis.set(race, HUSH)
    local.redis.rpush(keys.requests, f'{{"{HUSH}": ')
    local.redis.zadd(keys.schedule, {"~requests": 0})
    local.expire_leases()
    local.run()
    assert "a record is set aside" in caplog.text
    assert "cannot be read is dropped" in caplog.text
    assert HUSH not in caplog.text + str(local.redis.hvals(keys.quarantine))


def test_commands_show_no_secret(
    play: Play, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """``list``, ``show`` and ``why``, as text and as JSON, show ``***`` for the secrets of active and past states, and
    nothing of payloads."""
    local = play(vault=vault.vault)
    local.executor.signal("op", opening, Pin(f"{HUSH} early"))
    local.add("op", vault.Failing("f", f"{HUSH} key"))
    local.until(lambda: local.explained("op").status == "quarantined")
    local.add("past", LOCKED)
    local.executor.signal("past", opening, Pin(f"{HUSH} pin"))
    local.settle("past")
    given = ["--url", local.settings.url, "--namespace", local.namespace, "--modules", "tests.apps.vault:vault"]
    for command in (["list"], ["show", "op"], ["show", "past"], ["why", "op"], ["why", "past"]):
        for more in ([], ["--json"]):
            assert run([*command, *more, *given]) == 0
    out, err = capfd.readouterr()
    assert '"key": "***"' in out
    assert "no door has the key" in out
    assert HUSH not in out + err


# --- passwords -------------------------------------------------------------------------------------------------------

URLS = {
    "redis://user:hush@127.0.0.1:1/0": "redis://user:***@127.0.0.1:1/0",
    "redis://:hush@127.0.0.1:1/0": "redis://:***@127.0.0.1:1/0",
    "rediss://127.0.0.1:1/0?username=user&password=hush": "rediss://127.0.0.1:1/0?username=user&password=***",
    "redis://user:hu#hush@127.0.0.1:1/0": "redis://user:***@127.0.0.1:1/0",
    "redis://user:hush?hush@127.0.0.1:1/0": "redis://user:***@127.0.0.1:1/0",
    "redis://user:hush/hush@127.0.0.1:1/0": "redis://user:***@127.0.0.1:1/0",
    "redis://user:hush:hush@127.0.0.1:1/0": "redis://user:***@127.0.0.1:1/0",
    "rediss://user:hush@[::1/0": "rediss://user:***@[::1/0",
    "unix://user:hush@/nowhere.sock?db=0": "unix://user:***@/nowhere.sock?db=0",
    "nonsense://user:hush@host": "nonsense://user:***@host",
}


@pytest.mark.parametrize("url", URLS)
def test_passwords_of_urls_are_hidden(
    url: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """However a password stands in a URL, unencoded too, a command that cannot connect says so in one line that does
    not hold it, nor a part of it."""
    caplog.set_level(logging.DEBUG)
    assert shown(url) == URLS[url]
    for command in (["list"], ["signal", "op", "name"], ["show", "op"]):
        assert run([*command, "--url", url]) == Exit.UNAVAILABLE
    out, err = capfd.readouterr()
    assert len(err.strip().splitlines()) == 3
    assert HUSH not in out + err + caplog.text
    assert "hu#" not in err


@contextmanager
def events_of(app: Celery) -> Generator[list[dict[str, Any]]]:
    """All events of workers while a block runs."""
    found: list[dict[str, Any]] = []
    ready, over = threading.Event(), threading.Event()

    def listen() -> None:
        with app.connection() as connection:
            receiver = app.events.Receiver(connection, handlers={"*": found.append})
            with receiver.consumer_context() as (listening, _, _):
                ready.set()
                while not over.is_set():
                    with suppress(TimeoutError):
                        listening.drain_events(timeout=0.2)

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    assert ready.wait(20)
    try:
        yield found
    finally:
        over.set()
        thread.join(20)


@pytest.fixture
def locked_server() -> Iterator[EmbeddedServer]:
    with EmbeddedServer(password=PASSWORD) as server:
        yield server


def test_workers_show_no_secret(locked_server: EmbeddedServer, tmp_path: Path) -> None:
    """A worker's banner and log hold neither the password of its server and broker nor a secret that a producer has
    sent it with ``smqueue.add`` and ``smqueue.signal``; nor do Celery's events, from which Flower takes what it shows,
    of these, of a task that was made from a secret state, and of its end."""
    env = environment(locked_server.url, locked_server.broker_url, "shown", tmp_path)
    assert PASSWORD in env["TEST_STATE_URL"]
    assert PASSWORD in env["TEST_BROKER_URL"]
    app = Celery("outsider", broker=locked_server.broker_url, set_as_current=False)
    app.conf.update(settings(locked_server.url, "shown", locked_server.broker_url))
    app.conf.update(task_default_queue="shown")
    key = f"{HUSH} key"
    machine = {"operation_id": "op", "module": "vault", "type": "Locked", "state": {"name": "door", "key": key}}
    tasking = {"operation_id": "task", "module": "vault", "type": "Tasking", "state": {"name": "t", "key": key}}
    worker = Worker("tests.apps.vault", env, ["-c", "1", "-E"])
    with running(worker), events_of(app) as events:
        worker.wait_ready()
        app.send_task("smqueue.add", kwargs={"machines": [machine, tasking]})
        app.send_task("smqueue.signal", args=["op", "opening", {"pin": f"{HUSH} pin", "who": "ann"}])
        app.send_task("smqueue.add", args=[[{**machine, "state": {"name": "door", "key": {HUSH: HUSH}}}]])

        def done() -> bool:
            kinds = [event["type"] for event in list(events)]
            return (
                kinds.count("task-received") >= 5 and kinds.count("task-failed") >= 1 and "smqueue.ended" in str(events)
            )

        wait_until(done, "all of it has happened", 60)
        said = worker.output
    assert "InvalidState" in said
    assert "Connected to " in said
    received = {event["name"]: event for event in events if event["type"] == "task-received"}
    assert {received[name]["args"] for name in ("smqueue.add", "smqueue.signal", "smqueue.ended")} == {"***"}
    assert received["vault.Tasking/reversed_"]["kwargs"] == str(
        {"task": "vault.reverse", "args": "***", "kwargs": "***"}
    )
    ours = json.dumps([event for event in events if "yek" not in event.get("result", "")])  # its own result
    for secret in (HUSH, "hsuh"):
        assert secret not in ours
    assert HUSH not in said

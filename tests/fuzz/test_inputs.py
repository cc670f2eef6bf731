"""Whatever is given to commands and tasks, or stands in Redis in place of ours: a typed error or a line, no more."""

from __future__ import annotations

import json
import logging
import os
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from smqueue import Module, SmqueueError, State, Transaction, after
from smqueue.cli import Exit, run
from smqueue.drivers.connect import shown
from tests.fuzz.hints import json_values, text
from tests.inprocess import Local, Play

some = examples(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
doors = Module("doors")
knock = doors.signal("knock", str)


@doors.state
class Closed(State):
    n: int


@doors.state(terminal=True)
class Opened(State):
    who: str


@doors.on(Closed, knock)
def knocked(tx: Transaction, state: Closed, got: str) -> Opened:
    return Opened(got)


@doors.on(Closed, after(minutes=1))
def expired(tx: Transaction, state: Closed, _: None) -> Opened:
    return Opened("")


names = st.sampled_from(["doors", "Closed", "Opened", "knock", "op", "", "n"]) | text
fields = st.sampled_from(["operation_id", "module", "type", "state", "more"])
machines = st.dictionaries(fields, json_values | names | st.just({"n": 1}), max_size=5)


@given(st.lists(machines | json_values, max_size=3) | json_values, json_values)
@some
def test_any_json_to_the_task_add(play_once: Local, given_machines: Any, exist_ok: Any) -> None:
    """Any JSON as arguments of ``smqueue.add`` either adds machines or is a SmqueueError that prints in one line."""
    refuses(lambda: play_once.app.tasks["smqueue.add"](given_machines, bool(exist_ok)))


@given(json_values | names, json_values | names, json_values, json_values | names, json_values | names)
@some
def test_any_json_to_the_task_signal(play_once: Local, op: Any, name: Any, payload: Any, id: Any, module: Any) -> None:
    """Any JSON as arguments of ``smqueue.signal`` either sends it or is a SmqueueError that prints in one line."""
    refuses(lambda: play_once.app.tasks["smqueue.signal"](op, name, payload, id=id, module=module))


def refuses(call: Any) -> None:
    """Call; whatever is raised is ours."""
    try:
        call()
    except SmqueueError as error:
        found = error
    else:
        return
    assert str(found).encode()


arguments = st.lists(
    st.sampled_from(
        [
            "list", "show", "why", "signal", "add", "cancel", "pause", "resume", "retry", "graph", "stats", "--json",
            "--limit", "--module", "--state", "--operation", "--id", "--timeout", "0.01", "-1", "--help",
            "op", "doors", "Closed", '{"n": 1}', "{", "null", "--", "-A", "--exist-ok",
        ]
    )
    | text.filter(lambda one: "\0" not in one),
    max_size=6,
)  # fmt: skip


@given(arguments)
@some
def test_any_command_line(play_once: Local, capfd: pytest.CaptureFixture[str], given_arguments: list[str]) -> None:
    """Any command line exits with a status of the table; when not 0 it says why in one line, without a traceback."""
    url = ["--url", play_once.settings.url, "--namespace", play_once.namespace]
    command, *rest = given_arguments or [""]
    code = run([command, *([] if command in {"graph", "demo", "dev", "worker"} else url), *rest])
    err = capfd.readouterr().err
    assert code in set(Exit) - {Exit.INTERRUPTED}
    assert "Traceback" not in err
    assert code == 0 or len(err.splitlines()) <= 1


@given(st.text(max_size=30) | st.builds("{}://{}@{}".format, text, text, text))
@some
def test_any_url_can_be_shown(url: str) -> None:
    """Whatever stands in the place of a URL, it is shown without an error, and without its password."""
    assert "sesame" not in shown(url.replace("@", ":sesame@", 1)) or "@" not in url


garbage = st.binary(max_size=30) | json_values.map(lambda one: json.dumps(one).encode()) | st.just(b"{" * 3_000)


@given(
    st.sampled_from(["field", "active", "machine", "race", "requests", "inbox", "schedule", "control", "inactive"]),
    garbage,
)
@examples(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
def test_garbage_in_redis(play_once: Local, caplog: pytest.LogCaptureFixture, where: str, raw: bytes) -> None:
    """Garbage in the place of any part of a record, of a request, a signal or an entry stops nothing else: workers,
    listings, explanations and cancelling go on, and others' machines move."""
    caplog.set_level(logging.CRITICAL)
    local, op = play_once, f"op{os.urandom(6).hex()}"
    keys = local.keys(op)
    local.add(op, Closed(1))
    record = local.placed(op, Closed(1)).record
    put(local, where, keys, op, record, raw)
    local.add(f"{op}-other", Closed(2))
    local.executor.signal(f"{op}-other", knock, "ann")
    local.run()
    assert not local.executor.has_active_states(f"{op}-other")
    list(local.executor.get_active_states(op))
    list(local.executor.get_inactive_states(op))
    refuses(lambda: local.executor.explain(op))
    refuses(lambda: local.executor.signal(op, knock, "bob"))
    refuses(lambda: local.executor.retry(op))
    refuses(lambda: local.executor.cancel(op))
    local.run()


def put(local: Local, where: str, keys: Any, op: str, record: str, raw: bytes) -> None:
    """Put garbage into Redis."""
    client = local.redis
    entry = local.stored(op, Closed(1)).entry
    match where:
        case "field":
            client.hset(keys.active(op), raw, b"[]")
        case "active" | "inactive":
            client.hset(getattr(keys, where)(op), local.placed(op, Closed(1)).field, raw)
        case "machine":
            client.set(keys.machine(record), raw)
        case "race":
            client.hset(keys.race(record), mapping={"won": "knocked", "value": raw, "at": 1})
        case "requests":
            client.rpush(keys.requests, raw)
            client.zadd(keys.schedule, {"~requests": 0})
        case "inbox":
            client.rpush(keys.inbox(op, "doors", "knock"), raw)
        case "schedule":
            client.zadd(keys.schedule, {raw: 0})
        case _:
            client.set(keys.control(op), raw)
    client.zadd(keys.schedule, {entry: 0})


@pytest.fixture
def play_once(play: Play) -> Local:
    """One process for all examples of a test."""
    return play(doors=doors)

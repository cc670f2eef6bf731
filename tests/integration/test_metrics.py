"""Metrics of real workers: exact where they count transitions, and with a name for each cause of trouble."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from smqueue import Executor, ExecutorBuilder, Module, Retry, State, StateMachine, Transaction, now
from smqueue.audit import audit
from smqueue.cli import Exit, run
from smqueue.embedded import EmbeddedServer
from smqueue.keys import Keys
from smqueue.metrics import alerts, dashboard, register, registry
from smqueue.metrics.collector import MachineCollector
from smqueue.metrics.names import METRICS
from smqueue.presence import Noted, note
from smqueue.records import Machine
from tests.apps import metered
from tests.apps.metered import meters
from tests.apps.wiring import environment
from tests.inprocess import Play
from tests.waiting import wait_until
from tests.workers import ROOT, Worker, running

Labels = Mapping[str, str]


class Scrape:
    """What one scrape says; its text has to be well-formed.

    Args:
        text: In Prometheus' format.
    """

    def __init__(self, text: str) -> None:
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self.samples = [sample for family in self.families.values() for sample in family.samples]

    def all(self, name: str, **labels: str) -> list[tuple[Labels, float]]:
        """The samples of a name that have these labels."""
        found = [one for one in self.samples if one.name == name and labels.items() <= one.labels.items()]
        return [(one.labels, one.value) for one in found]

    def __call__(self, name: str, **labels: str) -> float:
        """The sum of the samples of a name that have these labels; 0 when there is none."""
        return sum(value for _, value in self.all(name, **labels))


class Metered:
    """A namespace in which tests/apps/metered.py may be at work.

    Args:
        server: Where.
        namespace: And name of the queue.
    """

    def __init__(self, server: EmbeddedServer, namespace: str) -> None:
        self.env = environment(server.url, server.broker_url, namespace)
        self.url, self.namespace = server.url, namespace
        app = Celery(f"producer-{namespace}", broker=server.broker_url, set_as_current=False)
        app.conf.update(task_default_queue=namespace, task_ignore_result=True)
        self.executor: Executor = ExecutorBuilder().with_module("meters", meters).build(
            app, url=server.url, namespace=namespace
        )  # fmt: skip
        self.redis: Any = redis.Redis.from_url(server.url, socket_timeout=10)
        self.scraped = registry(self.executor)

    @property
    def keys(self) -> Keys:
        """The keys of the only shard."""
        return self.executor.deployment.keys("any")

    def worker(self, *options: str) -> Worker:
        """A worker; start-up is waited for by ``wait_ready``."""
        return Worker("tests.apps.metered", self.env, options)

    def add(self, op: str, *states: State) -> None:
        """Start machines."""
        self.executor.add_state_machines([StateMachine(op, state) for state in states])

    def scrape(self) -> Scrape:
        """What is there now."""
        return Scrape(generate_latest(self.scraped).decode())

    def until(self, predicate: Callable[[Scrape], object], description: str) -> Scrape:
        """Scrape until what is found pleases."""

        def scraped() -> Scrape | None:
            found = self.scrape()
            return found if predicate(found) else None

        found = wait_until(scraped, description, 60)
        assert found is not None
        return found

    def record(self, op: str, state: State) -> str:
        """The id of a record."""
        return self.executor.instances.place(StateMachine(op, state)).record


@pytest.fixture
def world(server: EmbeddedServer, namespace: str) -> Metered:
    return Metered(server, namespace)


# --- real workers ----------------------------------------------------------------------------------------------------


def test_totals_are_those_of_the_histories_after_a_kill(world: Metered) -> None:
    """Every transition is counted once, by states and trigger, though a worker is killed in the midst of them: the
    totals are those of the histories; and as many machines are active as there are."""
    ops = [f"op-{n}" for n in range(20)]
    for op in ops:
        world.add(op, metered.Counting(15))
    world.add("waits", metered.Racing(1))
    counted = world.keys.data("meters", "counted")
    with running(victim := world.worker("-c", "2")):
        wait_until(lambda: int(world.redis.get(counted) or 0) > 60, "some have moved", 60)
        victim.kill()
    assert world.executor.has_active_states(ops[-1]) or world.redis.zcard(world.keys.operations) > 1
    with running(world.worker("-c", "2")):
        for op in ops:
            world.executor.await_operation(op, 60)
    expected: Counter[tuple[str, str, str]] = Counter({("", "Racing", "+add"): 1})
    for op in ops:
        with world.executor.notifier.subscribe(op, timeout=0) as updates:
            names = [type(update.state).__name__ for update in updates]
        expected.update(
            (before, after, "counted" if before else "+add") for before, after in zip(["", *names], names, strict=False)
        )
    found = world.scrape()
    totals = found.all("smqueue_transitions_total", namespace=world.namespace, module="meters")
    assert {(one["from"], one["to"], one["trigger"]): value for one, value in totals} == expected
    assert expected["Counting", "Counting", "counted"] == 20 * 15 == int(world.redis.get(counted)) - 20
    active = {one["state"]: value for one, value in found.all("smqueue_active_machines")}
    assert active == {"Counting": 0, "Over": 0, "Racing": 1}


@pytest.fixture(scope="module")
def busy(smqueue_server: EmbeddedServer) -> Iterator[Metered]:
    """A worker that has had everything to do, and is still there."""
    world = Metered(smqueue_server, f"busy-metrics-{os.getpid()}")
    with running(worker := world.worker("-c", "2")):
        worker.wait_ready()
        world.add("races", *[metered.Racing(n) for n in range(3)])
        for _ in range(3):
            world.executor.signal("races", metered.go)
        world.add("late", metered.Racing(9, timedelta(milliseconds=1)))
        world.add("asks", metered.Asking(1))
        world.add("raises", metered.Raising(1))
        world.add("disturbed", metered.Disturbed(1))
        world.add("unreadable", metered.Racing(1))
        world.redis.set(world.keys.machine(world.record("unreadable", metered.Racing(1))), b"garbage")
        entry = next(m for m in world.redis.zrange(world.keys.schedule, 0, -1) if m.startswith(
            world.record("unreadable", metered.Racing(1)).encode()))  # fmt: skip
        world.redis.zadd(world.keys.schedule, {entry: 0})
        for op in ("races", "late", "disturbed"):
            world.executor.await_operation(op, 60)
        yield world
    for key in world.redis.scan_iter(match=f"{world.keys.prefix}*", count=1000):
        world.redis.delete(key)


def test_what_real_workers_do_is_measured(busy: Metered) -> None:
    """Runs of handlers, races, deadlines, commits, drains and conflicts of a real worker are counted and timed, within
    some seconds; and what nobody has done is not."""
    found = busy.until(
        lambda s: s("smqueue_conflicts_total") and s("smqueue_commits_total", outcome="moved") == 5, "told"
    )
    at = {"module": "meters", "state": "Racing", "namespace": busy.namespace}
    assert found("smqueue_handler_seconds_count", trigger="went", **at) >= 3  # again, when one was in its way
    assert found("smqueue_handler_seconds_count", trigger="tired", **at) >= 1
    assert 0 < found("smqueue_handler_seconds_sum", trigger="went", **at) < 60
    assert found("smqueue_handler_seconds_count", state="Disturbed") >= 3  # reads, runs on it, and after the conflict
    assert found("smqueue_race_margin_seconds_count", trigger="went", **at) == 3
    margin_s = found("smqueue_race_margin_seconds_sum", trigger="went", **at) / 3
    assert 3_500 < margin_s <= 3_600
    assert found("smqueue_timer_lateness_seconds_count") == 1
    assert found("smqueue_outcome_seconds_count", module="meters") == 4
    assert found("smqueue_commit_seconds_count", module="meters") == 5
    assert found("smqueue_drain_machines_sum") >= 5
    assert found("smqueue_drain_machines_count") > 0
    assert not found("smqueue_unsent_tasks")


def test_what_fails_is_named(busy: Metered) -> None:
    """Attempts of a failing poll are counted by state, trigger and type of error; a handler that raises, and a record
    that cannot be read, end in quarantine, with the types of theirs."""
    found = busy.until(lambda s: s("smqueue_trigger_failures_total", state="Asking") >= 3, "three failures are told")
    ((labels, _),) = found.all("smqueue_trigger_failures_total")
    assert labels["error"] == "ConnectionRefusedError"
    assert (labels["module"], labels["trigger"]) == ("meters", "answered")
    assert found("smqueue_trigger_seconds_count", trigger="answered") >= 3
    assert found("smqueue_waiting_seconds", state="Asking", trigger="answered", kind="poll") > 0
    found = busy.until(lambda s: s("smqueue_quarantined_machines") == 2, "both are set aside")
    assert found("smqueue_quarantined_sample", error="LookupError") == 1
    assert found("smqueue_quarantined_sample", error="UndecodableRecord") == 1
    assert found("smqueue_problem", kind="quarantined") == 1
    assert busy.until(lambda s: s("smqueue_handler_failures_total", trigger="raised", error="LookupError"), "told")
    assert busy.until(lambda s: s("smqueue_damaged_machines", kind="unreadable-machine") == 1, "found by the patrol")


def test_every_metric_is_one_of_the_table(busy: Metered) -> None:
    """What is scraped are metrics of the table, with its types, texts and labels; and all of the table but those of a
    limit that there is not, and of signals that nobody waits for, are scraped of a busy worker."""
    found = busy.until(lambda s: s("smqueue_conflicts_total") and s("smqueue_handler_failures_total"), "all is told")
    table = {metric.name.removesuffix("_total"): metric for metric in METRICS}
    assert table.keys() - found.families.keys() == {"smqueue_store_memory_limit_bytes", "smqueue_early_signals"}
    for name, family in found.families.items():
        assert family.type == table[name].type, name
        assert family.documentation == table[name].text, name
        for sample in family.samples:
            assert sample.labels.keys() - {"le"} == {"namespace", *table[name].labels}, sample


def test_who_ends_in_order_tells_all(world: Metered) -> None:
    """A worker that is stopped in order adds what its processes have counted until then, though it was started just
    now."""
    with running(worker := world.worker("-c", "1")):
        worker.wait_ready()
        world.add("op", metered.Counting(20))
        world.executor.await_operation("op", 60)
        os.kill(worker.process.pid, signal.SIGTERM)
        worker.process.wait(30)
    found = world.scrape()
    assert found("smqueue_commits_total", outcome="moved") == 21
    assert found("smqueue_handler_seconds_count", trigger="counted") == 21
    assert found("smqueue_drain_machines_sum") >= 21


# --- each cause ------------------------------------------------------------------------------------------------------


def noted(world: Metered, name: str, queues: tuple[str, ...], triggers: str, modules: dict[str, int]) -> None:
    """As if a worker had noted itself just now."""
    note(world.executor.deployment.driver, world.keys, Noted(name, queues, "celery", triggers, modules))


def test_causes_of_trouble_are_named(world: Metered) -> None:
    """No worker, no worker for a queue or a module, work that is due and not taken, tasks that cannot be sent, and what
    is left to be done: each is told by a metric of its own, and is 0 or missing without it."""
    kinds = ("no_worker", "queue_without_worker", "module_without_worker", "behind", "unsent", "quarantined", "store")
    world.add("op", metered.Racing(1))
    assert [kind for kind in kinds if world.scrape()("smqueue_problem", kind=kind)] == ["no_worker"]
    noted(world, "w1", ("celery",), "polls", {"other": 1})
    found = world.until(lambda s: not s("smqueue_problem", kind="no_worker"), "a worker is seen")
    assert found("smqueue_workers") == 1
    assert found.all("smqueue_problem", kind="queue_without_worker")[0][0]["subject"] == "polls"
    assert found.all("smqueue_problem", kind="module_without_worker")[0][0]["subject"] == "meters"
    noted(world, "w2", ("celery", "polls"), "polls", {"meters": 1})
    now_ms = int(world.redis.time()[0]) * 1000
    world.redis.zadd(world.keys.schedule, {"some:entry": now_ms - 60_000})
    world.redis.rpush(world.keys.unsent, "{}")
    world.redis.rpush(world.keys.requests, *["{}"] * 7)
    found = world.until(lambda s: s("smqueue_workers") == 2, "the second is seen")
    assert [kind for kind in kinds if found("smqueue_problem", kind=kind)] == ["behind", "unsent"]
    assert found("smqueue_schedule_lag_seconds") >= 60
    assert found("smqueue_due_entries") == 1
    assert (found("smqueue_unsent_tasks"), found("smqueue_outbox_requests")) == (1, 7)


def test_what_waits_is_named(world: Metered) -> None:
    """A machine whose signal has not come is told by state and trigger, with how long; so are signals that went to an
    operation where nobody waits for them, and what is paused: modules and states by name, operations by number."""
    world.add("right", metered.Racing(1))
    world.executor.signal("wrong", metered.go)
    world.executor.pause(module="meters", reason="a test")
    world.executor.pause(module="meters", state=metered.Asking)
    for op in ("right", "wrong"):
        world.executor.pause(op)
    found = world.scrape()
    assert found("smqueue_waiting_seconds", module="meters", state="Racing", trigger="went", kind="signal") > 0
    assert found("smqueue_waiting_seconds", state="Racing", trigger="tired", kind="deadline") > 0
    assert found("smqueue_oldest_seconds", module="meters", state="Racing") > 0
    assert found("smqueue_early_signals", module="meters", signal="go") == 1
    paused = {(one["scope"], one["name"]): value for one, value in found.all("smqueue_paused")}
    assert paused == {("module", "meters"): 1, ("state", "meters.Asking"): 1, ("operation", ""): 2}


def test_a_machine_without_an_entry_is_found_and_mended(world: Metered) -> None:
    """An entry that was deleted by hand is found by the patrol among others that are well, in one round; once it is
    mended it is told no longer."""
    world.add("op", *[metered.Racing(n) for n in range(300)])
    world.add("other", metered.Racing(1))
    raw = world.redis.get(world.keys.machine(world.record("op", metered.Racing(77))))
    assert world.redis.zrem(world.keys.schedule, Machine.parse(raw).entry) == 1
    found = world.until(lambda s: s("smqueue_patrol_rounds_total") >= 1, "a round is over")
    assert found("smqueue_damaged_machines", kind="not-scheduled") == 1 == found("smqueue_damaged_machines")
    assert found("smqueue_patrol_machines_total") >= 301
    assert audit(world.executor.deployment, repair=True).repaired
    world.until(lambda s: not s("smqueue_damaged_machines"), "it is mended")


def test_a_store_that_is_full_or_away_is_named(tmp_path: Path) -> None:
    """A server without room for writes is told as such, with its memory and its limit; of one that is away it is told
    that it is, and nothing else, and scraping fails no more than that."""
    with EmbeddedServer(tmp_path / "server") as server:
        world = Metered(server, "full")
        world.add("op", metered.Racing(1))
        limit = int(world.redis.info("memory")["used_memory"])
        world.redis.config_set("maxmemory", limit)
        found = world.until(lambda s: s("smqueue_problem", kind="store"), "the store is full")
        assert found("smqueue_store_memory_limit_bytes", shard="0") == limit
        assert found("smqueue_store_memory_bytes", shard="0") > 0
        assert found("smqueue_store_up") == 1
        world.redis.close()
    found = world.until(lambda s: not s("smqueue_store_up"), "the store is away")
    assert [sample.name for sample in found.samples] == ["smqueue_store_up"]


# --- serving ---------------------------------------------------------------------------------------------------------


def test_the_command_serves_prints_and_ends(world: Metered, capsys: pytest.CaptureFixture[str]) -> None:
    """``smqueue metrics`` serves a namespace on loopback without its modules until it is told to end, ``--once`` prints
    the same, and ``--alerts`` and ``--dashboard`` what the package has; a port that is taken is said in a line."""
    world.add("op", metered.Racing(1))
    command = [sys.executable, "-m", "smqueue", "metrics", "--port", "0", "--url", world.url]
    process = subprocess.Popen(
        [*command, "--namespace", world.namespace], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        url = re.search(r"http://127\.0\.0\.1:(\d+)/metrics", said)
        assert url is not None, said
        with urllib.request.urlopen(url[0], timeout=30) as answer:
            served = Scrape(answer.read().decode())
        assert served("smqueue_active_machines", state="Racing", namespace=world.namespace) == 1
        options = ["--url", world.url, "--namespace", world.namespace]
        assert run(["metrics", "--port", url[1], *options]) == Exit.FAILED
        assert re.fullmatch(r"smqueue: cannot listen on .*--port.*\n", capsys.readouterr().err)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()
    assert run(["metrics", "--once", *options]) == Exit.OK
    assert Scrape(capsys.readouterr().out).families.keys() == served.families.keys()
    for option, text in (("--alerts", alerts()), ("--dashboard", dashboard())):
        assert run(["metrics", option]) == Exit.OK
        assert capsys.readouterr().out == text
    assert run(["metrics", "--once", "--alerts", *options]) == Exit.USAGE


def test_without_the_extra_it_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without ``prometheus_client`` the command says what to install."""
    monkeypatch.setattr("smqueue.cli.metrics.find_spec", lambda _name: None)
    assert run(["metrics", "--alerts"]) == Exit.FAILED
    assert "pip install 'smqueue[metrics]'" in capsys.readouterr().err


def test_one_registry_tells_of_several_namespaces(server: EmbeddedServer, world: Metered) -> None:
    """Several executors may be registered, and each any number of times; their samples differ by namespace."""
    worlds = [world, Metered(server, f"second-{os.urandom(4).hex()}")]
    shared = CollectorRegistry()
    for one in worlds:
        for _ in range(2):
            register(one.executor, shared)
        one.add("op", metered.Racing(1))

    def both() -> set[str]:
        found = Scrape(generate_latest(shared).decode()).all("smqueue_active_machines", state="Racing")
        return {labels["namespace"] for labels, value in found if value == 1}

    wait_until(lambda: both() == {one.namespace for one in worlds}, "both are told")
    worlds[1].redis.delete(*worlds[1].redis.keys(f"{worlds[1].keys.prefix}*"))


def test_an_event_loop_is_not_kept_waiting(world: Metered, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may not wait gets what was found out the last time while a scrape takes long, and the new one once it is
    there; those who ask meanwhile start no second one."""
    collector = MachineCollector(world.executor, wait_s=0.01)
    going, looks, overview = threading.Event(), Counter[str](), world.executor.overview

    def slow() -> Any:
        looks["begun"] += 1
        going.wait(60)
        return overview()

    monkeypatch.setattr(world.executor, "overview", slow)
    for _ in range(5):
        assert not list(collector.collect())
    going.set()
    wait_until(lambda: list(collector.collect()), "it is found out")
    assert looks["begun"] <= 2


# --- logs ------------------------------------------------------------------------------------------------------------

talkative = Module("talkative", retry=Retry(max_attempts=1, base=timedelta(milliseconds=1)))


@talkative.state
class Trying(State):
    n: int


@talkative.state(terminal=True)
class Tried(State):
    n: int


@talkative.on(Trying, now())
def failing(tx: Transaction, state: Trying, _: None) -> Tried:
    raise ValueError("on purpose")


def test_log_records_say_which_machine(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    """What is logged of a machine carries its operation, id, module, state and trigger as attributes, for any formatter
    to show; what is about none of them has none."""
    local = play(talkative=talkative)
    with caplog.at_level(logging.INFO):
        (machine,) = local.add("op/1", Trying(1))
        local.until(lambda: local.explained("op/1").status == "quarantined", "set aside")
    told = [record.__dict__ for record in caplog.records if record.name == "smqueue.drain"]
    assert {record["levelname"] for record in told} == {"WARNING", "ERROR"}
    for record in told:
        assert {name: value for name, value in record.items() if name.startswith("smqueue_")} == {
            "smqueue_operation_id": "op/1", "smqueue_machine_id": machine, "smqueue_module": "talkative",
            "smqueue_state": "Trying", "smqueue_trigger": "failing",
        }  # fmt: skip

"""Each example, and the machines of the demo, on a real server and a real worker process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from examples.lightning import receive, refund, send, signatures, spend
from examples.lightning.app import KNOWN_PREIMAGE, SPENT_NOTE, UNFUNDED, federation, gateway
from examples.lightning.peers import payment_hash
from smqueue import Executor, ExecutorBuilder, StateMachine
from smqueue.demo import machines
from smqueue.demo.plan import expected, make_plan
from smqueue.demo.replay import event, machine_of, replay, signals_of, trace_of
from smqueue.demo.xes import read_log
from smqueue.embedded import EmbeddedServer
from tests.workers import ROOT, Worker, running

TIMEOUT_S = 60

LOG = """<log xmlns="http://www.xes-standard.org/">
  <trace>
    <string key="concept:name" value="Case: {1}%" />
    <event><string key="concept:name" value="open" /></event>
    <event><string key="concept:name" value="wait" /></event>
    <event><string key="concept:name" value="wait" /></event>
    <event><string key="concept:name" value="close" /></event>
  </trace>
  <trace><event><string key="concept:name" value="open" /></event></trace>
  <trace><string key="concept:name" value="without events" /></trace>
  <trace><event><string key="concept:name" value="wait" /></event><event /></trace>
</log>
"""


@pytest.fixture
def broker() -> Iterator[EmbeddedServer]:
    """A broker for one test: no other test's message can reach its worker."""
    with EmbeddedServer() as server:
        yield server


@pytest.fixture
def env(broker: EmbeddedServer, server: EmbeddedServer, namespace: str) -> dict[str, str]:
    """What the examples say must be set, and nothing else."""
    return {"CELERY_BROKER_URL": broker.broker_url, "SMQUEUE_URL": server.url, "SMQUEUE_NAMESPACE": namespace}


@pytest.fixture
def app(broker: EmbeddedServer) -> Celery:
    """The application of this process, a bare producer."""
    return Celery("producer", broker=broker.broker_url)


def ran(module: str, *arguments: object, env: dict[str, str]) -> str:
    """Run a command as its documentation says, and return what it printed."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    run = subprocess.run(command, cwd=ROOT, env=env_with(env), capture_output=True, text=True, timeout=TIMEOUT_S * 2)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def env_with(env: dict[str, str]) -> dict[str, str]:
    """The environment of this process, and ``env``."""
    return {**os.environ, **env}


def history(executor: Executor, operation_id: str) -> list[Any]:
    """The updates of an operation, once it has finished."""
    executor.await_operation(operation_id, TIMEOUT_S)
    with executor.notifier.subscribe(operation_id, timeout=0.05) as updates:
        return list(updates)


def finals(executor: Executor, operation_id: str) -> dict[str, Any]:
    """By module: the state that the one machine there ended in."""
    executor.await_operation(operation_id, TIMEOUT_S)
    ends = [
        (str(machine.module), machine.state)
        for machine, record in executor.get_inactive_states(operation_id)
        if record.terminal
    ]
    assert len(dict(ends)) == len(ends), ends
    return dict(ends)


def test_orders(env: dict[str, str], redis_client: Any, namespace: str) -> None:
    """The producer's orders are paid, shipped and delivered; labels are printed; the revenue is what was paid."""
    worker = Worker("examples.orders.app", env, ["--concurrency", "2"])
    with running(worker):
        lines = ran("examples.orders.produce", "--count", 5, env=env).splitlines()
        assert len(lines) == 5
        for line in lines:
            order = line.partition(":")[0]
            assert line.endswith(
                f"Delivered(order_id='{order}', receipt='receipt of {order}'), OnTheRoad(order_id='{order}'), "
                f"Packed(order_id='{order}'), Shipped(order_id='{order}')"
            )
        assert [redis_client.get(key) for key in redis_client.scan_iter(f"*{namespace}*:data:*")] == [b"5010"]


def test_helpdesk(env: dict[str, str], tmp_path: Path, redis_client: Any, namespace: str) -> None:
    """A log is replayed; the recorded path of each case is its trace, which the example compares by itself."""
    (log := tmp_path / "log.xes").write_text(LOG)
    worker = Worker("examples.helpdesk.app", env, ["--concurrency", "2"])
    with running(worker):
        assert ran("examples.helpdesk", log, env=env) == "3 cases, 7 events, 0 differ\n"
        assert ran("examples.helpdesk", log, "--limit", 1, "--prefix", "again ", env=env) == (
            "1 cases, 4 events, 0 differ\n"
        )
        (key,) = redis_client.scan_iter(f"*{namespace}*:data:*")
        assert redis_client.hgetall(key) == {b"open": b"3", b"wait": b"5", b"close": b"2", b"(unnamed)": b"1"}


def test_lightning(env: dict[str, str], app: Celery, server: EmbeddedServer, namespace: str) -> None:
    """Machines 2, 3, 4, 6 and 7 end as their peers' answers say, and start what they must in the same operation."""
    executor = (
        ExecutorBuilder()
        .with_module("mint", signatures.mint, context=federation)
        .with_module("refunds", refund.refunds, context=federation)
        .with_module("spends", spend.spends, context=federation)
        .with_module("sends", send.sends, context=gateway)
        .with_module("receives", receive.receives, context=federation)
        .build(app, url=server.url, namespace=namespace)
    )
    soon, late = (datetime.now(UTC) + timedelta(seconds=s) for s in (3, 600))
    known, ours, nobodys = (payment_hash(text) for text in (KNOWN_PREIMAGE, "ours", "nobody's"))
    ours_id = receive.receiving(ours)
    starts: dict[str, Any] = {
        "issue": signatures.Collecting("i1", ["note"], 3),
        "issue-spent": signatures.Collecting("i2", [SPENT_NOTE], 3),
        "submit": refund.Submitted("t1", ["a"], fee=1),
        "submit-cheap": refund.Submitted("t2", ["b"], fee=0),
        "submit-spent": refund.Submitted("t3", [SPENT_NOTE], fee=1),
        "hand-out-cancelled": spend.HandedOut("s1", ["c"], late),
        "hand-out-timed-out": spend.HandedOut("s2", ["d"], soon),
        "send": send.Funded("k1", known, 10, ["e"], late),
        "send-too-much": send.Funded("k2", known, 10_000_000, ["f"], late),
        "send-to-ours": send.Funded("k3", ours, 10, ["g"], late),
        "send-expired": send.Funded("k4", nobodys, 10, ["h"], soon),
        ours_id: receive.Offered("r1", "ours", 2, late),
        "receive-unfunded": receive.Offered(UNFUNDED, "never", 2, soon),
    }
    ends: dict[str, dict[str, Any]] = {
        "issue": {"mint": signatures.Issued("i1", 3)},
        "issue-spent": {"mint": signatures.Rejected("i2", "a note was spent before")},
        "submit": {"refunds": [refund.Accepted("t1")]},
        "submit-cheap": {"refunds": [refund.Refunded("t2"), refund.Rejected("t2", "the fee is too low")]},
        "submit-spent": {
            "refunds": [
                refund.RefundFailed("t3", "NotesSpent: a note was spent before"),
                refund.Rejected("t3", "a note was spent before"),
            ]
        },
        "hand-out-cancelled": {"spends": spend.TakenBack("s1", "the user"), "refunds": [refund.Refunded("s1")]},
        "hand-out-timed-out": {"spends": spend.TakenBack("s2", "the deadline"), "refunds": [refund.Refunded("s2")]},
        "send": {"sends": send.Paid("k1", KNOWN_PREIMAGE)},
        "send-too-much": {
            "sends": send.Refused("k2", "the amount is too large"),
            "refunds": [refund.Refunded("k2")],
        },
        "send-to-ours": {"sends": send.Paid("k3", "ours")},
        "send-expired": {
            "sends": send.Refused("k4", "the contract has expired"),
            "refunds": [refund.Refunded("k4")],
        },
        ours_id: {"receives": receive.Claimed("r1", "ours"), "mint": signatures.Issued("r1", 2)},
        "receive-unfunded": {"receives": receive.Expired(UNFUNDED, "nobody has paid")},
    }
    executor.add_state_machines([StateMachine(operation_id, state) for operation_id, state in starts.items()])
    with running(Worker("examples.lightning.app", env, ["--concurrency", "2"])):
        executor.signal("hand-out-cancelled", spend.cancel)
        for operation_id, wanted in ends.items():
            executor.await_operation(operation_id, TIMEOUT_S)
            found: dict[str, Any] = {}
            for machine, record in executor.get_inactive_states(operation_id):
                if record.terminal and machine.module == "refunds":
                    found["refunds"] = sorted([*found.get("refunds", []), machine.state], key=repr)
                elif record.terminal:
                    found[str(machine.module)] = machine.state
            assert found == wanted, executor.explain(operation_id)
        notes = executor.autocommit(lambda tx: tx.hgetall("notes"), module="mint")
        assert Counter(note.partition(":")[0] for note in notes) == {"i1": 3, "r1": 2}


def test_the_plan_of_the_demo(env: dict[str, str], app: Celery, server: EmbeddedServer, namespace: str) -> None:
    """Orders of every kind pass the states that the model demands, and the counters are its sums."""
    executor = (
        ExecutorBuilder()
        .with_module("orders", machines.orders)
        .with_module("parcels", machines.parcels)
        .with_module("refunds", machines.refunds)
        .build(app, url=server.url, namespace=namespace)
    )
    plan = make_plan(24, seed=1)

    def send_signals(*, early: bool) -> None:
        for order in plan:
            for one in order.signals:
                if one.early == early:
                    executor.signal(order.operation_id, one.name, one.payload, module=one.module, id=one.id)

    with running(Worker("tests.apps.demo", env, ["--concurrency", "2"])):
        send_signals(early=True)
        executor.add_state_machines([order.machine for order in plan])
        send_signals(early=False)
        for order in plan:
            wanted, path = expected(order), dict[str, tuple[str, ...]]()
            for update in history(executor, order.operation_id):
                path[update.module] = (*path.get(update.module, ()), type(update.state).__name__)
            assert path == wanted.paths, (order, executor.explain(order.operation_id))
            assert wanted.fits(finals(executor, order.operation_id)), order
        revenue = executor.autocommit(lambda tx: tx.get("revenue"), module="orders")
        refunded = executor.autocommit(lambda tx: tx.get("refunded"), module="refunds")
        assert int(revenue or 0) == sum(expected(order).revenue for order in plan)
        assert int(refunded or 0) == sum(expected(order).refunded for order in plan)


def test_a_log_is_replayed_from_early_signals(
    env: dict[str, str], app: Celery, server: EmbeddedServer, namespace: str, tmp_path: Path
) -> None:
    """Events sent before the case is added, and before any worker runs, are taken in order: the path is the trace."""
    executor = ExecutorBuilder().with_module("replay", replay).build(app, url=server.url, namespace=namespace)
    (log := tmp_path / "log.xes").write_text(LOG)
    cases = [case for case in read_log(log) if case.events]
    for case in cases:
        for happened in signals_of(case):
            executor.signal(case.name, event, happened, id=f"event-{happened.index}")
    executor.add_state_machines([machine_of(case) for case in cases])
    with running(Worker("tests.apps.demo", env, ["--concurrency", "2"])):
        for case in cases:
            states = [update.state for update in history(executor, case.name)]
            assert trace_of(states) == [happened.activity for happened in case.events]
            assert len(states) == len(case.events) + 1


def test_the_examples_say_what_is_missing(tmp_path: Path) -> None:
    """Without a deployment, and with a file that is no log, the commands exit 1 with one line on standard error."""
    (log := tmp_path / "log.xes").write_text(LOG)
    (text := tmp_path / "text.xes").write_text("hello")
    bare = {"SMQUEUE_URL": "", "CELERY_BROKER_URL": "memory://"}
    for arguments, says in (
        (["examples.orders.produce"], "SMQUEUE_URL"),
        (["examples.helpdesk", log], "SMQUEUE_URL"),
        (["examples.helpdesk", text], "is not an XES log"),
    ):
        command = [sys.executable, "-m", *map(str, arguments)]
        run = subprocess.run(command, cwd=ROOT, env=env_with(bare), capture_output=True, text=True, timeout=TIMEOUT_S)
        assert (run.returncode, run.stderr.count("\n")) == (1, 1), run.stderr
        assert says in run.stderr

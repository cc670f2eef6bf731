"""The chaos suite in short: real workers and servers under every kind of fault; and whether it would notice."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import redis

from smqueue.demo.plan import make_plan
from smqueue.demo.replay import Closed, Ticket
from smqueue.demo.xes import Case, Event
from smqueue.embedded import EmbeddedServer
from smqueue.following import Update
from smqueue.queries import MachineId
from tests.faults.chaos.load import Fed, case, order
from tests.faults.chaos.middle import Fate, Middle
from tests.faults.chaos.report import Report
from tests.faults.chaos.run import Plan, run
from tests.faults.chaos.schedule import schedule
from tests.faults.chaos.site import Fsync
from tests.faults.chaos.strikes import KINDS, POWER
from tests.faults.chaos.timeline import svg
from tests.faults.chaos.truth import judge
from tests.waiting import wait_until

WEIGHTS = {name: kind.weight for name, kind in KINDS.items()}
PATIENT_S = 60.0
"""The short form runs beside other tests on few cores: how soon progress resumes is measured by the long one."""


@pytest.mark.parametrize(("seed", "fsync", "seconds"), [(1, "always", 24.0), (2, "everysec", 12.0)])
def test_under_every_kind_of_fault_nothing_is_lost_or_done_twice(
    tmp_path: Path, seed: int, fsync: Fsync, seconds: float
) -> None:
    """Each operation ends as the model says, by exactly the commits that it says, and the audit is clean.

    Under ``everysec`` a killed server may lose a suffix, which is counted and fed again, and never a part of a commit;
    there the broker is the state's server, and suffers with it (semantics 3, 5, 15, 18).
    """
    kinds = () if fsync == "always" else (POWER, "server killed", "worker killed", "replies lost", "server read-only")
    plan = Plan(
        seconds, seed, fsync, every_s=1.1, workers=3, ahead=150, one_server=bool(kinds), kinds=kinds,
        resumed_limit_s=PATIENT_S, folder=tmp_path,
    )  # fmt: skip
    report = run(plan)
    assert not report.problems, report.as_text()
    assert report.operations == report.finished > 0
    assert (report.lost, report.doubled) == (0, 0)
    assert {one.kind for one in report.hit} >= (set(kinds) or {"worker killed", "server killed"})
    assert len(report.by_kind()) >= (len(kinds) or 8)


# --- would it notice? -------------------------------------------------------------------------------------------------


def fed_case() -> Fed:
    """A case with three events."""
    return case(Case("c", [Event(name, None) for name in ("Open", "Wait", "Close")]))


def told(fed: Fed) -> list[Update]:
    """The history of a case as it must be."""
    states = [
        Ticket("c", 3),
        Ticket("c", 3, 1, "Open"),
        Ticket("c", 3, 2, "Wait"),
        Closed("c", 3, "Close"),
    ]
    return [
        Update(
            "c", "replay", MachineId("m"), at + 1, at, state, at == 3, datetime.now(UTC), won="moved" if at else None
        )
        for at, state in enumerate(states)
    ]


def test_the_model_is_satisfied_by_what_must_be() -> None:
    """An operation that went as it must is not reported: what the other tests tamper with was right before."""
    fed = fed_case()
    assert judge(fed, Counter(fed.steps), told(fed), active=False).said == []


def test_a_commit_that_was_doubled_is_noticed() -> None:
    """One count too many is a doubled commit, and torn from the history: only a part of it was applied."""
    fed = fed_case()
    found = judge(fed, fed.steps + Counter({"replay.moved": 1}), told(fed), active=False)
    assert (found.doubled, found.lost, found.torn) == (1, 0, True)


def test_a_commit_that_was_lost_is_noticed() -> None:
    """One step too few, in counters and history alike, is a lost commit, and the path is another one."""
    fed = fed_case()
    short = [*told(fed)[:2], replace(told(fed)[3], step=3, sequence=2)]
    found = judge(fed, fed.steps - Counter({"replay.moved": 1}), short, active=False)
    assert (found.doubled, found.lost, found.torn, found.illegal) == (0, 1, False, False)
    assert "instead of" in found.said[-1]


def test_steps_out_of_order_and_ends_that_are_none_are_noticed() -> None:
    """A history with a gap, or of a machine that did not end although nothing is active, is one that cannot be."""
    fed = fed_case()
    gap = [replace(update, step=update.step + (update.step > 2)) for update in told(fed)]
    assert judge(fed, fed.steps, gap, active=False).illegal
    assert judge(fed, fed.steps, told(fed)[:3], active=False).illegal
    assert judge(fed, fed.steps, [], active=False).absent


def test_the_model_counts_each_payment_once_and_each_look_at_the_bank() -> None:
    """What an order must commit follows from its inputs alone; a signal that is sent twice under one id counts once."""
    steps = {kind: [order(it, "x") for it in make_plan(400, 1) if it.kind == kind] for kind in ("duplicate", "bank")}
    for fed in steps["duplicate"]:
        assert (fed.steps["orders.paid"], fed.steps["orders.paid/kept"]) == (1, 1)
    for fed in steps["bank"]:
        assert fed.steps["orders.settled"] == 1
        assert fed.steps["orders.settled/kept"] == fed.machine.state.bank_polls - 1  # type: ignore[attr-defined]


def test_a_report_fails_on_late_progress_and_draws_what_has_hit() -> None:
    """A killed server after which nothing moved in time is a problem; each fault that hit is in the picture."""
    late, soon = schedule(1, 60, 2.0, WEIGHTS)[:2]
    late.kind, soon.kind = "server killed", "queues deleted"
    for one, resumed_s in ((late, 9.0), (soon, 9.0)):
        one.hits("<here>")
        one.ended, one.resumed_s = one.began, resumed_s
    report = Report(1, "always", 60.0, strikes=[late, soon])
    report.check_progress(5.0)
    assert [late.kind in problem for problem in report.problems] == [True]
    assert svg(report).count("<title>") == 2
    assert "<here>" not in svg(report)


# --- the schedule and the proxy ---------------------------------------------------------------------------------------


def test_a_seed_gives_the_same_faults_and_another_seed_others() -> None:
    """Order and times follow from the seed; every kind comes in the first round; a long run has more than 200."""
    planned = [(one.kind, one.planned_s) for one in schedule(7, 600, 2.1, WEIGHTS)]
    assert planned == [(one.kind, one.planned_s) for one in schedule(7, 600, 2.1, WEIGHTS)]
    assert planned != [(one.kind, one.planned_s) for one in schedule(8, 600, 2.1, WEIGHTS)]
    assert {name for name, _ in planned[: len(KINDS)]} == set(KINDS)
    assert len(planned) > 200
    assert len(KINDS) >= 8


@pytest.mark.parametrize(("fate", "applied"), [("reply", 1), ("request", 0), ("late", 1)])
def test_the_proxy_loses_replies_that_were_executed_and_requests_that_were_not(fate: Fate, applied: int) -> None:
    """The client hears nothing; of a lost reply the commit is applied, of a lost request not, of a late one later."""
    with (
        EmbeddedServer() as server,
        Middle(server.socket_path) as middle,
        redis.Redis.from_url(middle.url, socket_timeout=10) as client,
        redis.Redis.from_url(server.url) as direct,
    ):
        assert client.ping()
        client.connection_pool.disconnect()
        middle.lose(fate, 1, late_s=0.05)
        wait_until(lambda: middle.losing, "the proxy to know")
        pipeline = client.pipeline(transaction=True)
        pipeline.incr("n")
        with pytest.raises(redis.ConnectionError):
            pipeline.execute()
        wait_until(lambda: int(direct.get("n") or 0) == applied, "the commit to be applied, or not")
        assert client.incr("n") == applied + 1
        assert middle.forget() == 0


def test_the_proxy_keeps_the_order_when_it_is_slow_and_outlives_its_server() -> None:
    """Bytes that were delayed come before those that were not; after a restart new connections reach the server."""
    with (
        EmbeddedServer() as server,
        Middle(server.socket_path) as middle,
        redis.Redis.from_url(middle.url, socket_timeout=10) as client,
    ):
        assert client.ping()
        answers: list[object] = []
        middle.slow(0.3)
        wait_until(lambda: middle.delay_s > 0, "the proxy to be slow")
        slow = threading.Thread(target=lambda: answers.append(client.set("k", "x" * 300_000)))
        slow.start()
        middle.slow(0)
        slow.join(20)
        assert answers == [True]
        assert client.get("k") == b"x" * 300_000
        server.kill()
        with pytest.raises(redis.ConnectionError):
            client.get("k")
        server.restart()
        assert client.ping()
        with socket.socket(socket.AF_UNIX) as plain:
            plain.settimeout(10)
            plain.connect(middle.url.removeprefix("unix://").partition("?")[0])
            plain.sendall(b"PING\r\n")
            assert plain.recv(7) == b"+PONG\r\n"
            middle.cut()
            assert heard(plain) == b""


def heard(end: socket.socket) -> bytes:
    """What comes next on a connection; nothing when it was ended, in order or not."""
    try:
        return end.recv(1)
    except ConnectionResetError:
        return b""

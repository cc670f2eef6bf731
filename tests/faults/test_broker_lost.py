"""The broker loses messages, doubles and shuffles them, or is away: messages are hints, and the state goes on."""

from __future__ import annotations

import logging
import random
import threading
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from smqueue import ExecutorBuilder, StateMachine
from smqueue.demo.replay import Happened, Ticket, event
from smqueue.embedded import EmbeddedServer
from tests.faults.held import Idle, begin, held
from tests.faults.replaying import NAMESPACE, QUEUE, Feeder, cases, check_nothing_left, check_paths, site, wait_finished
from tests.waiting import wait_until
from tests.workers import Worker, running

OPERATIONS = 400
OUTAGE = "the broker takes no messages"


def test_queues_that_are_deleted_again_and_again_lose_nothing() -> None:
    """Whatever messages are deleted while all runs, all operations finish, and no step is made twice (semantics 5).

    Nor if somebody else waits for messages on the same queue, again and again for half a second, as a worker of another
    application would: hints that came once a second, to the millisecond, would all be his.
    """
    given = cases(OPERATIONS)
    with site() as made:
        made.start_workers()
        deleted = 0

        def half_done() -> bool:
            nonlocal deleted
            deleted += made.delete_queues() + made.steal_message()
            return feeder.added - made.active() >= OPERATIONS // 2

        with Feeder(made, given) as feeder:
            wait_until(half_done, "half of the operations to finish while queues are deleted", timeout_s=60)
            wait_finished(made, feeder)
        assert deleted > 0
        check_paths(made, given)
        check_nothing_left(made)


def test_hints_that_come_twice_or_for_nothing_and_out_of_order_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each hint is sent twice, needless ones come all the time, and the queue is doubled and shuffled again and again.

    Each path is its trace all the same (semantics 5, 18).
    """
    given = cases(OPERATIONS)
    rng = random.Random(1)
    seen: set[bytes] = set()

    with site() as made:
        hint = made.executor.outbound.hint

        def twice(namespace: str, shard: int) -> None:
            hint(namespace, shard)
            hint(namespace, shard)

        def finished() -> bool:
            twice(NAMESPACE, 0)
            with made.messages() as client:
                taking: Any = client.pipeline(transaction=True)
                messages, _ = taking.lrange(QUEUE, 0, -1).delete(QUEUE).execute()
                fresh = [message for message in messages if message not in seen]
                seen.update(fresh)
                if again := [*messages, *fresh]:
                    rng.shuffle(again)
                    client.rpush(QUEUE, *again)
            return feeder.done and made.active() == 0

        monkeypatch.setattr(made.executor.outbound, "hint", twice)
        made.start_workers()
        with Feeder(made, given) as feeder:
            wait_until(finished, "all operations to finish", timeout_s=60)
        assert seen
        check_paths(made, given)
        check_nothing_left(made)


def test_a_broker_that_is_away_delays_and_loses_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Without a broker, adding and signalling go on and the log says so once; all finishes once it is back."""
    given = cases(OPERATIONS)
    with site(own_broker=True) as made, caplog.at_level(logging.WARNING, "smqueue"):
        made.start_workers()
        with Feeder(made, given, ahead=None) as feeder:
            wait_until(lambda: feeder.added - made.active() > 0, "the first operation to finish")
            made.broker.kill()
            # Each of them may have a hint to send: were that waited for, it would take minutes.
            wait_until(lambda: feeder.done, "the producer to be done without a broker", timeout_s=30)
            assert feeder.signalled == sum(len(case.events) for case in given)
            made.broker.restart()
            wait_finished(made, feeder)
        check_paths(made, given)
        check_nothing_left(made)
        assert [OUTAGE in record.getMessage() for record in caplog.records].count(True) <= 1


def test_each_call_without_a_broker_returns_soon_and_the_log_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    """A hint that cannot be sent is not waited for: the call succeeds; the outage has one line at each of its ends."""
    with site(own_broker=True) as made, caplog.at_level(logging.WARNING, "smqueue"):
        executor, keys = made.executor, made.executor.deployment.all_keys()[0]

        def start_and_signal(name: str) -> None:
            executor.add_state_machines([StateMachine(name, Ticket(name, 2))])
            executor.deployment.driver.command("DEL", keys.hint)  # so that this signal has a hint to send
            executor.signal(name, event, Happened("first", 0))

        def lines() -> list[str]:
            return [record.getMessage() for record in caplog.records if record.name == "smqueue.outbound"]

        start_and_signal("before")
        made.broker.kill()
        calls = threading.Thread(target=lambda: [start_and_signal(f"without {n}") for n in range(20)], daemon=True)
        calls.start()
        # Celery itself tries for 6 s to connect: that would be two minutes.
        wait_until(lambda: not calls.is_alive(), "twenty calls to return without a broker", timeout_s=30)
        assert len(lines()) == 1
        assert OUTAGE in lines()[0]
        made.broker.restart()
        answered = iter(range(1_000))

        def told() -> bool:
            start_and_signal(f"after {next(answered)}")
            return len(lines()) > 1

        wait_until(told, "the log to say that the broker is back", timeout_s=30)
        assert "again" in lines()[1]
        assert len(lines()) == 2


def test_what_was_reserved_before_the_broker_restarted_does_not_end_the_worker(tmp_path: Path) -> None:
    """A message that came by a connection which is gone cannot be acknowledged any more; the worker goes on.

    It waited for the pool's one thread while the broker restarted (semantics 5).
    """
    with EmbeddedServer() as state, EmbeddedServer() as broker:
        env = {"SMQUEUE_URL": state.url, "SMQUEUE_NAMESPACE": NAMESPACE, "CELERY_BROKER_URL": broker.broker_url}
        app = Celery("test", broker=broker.broker_url, set_as_current=False)
        executor = ExecutorBuilder().with_module("held", held).build(app, url=state.url, namespace=NAMESPACE)
        worker = Worker("tests.faults.held", {**env, "TEST_DIR": str(tmp_path)}, ("--pool", "threads", "-c", "1"))
        with running(worker):
            worker.wait_ready()
            executor.add_state_machines([StateMachine(name, Idle(name)) for name in ("held", "later")])
            executor.signal("held", begin)
            wait_until((tmp_path / "held.entered").exists, "the worker's one thread to be in the handler")
            received = worker.output.count("] received")
            for _ in range(2):  # no hints: those are acknowledged without the broker
                app.send_task("smqueue.add", ([],), {"namespace": NAMESPACE})
            wait_until(lambda: worker.output.count("] received") >= received + 2, "two messages to be reserved")
            broker.kill()
            broker.restart()
            wait_until(lambda: worker.output.count("Connected to redis") > 1, "the worker to be connected again", 60)
            (tmp_path / "held.go").touch()
            (tmp_path / "later.go").touch()
            executor.await_operation("held", timeout=60)
            wait_until(
                lambda: "message of an earlier connection" in worker.output, "the worker to say what it cannot do", 60
            )
            executor.signal("later", begin)
            executor.await_operation("later", timeout=60)
            assert worker.process.poll() is None, worker.output[-3000:]

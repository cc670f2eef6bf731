"""A worker that stands still in a handler past its lease, and goes on when another one has done its work."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

from celery import Celery

from smqueue import ExecutorBuilder, StateMachine, Transaction
from smqueue.embedded import EmbeddedServer
from tests.faults.held import Done, Idle, begin, held
from tests.faults.replaying import NAMESPACE
from tests.waiting import wait_until
from tests.workers import Worker, running


def test_a_worker_stopped_past_its_lease_is_refused_when_it_goes_on(tmp_path: Path) -> None:
    """SIGSTOP in the middle of a handler; another worker takes over and commits; the first one's commit is refused.

    The transition has happened once: in the state, in the history, and in what its handler wrote (semantics 15, 18).
    """
    with EmbeddedServer() as server:
        env = {"SMQUEUE_URL": server.url, "SMQUEUE_NAMESPACE": NAMESPACE, "CELERY_BROKER_URL": server.broker_url}
        app = Celery("test", broker=server.broker_url, set_as_current=False)
        executor = ExecutorBuilder().with_module("held", held).build(app, url=server.url, namespace=NAMESPACE)
        env["TEST_DIR"] = str(tmp_path)
        first = Worker("tests.faults.held", env, ("--concurrency", "1"))
        with running(first):
            first.wait_ready()
            executor.add_state_machines([StateMachine(name, Idle(name)) for name in ("held", "later")])
            executor.signal("held", begin)
            entered = tmp_path / "held.entered"
            wait_until(lambda: entered.exists() and entered.read_text(), "the first worker to be in the handler")
            os.killpg(first.process.pid, signal.SIGSTOP)
            second = Worker("tests.faults.held", env, ("--concurrency", "1"))
            with running(second):
                second.wait_ready()
                executor.await_operation("held", timeout=30)
                second.kill()
            held_by = int(entered.read_text())
            (done,) = [machine.state for machine, _ in executor.get_inactive_states("held") if _is_done(machine)]
            assert isinstance(done, Done)
            assert done.by != held_by

            (tmp_path / "held.go").touch()
            os.killpg(first.process.pid, signal.SIGCONT)
            wait_until((tmp_path / "held.left").exists, "the first worker to leave the handler")
            # Its one process does this after its commit of the other: then that commit has been refused.
            (tmp_path / "later.go").touch()
            executor.signal("later", begin)
            executor.await_operation("later", timeout=30)
            assert int((tmp_path / "later.entered").read_text()) == held_by

        (still,) = [machine.state for machine, _ in executor.get_inactive_states("held") if _is_done(machine)]
        assert still == done
        history = executor.notifier.history("held")
        assert [(update.step, update.state) for update in history] == [(1, Idle("held")), (2, done)]
        for name in ("held", "later"):
            assert executor.autocommit(_moved(name), module="held") == 1


def _is_done(machine: StateMachine) -> bool:
    return isinstance(machine.state, Done)


def _moved(name: str) -> Callable[[Transaction], int]:
    return lambda tx: int(tx.get(f"moved:{name}") or 0)

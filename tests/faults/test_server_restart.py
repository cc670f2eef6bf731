"""The server of the state dies, or is restarted, in mid-run, and comes back on the same data."""

from __future__ import annotations

import pytest

from tests.faults.replaying import Feeder, cases, check_nothing_left, check_paths, site, wait_finished
from tests.waiting import wait_until
from tests.workers import Worker

OPERATIONS = 600
RESTARTS = 2
LOST, FOUND = "trying again until it answers", "Redis answers again"


@pytest.mark.parametrize("own_broker", [False, True], ids=["broker on it", "broker elsewhere"])
@pytest.mark.parametrize("killed", [True, False], ids=["killed", "stopped"])
def test_a_server_that_comes_back_loses_nothing_that_was_acknowledged(killed: bool, own_broker: bool) -> None:
    """With ``appendfsync always`` SIGKILL of the server loses nothing; a clean restart loses nothing either.

    What was acknowledged is not sent again, so the paths would show a loss. Workers reconnect by themselves, and each
    says once that the server is gone and once that it is back (semantics 5).
    """
    given = cases(OPERATIONS)
    with site(fsync_always=killed, own_broker=own_broker) as made:
        workers = made.start_workers()
        with Feeder(made, given) as feeder:
            for restart in range(1, RESTARTS + 1):
                wanted = OPERATIONS * restart // (RESTARTS + 1)
                wait_until(lambda wanted=wanted: feeder.added - made.active() >= wanted, f"{wanted} to finish", 60)
                assert not feeder.done, "it was not in mid-run"
                if killed:
                    made.state.kill()
                    wait_for_all(workers, LOST, restart)
                    wait_until(lambda: feeder.unanswered > 0, "the producer to notice")
                made.state.restart()
                if killed:
                    wait_for_all(workers, FOUND, restart)
            wait_finished(made, feeder)
        check_paths(made, given)
        check_nothing_left(made)
        for worker in workers:
            assert worker.output.count(LOST) == worker.output.count(FOUND) <= RESTARTS
            assert "raised unexpected" not in worker.output, "a task failed with a traceback"


def wait_for_all(workers: list[Worker], line: str, count: int) -> None:
    """Until each worker has said a line so often."""
    for worker in workers:
        wait_until(lambda worker=worker: worker.output.count(line) >= count, f"{worker.name} to say: {line}", 30)

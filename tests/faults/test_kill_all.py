"""All workers are killed and the broker is emptied, several times in mid-run."""

from __future__ import annotations

from tests.faults.replaying import Feeder, cases, check_nothing_left, check_paths, site, wait_finished
from tests.waiting import wait_until

OPERATIONS = 2_000
ACCIDENTS = 3


def test_all_workers_and_all_queues_die_three_times_and_nothing_is_lost_or_done_twice() -> None:
    """kill -9 of all workers and deletion of all queues leaves what new workers go on with: each path is its trace.

    (semantics 3, 5)
    """
    given = cases(OPERATIONS)
    assert len(given) == OPERATIONS
    with site() as made:
        made.start_workers()
        with Feeder(made, given) as feeder:
            for accident in range(1, ACCIDENTS + 1):
                wanted = OPERATIONS * accident // (ACCIDENTS + 1)
                wait_until(
                    lambda wanted=wanted: feeder.done or feeder.added - made.active() >= wanted,
                    f"{wanted} operations to finish",
                    timeout_s=60,
                )
                made.kill_workers()
                with made.messages() as client:
                    client.flushdb()  # the queues, what was delivered and not acknowledged, and their bindings
                assert made.active() > 0, "it was not in mid-run"
                made.start_workers()
            wait_finished(made, feeder)
        check_paths(made, given)
        check_nothing_left(made)

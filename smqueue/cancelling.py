"""Cancelling an operation, and with it those that its transitions have started.

Each operation notes that it is being cancelled before any of them ends, so that whoever dies half-way, the workers
finish what was begun.
"""

from __future__ import annotations

from smqueue.drivers.driver import Driver
from smqueue.instances import Instances
from smqueue.keys import Keys, new_id, shard_of
from smqueue.protocols import control


def cancel_all(driver: Driver, instances: Instances, keys: Keys, operation_id: str, reason: str, children: bool) -> int:
    """Cancel an operation; returns how many machines were ended."""
    driver.run(control.begin_cancel(keys, operation_id, reason, children))
    return finish_cancel(driver, instances, keys, operation_id)


def finish_cancel(driver: Driver, instances: Instances, keys: Keys, operation_id: str) -> int:
    """Go on with a cancellation that was begun, by this process or by one that died."""
    waiting, ended, begun = [(keys, operation_id)], 0, {operation_id}
    while waiting:
        there, op = waiting.pop()
        found, reason = driver.run(control.children_to_cancel(there, op))
        for child in found:
            if child not in begun:
                begun.add(child)
                its = Keys(keys.namespace, shard_of(child, instances.shards))
                driver.run(control.begin_cancel(its, child, reason, children=True))
                waiting.append((its, child))
        ended += driver.run(control.cancel(there, op, new_id(), instances.longest_keep(), instances.chain))
    return ended

"""Whether there is an operation of a name that was given, whatever its size: in one round trip."""

from __future__ import annotations

from smqueue.cli import NoSuchOperation
from smqueue.deployment import Deployment
from smqueue.roundtrip import read
from smqueue.states import check_operation_id


def must_exist(deployment: Deployment, operation: str) -> None:
    """An operation that is active, or that something is kept of.

    Raises:
        NoSuchOperation: There is none.
    """
    keys = deployment.keys(check_operation_id(operation))
    looks = [("EXISTS", key) for key in (keys.active(operation), keys.inactive(operation), keys.history(operation))]
    for found in deployment.driver.run(read([], *looks)):
        if isinstance(found, Exception):  # we may not look
            raise found
        if found:
            return
    raise NoSuchOperation(operation, deployment.settings.namespace)

"""What the engine needs of a message broker: a port, implemented by the Celery side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from smqueue.protocols.claim import Armed
from smqueue.records import Active, Placed


class Outbound(Protocol):
    """Sends messages. All but tasks are hints: one that is lost delays, and loses nothing."""

    def hint(self, namespace: str, shard: int) -> None:
        """Say that something is due in a shard."""
        ...

    def send_triggers(self, armed: Sequence[Armed]) -> None:
        """Send the tasks that run triggers' code."""
        ...

    def send_task(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], task_id: str, options: Mapping[str, Any]
    ) -> None:
        """Send a task of the user's.

        Raises:
            BrokerUnavailable: The broker takes no messages now.
            Exception: It cannot be sent.
        """
        ...

    def armed(self, placed: Placed, active: Active, arming: str) -> None:
        """Tell whoever watches that a state's triggers are armed."""
        ...

    def ended(self, placed: Placed, active: Active, arming: str, armed: Mapping[str, Any], won: str | None) -> None:
        """Tell whoever watches how a race has ended: one trigger won, the others are revoked."""
        ...

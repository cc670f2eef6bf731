"""A driver of a worker that may die at its commits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from smqueue.roundtrip import Call, LostReply, RoundTrip, commits
from smqueue.testing.memory import Connection, Memory

Fault = Literal["none", "before", "after", "lost"]
"""What happens at a commit: nothing; the worker dies before it, or right after it; its reply is lost."""


class Died(BaseException):
    """The worker has died: nothing of the code under test may catch it."""


class Faulty(Memory):
    """The in-memory driver, where commits may go wrong."""

    fault: Callable[[tuple[Fault, ...]], Fault] | None = None
    """Asked at each commit, with what may happen there; ``None``: nothing ever happens."""

    def _trip(self, connection: Connection, request: RoundTrip) -> Any:
        fault: Fault = "none"
        if self.fault is not None:
            match request:
                case _ if commits(request):
                    fault = self.fault(("none", "before", "after", "lost"))
                case Call(script="outcome"):
                    fault = self.fault(("none", "before"))
                case _:
                    pass
        if fault == "before":
            raise Died
        reply = super()._trip(connection, request)
        if fault == "after":
            raise Died
        return LostReply() if fault == "lost" else reply

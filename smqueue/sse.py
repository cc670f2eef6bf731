"""Server-Sent Events: how an update is told to a browser's ``EventSource``."""

from __future__ import annotations

import json
from typing import Any

from smqueue.following import Update

START = "start"
"""The id of an event after which nothing is known: whoever comes back with it begins at the beginning."""
HEARTBEAT = ":\n\n"
"""A comment: whoever is connected sees that the other end is there."""


def event_of(update: Update) -> str:
    """An update as an event: its ``id`` is the sequence, its ``data`` one line of JSON.

    After a reconnect an ``EventSource`` sends the last ``id`` as ``Last-Event-ID``: that is ``after`` of ``subscribe``.
    A typed state becomes its text, in which secrets are hidden; that of a ``Client`` is told as it is.
    """
    return f"id: {update.sequence}\ndata: {json.dumps(told(update), ensure_ascii=False, default=str)}\n\n"


def told(update: Update) -> dict[str, Any]:
    """An update in JSON; what is ``None`` of what is not always there is left out."""
    always = {
        "operation_id": update.operation_id,
        "module": update.module,
        "machine_id": update.machine_id,
        "step": update.step,
        "sequence": update.sequence,
        "state": update.state,
        "terminal": update.terminal,
        "at": update.at.isoformat(),
    }
    sometimes = {"won": update.won, "merged_into": update.merged_into, "cancelled": update.cancelled}
    return always | {name: value for name, value in sometimes.items() if value is not None}


def rewound(problem: object) -> str:
    """The history is not what it was: said in an event of its own, and a reconnect begins at the beginning.

    By an id, not by none: else the client would begin behind what its address says, which may be gone as well.
    """
    return f"event: rewound\nid: {START}\ndata: {json.dumps(str(problem))}\n\n"

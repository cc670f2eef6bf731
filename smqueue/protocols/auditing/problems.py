"""What an audit can find."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import field as dataclass_field
from enum import Enum

from smqueue.roundtrip import Command


class Kind(Enum):
    """What is wrong. ``NOTES`` are the kinds that do no harm."""

    # a machine
    UNREADABLE_RECORD = "unreadable-record"
    NO_MACHINE_KEY = "no-machine-key"
    UNREADABLE_MACHINE = "unreadable-machine"
    WRONG_MACHINE = "wrong-machine"
    ORPHAN_MACHINE = "orphan-machine"
    NOT_SCHEDULED = "not-scheduled"
    TRIGGER_NOT_SCHEDULED = "trigger-not-scheduled"
    SCHEDULED_LATE = "scheduled-late"
    NOT_WAITING = "not-waiting"
    LOST_SIGNAL = "lost-signal"
    UNREADABLE_RACE = "unreadable-race"
    ORPHAN_RACE = "orphan-race"
    TORN_COMMIT = "torn-commit"
    UNREADABLE_QUARANTINE = "unreadable-quarantine"
    ORPHAN_QUARANTINE = "orphan-quarantine"
    # entries
    STALE_ENTRY = "stale-entry"
    STALE_WAITING = "stale-waiting"
    STALE_WATCHER = "stale-watcher"
    STALE_HELD = "stale-held"
    # what belongs to no machine
    OPERATION_NOT_LISTED = "operation-not-listed"
    OPERATION_WITHOUT_MACHINES = "operation-without-machines"
    ORPHAN_FINISHED = "orphan-finished"
    NOT_RETAINED = "not-retained"
    RETENTION_NOT_SCHEDULED = "retention-not-scheduled"
    REQUESTS_NOT_SCHEDULED = "requests-not-scheduled"
    UNREADABLE_REQUEST = "unreadable-request"
    CANCEL_NOT_SCHEDULED = "cancel-not-scheduled"
    HELD_WITHOUT_CONTROL = "held-without-control"
    UNREADABLE_CONTROL = "unreadable-control"
    PAUSE_NOT_LISTED = "pause-not-listed"
    UNREADABLE_SIGNAL = "unreadable-signal"
    INBOX_OVER_LIMIT = "inbox-over-limit"
    TOO_MANY_SEEN = "too-many-seen"
    WRONG_TYPE = "wrong-type"
    UNKNOWN_KEY = "unknown-key"
    # histories
    NO_HISTORY = "no-history"
    UNREADABLE_STEP = "unreadable-step"
    STEP_MISSING = "step-missing"
    STEP_TWICE = "step-twice"
    STEP_AFTER_END = "step-after-end"
    NOT_AN_EDGE = "not-an-edge"
    WRONG_MERGE = "wrong-merge"
    LOST_MACHINE = "lost-machine"
    ACTIVE_DISAGREES = "active-disagrees"
    INACTIVE_DISAGREES = "inactive-disagrees"
    UNREADABLE_INACTIVE = "unreadable-inactive"
    WRONG_TIMES = "wrong-times"
    TAMPERED = "tampered"
    UNSEALED = "unsealed"


NOTES = frozenset(
    {Kind.STALE_ENTRY, Kind.STALE_HELD, Kind.NOT_RETAINED, Kind.INBOX_OVER_LIMIT, Kind.UNKNOWN_KEY, Kind.UNSEALED}
)
"""What does no harm: a claim or a resume removes it, or it may be meant so."""


@dataclass(frozen=True)
class Problem:
    """Something that is not as it should be.

    Attributes:
        kind: What.
        operation: Whose; empty where that cannot be told.
        record: The id of the record, an entry, or the part of the namespace that it is about.
        words: What is wrong, in a sentence.
        remedy: What ``--repair`` does about it; or why that does nothing, and what a person can do.
        mend: The commands of the repair; none where it cannot be mended.
    """

    kind: Kind
    operation: str
    record: str
    words: str
    remedy: str
    mend: tuple[Command, ...] = dataclass_field(default=(), repr=False, compare=False)

    def __str__(self) -> str:
        return f"{self.kind.value}: {self.words}"

    @property
    def mendable(self) -> bool:
        """Whether ``--repair`` mends it."""
        return bool(self.mend)

    @property
    def harmless(self) -> bool:
        """Whether it does no harm: a note, not a problem."""
        return self.kind in NOTES

"""Adding machines: a transaction that does nothing else."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from msgspec.structs import replace

from smqueue.errors import SmqueueError
from smqueue.instances import Instances
from smqueue.keys import Keys
from smqueue.protocols.autocommit import Done, autocommit
from smqueue.protocols.begin import begin, begun
from smqueue.records import Placed
from smqueue.roundtrip import LostReply, Steps, own_reply
from smqueue.standing import Look, arrivals
from smqueue.states import StateMachine
from smqueue.transaction import Transaction, placed


def add(
    keys: Keys,
    instances: Instances,
    machines: Sequence[StateMachine],
    commit_id: str,
    exist_ok: bool = False,
    max_active: int | None = None,
    trace: str = "",
) -> Steps[Done[list[str]]]:
    """Start machines, all or none; 2 round trips, or 1 for the first machine of an operation if it just waits.

    A state ever seen in its operation is a duplicate, unless this very commit made it.

    Returns:
        The ids of the machines, in the order given; with ``exist_ok`` of those that were there already, too.

    Raises:
        UnknownModule, StateAlreadyExists, StateAlreadyTerminal, InvalidState: For the first that cannot be added;
            nothing was written.
        TooManyActive: See ``autocommit``.
        CommitFailed: After 100 conflicts.
    """
    batch, misplaced = placed(instances, machines)
    if len(batch) == 1 and misplaced is None:
        call = begin(keys, instances, batch[0], commit_id, max_active, trace)
        if call is not None:
            try:
                reply = own_reply((yield call))
            except LostReply:
                reply = None
            if reply is not None:
                machine, watched = begun(reply, batch[0], commit_id)
                return Done([machine.active.machine], [machine], [], hint=False, watched=watched)
    return (yield from _add(keys, instances, batch, misplaced, commit_id, exist_ok, max_active, trace))


def _add(
    keys: Keys, instances: Instances, batch: list[Placed], misplaced: SmqueueError | None, commit_id: str,
    exist_ok: bool, max_active: int | None, trace: str,
) -> Steps[Done[list[str]]]:  # fmt: skip
    """The same by a look and an EXEC."""
    existing: dict[str, str] = {}

    def run(tx: Transaction) -> list[str]:
        tx.fresh(batch, misplaced, existing, commit_id, exist_ok)
        tx.starting = [one for one in batch if one.record not in existing]
        return [one.record for one in batch]

    def looks(known: Collection[str]) -> Look:
        return arrivals(keys, instances, batch, known)

    done = yield from autocommit(keys, instances, None, run, commit_id, max_active=max_active, looks=looks, trace=trace)
    made = {one.placed.record: one.active.machine for one in done.machines}
    return replace(done, value=[made.get(record) or existing[record] for record in done.value])

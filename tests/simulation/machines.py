"""The machines whose protocols are explored. Every handler notes in a list, in its own commit, that it has run."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from smqueue import (
    Context,
    Failed,
    Module,
    Retry,
    State,
    StateMachine,
    Transaction,
    after,
    finished,
    poll,
    reached,
    wait,
)
from smqueue.testing.keyspace import START_US

STARTED = datetime.fromtimestamp(START_US / 1_000_000, UTC) + timedelta(seconds=6)
"""Until then what needs a world beyond fails."""

m = Module("m", retry=Retry(max_attempts=3))
k = Module("k", keep=timedelta(seconds=1))


@dataclass(frozen=True)
class Go:
    """``n`` says where to: 0 stays, 1 ends, 2 goes to Mid, 3 ends and leaves work behind, 4 re-enters, 5 fails a while.

    An id ends with its ``n``.
    """

    id: str
    n: int


go = m.signal("go", Go)


@m.state
class Wait(State):
    n: int


@m.state
class Mid(State):
    n: int


@m.state
class Kept(State):
    """With a cancel handler."""

    n: int


@m.state
class Follower(State):
    op: str


@m.state
class Hosted(State):
    n: int


@m.state(terminal=True)
class Done(State):
    why: str


def ran(tx: Transaction, context: Context, what: str) -> None:
    """Note that a handler has run."""
    note(tx, f"{context.operation_id} {context.machine_id} {what}")


def note(tx: Transaction, line: str, read: bool = False) -> None:
    """Two accounts, one of them blind; with ``read``, where the line ends with #, a third by a read and a write.

    Only few read, for what is read is watched, and would protect what is not.
    """
    tx.rpush("log", line + "#" * read)
    tx.incrby("moves")
    if read:
        tx.set("count", str(int(tx.get("count") or "0") + 1))


@m.on(Wait, go)
def went(tx: Transaction, state: Wait, got: Go, context: Context) -> Wait | Mid | Done | None:
    ran(tx, context, f"go:{got.id}")
    match got.n:
        case 0:
            return None
        case 2:
            return Mid(0)
        case 3:
            tx.add_state_machines([StateMachine("child", Mid(ord(got.id[0])))])
            tx.signal("child", "go", {"id": f"{got.id}-1", "n": 1})
            tx.send_task("print", args=[got.id])
            return Done("sent")
        case 5 if tx.now() < STARTED:
            raise OSError("not yet")
        case 4:
            note(tx, f"{context.operation_id} - read:{got.id}", read=True)
            return state
        case _:
            return Done("went")


@m.on(Wait, after(seconds=1))
def late(tx: Transaction, state: Wait, _: None, context: Context) -> Done:
    ran(tx, context, "late")
    return Done("late")


def answer(state: Wait, context: Context) -> int | None:
    """2 never gets an answer."""
    return state.n if state.n != 2 else None


@m.on(Wait, poll(answer, every=timedelta(seconds=30)))
def asked(tx: Transaction, state: Wait, got: int, context: Context) -> Done:
    ran(tx, context, f"asked:{got}")
    return Done("asked")


@m.on(Mid, go)
def mid_went(tx: Transaction, state: Mid, got: Go, context: Context) -> Done | None:
    ran(tx, context, f"mid:go:{got.id}")
    return Done("mid") if got.n else None


@m.on(Mid, after(seconds=2))
def mid_late(tx: Transaction, state: Mid, _: None, context: Context) -> Done:
    ran(tx, context, "mid late")
    return Done("mid")


@m.on(Kept, go)
def kept_went(tx: Transaction, state: Kept, got: Go, context: Context) -> Done | None:
    ran(tx, context, f"kept:go:{got.id}")
    return Done("kept") if got.n else None


@m.on(Kept, after(seconds=2))
def kept_late(tx: Transaction, state: Kept, _: None, context: Context) -> Done:
    ran(tx, context, "kept late")
    return Done("kept")


@m.on_cancel(Kept)
def undo(tx: Transaction, state: Kept, reason: str | None, context: Context) -> None:
    """1 reads, 2 leaves work behind, 3 fails a while."""
    note(tx, f"- - undo:{context.machine_id}:{reason}", read=state.n == 1)
    if state.n == 2:
        tx.add_state_machines([StateMachine("child", Mid(2))])
        tx.send_task("refund", args=["r3"])
    if state.n == 3 and tx.now() < STARTED:
        raise OSError("not yet")


@m.on(Follower, reached(lambda state: state.op, Mid))
def saw(tx: Transaction, state: Follower, got: Mid, context: Context) -> Done:
    ran(tx, context, "saw")
    return Done("saw")


@m.on(Follower, finished(lambda state: state.op))
def saw_the_end(tx: Transaction, state: Follower, _: None, context: Context) -> Done:
    ran(tx, context, "saw the end")
    return Done("saw")


async def never(state: Hosted, context: Context) -> int:
    return state.n


@m.on(Hosted, wait(never))
def waited(tx: Transaction, state: Hosted, got: int | Failed, context: Context) -> Done:
    ran(tx, context, f"waited:{got}")
    return Done("waited")


@m.on(Hosted, after(seconds=1))
def hosted_late(tx: Transaction, state: Hosted, _: None, context: Context) -> Done:
    ran(tx, context, "hosted late")
    return Done("late")


@k.state
class Short(State):
    n: int


@k.state(terminal=True)
class Over(State):
    n: int


@k.on(Short, after(seconds=1))
def over(tx: Transaction, state: Short, _: None, context: Context) -> Over:
    ran(tx, context, "over")
    return Over(state.n)

"""The script that moves a machine leaves what the EXEC would that is sent after a look."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from smqueue import Context, Module, State, Transaction, after, at, poll
from smqueue.drivers.group import group
from smqueue.errors import SmqueueError, WrongKind
from smqueue.instances import Instance, Instances
from smqueue.keys import Keys
from smqueue.protocols import runs
from smqueue.protocols import transition as transitioning
from smqueue.protocols.add import add
from smqueue.protocols.claim import claim
from smqueue.protocols.control import aside, retry
from smqueue.protocols.signal import signal
from smqueue.protocols.transition import transition
from smqueue.roundtrip import Steps
from smqueue.states import StateMachine
from smqueue.testing.memory import Memory
from smqueue.testing.store import Store

work = Module("work", version=3)
brief = Module("brief", keep=timedelta(days=1))
END = datetime(2100, 1, 1, microsecond=1, tzinfo=UTC)
KEYS = Keys("move")
pytestmark = pytest.mark.usefixtures("even")


def tasks(module: Module[Any]) -> type[State]:
    """A state machine with all that the script does, for a module that keeps for ever and for one that forgets."""
    go, stop, on = module.signal("go", str), module.signal("stop"), module.signal("on")

    @module.state
    class Waiting(State):
        """Leaves for whatever its signal says."""

        name: str

    @module.state
    class Patient(State):
        """Entered by a signal, with two that it waits for, and two deadlines."""

        name: str

    @module.state
    class Undoing(State):
        """Has a cancel handler, and is due within a second."""

        name: str

    @module.state
    class Back(State):
        """Goes back to where it came from: a second visit."""

        name: str

    @module.state
    class Asking(State):
        """Left by a signal, with its poll in the schedule."""

        name: str

    @module.state(terminal=True)
    class Gone(State):
        """The end."""

        name: str

    @module.on(Waiting, go)
    def went(tx: Transaction, state: Waiting, where: str) -> Patient | Undoing | Back | Asking | Gone | None:
        if where == "None":
            return None
        tx.incrby("count", 2)
        tx.set("ä", 'ö"')
        tx.hset("hash", {"a": "1", "b": "2"})
        tx.zadd("zset", {"a": 1.5})
        tx.rpush("list", "x", "y")
        tx.publish("news", state.name)
        kinds: dict[str, Callable[[str], Any]] = {one.__name__: one for one in (Patient, Undoing, Back, Asking, Gone)}
        return kinds[where](state.name)

    @module.on(Waiting, after(minutes=1))
    def late(tx: Transaction, state: Waiting, _: None) -> Gone:
        return Gone("late")

    @module.on(Patient, go)
    def again(tx: Transaction, state: Patient, where: str) -> Gone:
        return Gone(where)

    @module.on(Patient, after(timedelta(milliseconds=1500, microseconds=1)))
    def soon(tx: Transaction, state: Patient, _: None) -> Gone:
        return Gone("soon")

    @module.on(Patient, stop)
    def stopped(tx: Transaction, state: Patient, _: None) -> Gone:
        return Gone("stopped")

    @module.on(Patient, at(END))
    def ended(tx: Transaction, state: Patient, _: None) -> Gone:
        return Gone("ended")

    @module.on(Back, go)
    def returned(tx: Transaction, state: Back, _: str) -> Waiting:
        return Waiting(state.name)

    @module.on(Undoing, on)
    def undone(tx: Transaction, state: Undoing, _: None) -> Gone:
        return Gone("undone")

    @module.on(Undoing, after(timedelta(milliseconds=300)))
    def at_once(tx: Transaction, state: Undoing, _: None) -> Gone:
        return Gone("at once")

    @module.on_cancel(Undoing)
    def undo(tx: Transaction, state: Undoing, _: str | None) -> None:
        tx.set("undone", state.name)

    def ask(state: Asking, _: Context[Any]) -> None:
        return None

    @module.on(Asking, on)
    def told(tx: Transaction, state: Asking, _: None) -> Gone:
        return Gone("told")

    @module.on(Asking, poll(ask, every=timedelta(hours=1)))
    def answered(tx: Transaction, state: Asking, _: None) -> Gone:
        return Gone("answered")

    return Waiting


BEGINS = {"work": tasks(work), "brief": tasks(brief)}
INSTANCES = Instances()
INSTANCES.register(Instance("work", work, None, "here"))
INSTANCES.register(Instance("brief", brief, None, "here"))


def left(module: str, op: str, path: tuple[str, ...], beside: bool) -> tuple[Any, ...]:
    """What each step returns, and all that they leave; ``path`` says where signals send the machine."""
    store = Store()
    memory = Memory(store)
    begins: Any = BEGINS[module]
    memory.run(add(KEYS, INSTANCES, [StateMachine(op, begins('π "1"'))], "commit-0"))
    if beside:  # another machine in the same operation, which has begun then
        memory.run(add(KEYS, INSTANCES, [StateMachine(op, begins("other"))], "commit-other"))
    if path[0] == "retry":  # set aside before anything has happened, and armed anew
        path = path[1:]
        for entry in store.do("ZRANGE", KEYS.schedule, 0, -1):
            why = SmqueueError("set aside")
            aside_now = runs.defer(KEYS, entry.decode(), "", 0, failed=False, error="error", op=op, quarantine=why)
            memory.run(aside_now)
        for one in memory.run(aside(KEYS, "0", None))[1]:
            memory.run(retry(KEYS, INSTANCES, one, f"commit-retry-{one.entry[:20]}"))
    done: list[Any] = []
    for number, where in enumerate(path, start=1):
        store.advance(1_234_567)
        if where == "":  # its deadline passes
            store.advance(600_000_000)
        else:
            name, payload = (where, None) if where in {"on", "stop"} else ("go", where)
            told = INSTANCES.signal(op, name, payload, module)
            memory.run(signal(KEYS, told, f"attempt-{number}"))
        due = memory.run(claim(KEYS, INSTANCES, 10))
        assert due.machines
        for at_, it in enumerate(due.machines):
            done.append(memory.run(transition(KEYS, INSTANCES, it, f"commit-{number}-{at_}")))
    assert all(one.kind in {"moved", "kept"} for one in done)
    return done, store.data, store.expires


PATHS: list[tuple[str, ...]] = [
    ("Gone",), ("None", "Gone"), ("None", "Back", "None", "None", "Gone"), ("Patient", "stop"), ("Patient", ""),
    ("Undoing", "on"), ("Asking", "on"), ("",), ("retry", "Gone"),
]  # fmt: skip
"""What each signal says: where to go to, or to stay; nothing: a deadline passes."""


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("op", ["op", 'ä:{}%\n"\\'])
@pytest.mark.parametrize("module", ["work", "brief"])
@pytest.mark.parametrize("path", PATHS)
def test_it_leaves_what_exec_would(
    path: tuple[str, ...], module: str, op: str, beside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Byte for byte, so that whoever reads, watches or audits a machine need not know how it moved (semantics 18)."""
    moves: list[object] = []
    move = transitioning.move

    def counted(*given: Any) -> Steps[Any]:
        moves.append(moved := (yield from move(*given)))
        return moved

    with monkeypatch.context() as patch:
        patch.setattr(transitioning, "move", counted)
        by_script = left(module, op, path, beside)
    assert any(moves)

    def never(*_: object) -> Steps[None]:
        yield from ()

    monkeypatch.setattr(transitioning, "move", never)
    assert left(module, op, path, beside) == by_script


together = Module("together")
said = together.signal("said", str)


@together.state
class Open(State):
    """Does to one key what its signal says."""

    name: str


@together.state(terminal=True)
class Closed(State):
    """The end."""

    name: str


@together.on(Open, said)
def counted_or_not(tx: Transaction, state: Open, what: str) -> Closed:
    """Counts, or replaces the counter by a text, or leaves none."""
    if what == "count":
        tx.incrby("counter", 1)
    elif what == "text":
        tx.set("counter", "text")
    else:
        tx.delete("counter")
    return Closed(state.name)


INSTANCES.register(Instance("together", together, None, "here"))


@pytest.mark.parametrize(
    ("order", "wrong", "left_there"),
    [
        (("count", "count", "count"), [], b"3"),
        (("count", "text", "count"), [2], b"text"),
        (("text", "count", "count"), [1, 2], b"text"),
        (("count", "none", "count"), [], b"1"),
    ],
)
def test_a_counter_is_what_the_same_run_has_made_of_it(
    order: tuple[str, ...], wrong: list[int], left_there: bytes
) -> None:
    """Of machines that move in one run, none is torn for a write of another: who cannot count is told so, and stays."""
    store = Store()
    memory = Memory(store)
    for number, what in enumerate(order):
        op = f"op{number}"
        memory.run(add(KEYS, INSTANCES, [StateMachine(op, Open(op))], f"commit-{number}"))
        store.advance(10_000)
        memory.run(signal(KEYS, INSTANCES.signal(op, "said", what, "together"), f"attempt-{number}"))
    due = memory.run(claim(KEYS, INSTANCES, 10)).machines
    assert [one.machine.op for one in due] == ["op0", "op1", "op2"]
    ended = memory.run(group([transition(KEYS, INSTANCES, one, f"moving-{n}") for n, one in enumerate(due)]))
    assert [n for n, run in enumerate(ended) if isinstance(run.error, WrongKind)] == wrong
    assert all(run.result().kind == "moved" for n, run in enumerate(ended) if n not in wrong)
    assert store.do("GET", KEYS.data("together", "counter")) == left_there

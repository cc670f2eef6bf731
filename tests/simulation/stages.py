"""Where explorations begin, and who acts in them. Every actor is the code that runs in production."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from smqueue import Delivery, SignalFor, StateMachine, Transaction
from smqueue.errors import CancelUnfinished, OperationFinished, StateAlreadyExists
from smqueue.keys import new_id
from smqueue.protocols import claim, requests, retention, runs
from smqueue.protocols.cancel import begin
from smqueue.protocols.claim import Due
from smqueue.records import Machine
from smqueue.testing.memory import Memory
from smqueue.testing.store import Store
from smqueue.worker.code import Attempt, run_trigger
from tests.simulation.explorer import Stage
from tests.simulation.machines import Follower, Hosted, Kept, Mid, Short, Wait, note
from tests.simulation.processes import INSTANCES, KEYS, Actor, Clocked, Process, repeatable

# --- actors --------------------------------------------------------------------------------------------------------


def _machines(*states: Any, op: str = "o") -> list[StateMachine]:
    return [StateMachine(op, state) for state in states]


def _add(p: Process, *states: Any, op: str = "o") -> Any:
    try:
        p.executor.add_state_machines(_machines(*states, op=op))
    except StateAlreadyExists as error:
        return ("denied" if p.notes.get("empty") else "exists"), str(error)
    return "added", [(op, INSTANCES.place(one).field) for one in _machines(*states, op=op)]


def add(p: Process) -> Any:
    """Add the state that many others are about."""
    return _add(p, Wait(1))


def add_batch(p: Process) -> Any:
    """Add two, one of which is where others go to."""
    return _add(p, Mid(0), Wait(9))


def add_short(p: Process) -> Any:
    """Add to an operation that is, or will be, forgotten."""
    return _add(p, Short(2), op="short")


def _signal(p: Process, id: str, n: int, op: str = "o", named: bool = True) -> Any:
    own = id if named else None
    try:
        return "signalled", [(p.executor.signal(op, "go", {"id": id, "n": n}, id=own, module="m").value, id)]
    except OperationFinished:
        return "finished"


def signal_stay(p: Process) -> Any:
    return _signal(p, "a0", 0)


def signal_unnamed(p: Process) -> Any:
    """Without an id of its own: nothing but its attempt says that it is a repetition."""
    return _signal(p, "g0", 0, named=False)


def signal_end(p: Process) -> Any:
    return _signal(p, "b1", 1)


def signal_mid(p: Process) -> Any:
    return _signal(p, "c2", 2)


def signal_work(p: Process) -> Any:
    return _signal(p, "d3", 3)


def signal_again(p: Process) -> Any:
    return _signal(p, "e4", 4)


def signal_many(p: Process) -> Any:
    """Two in one write."""
    ids = {"a0": 0, "b1": 1}
    many = [SignalFor("o", "go", {"id": id, "n": n}, "m", id=id) for id, n in ids.items()]
    told = zip(p.executor.signal_many(many), ids, strict=True)
    return "signalled", [(one.value, id) for one, id in told if isinstance(one, Delivery)]


def drain(p: Process) -> Any:
    """A worker that follows a hint."""
    return p.drain.run()


def stopped_first(p: Process) -> Any:
    """A worker that was stopped after its claim, and goes on now."""
    return _stopped(p, 0)


def stopped_second(p: Process) -> Any:
    return _stopped(p, 1)


def _stopped(p: Process, which: int) -> Any:
    claims = p.notes.get("claims", [])
    if which < len(claims):
        return p.drain._handle(Due(0, 1, False, False, [claims[which]], [], [], [], [], 0.0))
    return None


def renew(p: Process) -> Any:
    """The renewing of its lease."""
    for one in p.notes.get("claims", [])[:1]:
        return p.driver.run(runs.renew(KEYS, KEYS.schedule, [(one.entry, one.machine.guard)]))
    return None


def attempt(p: Process) -> Any:
    """The task of a trigger's code, as it was sent."""
    for armed in p.notes.get("sent", [])[:1]:
        return run_trigger(p.engine, KEYS, armed.entry, armed.kind)
    return None


def attempt_under_way(p: Process) -> Any:
    """The same, whose code was running already, and returns now."""
    for armed, token in p.notes.get("running", []):
        handler = INSTANCES.handlers(armed.placed)[armed.trigger]
        return Attempt(p.engine, KEYS, armed, handler, token, False).record(1)
    return None


def host(p: Process) -> Any:
    """An event loop that takes over a coroutine, which returns at once."""
    token = new_id()
    due = p.driver.run(claim.claim(KEYS, INSTANCES, 10, KEYS.hosted, token))
    for armed in due.triggers:
        handler = INSTANCES.handlers(armed.placed)[armed.trigger]
        return Attempt(p.engine, KEYS, armed, handler, token, False).record(7)
    return None


def ended_task(p: Process) -> Any:
    """The end of a user's task arrives where it cannot be recorded yet."""
    for armed in p.notes.get("sent", [])[:1]:
        return p.driver.run(runs.keep_end(KEYS, armed.entry, '{"value":1}'))
    return None


def pump(p: Process) -> Any:
    return p.driver.run(claim.pump(KEYS, hosted=True))


def pause(p: Process) -> Any:
    return p.executor.pause("o")


def resume(p: Process) -> Any:
    return p.executor.resume("o")


def cancel(p: Process) -> Any:
    try:
        return p.executor.cancel("o", "why", children=True)
    except CancelUnfinished as unfinished:
        return unfinished.left


def cancel_by_force(p: Process) -> Any:
    """Without cancel handlers: it joins a cancelling that is under way."""
    return p.executor.cancel("o", "now", force=True)


def finish(p: Process) -> Any:
    """A worker that goes on with a cancelling."""
    return p.relay.other("~cancel:o")


def retry(p: Process) -> Any:
    return p.executor.retry("o")


def retry_all(p: Process) -> Any:
    return p.executor.retry(module="m")


def count(p: Process) -> Any:
    """A user's transaction on the keys of the handlers."""

    def once(tx: Transaction) -> None:
        note(tx, f"- - user:{p.name}", read=True)

    return p.executor.autocommit(once, module="m")


def spawn(p: Process) -> Any:
    """A user's transaction that starts a machine and writes."""

    def once(tx: Transaction) -> None:
        tx.add_state_machines(_machines(Wait(1)))
        note(tx, f"- - adds:{p.name}", read=True)

    try:
        return p.executor.autocommit(once, module="m")
    except StateAlreadyExists:
        return None


def relay(p: Process) -> Any:
    """A worker that finds requests."""
    return p.relay.other("~requests")


def relay_cut_off(p: Process) -> Any:
    """The same, whose broker is away; where nothing is asked for it is the same indeed."""
    if not p.notes.get("asks"):
        return None
    p.sent.down = True
    return p.relay.other("~requests")


def relay_unsendable(p: Process) -> Any:
    """The same, for a task that can never be sent."""
    if not p.notes.get("asks"):
        return None

    def refuse(*_: object) -> None:
        raise TypeError("what is not JSON")

    p.sent.send_task = refuse  # type: ignore[method-assign]
    return p.relay.other("~requests")


def own(p: Process) -> Any:
    """Who has left requests, and does them now."""
    return p.relay.own(p.notes.get("requests", []))


def ask(p: Process) -> Any:
    """A client without machine code asks for a signal."""
    data = {"kind": "client-signal", "id": "client-1", "operation_id": "o", "signal": "go", "module": "m"}
    return p.driver.run(requests.ask(KEYS, {**data, "payload": {"id": "f1", "n": 1}, "machine": None, "signal_id": ""}))


def sweep(p: Process) -> Any:
    """Retention."""
    return p.driver.run(retention.sweep(KEYS, INSTANCES))


def deadline_passes(p: Process) -> Any:
    return _pass(p, 1_500_000)


def lease_passes(p: Process) -> Any:
    return _pass(p, 4_100_000)


def _pass(p: Process, us: int) -> Any:
    p.driver.command("#ADVANCE", us)


ACTORS: list[Actor] = [
    add, add_batch, add_short, signal_stay, signal_end, signal_mid, signal_work, signal_again, drain, stopped_first,
    stopped_second, renew, attempt, attempt_under_way, host, ended_task, pump, pause, resume, cancel,
    cancel_by_force, finish, retry, retry_all, count,
    spawn, relay, relay_cut_off, relay_unsendable, own, ask, sweep, deadline_passes, lease_passes,
]  # fmt: skip


# --- stages --------------------------------------------------------------------------------------------------------


def empty(p: Process, store: Store) -> None:
    """Nothing is there."""
    p.notes["empty"] = True


def waiting(p: Process, store: Store) -> None:
    """One machine waits, alone in its operation, for a signal, a deadline or a poll; its poll was sent."""
    p.executor.add_state_machines(_machines(Wait(1)))
    p.drain.run()
    p.notes["sent"] = list(p.sent.triggers)


def hinted(p: Process, store: Store) -> None:
    """The same, and a hint is under way."""
    waiting(p, store)
    p.driver.command("SET", KEYS.hint, "1", "PX", 1_000)


def decided(p: Process, store: Store) -> None:
    """Two machines are about to go to one state; both are due."""
    p.executor.add_state_machines(_machines(Wait(1), Wait(2)))
    p.drain.run()
    p.notes["sent"] = list(p.sent.triggers)
    _signal(p, "x2", 2)
    _signal(p, "y2", 2)


def asking(p: Process, store: Store) -> None:
    """One machine whose poll was sent, and gets no answer."""
    p.executor.add_state_machines(_machines(Wait(2)))
    p.drain.run()
    p.notes["sent"] = list(p.sent.triggers)


def failing(p: Process, store: Store) -> None:
    """One machine whose handler fails for a while, claimed."""
    p.executor.add_state_machines(_machines(Wait(1)))
    _signal(p, "x5", 5)
    p.notes["claims"] = _claims(p)


def suspected(p: Process, store: Store) -> None:
    """Two decided machines whose claim came to nothing."""
    decided(p, store)
    _claims(p)
    store.advance(4_100_000)


def claimed(p: Process, store: Store) -> None:
    """The same, each claimed by another worker."""
    decided(p, store)
    p.notes["claims"] = _claims(p)


def ending(p: Process, store: Store) -> None:
    """The last two machines of an operation, about to end in one state, each claimed by another worker."""
    p.executor.add_state_machines(_machines(Wait(1), Wait(2)))
    p.drain.run()
    _signal(p, "x1", 1)
    _signal(p, "y1", 1)
    p.notes["claims"] = _claims(p)


def staying(p: Process, store: Store) -> None:
    """One machine whose handler will say None, claimed."""
    p.executor.add_state_machines(_machines(Wait(1)))
    p.drain.run()
    p.notes["sent"] = list(p.sent.triggers)
    _signal(p, "x0", 0)
    p.notes["claims"] = _claims(p)


def again(p: Process, store: Store) -> None:
    """One machine about to enter its state anew, claimed; a poll of its former visit runs."""
    p.executor.add_state_machines(_machines(Wait(1)))
    p.drain.run()
    p.notes["sent"] = list(p.sent.triggers)
    p.notes["running"] = [(one, _started(p, one)) for one in p.sent.triggers]
    _signal(p, "x4", 4)
    p.notes["claims"] = _claims(p)


def paused(p: Process, store: Store) -> None:
    """One machine that was decided while its operation was paused, and is held."""
    p.executor.add_state_machines(_machines(Wait(1)))
    p.executor.pause("o")
    _signal(p, "x1", 1)
    p.drain.run()


def pausing(p: Process, store: Store) -> None:
    """One decided machine, claimed by a worker before its operation was paused."""
    p.executor.add_state_machines(_machines(Wait(1)))
    _signal(p, "x2", 2)
    p.notes["claims"] = _claims(p)
    p.executor.pause("o")


def kept(p: Process, store: Store) -> None:
    """One machine whose cancel handler reads."""
    p.executor.add_state_machines(_machines(Kept(1)))


def cancelling(p: Process, store: Store) -> None:
    """One machine whose cancel handler leaves work behind; its cancelling was begun, and its caller has died."""
    p.executor.add_state_machines(_machines(Kept(2)))
    p.driver.run(begin(KEYS, "o", "why", children=False))


def stuck(p: Process, store: Store) -> None:
    """The same with one that fails for a while."""
    p.executor.add_state_machines(_machines(Kept(3)))
    p.driver.run(begin(KEYS, "o", "why", children=False))


def asked(p: Process, store: Store) -> None:
    """A client has asked for a signal."""
    p.executor.add_state_machines(_machines(Wait(1)))
    ask(p)


def quarantined(p: Process, store: Store) -> None:
    """Two machines that were set aside: one with its outcome, one that waits."""
    p.executor.add_state_machines(_machines(Wait(1), Wait(2)))
    _signal(p, "x1", 1)
    why = RuntimeError("why")
    for key in [key for key in store.data if key.startswith(KEYS.machine_prefix)]:
        machine = Machine.parse(cast("bytes", store.data[key]))
        steps = runs.defer(KEYS, machine.entry, machine.guard, 0, failed=True, error="why", op="o", quarantine=why)
        p.driver.run(steps)


def left_behind(p: Process, store: Store) -> None:
    """A transition has committed; its worker died before it did what the commit asks for."""
    p.executor.add_state_machines(_machines(Wait(1), Wait(2)))
    _signal(p, "x3", 3)
    p.drain.relay.own = lambda items: p.notes.update(requests=list(items))  # type: ignore[method-assign]
    p.drain.run()
    store.advance(4_100_000)


def unsendable(p: Process, store: Store) -> None:
    """A task was tried to be sent as often as may be, but once."""
    item = requests.stored(
        {"kind": "task", "id": "u", "name": "n", "args": ["u"], "kwargs": {}, "options": {}, "tries": 7}, 0
    )
    store.do("RPUSH", KEYS.requests, item)
    store.do("ZADD", KEYS.schedule, store.now_ms, "~requests")


def followed(p: Process, store: Store) -> None:
    """One machine waits for a state of an operation, in which another is about to be."""
    p.executor.add_state_machines(_machines(Wait(1)))
    _signal(p, "x2", 2)
    p.notes["claims"] = _claims(p)
    p.executor.add_state_machines(_machines(Follower("o"), op="follower"))


def over(p: Process, store: Store) -> None:
    """An operation whose time is up."""
    p.executor.add_state_machines(_machines(Short(1), op="short"))
    store.advance(1_100_000)
    p.drain.relay.other = lambda entry: None  # type: ignore[method-assign]
    p.drain.run()
    store.advance(1_100_000)


def hosted(p: Process, store: Store) -> None:
    """One machine waits with a coroutine."""
    p.executor.add_state_machines(_machines(Hosted(1)))


def early(p: Process, store: Store) -> None:
    """A signal came before its machine."""
    _signal(p, "x1", 1)
    _signal(p, "y0", 0)


def _started(p: Process, armed: Any) -> str:
    token = new_id()
    p.driver.run(runs.start(KEYS, INSTANCES, armed.entry, token, armed.kind))
    return token


def _claims(p: Process) -> list[Any]:
    return [*p.driver.run(claim.claim(KEYS, INSTANCES, 10)).machines]


STAGES: list[Callable[[Process, Store], None]] = [
    empty, waiting, hinted, decided, claimed, ending, staying, again, asking, failing, suspected, paused, pausing,
    kept, cancelling, stuck, quarantined, left_behind, asked, unsendable, followed, over, hosted, early,
]  # fmt: skip


ONLY: dict[str, list[tuple[Actor, Actor]]] = {
    "kept": [(cancel, other) for other in (cancel, cancel_by_force, drain, add, signal_end, count, pause, resume)],
    "cancelling": [
        (finish, other)
        for other in (finish, drain, add_batch, signal_end, relay, lease_passes, cancel, cancel_by_force, pause)
    ],
    "stuck": [(finish, other) for other in (finish, cancel, cancel_by_force, retry_all)],
}
"""Stages in which no more than these pairs are explored: what else could meet there meets in others as well."""

TOO_MANY = {("left_behind", "cancel", "cancel")}
"""Pairs that are left out: a million steps, and no end in sight. Two that cancel one operation meet in other stages,
two that cancel its children in ``tests/integration/test_steering.py``."""

HERE_ONLY = {finish, cancel_by_force, retry_all}
"""Who has nothing to do in any other stage, or does what another does."""


def stage(make: Callable[[Process, Store], None]) -> tuple[Store, Stage]:
    """Set a stage up, in a store of its own."""
    store = Clocked()
    notes: dict[str, Any] = {}
    store.do("HSET", KEYS.meta, "shards", 1, "format", 1)
    with repeatable():
        make(Process(Memory(store), notes), store)
    notes["quiet"] = store.do("ZCOUNT", KEYS.schedule, "-inf", store.now_ms) == 0
    notes["now_us"] = store.now_us
    notes["asks"] = bool(store.do("LLEN", KEYS.requests))
    return store, Stage(make.__name__, store.snapshot(), notes)

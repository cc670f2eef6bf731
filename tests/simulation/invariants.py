"""What must hold after every step, and what must have come of it at the end."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from typing import Any

from smqueue.keys import digest
from smqueue.protocols.claim import Watch
from smqueue.protocols.control import resume
from smqueue.records import Active, Machine, deadline_ms
from smqueue.testing.memory import Memory
from smqueue.testing.store import Store
from smqueue.testing.values import Hash, List, Zset
from smqueue.worker.code import run_trigger
from tests.simulation.explorer import Violated, World
from tests.simulation.processes import KEYS, Process

P = KEYS.prefix
ADDERS = {"add", "add_batch", "spawn"}


def check(world: World) -> None:
    """After every single step.

    Raises:
        Violated: Something does not hold.
    """
    store = world.store
    machines = {
        key.removeprefix(KEYS.machine_prefix): Machine.parse(value)
        for key, value in store.data.items()
        if key.startswith(KEYS.machine_prefix) and isinstance(value, bytes)
    }
    active = {
        digest(_op(key), field.decode()): (_op(key), Active.parse(value))
        for key, held in store.data.items()
        if key.startswith(KEYS.active_prefix) and isinstance(held, Hash)
        for field, value in held.items()
    }
    _same("records and their machine keys", active.keys(), machines.keys())
    schedule, hosted = _zset(store, KEYS.schedule), _zset(store, KEYS.hosted)
    races = {entry for entry in schedule if entry.count(":") == 1 and entry[0] != "~"}
    wanted = {machine.entry for machine in machines.values()}
    if missing := wanted - races:
        raise Violated(f"I1: a machine has no entry in the schedule: {missing}")
    ids = Counter(one.machine for _, one in active.values())
    if twice := [id for id, n in ids.items() if n > 1]:
        raise Violated(f"machines are active twice: {twice}")
    for record, machine in machines.items():
        _check_race(store, record, machine, schedule, hosted)
    _check_counts(store)
    members = set(_zset(store, KEYS.operations))
    _same("operations with machines", {op for op, _ in active.values()}, members)
    for key, lines in store.data.items():
        if key.startswith(P + "history:") and isinstance(lines, List):
            check_history([json.loads(line) for line in lines])


def _check_counts(store: Store) -> None:
    """What has come into a state, less what has left it, is how many are in it."""
    moves = store.data.get(KEYS.moves, Hash())
    assert isinstance(moves, Hash)
    counted = Counter[str]()
    for move, times in moves.items():
        module, source, target, _ = move.decode().split(" ")
        counted[f"{module} {target}"] += int(times) if target and target[-1] != "!" else 0
        counted[f"{module} {source}"] -= int(times) if source else 0
    fields = (
        field.decode()
        for key, held in store.data.items()
        if key.startswith(KEYS.active_prefix) and isinstance(held, Hash)
        for field in held
    )
    there = Counter(" ".join(field.split(" ")[:2]) for field in fields)
    standing = {name: n for name, n in counted.items() if n}
    _same("machines counted in a state", dict(there).items(), standing.items())


def _check_race(
    store: Store, record: str, machine: Machine, schedule: dict[str, float], hosted: dict[str, float]
) -> None:
    race = store.data.get(KEYS.race(record), Hash())
    assert isinstance(race, Hash)
    deadline, won = deadline_ms(machine.armed), race.get(b"won")
    if won is not None:
        name, at = won.decode(), int(race[b"at"])
        if name not in machine.armed:
            raise Violated(f"I7: {name} has won, and is not armed in {machine.entry}")
        if deadline is not None and at >= deadline and machine.armed[name] != deadline:
            raise Violated(f"I7: {name} was recorded at {at}, after the deadline {deadline}")
        if schedule[machine.entry] > store.now_ms + 4_200_000:
            raise Violated(f"I1: the score of {machine.entry} is too far ahead")
        return
    open_still = deadline is None or deadline > store.now_ms
    module = machine.field.partition(" ")[0]
    for name, wait in machine.armed.items():
        entry = f"{machine.entry}:{name}"
        if isinstance(wait, str) and open_still:
            waiting = _zset(store, KEYS.waiting(machine.op, module, wait))
            begun = store.do("EXISTS", KEYS.inactive(machine.op), KEYS.history(machine.op))
            if entry not in waiting and begun:  # the lone machine of an operation that has not begun is found without
                raise Violated(f"{entry} waits for {wait}, and is not registered")
            inbox = store.data.get(KEYS.inbox(machine.op, module, wait))
            if inbox:
                raise Violated(f"a signal {wait} is kept in the inbox while {entry} waits for it")
        elif not isinstance(wait, list) or wait[0] == "now" or not open_still:
            continue
        elif entry not in schedule and entry not in hosted:
            raise Violated(f"I1: the trigger {entry} has no entry")
        elif wait[0] == "reached" and schedule[entry] > store.now_ms + 600_000 and _reached(store, str(wait[1])):
            raise Violated(f"{entry} waits for what has been reached, and does not look")


def _reached(store: Store, op: str) -> bool:
    places: list[Any] = [store.data.get(key(op), {}) for key in (KEYS.active, KEYS.inactive)]
    return any(field.startswith(b"m Mid ") for place in places for field in place)


def check_history(entries: list[dict[str, Any]]) -> None:
    """Steps of each machine are contiguous and begin with 1; what ended has no later one.

    Raises:
        Violated: They are not.
    """
    steps: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        steps.setdefault(entry["machine"], []).append(entry)
    for machine, mine in steps.items():
        numbers = [entry["step"] for entry in mine]
        if numbers[0] != 1 or any(b != a + 1 for a, b in pairwise(numbers)):
            raise Violated(f"the steps of {machine} are {numbers}")
        if any(entry.get("terminal") or entry.get("merged") for entry in mine[:-1]):
            raise Violated(f"{machine} goes on after its end: {mine}")


def finish(world: World) -> None:
    """At the end of a schedule: the schedule alone brings all machines to their end, and all accounts agree.

    Raises:
        Violated: They do not.
    """
    _check_pauses(world)
    _check_hints(world)
    store = world.store
    before = store.snapshot()
    try:
        tasks = [one for task in world.tasks for one in task.point.tasks] + _healed(world)
        if left := _zset(store, KEYS.operations):
            raise Violated(f"these operations never end: {set(left)}")
        _check_accounts(world, {str(args[0]) for _, args, *_ in tasks})
    finally:
        store.restore(before)


def _check_hints(world: World) -> None:
    """Without any fault what is due is known to somebody: a hint is under way, or its flag says so."""
    store, notes = world.store, world.stage.notes
    if world.faults or not notes["quiet"] or store.now_us != notes["now_us"]:
        return
    due = [entry for entry, score in _zset(store, KEYS.schedule).items() if score <= store.now_ms and entry[0] != "~"]
    told = any(task.point.hints or _pumped(task.point.result) for task in world.tasks)
    if due and KEYS.hint not in store.data and not told:
        raise Violated(f"these are due, and nobody was told: {due}")


def _pumped(result: Any) -> bool:
    return isinstance(result, Watch) and result.hint


def _healed(world: World) -> list[Any]:
    """The same as ``heal``, which depends on nothing but the store: of ends that agree in that it is done once."""
    if world.held not in world.healed:
        sent = heal(world)
        world.healed[world.held] = sent, world.store.snapshot()
    sent, after = world.healed[world.held]
    world.store.restore(after)
    return sent


def heal(world: World) -> list[Any]:
    """All that ran has ended or died: time passes, one worker looks at what is due, then pauses are lifted.

    Returns:
        The tasks of users that it has sent.
    """
    store = world.store
    process = Process(Memory(store), world.stage.notes)
    for n in range(14):
        store.advance(5_000_000)
        process.drain.run()
        while process.sent.triggers:
            armed = process.sent.triggers.pop()
            run_trigger(process.engine, KEYS, armed.entry, armed.kind)
        check(world)
        if n == 4:
            for control in [key for key in store.data if key.startswith(P + "control:")]:
                process.driver.run(resume(KEYS, control))
            for op in _zset(store, KEYS.operations):
                process.executor.retry(op)
        if not (_zset(store, KEYS.operations) or store.data.get(KEYS.requests)) and (
            n > 4 or not _zset(store, KEYS.schedule)
        ):
            break
    return process.sent.tasks


def _check_accounts(world: World, sent: set[str]) -> None:
    """What handlers wrote in their commits agrees with the histories, and with what was promised to callers."""
    store = world.store
    data = KEYS.data("m", "")
    held: Any = store.data.get(data + "log", ())
    log = [line.decode() for line in held]
    if twice := [line for line, n in Counter(log).items() if n > 1]:
        raise Violated(f"these have run twice: {twice}")
    for name, n in (("moves", len(log)), ("count", sum(line.endswith("#") for line in log))):
        if (there := store.data.get(data + name, b"0")) != str(n).encode():
            raise Violated(f"{n} transactions have committed, and {name} says {there!r}")
    kept = Counter(line.split(" ")[1] for line in log if line.endswith("0"))
    ran = Counter(line.split(" ")[1] for line in log)
    transitions = _transitions(store)
    for machine in transitions.keys() | ran.keys() - {"-"}:
        if ran[machine] != transitions[machine] + kept[machine]:
            raise Violated(
                f"{machine} has {transitions[machine]} transitions in its history, "
                f"and its handlers have committed {ran[machine]} times, {kept[machine]} of them to stay"
            )
    forced = any(getattr(actor, "__name__", "") == "cancel_by_force" for actor in world.actors)
    _check_undone(store, log, forced)
    taken = Counter(line.partition("go:")[2] for line in log if "go:" in line)
    if twice := [id for id, n in taken.items() if n > 1]:
        raise Violated(f"signals were consumed twice: {twice}")
    if unsent := {line.partition(" go:")[2] for line in log if " go:" in line and line.endswith("3")} - sent:
        raise Violated(f"the tasks of these transitions were never sent: {unsent}")
    if lost := store.data.get(KEYS.requests):
        raise Violated(f"requests were never done: {lost}")
    aside: Any = store.data.get(KEYS.unsent, ())
    if len(aside) > 1 or (world.stage.name == "unsendable" and not aside and "u" not in sent):
        raise Violated(f"of one task that cannot be sent these were set aside: {aside}")
    _check_visits(store)
    _check_promises(world, set(taken))


def _check_undone(store: Store, log: list[str], forced: bool) -> None:
    """What ended by a cancelling has been undone, once, in the commit that ended it, unless by force; and nothing else
    has."""
    ended = Counter[str]()
    for key, lines in store.data.items():
        if key.startswith(P + "history:o"):
            assert isinstance(lines, List)
            steps = [entry for entry in map(json.loads, lines) if "cancelled" in entry]
            ended.update(f"{one['machine']}:{one['cancelled']}" for one in steps if one["to"].startswith("m Kept "))
    undone = Counter(line.partition("undo:")[2].rstrip("#") for line in log if " undo:" in line)
    if undone - ended or (ended - undone and not forced):
        raise Violated(f"these were cancelled: {dict(ended)}, and these undone: {dict(undone)}")


def _check_visits(store: Store) -> None:
    """A record counts how often its state was left, a terminal one how often it was entered."""
    for key, held in store.data.items():
        if not key.startswith(P + "inactive:") or not isinstance(held, Hash):
            continue
        op = key.removeprefix(P + "inactive:")
        lines: Any = store.data.get(KEYS.history(op), ())
        entries = [json.loads(line) for line in lines]
        for field, raw in held.items():
            record = json.loads(raw)
            entered = [entry for entry in entries if entry["to"] == field.decode() and not entry.get("merged")]
            if record["visits"] != len([e for e in entered if not e.get("cancelled")]):
                raise Violated(f"{op} was in {field.decode()} {len(entered)} times, and its record says {record}")


def _transitions(store: Store) -> Counter[str]:
    """Machine → steps that a handler has brought."""
    found: Counter[str] = Counter()
    for key, lines in store.data.items():
        if key.startswith((P + "history:o", P + "history:c", P + "history:f")):
            assert isinstance(lines, List)
            found.update(entry["machine"] for entry in map(json.loads, lines) if "won" in entry)
    return found


def _check_promises(world: World, taken: set[str]) -> None:
    """A caller who was told of success was told the truth."""
    store = world.store
    inboxes: list[Any] = [line for key, held in store.data.items() if key.startswith(P + "inbox:") for line in held]  # type: ignore[union-attr]
    kept = {json.loads(line)["payload"]["id"] for line in inboxes}
    if len(kept) < len(inboxes) or kept & taken:
        raise Violated(f"a signal was accepted twice: {inboxes}, {taken}")
    past: list[Any] = [v for key, h in store.data.items() if key.startswith(P + "inactive:") for v in h.values()]  # type: ignore[union-attr]
    cancelled = any(b'"cancelled"' in value for value in past)
    for task in world.tasks:
        result = task.point.result
        if result == "RECORDED" and world.stage.name == "again":
            raise Violated("a poll of a visit whose race was decided has recorded its outcome in the next one")
        if task.point.error is not None or not isinstance(result, tuple) or len(result) != 2:
            continue
        what, told = result
        if what == "denied" and world.faults and sum(getattr(a, "__name__", "") in ADDERS for a in world.actors) == 1:
            raise Violated(f"an add was told that it came too late, and it was the only one: {told}")
        if what == "added":
            for op, field in [one for one in told if one[0] != "short"]:  # forgotten after a second
                places: list[Any] = [store.data.get(key(op), {}) for key in (KEYS.active, KEYS.inactive)]
                if not any(field.encode() in place for place in places):
                    raise Violated(f"an add was acknowledged, and its record is gone: {op} {field}")
        for answer, id in told if what == "signalled" else []:
            if answer in {"DELIVERED", "BUFFERED"} and id not in taken | kept and not cancelled:
                raise Violated(f"signal {id} was {answer}, and is gone")


def _check_pauses(world: World) -> None:
    """Once ``pause`` has returned nothing of the operation commits."""
    names = [getattr(actor, "__name__", "") for actor in world.actors]
    if "pause" not in names or "resume" in names or world.tasks[names.index("pause")].point.error is not None:
        return
    ends = dict(world.timeline)
    log: Any = world.store.data.get(KEYS.data("m", "log"), ())
    now = sum(line.startswith(b"o ") for line in log)
    if now > ends[names.index("pause")]:
        raise Violated(f"after pause had returned {now - ends[names.index('pause')]} transitions have committed")


def _zset(store: Store, key: str) -> dict[str, float]:
    held = store.data.get(key, Zset())
    assert isinstance(held, Zset)
    return {member.decode(): score for member, score in held.items()}


def _same(what: str, one: Any, other: Any) -> None:
    if set(one) != set(other):
        raise Violated(f"{what} do not agree: {set(one) ^ set(other)}")


def _op(key: str) -> str:
    return key.removeprefix(KEYS.active_prefix)

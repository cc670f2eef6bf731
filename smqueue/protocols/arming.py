"""The commands that make a state active and arm its triggers, end it, or keep it waiting. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from random import randrange
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec import UNSET, Raw, Struct, UnsetType, to_builtins
from msgspec.structs import replace

from smqueue.chain import Chain
from smqueue.handlers import Handler
from smqueue.instances import Push
from smqueue.keys import HOSTED_KINDS, Keys, decode, schedule_of
from smqueue.protocols.bounds import HINT_MS, PARK_MS, UPDATES_KEPT, WATCH_MS
from smqueue.records import Active, Armed, Item, Machine, Placed, Wait, compact, deadline_ms, kind_of
from smqueue.roundtrip import Command
from smqueue.trigger_types import Deadline, Finished, Reached, Signal

if TYPE_CHECKING:
    from smqueue.protocols.claim import Claimed

AWAITED_AGAIN = frozenset({"signal", "channel", "poll"})
"""Kinds of trigger that a handler's ``None`` arms anew; the others have happened once and are over."""


def parked(now_us: int) -> int:
    """A score about an hour ahead, ms, spread so that those parked together do not come back together."""
    return now_us // 1000 + PARK_MS + randrange(PARK_MS // 10)


class Plan(NamedTuple):
    """Commands of one commit, and whether they leave something due at once."""

    commands: list[Command]
    due: bool
    taken: frozenset[bytes] = frozenset()
    """The buffered signal that is its outcome, if any."""


def wait_of(handler: Handler, state: Any, now_us: int) -> Wait:
    """What an armed trigger waits for, as it is stored."""
    trigger: Any = handler.trigger
    match trigger:
        case Signal():
            return str(trigger.name)
        case Deadline():
            return -(-trigger.due_us(state, now_us) // 1000)  # up to the next ms: none fires early
        case Reached() | Finished():
            return [trigger.kind, trigger.operation_for(state)]
        case _:
            return [trigger.kind]


def arm(
    keys: Keys,
    machine: Machine,
    active: Active,
    now_us: int,
    head: Callable[[str], Item | None],
    again: str | None = None,
    registers: bool = True,
) -> Plan:
    """Arm the triggers of a state: what is ready, in declaration order, is the outcome; the rest waits.

    Args:
        keys: Of the operation's shard.
        machine: The record with what it is armed with; ``machine.guard`` is the commit that this is part of.
        active: Its active value; it has waited since ``active.at_us``.
        now_us: Redis's clock.
        head: Signal name → the first buffered signal that this machine may take.
        again: After ``None``: the name of the trigger that was consumed and is awaited anew.
        registers: Among those that wait for a signal. The only machine of an operation that begins with it does not,
            unless several of its triggers wait for one: the script that gives it a signal finds it without.
    """
    record, race = machine.record, keys.race(machine.record)
    op, module = machine.op, machine.field.partition(" ")[0]
    now_ms = now_us // 1000
    commands: list[Command] = []
    deadline = deadline_ms(machine.armed)
    won, item = _ready(machine.armed, now_ms, head) if again is None else _passed(machine.armed, now_ms, head)
    if item is not None and won is not None:
        commands.append(("LREM", _inbox(keys, op, module, str(machine.armed[won[0]])), 1, item.raw))
    code = False
    due_at = {name: now_ms for name, wait in machine.armed.items() if isinstance(wait, list) and wait[0] != "now"}
    if won is None:
        signals = [wait for wait in machine.armed.values() if isinstance(wait, str)]
        if registers or len(set(signals)) < len(signals):
            commands += register(keys, machine, active.at_us)
        for name, at in due_at.items():
            code = True
            # After ``None`` the others keep their place in the schedule: a poll its rhythm, a running call its lease.
            nx = () if again is None else ("NX",)
            commands.append(
                ("ZADD", schedule_of(keys, kind_of(machine.armed[name])), *nx, at, f"{machine.entry}:{name}")
            )
    else:
        sent = ("trace", item.trace) if item is not None and item.trace else ()
        commands.append(("HSET", race, "won", won[0], "value", won[1], "at", won[2], *sent))
    score = now_ms if won else min(deadline or parked(now_us), parked(now_us))
    commands += [("SET", keys.machine(record), machine.dump()), ("ZADD", keys.schedule, score, machine.entry)]
    if won is None and (score < now_ms + WATCH_MS or not HOSTED_KINDS.isdisjoint(map(kind_of, machine.armed.values()))):
        commands.append(rouse(keys))
    return Plan(
        commands, due=won is not None or code, taken=frozenset((item.raw,)) if item is not None else frozenset()
    )


def register(keys: Keys, machine: Machine, since_us: int) -> list[Command]:
    """Among those that wait for a signal, oldest first.

    Of two triggers of one state for one signal the one declared first gets it, here as at arming.
    """
    module = machine.field.partition(" ")[0]
    return [
        ("ZADD", _waiting(keys, machine.op, module, wait), since_us + place, f"{machine.entry}:{name}")
        for place, (name, wait) in enumerate(machine.armed.items())
        if isinstance(wait, str)
    ]


Won = tuple[str, str, int]
"""Name of a trigger, its outcome as JSON, and when it completed, ms."""


def _ready(armed: Armed, now_ms: int, head: Callable[[str], Item | None]) -> tuple[Won | None, Item | None]:
    """What is ready when a state is entered: the first in declaration order."""
    for name, wait in armed.items():
        match wait:
            case str() if (item := head(wait)) is not None:
                return (name, item.payload, now_ms), item
            case int() if wait <= now_ms:
                return (name, "null", wait), None
            case list() if wait[0] == "now":
                return (name, "null", now_ms), None
            case _:
                pass
    return None, None


def _passed(armed: Armed, now_ms: int, head: Callable[[str], Item | None]) -> tuple[Won | None, Item | None]:
    """What has come while a handler ran that kept the machine: the earliest, and no signal later than a deadline."""
    deadline = deadline_ms(armed)
    came = [
        (item.at_us, name, item) for name, w in armed.items() if isinstance(w, str) and (item := head(w)) is not None
    ]
    if deadline is not None and deadline <= now_ms:
        came = [one for one in came if one[0] < deadline * 1000]
        if not came:
            return (next(name for name, wait in armed.items() if wait == deadline), "null", deadline), None
    if came:
        at_us, name, item = min(came, key=lambda one: one[0])
        return (name, item.payload, at_us // 1000), item
    return None, None


def enter(
    keys: Keys, to: Placed, handlers: Mapping[str, Handler], active: Active, commit_id: str, now_us: int,
    head: Callable[[str], Item | None], *, unknown: bool = False, trace: str = "",
) -> Plan:  # fmt: skip
    """Make a state active and arm it; the arming's id is the commit's. An ``unknown`` one has left nothing behind.

    ``trace`` is the header of the commit's span, if there is one.
    """
    armed: Armed = {name: wait_of(handler, to.state, now_us) for name, handler in handlers.items()}
    machine = Machine(commit_id, commit_id, to.op, to.field, armed, to.type.on_cancel is not None, trace)
    plan = arm(keys, machine, active, now_us, head, registers=not active.lone)
    field = ("HSET", keys.active(to.op), to.field, active.dump())
    member = ("ZADD", keys.operations, "NX", now_us // 1000, to.op)
    gone: list[Command] = [] if unknown else [("DEL", keys.race(to.record)), ("HDEL", keys.quarantine, to.record)]
    return Plan([*gone, *plan.commands, field, member], plan.due, plan.taken)


def leave(keys: Keys, machine: Machine) -> list[Command]:
    """End a record's active life: all that was armed goes with it."""
    op, module, record = machine.op, machine.field.partition(" ")[0], machine.record
    entries: dict[str, list[str]] = {keys.schedule: [machine.entry]}
    commands: list[Command] = [("HDEL", keys.active(op), machine.field)]
    for name, wait in machine.armed.items():
        entry = f"{machine.entry}:{name}"
        match wait:
            case str():
                commands.append(("ZREM", _waiting(keys, op, module, wait), entry))
            case list():
                entries.setdefault(schedule_of(keys, wait[0]), []).append(entry)
                if wait[0] in {"reached", "finished"}:
                    commands.append(("SREM", keys.watchers(_other(wait)), entry))
            case _:
                pass
    commands += [("ZREM", schedule, *gone) for schedule, gone in entries.items()]
    return [*commands, ("DEL", keys.machine(record), keys.race(record)), ("HDEL", keys.quarantine, record)]


def keep(
    keys: Keys, it: Claimed, commit_id: str, now_us: int, head: Callable[[str], Item | None], repoll_ms: int | None
) -> Plan | None:
    """The handler said ``None``: the outcome is consumed, what is left stays armed, deadlines where they were.

    Returns:
        ``None`` when nothing would be left to wait for.
    """
    name, machine = it.won, it.machine
    kind = kind_of(machine.armed[name])
    armed = {n: w for n, w in machine.armed.items() if n != name or kind in AWAITED_AGAIN}
    if not armed:
        return None
    race = keys.race(machine.record)
    traced = ("trace",) if "trace" in it.race else ()
    commands: list[Command] = [
        ("HDEL", race, "won", "value", "at", "claims", "alone", "attempts", "error", *traced),
        ("HDEL", keys.quarantine, machine.record),  # set aside meanwhile by one who took this worker for dead
    ]
    entry = f"{machine.entry}:{name}"
    if name not in armed:
        if kind not in {"now", "deadline"}:
            commands.append(("ZREM", schedule_of(keys, kind), entry))
        if kind in {"reached", "finished"}:
            commands.append(("SREM", keys.watchers(_other(machine.armed[name])), entry))
    elif kind == "poll":
        commands.append(("ZADD", keys.schedule, now_us // 1000 + (repoll_ms or 0), entry))
        commands += [rouse(keys)] if (repoll_ms or 0) < WATCH_MS else []
    kept = replace(machine, guard=commit_id, armed=armed)
    plan = arm(keys, kept, it.active, now_us, head, again=name)
    return Plan([*commands, *plan.commands], plan.due)


def note(keys: Keys, op: str, *entries: Entry, told: int = 0) -> list[Command]:
    """Append steps to the history of an operation, ring its bell, and that of all operations.

    Args:
        keys: Of the shard.
        op: The operation.
        entries: Its new steps.
        told: How many of them, from the first, were told when they happened, and are only written now.
    """
    lines = [compact(entry) for entry in entries]
    news: list[Command] = [
        ("XADD", keys.updates, "MAXLEN", "~", UPDATES_KEPT, "*", "op", op, "entry", line) for line in lines[told:]
    ]
    bells: list[Command] = [("SPUBLISH", keys.bell(op), ""), ("SPUBLISH", keys.bells, "")]
    return [("RPUSH", keys.history(op), *lines), *news, *bells]


class Entry(Struct, omit_defaults=True, gc=False):
    """One entry of a history, in the order in which it is stored: a machine has entered a state."""

    machine: str
    step: int
    to: str
    at: int | Raw
    commit: str
    version: int
    terminal: bool = False
    won: str = ""
    merged: str = ""
    cancelled: str | UnsetType = UNSET
    """Why, which may be empty."""
    seal: str = ""


def first_entry(field: str, active: Active) -> Entry:
    """The entry of a machine's adding, as it would have been written then."""
    made = active.made
    return Entry(active.machine, active.step, field, active.at_us, made, active.version, seal=active.seal)


def sealed(chain: Chain | None, op: str, before: str, active: Active, entry: Entry) -> tuple[Active, Entry]:
    """A machine and its new step with the step's seal, if histories are sealed; ``before`` is that of its last step."""
    if chain is None:
        return active, entry
    entry.seal = chain.seal(op, before, to_builtins(entry))
    return replace(active, seal=entry.seal), entry


ADDED, MERGED, CANCELLED = "+add", "+merge", "+cancel"
"""How a machine comes into a state, or leaves one, without a trigger that wins; no encoded name of one has a plus."""


def counted(keys: Keys, source: str, target: str, how: str, times: int = 1, *, ends: bool = False) -> Command:
    """Count machines that leave the state of one field for that of another; either is empty when there is none.

    A terminal state is marked: nothing ever leaves it, and yet nothing is active in it.
    """
    return ("HINCRBY", keys.moves, edge(*_type_of(source), *_type_of(target), how, ends=ends), times)


def edge(module: str, left: str, other: str, entered: str, how: str, *, ends: bool) -> str:
    """How such a move is counted; all of it encoded, as in fields."""
    return f"{module or other} {left} {entered}{'!' if ends else ''} {how}"


def counted_all(keys: Keys, moves: Iterable[tuple[str, str]], how: str) -> list[Command]:
    """The same for machines from and to several states: one command for all that are alike."""
    alike = Counter((" ".join(_type_of(source)), " ".join(_type_of(target))) for source, target in moves)
    return [counted(keys, source, target, how, times) for (source, target), times in alike.items()]


def _type_of(field: str) -> tuple[str, str]:
    """Module and type of a field, encoded as they are in it."""
    module, _, rest = field.partition(" ")
    return module, rest.partition(" ")[0]


def ring(keys: Keys, watchers: Any, now_us: int) -> list[Command]:
    """Those who wait for something in this operation look again."""
    entries = [raw.decode() for raw in watchers]
    return [("ZADD", keys.schedule, now_us // 1000, entry) for entry in entries]


def hint(keys: Keys, push: Push | None, id: str = "") -> Command:
    """Say that something is due: the reply is nil unless the caller is the one to send the hint.

    EVAL with its text, as ``settle``; ``id`` is that of the message.
    """
    if push is None:
        return ("SET", keys.hint, "1", "NX", "PX", HINT_MS)
    body = "if not redis.call('SET',KEYS[1],'1','NX','PX',ARGV[1]) then return false end"
    body += " redis.pcall('SELECT',ARGV[2]) local message=ARGV[3]:gsub(ARGV[4],ARGV[5])"
    body += " return type(redis.pcall('LPUSH',KEYS[2],message))~='number' and 1"
    return ("EVAL", body, 2, keys.hint, push.queue, HINT_MS, push.database, push.message, push.mark, id)


def rouse(keys: Keys) -> Command:
    """Ring for the pump on watch, once until it looks: something falls due before it would. EVAL, as ``settle``."""
    body = "if redis.call('SET',KEYS[1],'1','NX','PX',ARGV[1]) then redis.call('PUBLISH',KEYS[2],'') end return 1"
    return ("EVAL", body, 2, keys.roused, keys.wake, WATCH_MS)


def settle(keys: Keys, op: str, now_us: int, keep: timedelta | None, *, certain: bool) -> list[Command]:
    """After its last machine has left, an operation is no longer one with active machines.

    Unless it is certain that this was the last one, that is decided within the EXEC. EVAL with its text, not EVALSHA:
    after a restart that would fail alone, with its neighbours applied.
    """
    forget_ms = "" if keep is None else now_us // 1000 + round(keep.total_seconds() * 1000)
    if certain:
        later: list[Command] = [("ZADD", keys.finished, forget_ms, op)]
        later.append(("ZADD", keys.schedule, "LT", forget_ms, "~retention"))
        return [("ZREM", keys.operations, op), *(later if keep is not None else [])]
    body = "if redis.call('EXISTS',KEYS[1])==0 then redis.call('ZREM',KEYS[2],ARGV[1])"
    body += " if ARGV[2]~='' then redis.call('ZADD',KEYS[3],ARGV[2],ARGV[1])"
    body += " redis.call('ZADD',KEYS[4],'LT',ARGV[2],'~retention') end end return 1"
    return [("EVAL", body, 4, keys.active(op), keys.operations, keys.finished, keys.schedule, op, forget_ms)]


def _other(wait: Wait) -> str:
    """The operation that ``reached`` or ``finished`` watches."""
    assert isinstance(wait, list)
    return str(wait[1])


def _inbox(keys: Keys, op: str, module: str, signal: str) -> str:
    return keys.inbox(op, decode(module), signal)


def _waiting(keys: Keys, op: str, module: str, signal: str) -> str:
    return keys.waiting(op, decode(module), signal)

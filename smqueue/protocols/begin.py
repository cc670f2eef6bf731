"""Beginning an operation with one machine that just waits, by a script: what most of adding is."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from random import randrange
from typing import NamedTuple

from smqueue.handlers import Handler
from smqueue.instances import Instances
from smqueue.keys import Keys, encode
from smqueue.protocols.arming import ADDED, edge
from smqueue.protocols.bounds import PARK_MS, UPDATES_KEPT, WATCH_MS
from smqueue.protocols.spawn import Spawned
from smqueue.records import Active, Placed, compact
from smqueue.roundtrip import Arg, Call, own_call
from smqueue.states import State
from smqueue.trigger_types import Deadline, Signal

FAR_US = 2**52
"""What is added to the clock in a script has to stay exact there."""


def begin(
    keys: Keys, instances: Instances, placed: Placed, commit_id: str, max_active: int | None, trace: str
) -> Call | None:
    """The call that starts the first machine of an operation, if signals and deadlines are all that it waits for.

    It needs no look, for it rests on nothing but that nothing is there. The script leaves what EXEC would.

    Returns:
        ``None``: this is for ``autocommit``. It is, too, when the script returns nothing: ``autocommit`` finds out why;
        and when the reply was lost: then it may have been done, and the record has this commit's id.
    """
    known = placed.type
    waits = None if known.terminal or instances.chain is not None else waits_of(instances, placed)
    if waits is None:
        return None
    op, field, undo = placed.op, placed.field, known.on_cancel is not None
    args = _args(keys.prefix, placed.module, known.name, known.module.version, max_active, waits.triggers)
    own = (
        commit_id, op, encode(op), field, compact(op), compact(field), placed.record,
        f",{int(undo)},{compact(trace)}]" if trace else ",1]" if undo else "]", PARK_MS + randrange(PARK_MS // 10),
        *waits.deadlines,
    )  # fmt: skip
    return own_call("begin", (keys.schedule,), args, own)


def begun(reply: bytes, placed: Placed, commit_id: str) -> tuple[Spawned, bool]:
    """The machine that the script has started, and whether anybody consumes Celery's events."""
    at_us, watched = reply.split()
    active = Active(commit_id, 1, int(at_us), placed.type.module.version, commit_id, lone=True)
    return Spawned(placed, active), watched != b"0"


@lru_cache(maxsize=1024)
def _args(
    prefix: str, module: str, type_name: str, version: int, max_active: int | None, triggers: tuple[Arg, ...]
) -> tuple[Arg, ...]:
    """What is the same for all that are added in such a state: made but once, so that groups see at once that it is."""
    module = encode(module)
    return (
        prefix, module, version, edge("", "", module, encode(type_name), ADDED, ends=False),
        "" if max_active is None else max_active, WATCH_MS, UPDATES_KEPT, len(triggers), *triggers,
    )  # fmt: skip


class Waits(NamedTuple):
    """What the triggers of a state wait for, as scripts take it."""

    triggers: tuple[Arg, ...]
    """What is the same for all machines in a state of that type: four for each, see ``template`` in ``_common.lua``."""
    deadlines: tuple[Arg, ...]


def waits_of(instances: Instances, placed: Placed) -> Waits | None:
    """What the triggers of a state wait for; ``None``: not signals and deadlines alone."""
    handlers = placed.type.handlers
    if placed.type.dynamic:
        return _waits(instances.handlers(placed).values(), placed.state)
    differ, waits = _alike(handlers)
    return _waits(handlers, placed.state) if differ else waits


@lru_cache(maxsize=1024)
def _alike(handlers: tuple[Handler, ...]) -> tuple[bool, Waits | None]:
    """Whether what these wait for depends on the state, and else what it is in each.

    Worked out but once, for it would be a quarter of all that adding takes.
    """
    differ = any(isinstance(one.trigger, Deadline) and callable(one.trigger.when) for one in handlers)
    return differ, None if differ else _waits(handlers, State())


def _waits(handlers: Iterable[Handler], state: State) -> Waits | None:
    triggers: list[Arg] = []
    deadlines: list[Arg] = []
    signals: list[str] = []
    for handler in handlers:
        name = handler.name
        match handler.trigger:
            case Signal() as signal if signal.name not in signals:
                signals.append(signal.name)
                triggers += _trigger(name, signal.name)
            case Deadline() as deadline if (due_us := deadline.due_us(state, 0)) < FAR_US:
                triggers += _trigger(name, "")
                deadlines.append(f"+{due_us}" if deadline.relative else -(-due_us // 1000))
            case _:
                return None
    return Waits(tuple(triggers), tuple(deadlines))


@lru_cache(maxsize=1024)
def _trigger(name: str, signal: str) -> tuple[Arg, ...]:
    return (compact(name), compact(signal), encode(signal), name) if signal else (compact(name), "", "", name)

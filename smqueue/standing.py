"""Where a record stands: what to look at before it is entered, left or spawned, and what the replies mean."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from smqueue.errors import SmqueueError, UndecodableRecord
from smqueue.instances import Instances
from smqueue.keys import Keys, digest, encode
from smqueue.records import Active, Item, Placed, loads
from smqueue.roundtrip import Command
from smqueue.trigger_types import Signal

TIME: Command = ("TIME",)


class Look(NamedTuple):
    """What to WATCH, and what to ask."""

    watch: list[str]
    commands: list[Command]


class Standing(NamedTuple):
    """Where a state stands in its operation: under which field, if at all."""

    active: tuple[str, Active] | None
    inactive: tuple[str, dict[str, Any]] | None

    @property
    def exists(self) -> bool:
        """Whether the state is or was in its operation."""
        return self.active is not None or self.inactive is not None

    @property
    def machine(self) -> str:
        """The machine that is, or was last, in it."""
        return self.active[1].machine if self.active else self.inactive[1]["machine"] if self.inactive else ""

    @property
    def made(self) -> str | None:
        """The first commit that ever made the record."""
        return self.active[1].made if self.active else self.inactive[1].get("made") if self.inactive else None


def standing_looks(keys: Keys, placed: Placed) -> Look:
    """Guards of the record (older spellings too), absent ones as well, or two merging machines overwrite each other."""
    active, inactive = keys.active(placed.op), keys.inactive(placed.op)
    fields = (placed.field, *placed.older)
    watch = [keys.machine(digest(placed.op, field)) for field in fields]
    commands: list[Command] = [
        (command, key, f) for f in fields for command, key in (("HGET", active), ("HGET", inactive))
    ]
    if placed.wide:  # its form in an earlier version cannot be computed: look at all of the operation, and watch that
        watch += [active, inactive]
        commands += [("HGETALL", active), ("HGETALL", inactive)]
    return Look(watch, commands)


def standing(keys: Keys, instances: Instances, placed: Placed, known: Mapping[Command, Any]) -> Standing:
    """Read the replies to ``standing_looks``."""
    active, inactive = keys.active(placed.op), keys.inactive(placed.op)

    def find(key: str) -> tuple[str, bytes] | None:
        for field in (placed.field, *placed.older):
            if (raw := known["HGET", key, field]) is not None:
                return field, raw
        return _find_migrated(instances, placed, known["HGETALL", key]) if placed.wide else None

    found, past = find(active), find(inactive)
    try:
        return Standing(
            (found[0], Active.parse(found[1])) if found else None, (past[0], parse_inactive(past[1])) if past else None
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UndecodableRecord(f"{placed} in operation {placed.op}: {error}") from None


def parse_inactive(raw: bytes) -> dict[str, Any]:
    """The value of an inactive record; raises ValueError when it is not one."""
    try:
        data = loads(raw)
    except ValueError:
        data = None
    match data:
        case {"machine": str(), "step": int(), "at": int(), "exited": int(), "version": int(), "visits": int()}:
            pass
        case _:
            raise ValueError("not the value of an inactive record")
    return data  # pyright: ignore[reportUnknownVariableType]


def version_of(raw: bytes) -> int:
    """The schema version of a stored record, active or inactive."""
    data = loads(raw)
    return int(data["version"]) if isinstance(data, dict) else Active.parse(raw).version


def _find_migrated(instances: Instances, placed: Placed, pairs: Any) -> tuple[str, bytes] | None:
    prefix = f"{encode(placed.module)} {encode(placed.type.name)} "
    flat = list(pairs.items()) if isinstance(pairs, dict) else list(zip(pairs[::2], pairs[1::2], strict=True))
    for raw_field, value in flat:
        field = raw_field.decode()
        if not field.startswith(prefix):
            continue
        try:
            _, stored = instances.load(placed.op, field, version_of(value))
            same = instances.place_state(placed.op, instances.get(placed.module), stored.state)
        except (SmqueueError, ValueError):
            continue
        if same.field == placed.field:
            return field, value
    return None


# --- arriving: a state about to become active ------------------------------------------------------------------------


def begun(keys: Keys, op: str) -> Command:
    """How much of an operation there is. 0: it is new. 1: one machine that is not in the history yet. More: begun."""
    return ("EXISTS", keys.active(op), keys.inactive(op), keys.history(op))


def watchers(keys: Keys, op: str) -> Command:
    """Who wants to look again after a commit of this operation."""
    return ("SMEMBERS", keys.watchers(op))


def watched(keys: Keys) -> Command:
    """Whether anybody consumes Celery's events."""
    return ("EXISTS", keys.watched)


def inbox_keys(keys: Keys, instances: Instances, placed: Placed) -> dict[str, str]:
    """Signal name → inbox, for the signals that a state waits for."""
    signals = [h.trigger.name for h in instances.handlers(placed).values() if isinstance(h.trigger, Signal)]
    return {name: keys.inbox(placed.op, placed.module, name) for name in signals}


def head(inbox: str) -> Command:
    """The oldest signal of an inbox."""
    return ("LINDEX", inbox, 0)


def first_for(items: list[bytes], machine: str) -> Item | None:
    """The oldest signal that is for anyone, or for this machine; garbage is for nobody."""
    for raw in items:
        with suppress(ValueError):
            item = Item.parse(raw)
            if item.machine in {None, machine}:
                return item
    return None


def arrival_looks(keys: Keys, instances: Instances, placed: Placed) -> Look:
    """All that entering a state depends on: its record, its inboxes, the operation's beginning and its watchers."""
    watch, commands = standing_looks(keys, placed)
    inboxes = list(inbox_keys(keys, instances, placed).values())
    return Look(
        [*watch, *inboxes, keys.watchers(placed.op)],
        [*commands, *map(head, inboxes), begun(keys, placed.op), watchers(keys, placed.op), watched(keys), TIME],
    )


def arrivals(keys: Keys, instances: Instances, batch: Iterable[Placed], begun: Collection[str]) -> Look:
    """The same for several; of operations that are not known to have begun their beginning is watched, too."""
    watch, commands = dict[str, None](), dict[Command, None]()
    for one in batch:
        look = arrival_looks(keys, instances, one)
        watch.update(dict.fromkeys(look.watch))
        commands.update(dict.fromkeys(look.commands))
        if one.op not in begun:
            watch[keys.history(one.op)] = watch[keys.active(one.op)] = None
    return Look(list(watch), list(commands))

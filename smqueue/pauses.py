"""What is paused, and what can be: by whom is not known, but since when, and why."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from smqueue.keys import Keys, decode
from smqueue.protocols.cancel import Noted
from smqueue.queries import moment
from smqueue.records import Field
from smqueue.roundtrip import Steps, read


@dataclass(frozen=True)
class Paused:
    """An operation, a module, or a state type of a module, that is paused.

    Attributes:
        operation_id: The operation; ``None`` when it is a module, or a state type of one.
        module: The id of the module instance; ``None`` when it is an operation.
        state: The stored name of the state type; ``None`` when it is all of the module.
        since: When it was paused, UTC; ``None`` when that cannot be read.
        reason: As given to ``pause``; ``None``: none was.
    """

    operation_id: str | None
    module: str | None
    state: str | None
    since: datetime | None
    reason: str | None

    def __str__(self) -> str:
        if self.operation_id is not None:
            return f"operation {self.operation_id}"
        return f"module {self.module}" if self.state is None else f"state {self.state} of module {self.module}"

    @property
    def lifted_by(self) -> str:
        """The command that ends it."""
        if self.operation_id is not None:
            return f"smqueue resume {self.operation_id}"
        return f"smqueue resume --module {self.module}" + (f" --state {self.state}" if self.state else "")


def controls_of(keys: Keys, op: str, field: str) -> tuple[str, ...]:
    """The keys that can hold a machine back: of its operation, its module, its state type; none of a garbled record."""
    try:
        module, type_name, _ = Field.parse(field)
    except ValueError:
        return ()
    return keys.control(op), keys.control_module(module), keys.control_module(module, type_name)


def paused_by(keys: Keys, control: str, raw: bytes | None) -> Paused | None:
    """What a control, a key with its value, has paused; ``None``: nothing."""
    if not isinstance(raw, bytes) or (words := raw.decode(errors="replace").split(" ", 2))[0] != "paused":
        return None
    since = words[1] if len(words) > 1 else ""
    when = moment(int(since) * 1000) if since.isascii() and since.isdigit() and len(since) < 15 else None
    reason = (words[2] if len(words) > 2 else "") or None
    kind, *rest = keys.controlled(control).split(":")
    if not rest:  # an operation cannot be taken for a module: its colons are encoded
        return Paused(decode(kind), None, None, when, reason)
    return Paused(None, decode(rest[0]), decode(rest[1]) if len(rest) > 1 else None, when, reason)


def _standing(control: bytes | None) -> bytes | None:
    """What a control says of a pause; while its operation is being cancelled, what it will say after that."""
    noted = Noted.parse(control)
    return control if noted is None else noted.paused.encode()


def paused(keys: Keys, limit: int) -> Steps[list[Paused]]:
    """What is paused in a shard, at most so many, the longest first; 2 round trips."""
    (names,) = yield from read([], ("ZRANGE", keys.controls, 0, limit - 1))
    controls = [f"{keys.prefix}control:{name.decode()}" for name in names]
    replies = (yield from read([], *[("GET", control) for control in controls])) if controls else []
    found = [paused_by(keys, control, _standing(raw)) for control, raw in zip(controls, replies, strict=True)]
    return [one for one in found if one is not None]

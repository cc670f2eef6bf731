"""What is stored of a machine, and its compact JSON forms. ``keys.py`` says where.

Times are µs since the epoch, UTC, by Redis's clock; deadlines of armed triggers are ms.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec

from smqueue.keys import decode, digest

if TYPE_CHECKING:
    from smqueue.states import State, StateType

_encode, _decode = msgspec.json.Encoder().encode, msgspec.json.Decoder().decode


def compact(data: object) -> str:
    """JSON without spaces. By msgspec: ten times as fast as ``json``, and integers keep all their digits."""
    return _encode(data).decode()


def compact_bytes(data: object) -> bytes:
    """The same, for what only Redis reads."""
    return _encode(data)


def loads(raw: bytes | str) -> Any:
    """The data of a JSON text; raises ValueError when it is none."""
    try:
        return _decode(raw)
    except RecursionError:
        raise ValueError("nested too deeply") from None


Wait = str | int | list[Any]
"""What an armed trigger waits for: the name of a signal, a deadline in ms, or ``[kind, …]``."""

Armed = dict[str, Wait]
"""Trigger name → what it waits for, in declaration order."""


# Structs and no NamedTuples: they are made by C, and what they hold is found by its place. Nothing here is garbage for
# the collector.
class Placed(msgspec.Struct, gc=False):
    """A state in its operation and module instance: which record it is."""

    op: str
    module: str
    type: StateType
    state: State
    field: str
    record: str
    older: tuple[str, ...] = ()
    """Fields under which code without its newest defaulted fields stored the same state."""

    @property
    def wide(self) -> bool:
        """Whether the state may be stored in the form of an earlier version, which only a look at all can tell."""
        return bool(self.type.migrations)

    def __str__(self) -> str:
        return f"{self.type.name} in module {self.module}"


class Field(NamedTuple):
    """A hash field, taken apart."""

    module: str
    type: str
    state: str

    @classmethod
    def parse(cls, field: str) -> Field:
        """Raises ValueError when it is not one."""
        module, type_name, state = field.split(" ", 2)
        return cls(decode(module), decode(type_name), state)


def label_of(field: str) -> str:
    """``module.State`` of a record as stored, without its state: secrets may stand in it."""
    try:
        return "{}.{}".format(*Field.parse(field))
    except ValueError:
        return "a record that is none"


class _Active(msgspec.Struct, array_like=True):
    machine: str
    step: int
    at_us: int
    version: int
    made: str | Literal[0] = 0
    lone: int = 0
    seal: str = ""


class _Machine(msgspec.Struct, array_like=True):
    guard: str
    arming: str | Literal[0]
    op: str
    field: str
    armed: Armed
    undo: int = 0
    trace: Any = ""


_active = msgspec.json.Decoder(_Active).decode
_machine = msgspec.json.Decoder(_Machine).decode


class Active(msgspec.Struct, gc=False):
    """The value of an active record."""

    machine: str
    step: int
    at_us: int
    version: int
    made: str
    """Id of the first commit that ever made this record: ``add`` recognises its own success by it."""
    lone: bool
    """Its adding is not in the history yet, because nothing else has happened in its operation."""
    seal: str = ""
    """Of its machine's last step, where histories are sealed: what the next seal rests on."""

    def dump(self) -> str:
        """Under 64 bytes, or the hash of a machine that just waits loses its compact encoding."""
        made = self.made if self.made != self.machine else 0
        if self.seal:  # larger: sealing has that price
            return compact([self.machine, self.step, self.at_us, self.version, made, int(self.lone), self.seal])
        rest = [made] if made or self.lone else []
        return compact([self.machine, self.step, self.at_us, self.version, *rest, *([1] if self.lone else [])])

    @classmethod
    def parse(cls, raw: bytes | str) -> Active:
        """Raises ValueError when it is not one."""
        it = _active(raw)
        made = it.made if isinstance(it.made, str) else it.machine
        return cls(it.machine, it.step, it.at_us, it.version, made, it.lone > 0, it.seal)


class Machine(msgspec.Struct, gc=False):
    """What a record is armed with."""

    guard: str
    arming: str
    op: str
    field: str
    armed: Armed
    undo: bool = False
    """Its state has a cancel handler: who lacks its code leaves its cancelling to others."""
    trace: str = ""
    """The header of the span that has entered its state, if there is one: see ``smqueue.tracing``."""

    def dump(self) -> str:
        """The string that commits watch."""
        arming = self.arming if self.arming != self.guard else 0
        more = [int(self.undo), self.trace] if self.trace else [1] if self.undo else []
        return compact([self.guard, arming, self.op, self.field, self.armed, *more])

    @classmethod
    def parse(cls, raw: bytes | str) -> Machine:
        """Raises ValueError when it is not one."""
        try:
            it = _machine(raw)
        except RecursionError:
            raise ValueError("not the value of a machine") from None
        trace = it.trace if isinstance(it.trace, str) else ""
        return cls(it.guard, it.arming or it.guard, it.op, it.field, it.armed, it.undo > 0, trace)

    @property
    def record(self) -> str:
        """The record's id."""
        return digest(self.op, self.field)

    @property
    def entry(self) -> str:
        """The schedule entry of its race."""
        return f"{self.record}:{self.arming}"


def set_aside(raw: object) -> str | None:
    """Why a machine was set aside, by its note in ``quarantine``; ``None``: it was not. Garbage is a note, too."""
    if not isinstance(raw, bytes):
        return None
    try:
        data = loads(raw)
    except ValueError:
        data = None
    match data:
        case {"error": str(error)}:
            return error
        case _:
            return "the note that says why cannot be read"


def guard_of(raw: bytes | None) -> str | None:
    """The guard of a stored machine; ``None`` when there is none or it is unreadable."""
    try:
        return None if raw is None else Machine.parse(raw).guard
    except ValueError:
        return None


def deadline_ms(armed: Mapping[str, Wait]) -> int | None:
    """The earliest deadline; ties go to the one declared first."""
    return min((wait for wait in armed.values() if isinstance(wait, int)), default=None)


def kind_of(wait: Wait) -> str:
    """The kind of trigger behind what an armed trigger waits for."""
    return "signal" if isinstance(wait, str) else "deadline" if isinstance(wait, int) else str(wait[0])


class Item(NamedTuple):
    """A signal that waits in an inbox."""

    raw: bytes
    payload: str
    machine: str | None
    """The one that it is for, unless it is for any."""
    at_us: int
    """When it was accepted."""
    trace: str = ""
    """The header of the span that has sent it, if there is one."""

    @classmethod
    def parse(cls, raw: bytes) -> Item:
        """The payload stays encoded. Raises ValueError when it is none."""
        try:
            data = loads(raw)
        except ValueError:
            data = None
        match data:
            case {"payload": payload, "at": int(at_us)}:
                trace = data.get("trace", "")
                return cls(raw, compact(payload), data.get("machine"), at_us, trace if isinstance(trace, str) else "")
            case _:
                raise ValueError("not a signal")

"""The module instances of one executor: which module a state or a signal belongs to, and its encoded form."""

from __future__ import annotations

import functools
import inspect
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec import Struct

from smqueue.chain import Chain
from smqueue.definitions import Handler
from smqueue.errors import (
    AmbiguousModule,
    DuplicateModule,
    InvalidInput,
    InvalidPayload,
    InvalidState,
    NewerRecord,
    NotRegistered,
    SecretDamaged,
    SecretKeyMissing,
    SmqueueError,
    StateAlreadyTerminal,
    TooLarge,
    UndecodableRecord,
    UnknownModule,
    UnknownSignal,
)
from smqueue.imports import load_object
from smqueue.keys import Keys, digest, encode
from smqueue.modules import Module
from smqueue.records import Field, Placed, compact, compact_bytes, loads
from smqueue.schemas import Codec, JsonValue, ValidationProblem, canonical
from smqueue.schemas.sealed import is_sealed
from smqueue.secrets import Secrets, scrubbed
from smqueue.states import Context, State, StateMachine, check_machine, check_operation_id
from smqueue.triggers import Signal

if TYPE_CHECKING:
    from smqueue.transaction import Transaction

PAYLOAD_LIMIT = 64 * 1024
"""Bytes of an encoded state, payload or outcome."""
INBOX_LIMIT = 1_000
"""Early signals kept for one operation, module and name."""
# Tuples: to make a union at each call would take longer than the look.
NAMING = (str, Signal)
JSON_READY = (str, int, float, bool, list, dict)


class Told(Struct, gc=False):
    """A signal, validated and encoded."""

    operation_id: str
    module: str
    signal: str
    payload: str


class Push(NamedTuple):
    """A hint as the broker stores it: what makes work due pushes it, where the broker is the same Redis."""

    queue: str
    """The key of its list."""
    database: str
    """The number of its database."""
    message: str
    mark: str
    """What in it stands for its id: whoever pushes it puts one there that is used but once."""


@dataclass
class Instance:
    """One module under one id."""

    id: str
    source: Module[Any] | str
    context_source: Any
    where: str

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._context: tuple[int, Any] | None = None  # of which process, and what

    @property
    def module(self) -> Module[Any]:
        """The module, imported now if it was given by name."""
        if isinstance(self.source, str):
            self.source = load_object(self.source, Module)
        self.source.resolve()
        return self.source

    @property
    def context(self) -> Any:
        """The module's context; a function given for it is called once per process, at first use: after a fork."""
        pid, known = os.getpid(), self._context
        if known is None or known[0] != pid:
            if known is not None:  # a child of the one that made it: a lock held at the fork would stay held
                self._lock = threading.Lock()
            with self._lock:
                known = self._context
                if known is None or known[0] != pid:
                    made = self.context_source
                    known = self._context = (pid, made() if _makes(made) else made)
        return known[1]


class Instances:
    """All module instances of an executor."""

    def __init__(self, global_context: Callable[[str, str], Any] | None = None, shards: int = 1) -> None:
        self._by_id: dict[str, Instance] = {}
        self._owners: dict[type, Instance] = {}
        self._receivers: dict[tuple[Signal[Any] | str, str | None], tuple[Instance, Signal[Any]]] = {}
        self._global_context = global_context
        self.limit, self.inbox_limit = PAYLOAD_LIMIT, INBOX_LIMIT
        self.max_active: int | None = None
        """Producers add no machines beyond this many in a shard."""
        self.shards = shards
        self.secrets = Secrets()
        """What encrypts secret fields; the builder sets it."""
        self.chain: Chain | None = None
        """What seals the steps of histories; the builder sets it."""
        self.push: Callable[[Keys], Push | None] = lambda _keys: None
        """The hint for a shard, if commits are to push it; the builder sets it."""
        self.time_limit: Callable[[str, float], AbstractContextManager[None]] = lambda _what, _seconds: nullcontext()
        """What bounds the run of a handler; a worker sets it."""
        self.ran: Callable[[Placed, str, float], None] = lambda _placed, _handler, _seconds: None
        """Told how long each run of a handler has taken; a worker sets it."""

    def register(self, instance: Instance) -> None:
        """Raises DuplicateModule when the id is taken."""
        if (first := self._by_id.get(instance.id)) is not None:
            raise DuplicateModule(instance.id, first.where, instance.where)
        self._by_id[instance.id] = instance
        self._owners.clear()
        self._receivers.clear()

    def ids(self) -> Sequence[str]:
        """The ids of all registered modules."""
        return list(self._by_id)

    def __contains__(self, module_id: str) -> bool:
        return module_id in self._by_id

    def get(self, module_id: str) -> Instance:
        """Raises UnknownModule; InvalidInput for what is no id at all, as JSON by hand may bring it."""
        if not isinstance(module_id, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidInput("module", f"expected str, got {type(module_id).__name__}")
        if (found := self._by_id.get(module_id)) is None:
            raise UnknownModule(module_id, ", ".join(self._by_id) or "none")
        return found

    def longest_keep(self) -> timedelta | None:
        """The longest retention of any module; ``None`` when one keeps for ever."""
        keeps = [self.get(module).module.keep for module in self.ids()]
        return None if not keeps or None in keeps else max(keep for keep in keeps if keep is not None)

    # --- states --------------------------------------------------------------------------------------------------

    def module_of(self, machine: StateMachine) -> Instance:
        """The instance that a machine belongs to, by its ``module`` or its state's class.

        Raises:
            UnknownModule, AmbiguousModule, NotRegistered: See there.
        """
        if machine.module is not None:
            return self.get(machine.module)
        cls = type(machine.state)
        if (known := self._owners.get(cls)) is not None:
            return known
        owners = [i for i in self._by_id.values() if any(t.cls is cls for t in i.module.types.values())]
        if not owners:
            raise NotRegistered(cls.__qualname__)
        if len(owners) > 1:
            raise AmbiguousModule(cls.__qualname__, ", ".join(i.id for i in owners))
        self._owners[cls] = owners[0]
        return owners[0]

    def place(self, machine: StateMachine) -> Placed:
        """Encode a machine's state, checked against its schema.

        Raises:
            UnknownModule, AmbiguousModule, NotRegistered: No, or no single, module for it.
            InvalidState: A field does not fit.
            TooLarge: Its encoded form is over the limit.
        """
        check_machine(machine)
        instance = self.module_of(machine)
        return self.place_state(machine.operation_id, instance, machine.state)

    def place_state(self, op: str, instance: Instance, state: State) -> Placed:
        """As ``place``, for a module that is known already."""
        state_type = instance.module.type_of(state)
        try:
            data = state_type.codec.check(state)
        except ValidationProblem as problem:
            raise InvalidState(f"{state_type.name}.{problem.field}", problem.problem) from None
        spelled = canonical(data)
        if (size := len(spelled.encode())) > self.limit:
            raise TooLarge(f"state {state_type.name}", size, self.limit)
        prefix = f"{encode(instance.id)} {encode(state_type.name)} "
        if not (state_type.defaulted or self.secrets.seals(state_type.codec) or is_sealed(data)):
            field = prefix + spelled  # it has this one form
            return Placed(op, instance.id, state_type, state, field, digest(op, field))
        about = (op, instance.id, state_type.name)
        forms: list[JsonValue] = [data, *state_type.older_forms(data)]
        stored = [one for form in forms for one in self.secrets.state(state_type.codec, form, *about)]
        field, *older = [prefix + (spelled if form is data else canonical(form)) for form in stored]
        return Placed(op, instance.id, state_type, state, field, digest(op, field), tuple(older))

    def current(self, placed: Placed) -> Placed:
        """A loaded record as this code would store it, where that may differ: fields were added, or migrated."""
        known = placed.type
        sealed = self.secrets.seals(known.codec)  # whose key may have been rotated
        if not (sealed or known.migrations or known.defaulted):
            return placed
        return self.place_state(placed.op, self.get(placed.module), placed.state)

    def as_json(self, placed: Placed) -> dict[str, Any]:
        """A machine in JSON, its secrets encrypted, for ``from_json``; raises StateAlreadyTerminal."""
        if placed.type.terminal:
            raise StateAlreadyTerminal(placed.op, placed.module, str(placed))
        state = loads(Field.parse(placed.field).state)
        return {"operation_id": placed.op, "module": placed.module, "type": placed.type.name, "state": state}

    def from_json(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """The same in plain JSON, as ``smqueue.add`` takes it; raises SecretKeyMissing, SecretDamaged."""
        about = (data["operation_id"], data["module"], data["type"])
        return {**data, "state": self.secrets.opened("state", data["state"], *about)}

    def load(self, op: str, field: str, version: int) -> tuple[Instance, Placed]:
        """Decode a stored record, migrated to this code's version.

        Raises:
            UnknownModule: Its module is not registered here.
            NewerRecord: Newer code wrote it.
            UndecodableRecord: It is garbage, or does not fit its schema.
        """
        try:
            module_id, type_name, spelled = Field.parse(field)
        except ValueError as error:
            raise UndecodableRecord(str(error)) from None
        instance = self.get(module_id)
        module = instance.module
        if version > module.version:
            raise NewerRecord(module_id, version, module.version)
        if (state_type := module.types.get(type_name)) is None:
            raise UndecodableRecord(f"module {module_id} has no state {type_name}")
        try:
            data = self.secrets.opened("state", loads(spelled), op, module_id, type_name)
            state = state_type.load(version, data)
        except ValidationProblem as problem:
            raise UndecodableRecord(f"{type_name}.{problem.field}: {problem.problem}") from None
        except (SecretDamaged, SecretKeyMissing):
            raise
        except Exception as error:  # a migration is the user's code
            raise UndecodableRecord(f"{type_name}: {type(error).__name__}: {error}") from None
        return instance, Placed(op, module_id, state_type, state, field, digest(op, field))

    def without_secrets(self, text: str, placed: Placed, handler: Handler | None = None, stored: str = "null") -> str:
        """The text of a user's error, without the secrets of the state and, with its handler, of the stored outcome."""
        shown: list[tuple[Codec[Any], JsonValue]] = []
        if placed.type.codec.secret_fields:
            shown.append((placed.type.codec, placed.type.codec.dump(placed.state)))
        if handler is not None and handler.outcome.secret_fields:
            with suppress(SmqueueError, ValueError):  # then the handler has not seen it either
                shown.append((handler.outcome, self.secrets.opened("value", loads(stored), placed.op, placed.module)))
        return scrubbed(text, *shown)

    def decode(self, op: str, field: str, version: int) -> State | None:
        """The state of a stored record; ``None`` when it cannot be decoded here."""
        try:
            return self.load(op, field, version)[1].state
        except SmqueueError:
            return None

    # --- handlers ------------------------------------------------------------------------------------------------

    def global_context(self, module_id: str, op: str) -> Any:
        """What the builder's function gives for a module and an operation."""
        return self._global_context(module_id, op) if self._global_context else None

    def handlers(self, placed: Placed) -> Mapping[str, Handler]:
        """The handlers that race in a state, by name, in declaration order."""
        if not placed.type.dynamic:
            return _by_name(placed.type.handlers)
        instance = self.get(placed.module)
        glob = self.global_context(placed.module, placed.op)
        return _by_name(instance.module.handlers(placed.state, instance.context, glob))

    def apply(
        self,
        handler: Handler,
        tx: Transaction,
        placed: Placed,
        outcome: Any,
        context: Callable[[], Context[Any, Any]],
    ) -> State | None:
        """Run a handler within its module's time limit; its context is made only if it takes one."""
        given = context() if handler.takes_context else None
        began = time.perf_counter()
        try:
            with self.time_limit(f"handler {handler.name}", placed.type.module.handler_timeout.total_seconds()):
                return handler.apply(tx, placed.state, outcome, given)
        finally:
            self.ran(placed, handler.name, time.perf_counter() - began)

    def context(self, placed: Placed, machine: str, attempt: str) -> Context[Any, Any]:
        """What a handler's or a trigger's fourth parameter gets."""
        instance = self.get(placed.module)
        glob = self.global_context(placed.module, placed.op)
        return Context(instance.context, glob, placed.op, machine, attempt)

    # --- signals -------------------------------------------------------------------------------------------------

    def signal(self, op: str, signal: Signal[Any] | str, payload: Any, module_id: str | None) -> Told:
        """Find the module that a signal is for, and encode its payload.

        Raises:
            UnknownModule, UnknownSignal, AmbiguousModule: No, or no single, module declares it.
            InvalidPayload: A field does not fit; nothing of it was sent.
            TooLarge: Its encoded form is over the limit.
        """
        check_operation_id(op)
        instance, declared = self._receiver(signal, module_id)
        codec = declared.codec
        try:
            # A name takes what is JSON-ready; a Signal takes its own type. A value of that type is welcome by name too.
            given_as_data = isinstance(signal, str) and not _is_value(payload)
            data = codec.dump(codec.load(payload)) if given_as_data else codec.check(payload)
        except ValidationProblem as problem:
            whole = problem.field in {"", declared.name}  # the value itself, not a field of it
            field = declared.name if whole else f"{declared.name}.{problem.field}"
            raise InvalidPayload(field, problem.problem) from None
        raw = compact_bytes(data)
        if len(raw) > self.limit:
            raise TooLarge(f"payload of {declared.name}", len(raw), self.limit)
        stored = self.secrets.value(codec, data, op, instance.id)
        return Told(op, instance.id, declared.name, raw.decode() if stored is data else compact(stored))

    def value(self, schema: Codec[Any], data: JsonValue, op: str, module_id: str) -> str:
        """A dumped payload or outcome as it is stored."""
        return compact(self.secrets.value(schema, data, op, module_id))

    def outcome(self, handler: Handler, placed: Placed, stored: str) -> Any:
        """A stored outcome as its handler gets it; raises ValidationProblem, SecretKeyMissing, SecretDamaged."""
        return handler.outcome.load(self.secrets.opened("value", loads(stored), placed.op, placed.module))

    def _receiver(self, signal: Signal[Any] | str, module_id: str | None) -> tuple[Instance, Signal[Any]]:
        if not isinstance(signal, NAMING):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidInput("signal", f"expected a Signal or its name, got {type(signal).__name__}")
        given = None if module_id is None else self.get(module_id)
        if (receiver := self._receivers.get((signal, module_id))) is not None:
            return receiver
        name = signal if isinstance(signal, str) else signal.name
        instances = list(self._by_id.values()) if given is None else [given]

        def owns(instance: Instance) -> bool:
            found = instance.module.signals.get(name)
            return found is not None and (isinstance(signal, str) or found is signal)

        owners = [instance for instance in instances if owns(instance)]
        if not owners:
            known = sorted({s for instance in instances for s in instance.module.signals})
            raise UnknownSignal(name, module_id or " or ".join(self._by_id) or "at all", ", ".join(known) or "none")
        if len(owners) > 1:
            raise AmbiguousModule(f"signal {name}", ", ".join(i.id for i in owners))
        receiver = self._receivers[signal, module_id] = owners[0], owners[0].module.signals[name]
        return receiver


@functools.lru_cache(maxsize=1024)
def _by_name(handlers: tuple[Handler, ...]) -> Mapping[str, Handler]:
    return {handler.name: handler for handler in handlers}


def _makes(source: Any) -> bool:
    """Whether what was given as context is to be called for it; an object that happens to be callable is a value."""
    return inspect.isroutine(source) or isinstance(source, type | functools.partial)


def _is_value(payload: Any) -> bool:
    """Whether a payload is an instance of what the signal carries, rather than JSON-ready data."""
    return payload is not None and not isinstance(payload, JSON_READY)

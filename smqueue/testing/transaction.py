"""``FakeTransaction``: for calling handlers as the plain functions that they are."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from smqueue.buffer import Buffer
from smqueue.data_keys import DataKeys
from smqueue.errors import WrongKind
from smqueue.instances import Instance, Instances, Told
from smqueue.keys import Keys
from smqueue.modules import Module
from smqueue.roundtrip import Arg, Command
from smqueue.states import State, StateMachine, type_of
from smqueue.testing.engine import SentTask
from smqueue.testing.keyspace import START_US
from smqueue.testing.memory import Memory
from smqueue.testing.reading import Given, put, read_key
from smqueue.testing.store import Store
from smqueue.testing.values import ReplyError
from smqueue.transaction import Transaction
from smqueue.trigger_types import Signal

NAMESPACE = "fake"


@dataclass(frozen=True)
class SentSignal:
    """A signal that a handler has sent.

    Attributes:
        operation_id: Where to.
        signal: Its name.
        payload: As the handler gave it.
        module: The module that it is for.
    """

    operation_id: str
    signal: str
    payload: Any = None
    module: str | None = None


class FakeTransaction(Transaction):
    """The real transaction, on a Redis in memory: what a handler reads and writes is what it would be in a worker.

    Handlers that share one see what the others wrote as one handler would: after ``incrby``, say, a ``get`` of the same
    key raises ``ReadAfterWrite``. Where each is a transition of its own, ``commit`` between them.

    Args:
        data: What is stored already: key → text or number, or a ``dict``, ``set`` or ``list`` of these.
        shared: The same for ``tx.shared``.
        module: The module, or the id of its instance; needed only to send its signals by name.
        now: What ``tx.now()`` says; 2026-01-01, UTC, unless given.
    """

    def __init__(
        self,
        data: Mapping[str, Given] | None = None,
        *,
        shared: Mapping[str, Given] | None = None,
        module: Module[Any] | str = "module",
        now: datetime | None = None,
    ) -> None:
        epoch = datetime(1970, 1, 1, tzinfo=UTC)
        self._store = Store(START_US if now is None else round((now - epoch).total_seconds() * 1_000_000))
        self._driver = Memory(self._store)
        known = _Modules()
        if isinstance(module, Module):
            known.know(module, module.name)
        super().__init__(Keys(NAMESPACE), known, module.name if isinstance(module, Module) else module, {})
        self._begin()
        for key, value in (data or {}).items():
            put(self._driver, self._name(key), value)
        for key, value in (shared or {}).items():
            put(self._driver, self._outside(key), value)

    @property
    def spawned(self) -> Sequence[StateMachine]:
        """The machines that were started."""
        return [StateMachine(placed.op, placed.state, placed.module) for placed in self.starting]

    @property
    def states(self) -> Sequence[State]:
        """Their states."""
        return [placed.state for placed in self.starting]

    @property
    def signals(self) -> Sequence[SentSignal]:
        """The signals that were sent."""
        return [self._signal(Told(*(one[name] for name in Told.__struct_fields__))) for one in self._left("signal")]

    @property
    def tasks(self) -> Sequence[SentTask]:
        """The Celery tasks that were sent."""
        return [
            SentTask(one["name"], tuple(one["args"]), one["kwargs"], one["id"], one["options"])
            for one in self._left("task")
        ]

    @property
    def published(self) -> Sequence[tuple[str, Arg]]:
        """What was published: channel and message."""
        return [(str(c[1]), c[2]) for c in self.buffer.writes if c[0] == "PUBLISH"]

    @property
    def untouched(self) -> bool:
        """Whether nothing was written, started, sent or published."""
        return not (self.buffer.writes or self.starting or self.requests)

    def data(self, key: str) -> Any:
        """What a key of the module would hold after the commit.

        Returns:
            Text, or a ``dict``, ``set`` or ``list`` of text; ``None``: there is no such key.

        Raises:
            WrongKind: A write would fail, and so would the commit.
        """
        return self._after(self._name(key))

    def shared_data(self, key: str) -> Any:
        """As ``data``, for a key written by ``tx.shared``."""
        return self._after(self._outside(key))

    def commit(self) -> None:
        """Apply what was written, and begin anew: what was started and sent is forgotten.

        Raises:
            WrongKind: A write would fail; nothing was written.
        """
        self._apply()
        self._begin()

    # --- inside --------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self.buffer = _Direct(self._store)
        self.starting, self.requests = [], []
        DataKeys.__init__(self, self.buffer)

    def _after(self, key: str) -> Any:
        before = self._store.snapshot()
        try:
            self._apply()
            return read_key(self._driver, key)
        finally:
            self._store.restore(before)

    def _apply(self) -> None:
        self.buffer.verify({command: self._store.do(*command) for command in self.buffer.checks()})
        for command in self.buffer.writes:
            reply = self._store.do(*command)
            if isinstance(reply, ReplyError):
                raise WrongKind(command[0], command[1], str(reply))

    def _left(self, kind: str) -> Iterator[dict[str, Any]]:
        return (one for one in self.requests if one["kind"] == kind)

    def _signal(self, told: Told) -> SentSignal:
        declared = self._instances.get(told.module).module.signals[told.signal]
        return SentSignal(told.operation_id, told.signal, declared.codec.load(json.loads(told.payload)), told.module)


class _Direct(Buffer):
    """A buffer that looks for itself, where a worker's has the protocol do it and the handler run again."""

    def __init__(self, store: Store) -> None:
        self._store, self._seen = store, dict[Command, Any]()
        super().__init__(self._seen)

    def ask(self, *commands: Command, watch: Sequence[str] | None = None) -> None:  # noqa: ARG002
        """See ``Buffer``."""
        for command in commands:
            if command not in self._seen:
                self._seen[command] = self._store.do(*command)


class _Modules(Instances):
    """Module instances, registered as handlers mention them."""

    def module_of(self, machine: StateMachine) -> Instance:
        """See ``Instances``."""
        known = type_of(type(machine.state))
        if known is not None:
            self.know(known.module, machine.module)
        return super().module_of(machine)

    def signal(self, op: str, signal: Signal[Any] | str, payload: Any, module_id: str | None) -> Told:
        """See ``Instances``."""
        if isinstance(signal, Signal):
            self.know(signal.module, module_id)
        return super().signal(op, signal, payload, module_id)

    def know(self, module: Module[Any], id: str | None) -> None:
        """Register a module, under its name unless an id is given, if it is not."""
        known = [one for one in self.ids() if id in {None, one} and self.get(one).source is module]
        if not known and (id or module.name) not in self:
            self.register(Instance(id or module.name, module, None, "FakeTransaction"))

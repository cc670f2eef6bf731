"""A transaction for calling handlers as the plain functions that they are: it writes into dictionaries."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from smqueue import State, StateMachine


@dataclass
class FakeTransaction:
    """What the handlers of the examples use of a transaction; a second handler sees what the first one wrote."""

    strings: dict[str, str] = field(default_factory=dict)
    hashes: defaultdict[str, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    counted: Counter[str] = field(default_factory=Counter)
    spawned: list[StateMachine] = field(default_factory=list)
    tasks: list[tuple[str, list[object]]] = field(default_factory=list)

    @property
    def states(self) -> list[State]:
        """The states of the spawned machines."""
        return [machine.state for machine in self.spawned]

    def get(self, key: str) -> str | None:
        return self.strings.get(key)

    def set(self, key: str, value: object) -> None:
        self.strings[key] = str(value)

    def delete(self, *keys: str) -> None:
        for key in keys:
            self.strings.pop(key, None)

    def incrby(self, key: str, amount: int = 1) -> None:
        self.counted[key] += amount

    def hincrby(self, key: str, name: str, amount: int = 1) -> None:
        self.hashes[key][name] = str(int(self.hashes[key].get(name, "0")) + amount)

    def hset(self, key: str, given: str | Mapping[str, object], value: object = None) -> None:
        pairs = {given: value} if isinstance(given, str) else given
        self.hashes[key].update({name: str(one) for name, one in pairs.items()})

    def add_state_machines(self, machines: Iterable[StateMachine]) -> None:
        self.spawned += machines

    def send_task(self, name: str, args: Sequence[object] = ()) -> None:
        self.tasks.append((name, list(args)))

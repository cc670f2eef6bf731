"""The world of one run of ``explore``: what a scenario sets up, and what then happens, one step after another."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar

from smqueue.errors import SmqueueError
from smqueue.modules import Module
from smqueue.protocols import cancel
from smqueue.roundtrip import text
from smqueue.states import State, StateMachine
from smqueue.testing.armed import Waiting
from smqueue.testing.choices import Chooser
from smqueue.testing.executor import GlobalContext, LocalExecutor
from smqueue.testing.faults import Died, Fault, Faulty
from smqueue.testing.fingerprints import ID, fingerprint
from smqueue.testing.memory import Memory
from smqueue.testing.soundness import Decisions, Soundness, operations
from smqueue.testing.store import Store
from smqueue.trigger_types import Signal, Trigger
from smqueue.worker.code import run_trigger

T = TypeVar("T")
Meant = str | Trigger[Any, Any] | Callable[..., Any]


@dataclass(frozen=True)
class Settings:
    """What is explored, and how far."""

    modules: Sequence[Module[Any] | Mapping[str, Module[Any]]]
    context: Any
    contexts: Mapping[str, Any]
    global_context: GlobalContext | None
    crashes: int
    duplicates: int
    max_events: int
    quarantine: bool


@dataclass
class Event:
    """Something that may happen, once."""

    text: str
    happen: Callable[[], str]
    """Returns what came of it, in words."""
    ready: Callable[[], bool] = lambda: True
    repeatable: bool = False


class World:
    """What a scenario is told in: machines, what may happen to them, and what must be true.

    ``add`` happens at once. What ``signal``, ``complete``, ``publish`` and ``may`` name may happen at any time and in
    any order, before and after any deadline; what is never ready, such as an outcome of a trigger that is not armed,
    does not happen.
    """

    def __init__(self, settings: Settings, chooser: Chooser, store: Store, without: Collection[int] = ()) -> None:
        self.executor: LocalExecutor = Explored(settings, store)
        """For checks: its queries, ``states``, ``data``, ``sent_tasks`` …"""
        self.story: list[str] = []
        self.cut = False
        """Whether the run was ended by ``max_events``."""
        self.events: list[Event | None] = []
        self.always_checks: list[Callable[[World], object]] = []
        self.final_checks: list[Callable[[World], object]] = []
        self._settings, self._chooser, self._without = settings, chooser, without
        self._crashes, self._duplicates = settings.crashes, settings.duplicates
        self._fault = ""
        self._passed: tuple[int, datetime] | None = None
        """How long the story was when time began to pass, and when that was."""
        self._soundness = Soundness(self.executor, quarantine=settings.quarantine)
        self._given = set[str]()
        self._state: tuple[Hashable, ...] = ()
        self.seen = set[Hashable]()
        """What has been come by, as numbers."""

    # --- what a scenario says ------------------------------------------------------------------------------------

    def add(self, operation_id: str, *states: State, module: str | None = None) -> None:
        """Start machines of an operation, now."""
        machines = [StateMachine(operation_id, state, module) for state in states]
        self.executor.add_state_machines(machines)
        self.story += [f"{operation_id} is added in {state}" for state in states]

    def signal(
        self, operation_id: str, signal: Signal[Any] | str, payload: Any = None, *, module: str | None = None
    ) -> None:
        """A signal may be sent; and sent again, under the same id."""
        self.executor.instances.signal(operation_id, signal, payload, module)  # what does not fit is said now
        name = signal if isinstance(signal, str) else signal.name
        id = f"event-{len(self.events) + 1}"

        def send() -> str:
            try:
                said = self.executor.signal(operation_id, signal, payload, module=module, id=id)
            except SmqueueError as error:
                return f"refused, {type(error).__name__}"
            return said.value

        shown = "" if payload is None else f" {payload}"
        self._event(Event(f"signal {name}{shown} is sent to {operation_id}", send, repeatable=True))

    def complete(self, trigger: Meant, outcome: Any = None, operation_id: str | None = None) -> None:
        """A trigger may complete with this outcome; its code is not run. See ``LocalExecutor.complete``."""
        explored = self._explored
        explored.planned.append((trigger, operation_id))
        name = trigger if isinstance(trigger, str) else getattr(trigger, "__name__", None) or repr(trigger)
        where = "" if operation_id is None else f" of {operation_id}"

        def meant() -> list[Waiting]:
            return [one for one in self.executor.waiting(operation_id) if one.is_meant(trigger)]

        def happen() -> str:
            return "" if self.executor.complete(trigger, outcome, operation_id) else "too late"

        self._event(Event(f"{name}{where} completes with {outcome!r}", happen, lambda: bool(meant())))

    def publish(self, channel: str, message: Any) -> None:
        """A message may be published on a channel."""

        def happen() -> str:
            return f"taken by {self.executor.publish(channel, message)}"

        self._event(Event(f"{message!r} is published on {channel}", happen))

    def cancel(self, operation_id: str, reason: str | None = None) -> None:
        """The operation may be cancelled: by a worker, cancel handlers and all, which may die in it."""

        def begin() -> str:
            self._explored.begin_cancel(operation_id, reason)
            return ""

        self._event(Event(f"{operation_id} is to be cancelled", begin))

    def may(self, what: str, happen: Callable[[LocalExecutor], object]) -> None:
        """Anything else may happen: ``world.may("o1 is cancelled", lambda executor: executor.cancel("o1"))``."""

        def run() -> str:
            happen(self.executor)
            return ""

        self._event(Event(what, run))

    def always(self, check: Callable[[World], object]) -> None:
        """This must hold after every step: the check raises when it does not."""
        self.always_checks.append(check)

    def after_all(self, check: Callable[[World], object]) -> None:
        """This must hold once nothing happens any more."""
        self.final_checks.append(check)

    def states(self, operation_id: str) -> Sequence[State]:
        """The states in which the machines of an operation are, or have ended."""
        return self.executor.states(operation_id)

    def ends(self) -> tuple[str, ...]:
        """The types of the states in which all machines are, or have ended, by name."""
        (keys,) = self.executor.deployment.all_keys()
        every = [state for op in operations(self.executor, keys) for state in self.executor.states(op)]
        return tuple(sorted(type(state).__name__ for state in every))

    # --- what happens --------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Let happen what may, until nothing does.

        Raises:
            Exception: What a check has found.
        """
        texts = [*self.story, *(event.text for event in self.events if event is not None)]
        self._given = set(ID.findall("\n".join(texts)))
        self._check()
        for _ in range(self._settings.max_events):
            options = self._options()
            if not options:
                break
            self._state = (self._fingerprint(),)
            self._choose(options)()
            self._check()
        else:
            self.cut = True
        for check in self.final_checks:
            check(self)

    def _fingerprint(self) -> int:
        left = tuple(event is not None for event in self.events)
        sent = tuple(task.name for task in self.executor.sent_tasks)
        held = tuple(sorted(entry.partition(":")[0] for entry in self._explored.hosted()))
        more = (left, sent, held, self._crashes, self._duplicates)
        found = fingerprint(self._explored.faulty.store, self._given, *more)
        self.seen.add(found)
        return found

    def _choose(self, options: Sequence[T]) -> T:
        """Take one of several; later choices of the same step are told apart by the earlier ones."""
        chosen = self._chooser.choose(options, self._state)
        self._state = (*self._state, options.index(chosen))
        return chosen

    @property
    def _explored(self) -> Explored:
        assert isinstance(self.executor, Explored)
        return self.executor

    def _options(self) -> list[Callable[[], None]]:
        explored = self._explored
        work = explored.due_entries()
        options: list[Callable[[], None]] = [lambda entry=entry: self._work(entry) for entry in work]
        if explored.hosted_due():
            options.append(explored.host)
        for place, event in enumerate(self.events):
            if event is not None and event.ready():
                options.append(lambda place=place, event=event: self._happen(place, event))
        if not work and (at_us := explored.next_us()) is not None:
            options.append(lambda: self._pass(at_us))
        return options

    def _event(self, event: Event) -> None:
        self.events.append(None if len(self.events) in self._without else event)

    def _happen(self, place: int, event: Event) -> None:
        self.events[place] = None
        said = event.happen()
        self.story.append(f"{event.text}: {said}" if said else event.text)
        self._explored.host()
        if event.repeatable and self._duplicates and self._choose((False, True)):
            self._duplicates -= 1
            self.story.append(f"it is sent again under the same id: {event.happen()}")

    def _pass(self, at_us: int) -> None:
        if not self._passed or self._passed[0] != len(self.story):
            self._passed = (len(self.story) + 1, self.executor.now)
        else:  # nothing has happened since
            self.story.pop()
        self._explored.move_to(at_us)
        self.story.append(f"{in_words(self.executor.now - self._passed[1])} pass")

    def _work(self, entry: str) -> None:
        explored = self._explored
        told = len(explored.decisions.story)
        self._fault = ""
        explored.faulty.fault = self._may_fail if self._crashes else None
        try:
            explored.work(entry, self._twice)
        except Died:
            explored.revive()
        finally:
            explored.faulty.fault = None
        self.story += explored.decisions.story[told:]
        if self._fault:
            self.story.append(self._fault)

    def _twice(self) -> bool:
        if self._duplicates and self._choose((False, True)):
            self._duplicates -= 1
            self.story.append("the next message is delivered twice")
            return True
        return False

    def _may_fail(self, faults: tuple[Fault, ...]) -> Fault:
        if not self._crashes:
            return "none"
        fault = self._choose(faults)
        if fault != "none":
            self._crashes -= 1
            self._fault = FAULTS[fault]
        return fault

    def _check(self) -> None:
        self._soundness.check()
        self._explored.decisions.check()
        for check in self.always_checks:
            check(self)


FAULTS: Mapping[Fault, str] = {
    "before": "the worker dies before this is committed: it is done again",
    "after": "it is committed, and the worker dies right after that",
    "lost": "it is committed, and the answer to that is lost",
}


class Explored(LocalExecutor):
    """An executor whose worker is driven step by step."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._blank = store
        super().__init__(
            *settings.modules,
            context=settings.context,
            contexts=settings.contexts,
            global_context=settings.global_context,
        )
        self.planned: list[tuple[Meant, str | None]] = []
        """Triggers whose outcomes the scenario gives."""
        self.decisions = Decisions(self.instances)

    def _connect(self, now_us: int) -> Memory:
        self._blank.now_us = now_us
        self.faulty = Faulty(self._blank)
        return self.faulty

    def due_entries(self) -> Sequence[str]:
        """What a worker could do now."""
        found: list[str] = []
        for keys in self.deployment.all_keys():
            due = self._driver.command("ZRANGE", keys.schedule, "-inf", self._store.now_ms, "BYSCORE")
            found += [text(raw) for raw in due]
        held = self._held() if found else ()
        machines = [entry for entry in found if entry not in held and not entry.startswith("~")]
        return machines or [entry for entry in found if entry.startswith("~")]  # these do not race with any machine

    def begin_cancel(self, operation_id: str, reason: str | None) -> None:
        """Leave a cancelling to the worker."""
        keys = self.deployment.keys(operation_id)
        self._driver.run(cancel.begin(keys, operation_id, reason or "", children=False))
        self._driver.command("ZADD", keys.schedule, "XX", self._store.now_ms, cancel.entry_of(operation_id))

    def hosted(self) -> Collection[str]:
        """Entries of what is pending here."""
        return self._host.held

    def hosted_due(self) -> bool:
        """Whether a coroutine or a channel waits for somebody to host it, or a coroutine for time that has passed."""
        keys = self.deployment.all_keys()[0]
        due = [text(raw) for raw in self._driver.command("ZRANGE", keys.hosted, "-inf", self._store.now_ms, "BYSCORE")]
        timer = self._host.next_us
        return bool(set(due) - set(self._held())) or (timer is not None and timer <= self._store.now_us)

    def host(self) -> None:
        """Host what waits, and let coroutines run."""
        self._host.run(moved=True)

    def next_us(self) -> int | None:
        """When something happens next, in µs."""
        return self._next_us()

    def move_to(self, at_us: int) -> None:
        """Let time pass."""
        self._move_to(at_us)
        self._host.run(moved=False)

    def work(self, entry: str, twice: Callable[[], bool]) -> None:
        """Do one thing that is due."""
        (keys,) = self.deployment.all_keys()
        with self._same_jitter():
            self._engine.drain_of(keys.shard).step(entry)
            triggers, self._noted.triggers = self._noted.triggers, []
            for armed in triggers:
                if armed.entry in self._held():
                    continue
                again = twice()
                said = run_trigger(self._engine, keys, armed.entry, armed.kind)
                words = {"RECORDED": "has its outcome", "AGAIN": "has none yet"}.get(said, said.lower())
                self.decisions.story.append(f"{armed.trigger} of {armed.machine.op} runs: it {words}")
                if again:
                    run_trigger(self._engine, keys, armed.entry, armed.kind)
        self._host.run(moved=True)

    def revive(self) -> None:
        """Another worker takes over from one that has died."""
        self._engine.forget()

    def _held(self) -> Collection[str]:
        held = set(self._host.held)
        if self.planned:
            held |= {
                one.armed.entry
                for one in self.waiting()
                if any(one.is_meant(trigger) and op in {None, one.machine.operation_id} for trigger, op in self.planned)
                and one.kind not in {"signal", "deadline"}
            }
        return held


def in_words(time: timedelta) -> str:
    """A duration, as one would say it."""
    left, parts = time.total_seconds(), list[str]()
    for unit, seconds in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        count, left = divmod(left, seconds)
        if count:
            parts.append(f"{count:.0f} {unit}{'s' if count != 1 else ''}")
    if left or not parts:
        parts.append(f"{left:g} second{'s' if left != 1 else ''}")
    return " and ".join(parts)

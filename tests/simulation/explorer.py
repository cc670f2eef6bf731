"""Every interleaving and every crash point of a few processes, depth first.

A choice is who goes on, and how: ``go``; or a fault: ``die`` before its request is applied, ``die+`` after it and
before its reply; ``lose`` and ``lose+``, the same for a reply that is lost while the process lives; ``late``, given up
by the process and applied later. After the last reply is before the next request.

Two reductions keep this feasible, and leave out nothing that could be told apart: sleep sets (two steps that touch no
common key are tried in one order only), and states seen before (the store, and what each process has been told). What
was once asked of a store in some state is not asked again: its reply, and the state that it led to, are known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from smqueue.roundtrip import Read, RoundTrip
from smqueue.testing.memory import Connection
from smqueue.testing.store import Store
from smqueue.testing.values import copied
from tests.simulation.processes import KEYS, NOTHING, Actor, Ghost, Live, Point, Told, writes

Choice = tuple[int, str]
LOG = KEYS.data("m", "log")
UNWATCH = Read((), (("UNWATCH",),))
TOLD = {"go": "go", "die": "die", "die+": "die", "lose": "lose", "lose+": "lose", "late": "lose"}
"""What the process itself can tell apart: it does not learn whether its request was applied."""
LONGEST = 500
"""Steps of one schedule: the longest that ends has fewer than half as many."""
Did = tuple[frozenset[str], frozenset[str]]
"""Keys that a step has looked at, and that it has changed."""
NOTHING_DONE: Did = (frozenset(), frozenset())


class Violated(AssertionError):
    """A promise was broken; the story says how."""


@dataclass
class Stage:
    """Where an exploration begins: a store, and what setting it up has left for the actors."""

    name: str
    snapshot: tuple[Any, ...]
    notes: dict[str, Any]


class Kept(NamedTuple):
    """What a key held, for going back to, and its part of the store's hash; shared by all nodes where it was so."""

    value: Any
    expires: int | None
    hash: int


class Held(NamedTuple):
    """All that a store holds; never changed, for it is shared by all nodes where it was so."""

    kept: dict[str, Kept]
    total: int
    """The hash of the keys."""
    now_us: int

    @property
    def hash(self) -> int:
        """Of keys and clock."""
        return self.total ^ hash(self.now_us)


class Trip(NamedTuple):
    """What a request has come to: its reply, what it looked at and changed, and what there was then."""

    reply: Any
    did: Did
    held: Held
    watched: frozenset[str]
    dirty: bool


class Place(NamedTuple):
    """Where a process stands, for going back to."""

    told: Told
    watched: frozenset[str]
    dirty: bool


@dataclass
class Frame:
    """One node of the tree: what can be done there, which of it is under way, and what need not be tried."""

    choices: list[Choice]
    sleep: dict[Choice, Did]
    held: Held
    places: list[Place]
    ghosts: list[tuple[frozenset[str], bool, RoundTrip] | None]
    faults: int
    timeline: tuple[Any, ...]
    at: int = 0
    did: Did = NOTHING_DONE


@dataclass
class Task:
    """One process in a schedule."""

    told: Told
    point: Point
    connection: Connection


@dataclass
class World:
    """The processes at one point of a schedule."""

    store: Store
    actors: Sequence[Actor]
    stage: Stage
    tasks: list[Task] = field(default_factory=list[Task])
    ghosts: list[Ghost | None] = field(default_factory=list[Any])
    faults: int = 0
    timeline: tuple[Any, ...] = ()
    """Which process ended, in order, and how many handlers of the operation had committed by then; noted where one
    pauses, for then it matters what comes after its return."""
    held: int = 0
    """The hash of what the store holds at the end."""
    healed: dict[int, Any] = field(default_factory=dict[int, Any])
    """What has become of that when only time went on, by its hash: of each end of one exploration."""

    def close(self) -> None:
        """Let go of all connections."""
        for one in (*self.tasks, *self.ghosts):
            if one is not None:
                one.connection.close()


class Explorer:
    """Explores the schedules of some actors from one stage.

    Args:
        store: Used for all of it.
        stage: Where they begin.
        actors: What runs.
        faults: How many faults a schedule may have.
        check: Called after each step that led to a new store.
        finish: Called at the end of each schedule whose end is new, on a store that it may change.
        most: Steps after which the exploration is cut off; it says so.
    """

    def __init__(
        self, store: Store, stage: Stage, actors: Sequence[Actor], faults: int, check: Callable[[World], None],
        finish: Callable[[World], None], most: int = 1_000_000,
    ) -> None:  # fmt: skip
        self._store, self._stage, self._actors, self._most = store, stage, actors, most
        self._faults, self._check, self._finish = faults, check, finish
        self.count: Counter[str] = Counter()
        self._held = self._real = Held({}, 0, 0)
        """What the schedule has led to; and what the store has, which follows only when somebody looks into it."""
        self._trips: dict[tuple[int, bool, frozenset[str], int], Trip] = {}
        self._digests: dict[int, int] = {}
        self._checked: set[int] = set()
        self._ended: set[int] = set()
        self._healed: dict[int, Any] = {}
        self._points: dict[tuple[int, int], Point] = {}
        self._live: list[Live | None] = [None for _ in actors]
        self._timed = any(getattr(actor, "__name__", "") == "pause" for actor in actors)
        self._twin = [actor in actors[:n] for n, actor in enumerate(actors)]

    def run(self) -> Counter[str]:
        """Explore; returns how many schedules, states and steps there were.

        Raises:
            Violated: With the schedule that broke something.
        """
        path: list[Frame] = []
        seen: dict[int, list[frozenset[Choice]]] = {}
        world = self._begin()
        while True:
            try:
                whole = self._descend(world, path, seen)
                if whole:
                    self._end(world)
            except Exception as error:
                raise self._violated(error, path) from error
            finally:
                world.close()
            self.count["schedules" if whole else "cut"] += 1
            while path and path[-1].at + 1 == len(path[-1].choices):
                path.pop()
            if not path or self.count["steps"] > self._most:
                self.count["states"] = len(self._checked)
                self.count["stopped early"] += bool(path)
                return self.count
            last = path[-1]
            last.sleep[last.choices[last.at]] = last.did
            last.at += 1
            world = self._again(last)
            try:
                last.did = self._take(world, last.choices[last.at])
                self._look(world)
            except Exception as error:
                world.close()
                raise self._violated(error, path) from error

    def _descend(self, world: World, path: list[Frame], seen: dict[int, list[frozenset[Choice]]]) -> bool:
        """Go on to the end of a schedule; whether it was reached, rather than something seen before."""
        while choices := self._choices(world):
            if len(path) > LONGEST:
                raise Violated("it goes round and round")
            sleep: dict[Choice, Did] = {}
            if path:
                here = path[-1]
                taken = here.choices[here.at]
                sleep = {c: d for c, d in here.sleep.items() if _independent(c, d, taken, here.did)}
            choices = [choice for choice in choices if choice not in sleep]
            been = seen.setdefault(self._key(world), [])
            if any(earlier <= sleep.keys() for earlier in been):
                return False
            been.append(frozenset(sleep))
            if not choices:
                return False
            path.append(self._frame(world, choices, sleep))
            path[-1].did = self._take(world, choices[0])
            self._look(world)
        return True

    # --- one step ------------------------------------------------------------------------------------------------

    def _choices(self, world: World) -> list[Choice]:
        live = [(n, task.point.request) for n, task in enumerate(world.tasks) if task.point.request is not None]
        found = [(n, "go") for n, _ in live]
        found += [(len(world.tasks) + n, "go") for n, ghost in enumerate(world.ghosts) if ghost is not None]
        if world.faults < self._faults:
            for n, request in live:
                if self._twin[n] and not world.faults:  # the first fault hits the first of two that are the same
                    continue
                hows = ("die", "die+", "lose", "lose+", "late") if writes(request) else ("die", "lose")
                found += [(n, how) for how in hows]
        return found

    def _take(self, world: World, choice: Choice) -> Did:
        index, how = choice
        self.count["steps"] += 1
        if index < len(world.tasks):
            return self._step(world, world.tasks[index], index, how)
        ghost = world.ghosts[index - len(world.tasks)]
        assert ghost is not None
        done = self._trip(ghost.connection, ghost.request)
        ghost.connection.close()
        world.ghosts[index - len(world.tasks)] = None
        return done.did

    def _step(self, world: World, task: Task, index: int, how: str) -> Did:
        request = task.point.request
        assert request is not None
        reply, (looked, changed) = None, NOTHING_DONE
        if how in {"go", "die+", "lose+"}:
            reply, (looked, changed), *_ = self._trip(task.connection, request)
        if how != "go":
            world.faults += 1
            if how == "late":
                world.ghosts.append(Ghost(task.connection, request))
                task.connection = Connection(world.store)
            task.connection.reset()
        elif request == UNWATCH:
            task.connection.reset()
        task.told = task.told.then(TOLD[how], reply if how == "go" else None)
        task.point = self._point(index, task.told)
        if task.point.request is None and self._timed:
            looked |= {LOG}  # it returns: what has committed by then its caller may see
            world.timeline = (*world.timeline, (index, _committed(self._held)))
        return looked, changed

    def _trip(self, connection: Connection, request: RoundTrip) -> Trip:
        """Ask the store, unless it is known what comes of that."""
        asked = (self._held.hash, connection.dirty, frozenset(connection.watched), self._digest(request))
        if (done := self._trips.get(asked)) is None:
            done = self._trips[asked] = self._ask(connection, request)
        else:
            for key in done.did[1]:
                for tell in self._store.watchers:
                    tell(key)
            connection.watched, connection.dirty = set(done.watched), done.dirty
        self._held = done.held
        return done

    def _ask(self, connection: Connection, request: RoundTrip) -> Trip:
        store = self._now()
        store.looked, store.changed = set(), set()
        reply = connection.trip(request)
        did = frozenset(store.looked), frozenset(store.changed)
        self._real = held = _held(store, self._held, did[1])
        return Trip(reply, did, held, frozenset(connection.watched), connection.dirty)

    def _digest(self, request: RoundTrip) -> int:
        """Of a request, each of which some point keeps."""
        if (known := self._digests.get(id(request))) is None:
            known = self._digests[id(request)] = hash(repr(request))
        return known

    def _point(self, index: int, told: Told) -> Point:
        """What a process does once told something. Being told the same it does the same, so it is asked but once."""
        key = (index, told.digest)
        if (known := self._points.get(key)) is not None:
            return known
        if told.how == "die":
            assert told.before is not None
            killed = self._points[key] = self._points[index, told.before.digest].killed()
            return killed
        live = self._live[index]
        if live is None or live.told is not told.before:
            if live is not None:
                live.close()
            live = self._live[index] = Live(index, self._actors[index], self._stage.notes)
            chain = [told]
            while (before := chain[-1].before) is not None:
                chain.append(before)
            for earlier in reversed(chain[1:-1]):
                live.tell(earlier)
        self._points[key] = live.point if told is NOTHING else live.tell(told)
        return self._points[key]

    def _look(self, world: World) -> None:
        if (key := self._held.hash) not in self._checked:
            self._checked.add(key)
            self._now()
            self._check(world)

    def _end(self, world: World) -> None:
        ends = tuple(repr(task.point) for task in world.tasks)
        key = hash((self._held.hash, ends, world.timeline))
        if key not in self._ended:
            self._ended.add(key)
            self._now()
            world.held, world.healed = self._held.hash, self._healed
            self._finish(world)

    # --- going back ----------------------------------------------------------------------------------------------

    def _begin(self) -> World:
        self._store.restore(self._stage.snapshot)
        self._held = self._real = _held(self._store, Held({}, 0, 0), self._store.data)
        world = World(self._store, self._actors, self._stage)
        for n in range(len(self._actors)):
            world.tasks.append(Task(NOTHING, self._point(n, NOTHING), Connection(self._store)))
        self._look(world)
        return world

    def _frame(self, world: World, choices: list[Choice], sleep: dict[Choice, Did]) -> Frame:
        places = [Place(t.told, frozenset(t.connection.watched), t.connection.dirty) for t in world.tasks]
        ghosts = [(frozenset(g.connection.watched), g.connection.dirty, g.request) if g else None for g in world.ghosts]
        return Frame(choices, sleep, self._held, places, ghosts, world.faults, world.timeline)

    def _again(self, frame: Frame) -> World:
        """The world as it was at a node."""
        self._held = frame.held
        world = World(self._store, self._actors, self._stage, faults=frame.faults, timeline=frame.timeline)
        for n, place in enumerate(frame.places):
            connection = self._connection(place.watched, place.dirty)
            world.tasks.append(Task(place.told, self._point(n, place.told), connection))
        for kept in frame.ghosts:
            world.ghosts.append(None if kept is None else Ghost(self._connection(*kept[:2]), kept[2]))
        return world

    def _now(self) -> Store:
        """The store as it is by now; only what differs is written."""
        store, was, there = self._store, self._real.kept, self._held.kept
        if was is not there:
            for key in [key for key in was if key not in there]:
                del store.data[key]
                store.expires.pop(key, None)
            for key, kept in there.items():
                if was.get(key) is not kept:
                    store.data[key] = kept.value if isinstance(kept.value, bytes) else copied(kept.value)
                    store.expires.pop(key, None)
                    if kept.expires is not None:
                        store.expires[key] = kept.expires
        store.now_us = self._held.now_us
        self._real = self._held
        return store

    def _connection(self, watched: frozenset[str], dirty: bool) -> Connection:
        connection = Connection(self._store)
        connection.watched, connection.dirty = set(watched), dirty
        return connection

    # --- telling states apart ------------------------------------------------------------------------------------

    def _key(self, world: World) -> int:
        tasks = tuple((task.told.digest, task.connection.dirty) for task in world.tasks)
        ghosts = tuple((self._digest(g.request), g.connection.dirty) if g else None for g in world.ghosts)
        return hash((self._held.hash, tasks, ghosts, world.faults, world.timeline))

    def _violated(self, error: Exception, path: list[Frame]) -> Violated:
        what = str(error) if isinstance(error, Violated) else f"{type(error).__name__}: {error}"
        return Violated(f"{what}\n{self._story(path)}")

    def _story(self, path: list[Frame]) -> str:
        names = [getattr(actor, "__name__", str(actor)) for actor in self._actors]
        lines = [f"from stage {self._stage.name}, {dict(self.count)}:"]
        for frame in path:
            index, how = frame.choices[frame.at]
            who = names[index] if index < len(names) else "a late request"
            changed = ", ".join(sorted(key.partition("}:")[2] or key for key in frame.did[1]))
            lines.append(f"  {who}: {how}" + (f", changing {changed}" if changed else ""))
        return "\n".join(lines)


def _held(store: Store, before: Held, changed: Iterable[str]) -> Held:
    """What a store holds now, after a change of some keys."""
    kept, total = dict(before.kept), before.total
    for key in changed:
        if (was := kept.pop(key, None)) is not None:
            total ^= was.hash
        if (value := store.data.get(key)) is not None:
            expires, same = store.expires.get(key), isinstance(value, bytes)
            kept[key] = now = Kept(value if same else copied(value), expires, hash((key, repr(value), expires)))
            total ^= now.hash
    return Held(kept, total, store.now_us)


def _committed(held: Held) -> int:
    log: Any = held.kept[LOG].value if LOG in held.kept else ()
    return sum(line.startswith(b"o ") for line in log)


def _independent(a: Choice, did_a: Did, b: Choice, did_b: Did) -> bool:
    if a[0] == b[0] or (a[1] != "go" and b[1] != "go"):
        return False
    return not (did_a[1] & (did_b[0] | did_b[1]) or did_b[1] & did_a[0])

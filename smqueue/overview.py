"""What a namespace is doing, at a glance: how many machines are where, what lags, who works, and what is wrong.

Nothing here grows with the number of waiting machines: counts are kept by the commits themselves, and of all machines
only those of the longest active operations are looked at.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, NamedTuple

from smqueue.ages import WALKED, Oldest, oldest
from smqueue.deployment import Deployment
from smqueue.early import EarlySignals, early_signals
from smqueue.keys import Keys, decode
from smqueue.pauses import Paused, paused
from smqueue.presence import SHOWN, Worker, read_workers
from smqueue.queries import moment
from smqueue.records import set_aside
from smqueue.roundtrip import Steps, read, time_us

SAMPLED = 500
"""How many quarantined machines are looked at for what their errors are."""
PAUSED = 100
"""How many pauses are told of, the longest first."""
BEHIND_S = 10.0
"""What is due for longer than this is late: a worker looks four times a second."""


@dataclass(frozen=True)
class StateCount:
    """The machines in one state.

    Attributes:
        module: The module instance.
        state: The state's name.
        active: How many machines are in it.
        ended: How many machines have ended in it, since the namespace was made; of a terminal state.
        oldest: Since when the one that has been in it longest; ``None`` when none was found among the operations that
            have been active longest.
        exact: Whether it is certain that no other has been in it longer.
    """

    module: str
    state: str
    active: int
    ended: int = 0
    oldest: datetime | None = None
    exact: bool = True


@dataclass(frozen=True)
class EdgeCount:
    """How often machines have gone from one state to another, since the namespace was made.

    Attributes:
        module: The module instance.
        source: The state left; ``None`` when they were added.
        target: The state entered; ``None`` when they were cancelled or merged into another.
        trigger: The trigger that won; ``+add``, ``+cancel`` or ``+merge`` where none did.
        count: How often.
    """

    module: str
    source: str | None
    target: str | None
    trigger: str
    count: int


@dataclass(frozen=True)
class Store:
    """The Redis server of a shard.

    Attributes:
        used_bytes: Memory in use.
        limit_bytes: ``maxmemory``; ``None`` when there is none.
        problem: Why it takes no writes now, or may lose what it was given; ``None`` when nothing is known.
    """

    used_bytes: int
    limit_bytes: int | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Cause:
    """Why machines of a namespace do not move.

    Attributes:
        kind: One word for scripts and alerts: ``no_worker``, ``queue_without_worker``, ``module_without_worker``,
            ``behind``, ``store``, ``quarantined``, ``unsent``; of one operation also ``unreadable``, ``unscheduled``,
            ``paused``, ``handler_fails``, ``trigger_fails``, ``signal_elsewhere``, ``no_signal``.
        text: What is the matter, in a sentence.
        remedy: What to do about it, in a sentence.
        subject: The queue, module or operation that it is about, where it is about one.
    """

    kind: str
    text: str
    remedy: str
    subject: str = ""


@dataclass(frozen=True)
class Overview:
    """A namespace at one moment.

    Attributes:
        namespace: Which.
        at: When, by Redis's clock.
        operations: How many have active machines.
        states: Active machines by module and state.
        edges: Transitions by module, states and trigger.
        quarantined: How many machines were set aside.
        errors: Type of error → how many quarantined machines have it; of the first 500.
        due: How many entries of the schedule are due and claimed by nobody.
        lag_s: For how long the first of them, in seconds.
        requests: What commits and clients have left to be done, and is not done yet.
        unsent: Tasks that can never be sent.
        early: Signals that nobody waits for, the latest first; of the last 100 operations that were sent one.
        paused: What is paused, the longest first; at most 100.
        workers: Those of the last day.
        stores: The servers, one for each shard.
        causes: What is wrong, the gravest first.
    """

    namespace: str
    at: datetime
    operations: int = 0
    states: tuple[StateCount, ...] = ()
    edges: tuple[EdgeCount, ...] = ()
    quarantined: int = 0
    errors: Mapping[str, int] = field(default_factory=dict[str, int])
    due: int = 0
    lag_s: float = 0.0
    requests: int = 0
    unsent: int = 0
    early: tuple[EarlySignals, ...] = ()
    paused: tuple[Paused, ...] = ()
    workers: tuple[Worker, ...] = ()
    stores: tuple[Store, ...] = ()
    causes: tuple[Cause, ...] = ()

    @property
    def active(self) -> int:
        """How many machines are active."""
        return sum(state.active for state in self.states)


def overview(deployment: Deployment, walked: int = WALKED) -> Overview:
    """Look at a namespace; about ten round trips for each shard, however much waits in it.

    Args:
        deployment: Where.
        walked: How many operations may be looked at for the ages of machines, in each shard.
    """
    shards = [deployment.driver.run(_shard(keys, walked)) for keys in deployment.all_keys()]
    moves, errors = Counter[Move](), Counter[str]()
    for shard in shards:
        moves.update(shard.moves)
        errors.update(shard.errors)
    first = shards[0]
    found = Overview(
        namespace=deployment.settings.namespace,
        at=moment(first.now_us),
        operations=sum(shard.operations for shard in shards),
        states=tuple(_states(moves, shards)),
        edges=tuple(sorted(_edges(moves), key=lambda edge: (edge.module, -edge.count))),
        quarantined=sum(shard.quarantined for shard in shards),
        errors=dict(errors.most_common()),
        due=sum(shard.due for shard in shards),
        lag_s=max(shard.lag_s for shard in shards),
        requests=sum(shard.requests for shard in shards),
        unsent=sum(shard.unsent for shard in shards),
        early=tuple(sorted((one for shard in shards for one in shard.early), key=lambda one: one.latest, reverse=True)),
        paused=tuple(_paused(shards)),
        workers=tuple(first.workers),
        stores=tuple(shard.store for shard in shards),
    )
    return replace(found, causes=tuple(causes(found)))


# --- what is wrong ---------------------------------------------------------------------------------------------------


def causes(found: Overview) -> Iterator[Cause]:
    """What is wrong with a namespace, the gravest first."""
    problems = dict.fromkeys(store.problem for store in found.stores if store.problem)
    for problem in problems:
        yield Cause("store", f"Redis takes no writes: {problem}", "give it memory or disk, or look at its log")
    alive = [worker for worker in found.workers if worker.alive]
    if alive:
        yield from _missing(found, alive)
    elif not problems:  # else they could not note themselves
        last = found.workers[0] if found.workers else None
        seen = f": the last, {last.name}, was seen {last.seen:%Y-%m-%d %H:%M:%S} UTC" if last else ""
        yield Cause("no_worker", f"no worker runs{seen}", "start one: celery -A … worker")
    if found.quarantined:
        kinds = ", ".join(f"{count} {kind}" for kind, count in list(found.errors.items())[:3])
        text = f"{_many(found.quarantined, 'machine is', 'machines are')} quarantined ({kinds})"
        remedy = "smqueue list --quarantined shows them; once mended: smqueue retry OPERATION, or smqueue retry --all"
        yield Cause("quarantined", text, remedy)
    if found.unsent:
        text = f"{_many(found.unsent, 'task', 'tasks')} can never be sent"
        yield Cause("unsent", text, "the list unsent holds each with its error")


def _missing(found: Overview, alive: Sequence[Worker]) -> Iterator[Cause]:
    """What the living workers do not do."""
    asked = {(w.transition_queue, "transitions") for w in alive} | {(w.trigger_queue, "polls and calls") for w in alive}
    for queue, what in sorted(asked, key=lambda one: one[::-1]):
        if not any(queue in worker.queues for worker in alive):
            text = f"no worker takes the queue {queue}, to which {what} go"
            yield Cause("queue_without_worker", text, f"start one: celery -A … worker -Q {queue}", queue)
    have = {module for worker in alive for module in worker.modules}
    for module in sorted({state.module for state in found.states if state.active} - have):
        text = f"no worker has the module {module}, which machines are active in"
        yield Cause("module_without_worker", text, "start a worker whose executor has it", module)
    if found.lag_s > BEHIND_S:
        due = _many(found.due, "entry is", "entries are")
        text = f"{due} due and not taken, the first for {found.lag_s:.0f} s"
        yield Cause("behind", text, "add workers, or look in their log for handlers that take long or hang")


def _many(number: int, one: str, several: str) -> str:
    return f"{number} {one if number == 1 else several}"


# --- one shard -------------------------------------------------------------------------------------------------------


class Move(NamedTuple):
    """From which state to which, and how; empty where there is none."""

    module: str
    source: str
    target: str
    how: str
    ends: bool


class _Shard(NamedTuple):
    now_us: int
    operations: int
    moves: Mapping[Move, int]
    oldest: Oldest
    quarantined: int
    errors: Mapping[str, int]
    due: int
    lag_s: float
    requests: int
    unsent: int
    early: list[EarlySignals]
    paused: list[Paused]
    workers: list[Worker]
    store: Store


def _shard(keys: Keys, walked: int) -> Steps[_Shard]:
    (time,) = yield from read([], ("TIME",))
    now_us = time_us(time)
    now_ms = now_us // 1000
    replies = yield from read(
        [],
        ("ZCARD", keys.operations),
        ("HGETALL", keys.moves),
        ("ZRANGE", keys.schedule, 0, 0, "WITHSCORES"),
        ("ZCOUNT", keys.schedule, "-inf", now_ms),
        ("LLEN", keys.requests),
        ("LLEN", keys.unsent),
        ("HLEN", keys.quarantine),
        ("ZRANGE", keys.workers, 0, SHOWN - 1, "REV", "WITHSCORES"),
        ("INFO", "memory"),
        ("INFO", "persistence"),
    )
    *told, memory, persistence = replies
    for reply in told:
        if isinstance(reply, Exception):  # we may not look
            raise reply
    operations, moves, first, due, requests, unsent, quarantined, noted = told
    lag_ms = max(0.0, now_ms - float(first[1])) if first else 0.0
    return _Shard(
        now_us=now_us,
        operations=operations,
        moves=_moves(moves),
        oldest=(yield from oldest(keys, walked)),
        quarantined=quarantined,
        errors=(yield from _errors(keys)) if quarantined else {},
        due=due,
        lag_s=lag_ms / 1000,
        requests=requests,
        unsent=unsent,
        early=(yield from early_signals(keys)),
        paused=(yield from paused(keys, PAUSED)),
        workers=read_workers(time, noted),
        store=(yield from _store(keys, _info(memory), _info(persistence))),
    )


def _paused(shards: Sequence[_Shard]) -> list[Paused]:
    """What is paused, each once: a module is paused in every shard."""
    found: dict[object, Paused] = {}
    for shard in shards:
        for one in shard.paused:
            found.setdefault((one.operation_id, one.module, one.state), one)
    return sorted(found.values(), key=lambda one: one.since.timestamp() if one.since else 0.0)[:PAUSED]


def _moves(flat: Sequence[bytes]) -> dict[Move, int]:
    found: dict[Move, int] = {}
    for name, times in zip(flat[::2], flat[1::2], strict=True):
        with suppress(ValueError):
            module, source, target, how = name.decode().split(" ")
            ends = target.endswith("!")
            found[Move(decode(module), decode(source), decode(target.removesuffix("!")), decode(how), ends)] = int(
                times
            )
    return found


def _states(moves: Mapping[Move, int], shards: Sequence[_Shard]) -> Iterator[StateCount]:
    active, ended = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for move, times in moves.items():
        if move.target:
            (ended if move.ends else active)[move.module, move.target] += times
        if move.source:
            active[move.module, move.source] -= times
    bound_us = min(shard.oldest.bound_us for shard in shards)
    for state in sorted(active.keys() | ended.keys()):
        since_us = min((s.oldest.since_us[state] for s in shards if state in s.oldest.since_us), default=None)
        exact = (since_us if since_us is not None else math.inf) <= bound_us
        since = moment(since_us) if since_us is not None else None
        yield StateCount(*state, max(0, active[state]), ended[state], since, exact)


def _edges(moves: Mapping[Move, int]) -> Iterator[EdgeCount]:
    for move, times in moves.items():
        yield EdgeCount(move.module, move.source or None, move.target or None, move.how, times)


def _errors(keys: Keys) -> Steps[dict[str, int]]:
    """Type of error → how many of the first quarantined machines have it."""
    ((_, flat),) = yield from read([], ("HSCAN", keys.quarantine, 0, "COUNT", SAMPLED))
    found = Counter[str]()
    for value in flat[1::2]:
        found[(set_aside(value) or "").partition(":")[0]] += 1
    return found


def _info(reply: Any) -> dict[str, str]:
    if not isinstance(reply, bytes):  # a server that does not tell
        return {}
    pairs = (line.partition(":") for line in reply.decode(errors="replace").splitlines())
    return {name: value for name, _, value in pairs}


def _store(keys: Keys, memory: Mapping[str, str], persistence: Mapping[str, str]) -> Steps[Store]:
    """What a server says of itself; 1 round trip if its last snapshot has failed, else none."""
    used, limit = int(memory.get("used_memory", 0)), int(memory.get("maxmemory", 0))
    problem = None
    if limit and used >= limit:
        problem = f"its memory is full, {used / 2**20:.0f} of {limit / 2**20:.0f} MiB"
    elif persistence.get("aof_last_write_status", "ok") != "ok":
        problem = "it cannot write its append-only file"
    elif persistence.get("rdb_last_bgsave_status", "ok") != "ok" and (yield from _stops_writes(keys)):
        problem = "it could not write its last snapshot (stop-writes-on-bgsave-error)"
    return Store(used, limit or None, problem)


def _stops_writes(keys: Keys) -> Steps[bool]:
    """Whether a server whose snapshots fail takes no writes: by default; one that does not tell is taken to be so."""
    names = ("stop-writes-on-bgsave-error", "save")
    # EXISTS beside them: in a cluster its key says which node is meant.
    _, *replies = yield from read([], ("EXISTS", keys.meta), *[("CONFIG", "GET", name) for name in names])
    stops, save = (one[1] if isinstance(one, list) and len(one) == 2 else b"yes" for one in replies)
    return stops == b"yes" and save != b""

"""What a page asks Redis for is bounded: as many commands, and as large ones, among a few machines and among many."""

from __future__ import annotations

import json
from collections.abc import Callable

from smqueue import Module, State, StateMachine, Transaction
from smqueue.flower.looks import Asked, find, past, seen
from smqueue.overview import overview
from smqueue.records import compact
from tests.inprocess import Local, Play
from tests.monitor import Asked as Command
from tests.monitor import monitoring

crowd = Module("crowd")


@crowd.state
class Waiting(State):
    n: int


@crowd.state
class Rare(State):
    n: int


@crowd.on((Waiting, Rare), crowd.signal("go"))
def gone(tx: Transaction, state: Waiting | Rare, _: None) -> Rare:
    return Rare(state.n)


FEW, MANY = 2_400, 6_000
LARGEST = 5_000
"""Of one command, in items: names of operations; all others are smaller by far."""
WHOLE = {"HGETALL", "HKEYS", "HVALS", "KEYS", "LRANGE", "SCAN", "SMEMBERS", "ZRANGE"}
"""They may bring all that there is."""


def fill(local: Local, count: int) -> None:
    """Half of them in operations of their own, half in one that has a long history; every tenth is set aside."""
    add = local.executor.add_state_machines
    add([StateMachine(f"op-{n:05}", Waiting(n)) for n in range(count // 2)])
    for at in range(0, count // 2, 500):
        add([StateMachine("many", Waiting(n)) for n in range(at, min(at + 500, count // 2))])
    add([StateMachine("op-rare", Rare(0))])
    keys = local.keys()
    notes = {local.stored("many", Waiting(n)).record: n for n in range(0, count // 2, 10)}
    note = json.dumps({"error": "ValueError: x", "op": "many", "entry": f"{'x' * 20}:{'y' * 16}", "at": 0})
    local.redis.hset(keys.quarantine, mapping=dict.fromkeys(notes, note))
    entry = {"machine": "A" * 16, "won": "gone", "version": 1, "at": 1, "commit": "c"}
    steps = [compact({**entry, "step": n, "to": f'crowd Rare {{"n":{n}}}'}) for n in range(2, count * 3)]
    local.redis.rpush(keys.history("many"), *steps)


def size(one: Command) -> int:
    """How many items a command may bring or name."""
    args = [arg.decode(errors="replace") for arg in one.args]
    if one.name in {"LRANGE", "ZRANGE"}:
        start, stop = int(args[2]), int(args[3])
        early = one.name == "ZRANGE" and args[1].endswith((":early", ":controls"))  # which are bounded themselves
        return 1_000 if early else stop - start + 1 if start * stop >= 0 else 10**9
    if one.name == "HGETALL":
        return 100 if ":race:" in args[1] or args[1].endswith((":moves", ":tallies")) else 10**9
    if "COUNT" in args:
        return int(args[args.index("COUNT") + 1])
    return 10**9 if one.name in WHOLE else len(args)


PAGES: dict[str, Callable[[Local], object]] = {
    "a search": lambda local: find(local.executor, Asked(module="crowd")),
    "a search of one operation": lambda local: find(local.executor, Asked(operation="many", newest=True)),
    "the quarantine": lambda local: find(local.executor, Asked(quarantined=True)),
    "the quarantine of one operation": lambda local: find(local.executor, Asked(operation="many", quarantined=True)),
    "an operation": lambda local: (seen(local.executor, "many"), past(local.executor, "many")),
    "its steps in the middle": lambda local: past(local.executor, "many", 300),
    "what the overview is kept up with": lambda local: overview(local.executor.deployment, walked=0),
}


def test_a_page_asks_for_as_much_among_few_as_among_many(play: Play, namespace: str) -> None:
    """However many machines, operations and steps there are: the same commands, but for a few, and none that brings
    all of anything."""
    local = play(crowd=crowd)
    counts: dict[str, list[int]] = {}
    for count in (FEW, MANY):
        fill(local, count)
        for name, look in PAGES.items():
            with monitoring(local.redis) as monitor:
                look(local)
                asked = [one for one in monitor.asked if namespace.encode() in b" ".join(one.args)]
            counts.setdefault(name, []).append(len(asked))
            largest = max(asked, key=size)
            assert size(largest) <= LARGEST, (name, largest.args[:6])
        local.redis.delete(*local.redis.keys(f"{{{namespace}.*"))
    for name, (few, many) in counts.items():
        assert many <= few + 150, (name, few, many)
        assert many < 1_000, (name, many)

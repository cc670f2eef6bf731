"""How long Flower's pages of machines take among very many, and which command of Redis takes longest meanwhile.

``python -m benchmarks.pages [--machines 1000000] [--steps 10000] [--crowd 20000] [--out FILE]``: an embedded server is
filled with machines that wait, each in an operation of its own; before them is one operation of very many, far behind
one machine in a rare state; some hundred are quarantined, and one operation has a long history. Then a real Flower is
asked for each page, again and again, and searches are followed by their cursors. What counts is the longest answer: one
look at a namespace serves all who ask within a second.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import redis

from benchmarks.app import build
from benchmarks.feeding import BATCH, add_all
from benchmarks.machines import Awaiting, Watched
from benchmarks.stage import ROOT, beside
from benchmarks.surroundings import surroundings
from smqueue import Executor, StateMachine
from smqueue.embedded import EmbeddedServer
from smqueue.keys import Keys, digest
from smqueue.records import Active, compact, guard_of

NAMESPACE, LONG, CROWD, RARE = "pages", "long-history", "crowd", "rare"
ROUNDS = 10
ASIDE = 500
"""Of the crowd's machines so many are quarantined."""
FOLLOWED = 100
"""Pages of a search that are followed, at most; of one for what is rare all are."""
STARTS_S = 60
MOST_S, MOST_COMMAND_MS = 1.0, 50.0
"""Goals."""


class Timed(NamedTuple):
    """How long the answers of a page took, in seconds."""

    title: str
    took_s: list[float]
    more: str = ""

    @property
    def row(self) -> str:
        """Of a table."""
        most = max(self.took_s)
        met = "✓" if most <= MOST_S else "✗"
        median = statistics.median(self.took_s) * 1000
        return f"| {self.title} | {len(self.took_s)} | {median:.0f} | {most * 1000:.0f} {met} | {self.more} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Fill, ask, tell; 1 when a goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pages", description=__doc__)
    parser.add_argument("--machines", type=int, default=1_000_000)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--crowd", type=int, default=20_000)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, EmbeddedServer(Path(folder) / "data") as server:
        _, executor = build(server.url, beside(server.url), NAMESPACE)
        began = time.perf_counter()
        fill(executor, server.url, asked.machines, asked.crowd, asked.steps)
        print(f"filled in {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
        with redis.Redis.from_url(server.url, socket_timeout=60) as client:
            client.config_set("slowlog-log-slower-than", 1_000)  # µs
            client.config_set("slowlog-max-len", 1_000)
            client.slowlog_reset()
            found = list(ask(server.url, folder))
            logged: Any = client.slowlog_get(1_000)
            slow = sorted(logged, key=lambda one: -one["duration"])[:3]
    slowest_ms = slow[0]["duration"] / 1000 if slow else 0.0
    text = told(asked, found, slow, slowest_ms)
    print(text)
    if asked.out is not None:
        asked.out.write_text(text)
    return int(max(max(one.took_s) for one in found) > MOST_S or slowest_ms > MOST_COMMAND_MS)


def told(asked: argparse.Namespace, found: Sequence[Timed], slow: Sequence[Any], slowest_ms: float) -> str:
    """All of it as a page."""
    fast = slowest_ms <= MOST_COMMAND_MS
    commands = [f"- {one['duration'] / 1000:.1f} ms: `{shown(one['command'])}`" for one in slow]
    lines = [
        "# Flower's pages among many machines",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, `python -m benchmarks.pages --machines {asked.machines}`.",
        "",
        f"{asked.machines:,} machines, each in an operation of its own; one operation of {asked.crowd:,}, of which",
        f"{ASIDE} are quarantined; one machine in a rare state, behind nine tenths of the others; one operation with",
        f"{asked.steps:,} steps. One client asks for each page, over HTTP, of a Flower on the same machine.",
        "",
        *(f"- {name.replace('_', ' ')}: {value}" for name, value in surroundings().items()),
        "",
        f"✓ and ✗: the goal, at most {MOST_S:g} s for the longest answer, met or not.",
        "",
        "| page | times | median, ms | most, ms | |",
        "|---|---|---|---|---|",
        *(one.row for one in found),
        "",
        f"The slowest commands of Redis meanwhile; the goal is {MOST_COMMAND_MS:g} ms at most{' ✓' * fast or ' ✗'}:",
        "",
        *(commands or ["- none took 1 ms"]),
    ]
    return "\n".join(lines) + "\n"


def shown(command: bytes) -> str:
    """The beginning of a command."""
    return command[:70].decode(errors="replace").replace("`", "'")


def fill(executor: Executor, url: str, machines: int, crowd: int, steps: int) -> None:
    """Add all of them; the crowd comes before the others, the rare one behind nine tenths of them."""
    for at in range(0, crowd, BATCH):
        batch = [StateMachine(CROWD, Awaiting(n)) for n in range(at, min(at + BATCH, crowd))]
        executor.add_state_machines(batch)
    put_aside(executor, url)
    (rare,) = add_all(executor, RARE, [Watched(5)])
    (op,) = add_all(executor, LONG, [Awaiting(5)])
    (sample,) = add_all(executor, "waiting", [Awaiting(5)])
    keys = executor.deployment.keys(op)
    client: Any
    with redis.Redis.from_url(url, socket_timeout=60) as client:
        began_ms = multiply(client, keys, sample, machines)
        client.zadd(keys.operations, {CROWD: began_ms, rare: began_ms + machines * 9 // 10})
    lengthen(keys, op, url, steps)


COPY = """
local prefix, sample, guard, machine, field, began = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local function plainly(text) return (text:gsub('%-', '%%-')) end
local active = redis.call('HGET', prefix .. 'active:' .. sample, field)
local armed = redis.call('GET', prefix .. 'machine:' .. record_id(sample, field))
for n = tonumber(ARGV[7]), tonumber(ARGV[8]) do
  local op, id = string.format('waiting-%07d', n), string.format('%016d', n)
  local rec = record_id(op, field)
  redis.call('HSET', prefix .. 'active:' .. op, field, (active:gsub(plainly(machine), id):gsub(plainly(guard), id)))
  local value = armed:gsub(plainly('"' .. sample .. '"'), '"' .. op .. '"'):gsub(plainly(guard), id)
  redis.call('SET', prefix .. 'machine:' .. rec, value)
  redis.call('ZADD', prefix .. 'schedule', now + 3600000 + n, rec .. ':' .. id)
  redis.call('ZADD', prefix .. 'operations', began + n, op)
end
"""
"""Machines as one is that was added, each in an operation of its own: adding a million takes half an hour."""


def multiply(client: Any, keys: Keys, sample: str, count: int) -> int:
    """Copy a machine so often; returns since when the first is active, ms."""
    ((field, value),) = client.hgetall(keys.active(sample)).items()
    guard = guard_of(client.get(keys.machine(digest(sample, field.decode())))) or ""
    began_ms = int(client.zscore(keys.operations, sample)) - count - 1
    copy = client.register_script((files("smqueue") / "scripts" / "_common.lua").read_text() + COPY)
    known = (keys.prefix, sample, guard, Active.parse(value).machine, field, began_ms)
    for at in range(1, count, BATCH):
        copy(args=[*known, at, min(at + BATCH, count) - 1])
    (move,) = [one for one in client.hkeys(keys.moves) if b"Awaiting" in one]
    client.hincrby(keys.moves, move, count - 1)
    return began_ms


def put_aside(executor: Executor, url: str) -> None:
    """Quarantine some of the crowd, as a drain does it."""
    keys, notes = executor.deployment.keys(CROWD), dict[str, str]()
    for n in range(ASIDE):
        record = executor.instances.place(StateMachine(CROWD, Awaiting(n))).record
        entry = f"{record}:{'A' * 16}"
        notes[record] = compact({"error": "ValueError: on purpose", "op": CROWD, "entry": entry, "at": 0})
    client: Any
    with redis.Redis.from_url(url, socket_timeout=60) as client:
        client.hset(keys.quarantine, mapping=notes)


def lengthen(keys: Keys, op: str, url: str, steps: int) -> None:
    """Give an operation a long history, written as commits write it; its states repeat."""
    client: Any
    with redis.Redis.from_url(url, socket_timeout=60) as client:
        (field,) = [raw.decode() for raw in client.hkeys(keys.active(op))]
        module, state, _ = field.split(" ", 2)
        now_us = int(time.time() * 1_000_000)
        entry = {"machine": "A" * 16, "won": "paid", "version": 1}
        for at in range(0, steps, 1_000):
            some = [
                {**entry, "step": n + 1, "to": f'{module} {state} {{"n":{n}}}', "at": now_us + n, "commit": f"c{n}"}
                for n in range(at, min(at + 1_000, steps))
            ]
            client.rpush(keys.history(op), *map(compact, some))
            left = {one["to"]: left_of(one, now_us) for one in some}
            client.hset(keys.inactive(op), mapping=left)


def left_of(entry: dict[str, Any], now_us: int) -> str:
    """The record of a state that its machine has left by the next step."""
    kept = {"machine": entry["machine"], "step": entry["step"], "at": now_us, "exited": now_us, "version": 1}
    lost = {"expired": {"kind": "deadline", "left_ms": 1_000}}
    by = f"c{entry['step']}"
    return compact(
        kept | {"made": "c0", "by": by, "visits": 1, "won": "paid", "won_at": now_us // 1000, "losers": lost}
    )


def ask(url: str, folder: str) -> Iterator[Timed]:
    """Ask a Flower for each page."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    env = {"SMQUEUE_URL": url, "CELERY_BROKER_URL": beside(url), "SMQUEUE_NAMESPACE": NAMESPACE, "PYTHONPATH": path}
    env |= {"FLOWER_UNAUTHENTICATED_API": "1"}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "celery", "-A", "benchmarks.app", "flower", "--address=127.0.0.1"]
    log = Path(folder) / "flower.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, f"--port={port}"], cwd=ROOT, env={**os.environ, **env}, stdout=out, stderr=out
        )
    try:
        base = f"http://127.0.0.1:{port}"
        until = time.monotonic() + STARTS_S
        while time.monotonic() < until:
            try:
                get(f"{base}/healthcheck")
                break
            except OSError:
                time.sleep(0.1)
        for title, page in PAGES.items():
            yield took(title, base + page)
        for title, query in SEARCHES.items():
            yield followed(title, f"{base}/api/machines?{query}")
    finally:
        process.terminate()
        process.wait(30)


PAGES = {
    "the overview": "/machines",
    "a search, first page": "/machines?state=Awaiting",
    "a search by prefix": "/machines?operation=waiting-05*",
    "a search, newest first": "/machines?newest=1",
    "the quarantined": "/machines?quarantined=1",
    "the quarantined of one operation of many machines": f"/machines?quarantined=1&operation={CROWD}",
    "an operation of many machines": f"/machines/op/{CROWD}",
    "its explanation as JSON": f"/api/machines/{CROWD}",
    "an operation of many steps": f"/machines/op/{LONG}-0",
    "its steps in the middle": f"/machines/op/{LONG}-0?before=5000",
    "its explanation as JSON, of many steps": f"/api/machines/{LONG}-0",
}
SEARCHES = {
    "all, by cursor": "",
    "an operation of many machines, by cursor": f"operation={CROWD}",
    "the quarantined, by cursor": "quarantined=1",
    "a rare state, by cursor": "state=Watched",
}


def took(title: str, address: str) -> Timed:
    """How long some requests took."""
    found: list[float] = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        get(address)
        found.append(time.perf_counter() - began)
    return Timed(title, found)


def followed(title: str, address: str) -> Timed:
    """How long each page of a search took, from the first to the last, or some hundred."""
    found, count, cursor = list[float](), 0, ""
    rare = "Watched" in address
    while cursor is not None and (rare or len(found) < FOLLOWED):
        began = time.perf_counter()
        page = json.loads(get(f"{address}&cursor={cursor}"))
        found.append(time.perf_counter() - began)
        count, cursor = count + len(page["machines"]), page["cursor"]
        if rare and count:
            break
    return Timed(title, found, f"{count:,} machine{'' if count == 1 else 's'} in {sum(found):.1f} s")


def get(address: str) -> bytes:
    """The body of a page."""
    with urllib.request.urlopen(address, timeout=60) as answer:
        return answer.read()


if __name__ == "__main__":
    sys.exit(main())

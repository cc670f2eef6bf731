"""How long Flower's pages of machines take among very many, and which command of Redis takes longest meanwhile.

``python -m benchmarks.pages [--machines 1000000] [--steps 10000]``: an embedded server is filled with machines that
wait, and one operation with a long history; then a real Flower is asked for each page, again and again. What counts is
the longest answer: one look at a namespace serves all who ask within a second.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import redis

from benchmarks.app import build
from benchmarks.feeding import BATCH, add_all
from benchmarks.machines import Awaiting
from benchmarks.stage import ROOT, beside
from smqueue.embedded import EmbeddedServer
from smqueue.keys import Keys
from smqueue.records import compact

NAMESPACE, LONG = "pages", "long-history"
ROUNDS = 10
STARTS_S = 60
MOST_S, MOST_COMMAND_MS = 1.0, 50.0
"""Goals."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Fill, ask, tell; 1 when a goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pages", description=__doc__)
    parser.add_argument("--machines", type=int, default=1_000_000)
    parser.add_argument("--steps", type=int, default=10_000)
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, EmbeddedServer(Path(folder) / "data") as server:
        _, executor = build(server.url, beside(server.url), NAMESPACE)
        began = time.perf_counter()
        for at in range(0, asked.machines, BATCH):
            add_all(executor, f"waiting-{at:07}", [Awaiting(5)] * min(BATCH, asked.machines - at))
        (op,) = add_all(executor, LONG, [Awaiting(5)])
        lengthen(executor.deployment.keys(op), op, server.url, asked.steps)
        print(f"{asked.machines:,} machines and a history of {asked.steps:,} in {time.perf_counter() - began:.0f} s")
        with redis.Redis.from_url(server.url, socket_timeout=60) as client:
            client.config_set("slowlog-log-slower-than", 1_000)  # µs
            client.config_set("slowlog-max-len", 1_000)
            client.slowlog_reset()
            worst = ask(server.url, op, folder)
            slow = sorted(client.slowlog_get(1_000), key=lambda one: -one["duration"])[:3]
            told = [f"{one['duration'] / 1000:.1f} ms {one['command'][:70]!r}" for one in slow]
            print("slowest commands:", "; ".join(told) or "all under 1 ms")
            slowest_ms = slow[0]["duration"] / 1000 if slow else 0.0
    return int(worst > MOST_S or slowest_ms > MOST_COMMAND_MS)


def lengthen(keys: Keys, op: str, url: str, steps: int) -> None:
    """Give an operation a long history, written as commits write it; its states repeat."""
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


def ask(url: str, op: str, folder: str) -> float:
    """Ask a Flower for each page; returns the longest answer, in seconds."""
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
        pages = {
            "the overview": "/machines",
            "a search, first page": "/machines?state=Awaiting",
            "a search by prefix": "/machines?operation=waiting-05*",
            "the oldest quarantined": "/machines?quarantined=1",
            "an operation of many steps": f"/machines/op/{op}",
            "its steps in the middle": f"/machines/op/{op}?before=5000",
            "its explanation as JSON": f"/api/machines/{op}",
        }
        return max(took(title, base + page) for title, page in pages.items())
    finally:
        process.terminate()
        process.wait(30)


def took(title: str, address: str) -> float:
    """The longest of some requests, in seconds."""
    found: list[float] = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        get(address)
        found.append(time.perf_counter() - began)
    print(f"{title}: median {statistics.median(found) * 1000:.0f} ms, at most {max(found) * 1000:.0f} ms")
    return max(found)


def get(address: str) -> bytes:
    """The body of a page."""
    with urllib.request.urlopen(address, timeout=60) as answer:
        return answer.read()


if __name__ == "__main__":
    sys.exit(main())

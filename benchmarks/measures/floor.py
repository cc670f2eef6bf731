"""The floor: our run's own command stream, recorded, then replayed bare through redis-py.

A proxy keeps what our processes write to Redis during cycles, and in which writes. It is played on a fresh server by as
many processes with as many connections: the same commands in the same writes, each sent when its connection has read as
many replies as it had then, and not before the producers have got as far as they had. Blocking reads of the
broker take what is there. What remains is Redis and redis-py; what we are slower than that is our Python and Celery's.
"""

from __future__ import annotations

import pickle
import sys
import tempfile
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import redis

from benchmarks.app import NAMESPACE
from benchmarks.figure import Absent, Measured, figure, ratios
from benchmarks.machines import FINISHED
from benchmarks.measures.cycles import without_samples
from benchmarks.recorder import Passed
from benchmarks.replay import play
from benchmarks.settings import Settings
from benchmarks.stage import ROOT, Stage
from benchmarks.stream import Stream, stream_of
from benchmarks.systems.ours import Ours, driver_of
from benchmarks.systems.ours_driver import BEGIN, END
from benchmarks.systems.system import drive
from smqueue.drivers.scripts import script
from smqueue.embedded import EmbeddedServer
from smqueue.keys import Keys
from smqueue.processes import Child

READY_S = 20
LEAST = 0.6
"""The goal: our share of the floor."""
LEAST_COMMITTED = 99
"""Percent of the cycles that the stream played bare has to commit: where its EXECs failed it would be too cheap."""
COUNTER = Keys(NAMESPACE).data("bench", FINISHED)


def measure(settings: Settings) -> Measured:
    """Record once; then run ours and the floor by turns."""
    cycles = settings.sizes.recorded
    stream = recorded(settings)
    settings.say(f"recorded {stream.names.total() / cycles:.1f} commands a cycle")
    found, ours, floor, committed = Measured(), list[float](), list[float](), list[float]()
    system = Ours(settings)
    for number in range(settings.rounds):
        took: dict[str, Any] = system.round(without_samples(settings))
        ours.append(took["cycles"] / took["seconds"])
        with EmbeddedServer() as server, redis.Redis.from_url(server.url) as client:
            load(client)
            floor.append(cycles / play(stream, str(server.socket_path)))
            committed.append(100 * int(client.get(COUNTER) or 0) / (cycles + settings.sizes.warm))
        settings.say(f"round {number + 1}: ours {ours[-1]:,.0f}, the floor {floor[-1]:,.0f} cycles/s")
    found.titles |= {"ours": "smqueue", "floor": "the floor: our commands, bare", "stream": "the stream, each cycle"}
    found.figures["ours.rate"] = figure("cycles/s", *ours)
    found.figures["ours.of_the_floor"] = ratios(ours, floor, least=LEAST)
    found.figures["floor.rate"] = figure("cycles/s", *floor)
    found.figures["floor.committed"] = figure("%", *committed, least=LEAST_COMMITTED)
    found.figures["stream.commands"] = figure("", stream.names.total() / cycles)
    found.figures["stream.writes"] = figure("", stream.writes / cycles)
    found.figures["stream.sent"] = figure("bytes", stream.sent / cycles)
    found.figures["stream.received"] = figure("bytes", stream.received / cycles)
    processes = [len({spoken.pid for spoken in some}) for some in (stream.producers, stream.workers)]
    told = f"{cycles:,} cycles of {processes[0]} client and {processes[1]} worker processes were recorded"
    found.notes.append(f"{told}; the proxy slows them down, so that groups may be larger.")
    often = [f"{name} {count / cycles:.1f}" for name, count in stream.names.most_common() if count >= cycles / 20]
    found.notes.append(f"Commands of a cycle: {', '.join(often)}.")
    return found


def load(client: redis.Redis) -> None:
    """Redis knows our scripts: which process was the first to tell it would be another one each time."""
    for one in (files("smqueue") / "scripts").iterdir():
        if not one.name.startswith("_"):
            client.script_load(script(one.name.removesuffix(".lua")).text)


def recorded(settings: Settings) -> Stream:
    """Run cycles through the proxy.

    Raises:
        Absent: It did not start, or the cycles failed.
    """
    sizes = settings.sizes
    with tempfile.TemporaryDirectory(prefix="bench-") as name, EmbeddedServer() as server:
        own, file = Path(name) / "proxy.sock", Path(name) / "passed"
        command = [sys.executable, "-m", "benchmarks.recorder", str(server.socket_path), str(own), str(file)]
        with Child("recorder", command, cwd=ROOT) as recorder:
            until = time.monotonic() + READY_S
            while not own.exists():
                if time.monotonic() > until or not recorder.alive:
                    raise Absent("the recording proxy did not start")
                time.sleep(0.02)
            with Stage(settings.workers, server=f"unix://{own}?db=0") as stage:
                amount = {
                    "cycles": sizes.recorded, "clients": settings.clients, "samples": 0, "warm": sizes.warm,
                    "record": 1,
                }  # fmt: skip
                drive("recorded cycles", driver_of(stage, settings.client_processes), amount)
        passed = [Passed(*one) for one in pickle.loads(file.read_bytes())]
        return stream_of(passed, BEGIN.encode(), END.encode())

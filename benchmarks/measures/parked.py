"""A million machines that wait: their bytes in Redis, what an idle worker does meanwhile, and what they cost the next.

Each waits for a signal and a 30-minute timeout. Two namespaces with a worker each share one server; the few wait in
one, the many in the other. Bytes are those of ``used_memory`` that the many have added. While nothing happens the
commands that the state's server runs are counted (those of scripts too; the broker is a server of its own), and the CPU
time of workers and server. Then the next machine is added and signalled, in either namespace by turns, while the server
rewrites no file; its figures are medians of each round.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import psutil

from benchmarks.feeding import BATCH, Hearing, add_all
from benchmarks.figure import Measured, figure, ratios
from benchmarks.machines import Awaiting, Watched, payment
from benchmarks.settings import Settings
from benchmarks.stage import Stage
from smqueue import StateMachine

MOST_BYTES, MOST_COMMANDS, MOST_RATIO, MOST_GROWN = 650, 20, 1.2, 5
"""Goals: bytes a machine; commands/s an idle worker; times as long as beside the few; MiB that a worker grows by."""
INTERLEAVED = 5
"""Rounds of the next machine, at least: they take seconds, while the many take minutes."""
LIMIT_S = 60
WARM = 50
TELL_EVERY = 100_000
MEBIBYTE = 1024 * 1024


def measure(settings: Settings) -> Measured:
    """One server, filled once."""
    sizes, found = settings.sizes, Measured()
    with (
        Stage(settings.workers, own_broker=True, namespace="few") as few,
        Stage(settings.workers, server=few.plain, own_broker=True, namespace="many") as many,
        Hearing(few.plain) as hearing,
    ):
        for stage in (few, many):
            for number in range(WARM):
                next_ms(stage, hearing, f"warm-{stage.namespace}-{number}")
        add_all(few.executor, "waiting", [Awaiting(5)] * sizes.few)
        fill(settings, many, found)
        few.connect().config_set("auto-aof-rewrite-percentage", 0)  # none begins while the next is measured
        few.settled()
        idle(settings, [few, many], found)
        beside(settings, few, many, hearing, found)
    rows = {
        "redis": "Redis, each machine",
        "worker": "a worker",
        "idle": "idle, each worker",
        "server": "idle, the server",
    }
    found.titles = rows | {"few": f"the next beside {sizes.few:,}", "many": f"the next beside {sizes.many:,}"}
    return found


def fill(settings: Settings, many: Stage, found: Measured) -> None:
    """Add the many; what they take in the server and in their worker."""
    state, count = many.connect(), settings.sizes.many
    used, resident = state.info("memory")["used_memory"], memory(many)
    began = time.perf_counter()
    for at in range(0, count, BATCH):
        add_all(many.executor, f"waiting-{at}", [Awaiting(5)] * min(BATCH, count - at))
        if at and at % TELL_EVERY == 0:
            settings.say(f"{at:,} machines wait")
    settings.say(f"{count:,} machines wait, added at {count / (time.perf_counter() - began):,.0f} a second")
    many.settled()
    grown = state.info("memory")["used_memory"] - used
    found.figures["redis.bytes"] = figure("bytes", grown / count, most=MOST_BYTES)
    found.figures["worker.memory"] = figure("MiB", memory(many) / MEBIBYTE)
    found.figures["worker.grown"] = figure("MiB", (memory(many) - resident) / MEBIBYTE, most=MOST_GROWN)


def idle(settings: Settings, stages: Sequence[Stage], found: Measured) -> None:
    """What is done while nothing happens."""
    state = stages[0].connect()
    processes = [process for stage in stages for process in stage.processes()]
    workers = sum(len(stage.workers) for stage in stages)
    server = psutil.Process(state.info("server")["process_id"])
    rates: list[float] = []
    busy: list[float] = []
    served: list[float] = []
    for number in range(settings.rounds):
        commands, spent, served_s, began = calls(state), cpu_s(processes), cpu_s([server]), time.perf_counter()
        time.sleep(settings.sizes.idle_s)
        seconds = time.perf_counter() - began
        rates.append((calls(state) - commands) / seconds / workers)
        busy.append((cpu_s(processes) - spent) / seconds / workers * 100)
        served.append((cpu_s([server]) - served_s) / seconds * 100)
        settings.say(f"idle {number + 1}: {rates[-1]:.1f} commands/s, {busy[-1]:.2f} % CPU a worker")
    found.figures["idle.commands"] = figure("commands/s", *rates, most=MOST_COMMANDS)
    found.figures["idle.cpu"] = figure("% of a core", *busy)
    found.figures["server.cpu"] = figure("% of a core", *served)


def beside(settings: Settings, few: Stage, many: Stage, hearing: Hearing, found: Measured) -> None:
    """The next machine, in either namespace by turns."""
    medians: dict[tuple[str, str], list[float]] = {}
    for number in range(max(settings.rounds, INTERLEAVED)):
        took: dict[tuple[str, str], list[float]] = {}
        for sample in range(settings.sizes.paired):
            for stage in (few, many) if sample % 2 else (many, few):
                add_ms, signal_ms = next_ms(stage, hearing, f"next-{stage.namespace}-{number}-{sample}")
                took.setdefault((stage.namespace, "add"), []).append(add_ms)
                took.setdefault((stage.namespace, "signal"), []).append(signal_ms)
        for what, some in took.items():
            medians.setdefault(what, []).append(statistics.median(some))
    for (namespace, what), some in sorted(medians.items()):
        found.figures[f"{namespace}.{what}"] = figure("ms", *some)
    for what in ("add", "signal"):
        ratio = ratios(medians["many", what], medians["few", what], most=MOST_RATIO)
        found.figures[f"many.{what}_as_long"] = ratio
        settings.say(f"{what}: {ratio.median:.2f} times as long beside the many")


def next_ms(stage: Stage, hearing: Hearing, name: str) -> tuple[float, float]:
    """Milliseconds that adding a machine takes; and from its signal until its commit is heard of."""
    began = time.perf_counter()
    stage.executor.add_state_machines([StateMachine(name, Watched(5))])
    added, signalled = time.perf_counter(), time.time()
    stage.executor.signal(name, payment, 5)
    hearing.wait([name], LIMIT_S)
    return (added - began) * 1000, (hearing.at[name] - signalled) * 1000


def memory(stage: Stage) -> int:
    """Bytes that the workers' processes hold."""
    return sum(process.memory_info().rss for process in stage.processes())


def cpu_s(processes: Sequence[psutil.Process]) -> float:
    """Seconds of CPU time that they have spent."""
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def calls(state: Any) -> int:
    """Commands that the server has run, those inside of scripts too; not the looks at it from here."""
    return sum(one["calls"] for name, one in state.info("commandstats").items() if name != "cmdstat_info")

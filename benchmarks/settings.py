"""What a run is told: how much to do, and with what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Sizes:
    """How much each measure does. Seconds are in the name; everything else is a count.

    Attributes:
        share: Of the cycles that a system does in one round at full size.
        warm: Cycles that are run and not counted, in each round.
        samples: Latencies in one round.
        recorded: Cycles whose command stream is the floor's.
        open_s: How long each load of the latencies lasts.
        machines: Added, signalled, and so on, in one round, where nothing else is said.
        timers: That fall due within one second.
        polls_s: For how long polls are counted.
        children: Started by one transition.
        chains: Machines that pass ten states at once.
        listeners: On one channel.
        few: Machines that wait beside the next one.
        many: The same, in the other namespace; also what bytes are counted for.
        paired: Adds and signals of the next machine in one round, beside few and many by turns.
        idle_s: For how long nothing happens.
        sleeping: Machines whose handler sleeps 5 ms.
        history: Steps of one machine.
    """

    share: float
    warm: int
    samples: int
    recorded: int
    open_s: float
    machines: int
    timers: int
    polls_s: float
    children: int
    chains: int
    listeners: int
    few: int
    many: int
    paired: int
    idle_s: float
    sleeping: int
    history: int


FULL = Sizes(
    share=1, warm=500, samples=200, recorded=4_000, open_s=10, machines=10_000, timers=10_000, polls_s=10,
    children=1_000, chains=500, listeners=10_000, few=1_000, many=1_000_000, paired=200, idle_s=20, sleeping=1_000,
    history=10_000,
)  # fmt: skip
QUICK = Sizes(
    share=0.2, warm=100, samples=50, recorded=1_000, open_s=3, machines=2_000, timers=10_000, polls_s=3,
    children=1_000, chains=100, listeners=10_000, few=1_000, many=100_000, paired=50, idle_s=5, sleeping=200,
    history=2_000,
)  # fmt: skip
TINY = Sizes(
    share=0.002, warm=2, samples=2, recorded=20, open_s=0.5, machines=20, timers=20, polls_s=0.5, children=10,
    chains=3, listeners=10, few=10, many=100, paired=3, idle_s=0.5, sleeping=4, history=20,
)  # fmt: skip
"""For the tests of the suite itself: that it runs, not how fast anything is."""


@dataclass(frozen=True)
class Workers:
    """Which workers run the machines.

    Attributes:
        count: How many processes are started.
        pool: Celery's: ``solo``, ``threads`` or ``prefork``.
        concurrency: Of each; ``solo`` has one.
    """

    count: int = 1
    pool: str = "solo"
    concurrency: int = 1

    def __str__(self) -> str:
        width = "" if self.pool == "solo" else f", concurrency {self.concurrency}"
        return f"{self.count} worker{'s' if self.count > 1 else ''}, pool {self.pool}{width}"


@dataclass(frozen=True)
class Settings:
    """One run.

    Attributes:
        sizes: How much is done.
        rounds: Of each measure; systems take turns within a round.
        clients: Calls under way at a time.
        client_processes: How many of ours they are in; a peer's are in one.
        workers: Ours.
        peers: Names of the peers to run beside us.
        cache: Where peers are installed.
        say: Told of progress, a line each.
    """

    sizes: Sizes = FULL
    rounds: int = 5
    clients: int = 50
    client_processes: int = 2
    workers: Workers = field(default_factory=Workers)
    peers: tuple[str, ...] = ()
    cache: Path = Path("build/bench-peers")
    say: Callable[[str], None] = print

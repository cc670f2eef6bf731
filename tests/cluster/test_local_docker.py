"""The clusters themselves: pytest-celery's fixtures, with its own application, on whatever runs containers here."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from pytest_celery import CeleryTestSetup, CeleryTestWorker

from tests.cluster.local_docker import LocalDocker, Unsupported
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]


def test_two_workers_one_killed_and_back(celery_setup: CeleryTestSetup) -> None:
    """Two workers answer under their containers' names; one is killed, the other works on; restarted, both answer."""
    cluster = celery_setup.worker_cluster
    assert cluster is not None
    first, second = cluster
    assert isinstance(first, CeleryTestWorker)
    assert isinstance(second, CeleryTestWorker)
    both = {first.hostname(), second.hostname()}
    assert len(both) == 2
    wait_until(lambda: answering(celery_setup) == both, "both workers answer")
    assert add(celery_setup, 1, 2) == 3

    first.kill()
    assert first.container.status == "exited"
    assert answering(celery_setup) == {second.hostname()}
    assert add(celery_setup, 3, 4) == 7

    first.restart()
    wait_until(lambda: answering(celery_setup) == both, "both workers answer again")


def answering(setup: CeleryTestSetup) -> set[str]:
    return {name for reply in setup.app.control.ping(timeout=1) for name in reply}


def add(setup: CeleryTestSetup, x: int, y: int) -> int:
    result: int = setup.app.send_task("pytest_celery.vendors.worker.tasks.add", args=[x, y]).get(timeout=20)
    return result


def test_a_server_stops_and_comes_back_on_its_port() -> None:
    """A stopped server has ended with status 0, a killed one with 137; after a restart its port is the same."""
    client = LocalDocker()
    try:
        server = client.containers.run("redis:latest", command=["redis-server"], ports={"6379/tcp": None})
        port = server.attrs["NetworkSettings"]["Ports"]["6379/tcp"]
        assert (server.status, b"0A" in server.exec_run("cat /proc/net/tcp")[1]) == ("running", True)
        server.stop()
        assert (server.status, server.wait(), server.exec_run("cat /proc/net/tcp")[1]) == (
            "exited",
            {"StatusCode": 0},
            b"",
        )
        server.restart()
        assert (server.status, server.attrs["NetworkSettings"]["Ports"]["6379/tcp"]) == ("running", port)
        server.kill("SIGKILL")
        assert (server.status, server.wait()) == ("exited", {"StatusCode": 137})
    finally:
        client.close()
    assert not client.directory.exists()


def test_what_it_cannot_run_is_refused() -> None:
    """Another command than a server's or Celery's is not run, and the error says what to do instead."""
    client = LocalDocker()
    try:
        with pytest.raises(Unsupported, match="postgres"):
            client.containers.run("postgres", command=["postgres"])
    finally:
        client.close()


ORPHAN = """
import sys
from tests.cluster.local_docker import LocalDocker
server = LocalDocker().containers.run("redis:latest", command=["redis-server"], ports={"6379/tcp": None})
print(server.attrs["NetworkSettings"]["Ports"]["6379/tcp"][0]["HostPort"], flush=True)
sys.stdin.read()
"""


def test_nothing_outlives_a_killed_session(tmp_path: Path) -> None:
    """When the session is killed with SIGKILL, its containers' processes end too."""
    session = subprocess.Popen(
        [sys.executable, "-c", ORPHAN],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
    )
    with session:
        assert session.stdout is not None
        port = int(session.stdout.readline())
        assert listens(port)
        session.send_signal(signal.SIGKILL)
    wait_until(lambda: not listens(port), "the server is gone")


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0

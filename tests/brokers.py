"""Debian's servers as private processes of a test: on loopback alone, in a directory of their own, stopped by pid."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import kombu
import redis

from tests.waiting import wait_until

RABBIT_SCRIPTS = Path("/usr/lib/rabbitmq/bin")
"""Where Debian has RabbitMQ's own scripts; those on the PATH change to the user ``rabbitmq``."""


def free_port() -> int:
    """A port of the loopback interface that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def redis_server(binary: str, directory: Path) -> Generator[str]:
    """Run ``redis-server``; yields its URL, without a database."""
    port = free_port()
    command = [binary, "--bind", "127.0.0.1", "--port", str(port), "--dir", str(directory), "--appendonly", "yes"]
    with process([*command, "--save", ""], {}, directory / "redis.log") as server:
        url = f"redis://127.0.0.1:{port}"

        def answers() -> bool:
            assert server.poll() is None, (directory / "redis.log").read_text()
            try:
                with redis.Redis.from_url(url) as client:
                    return bool(client.ping())
            except redis.ConnectionError:
                return False

        wait_until(answers, "redis-server answers")
        yield url


@contextmanager
def rabbit_server(directory: Path) -> Generator[str]:
    """Run RabbitMQ, and the name server of its run time; yields its URL."""
    port, names = free_port(), free_port()
    (directory / "plugins").write_text("[].\n")
    env = {
        "HOME": str(directory),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "ERL_EPMD_PORT": str(names),
        "RABBITMQ_NODENAME": f"smqueue{os.getpid()}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(free_port()),
        "RABBITMQ_MNESIA_BASE": str(directory / "mnesia"),
        "RABBITMQ_LOG_BASE": str(directory / "log"),
        "RABBITMQ_PID_FILE": str(directory / "pid"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "plugins"),
        "RABBITMQ_CONF_ENV_FILE": "/dev/null",
        "RABBITMQ_CONFIG_FILE": str(directory / "none"),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
    }
    epmd = shutil.which("epmd") or "/usr/bin/epmd"  # comes with RabbitMQ's run time
    with (
        process([epmd, "-address", "127.0.0.1", "-port", str(names)], env, directory / "epmd.log"),
        process([str(RABBIT_SCRIPTS / "rabbitmq-server")], env, directory / "rabbit.log") as server,
    ):
        url = f"amqp://guest:guest@127.0.0.1:{port}//"

        def answers() -> bool:
            assert server.poll() is None, (directory / "rabbit.log").read_text()
            try:
                with kombu.Connection(url, connect_timeout=2) as connection:
                    connection.connect()
                    return True
            except OSError:
                return False

        wait_until(answers, "RabbitMQ answers", timeout_s=90)
        yield url


@contextmanager
def process(command: list[str], env: dict[str, str], log: Path) -> Generator[subprocess.Popen[bytes]]:
    """Run a process in a session of its own; at the end it is stopped, with all that it has started."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, env={**os.environ, **env}, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)

"""The compose file and the Dockerfile: parsed and checked, and each service's exact command run as a process.

No Docker engine is needed: a host name becomes an address on loopback by the environment, a volume a temporary folder.
"""

from __future__ import annotations

import base64
import fnmatch
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml

from smqueue.embedded import find_binary
from smqueue.keys import Keys
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
LOGIN = "operator:pass-word"
LONG_RUNNING = ("redis", "transitions", "triggers", "flower")


def interpolated(text: str, variables: dict[str, str]) -> str:
    """Replace ``${NAME:-default}`` and ``${NAME:?message}`` as Compose does, and ``$$`` by ``$``.

    Raises:
        KeyError: A variable that is required is missing.
    """

    def value(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        if found := variables.get(match["name"]):
            return found
        if match["kind"] == ":-":
            return match["rest"]
        raise KeyError(match["name"])

    return re.sub(r"\$\$|\$\{(?P<name>\w+)(?P<kind>:-|:\?)(?P<rest>[^}]*)\}", value, text)


def services(**variables: str) -> dict[str, dict[str, Any]]:
    """The services as Compose would run them with these variables."""

    def resolved(node: Any) -> Any:
        match node:
            case str():
                return interpolated(node, variables)
            case list():
                return [resolved(item) for item in node]
            case dict():
                return {key: resolved(item) for key, item in node.items()}
            case _:
                return node

    return resolved(yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"])


# --- the compose file ------------------------------------------------------------------------------------------------


def test_the_services_are_there() -> None:
    """A server, workers for both queues, Flower and a producer; those that keep running are checked and restarted."""
    found = services(FLOWER_BASIC_AUTH=LOGIN)
    assert set(found) == {*LONG_RUNNING, "producer"}
    for name in LONG_RUNNING:
        assert found[name]["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")
        assert found[name]["restart"] == "unless-stopped"
    assert found["producer"]["restart"] == "no"
    for name in set(found) - {"redis"}:
        assert found[name]["depends_on"]["redis"]["condition"] == "service_healthy"
        assert found[name]["build"] == "."


def test_state_survives_its_container() -> None:
    """Every write goes to an append-only file on a named volume, nothing is evicted (semantics 5)."""
    file = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    redis = file["services"]["redis"]
    given = dict(zip(redis["command"][1::2], redis["command"][2::2], strict=True))
    assert given["--appendonly"] == "yes"
    assert given["--appendfsync"] == "everysec"
    assert given["--maxmemory-policy"] == "noeviction"
    volume, _, path = redis["volumes"][0].partition(":")
    assert path == "/data"
    assert volume in file["volumes"]


def test_workers_can_be_scaled() -> None:
    """Nothing that only one container can have: no name, no port."""
    for name in ("transitions", "triggers"):
        service = services(FLOWER_BASIC_AUTH=LOGIN)[name]
        assert not {"container_name", "ports", "hostname"} & set(service)
        assert f"{name}@%h" in service["command"]


def test_every_queue_has_a_worker() -> None:
    """The queues that smqueue sends to, and the default one, are those that the workers consume."""
    found = services(FLOWER_BASIC_AUTH=LOGIN)
    consumed: set[str] = set()
    for name in ("transitions", "triggers"):
        command = found[name]["command"]
        consumed |= set(command[command.index("--queues") + 1].split(","))
    for name in set(found) - {"redis"}:
        environment = found[name]["environment"]
        sent = {environment["SMQUEUE_TRIGGER_QUEUE"], environment["SMQUEUE_TRANSITION_QUEUE"], "celery"}
        assert sent == consumed


def test_flower_asks_for_a_login_and_has_no_default() -> None:
    """Without a login nothing starts; no file holds one; the port is open to this machine only."""
    with pytest.raises(KeyError, match="FLOWER_BASIC_AUTH"):
        services()
    flower = services(FLOWER_BASIC_AUTH=LOGIN)["flower"]
    assert flower["environment"]["FLOWER_BASIC_AUTH"] == LOGIN
    assert all(port.startswith("127.0.0.1:") for port in flower["ports"])


def test_only_flower_is_reachable_from_outside() -> None:
    """The server has no password here, so no port of it is published."""
    found = services(FLOWER_BASIC_AUTH=LOGIN)
    assert [name for name, service in found.items() if "ports" in service] == ["flower"]


def test_images_are_pinned_to_a_major_version() -> None:
    """A new major version comes by a change of these files, not by a pull."""
    images = [services(FLOWER_BASIC_AUTH=LOGIN)["redis"]["image"]]
    images += [words[1] for words in instructions("FROM")]
    assert len(images) > 1
    for image in images:
        assert re.search(r":\d", image), f"{image} has no version"


# --- the Dockerfile --------------------------------------------------------------------------------------------------


def instructions(name: str, stage: int | None = None) -> list[list[str]]:
    """The instructions of that name in the Dockerfile, in all stages or one of them, as words."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    stages = re.split(r"(?m)^(?=FROM )", text)[1:]
    lines = "".join(stages if stage is None else [stages[stage]]).splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith(f"{name} ")]


def test_the_image_runs_as_nobody_special() -> None:
    """The last word on its user is not root."""
    assert instructions("USER", -1)[-1][1] not in ("root", "0")


def test_the_image_holds_what_the_commands_need() -> None:
    """Default application, its settings and the examples are copied, where the path for late imports points."""
    copied = {word for words in instructions("COPY", -1) for word in words[1:-1]}
    assert {"workers", "celeryconfig.py", "examples"} <= copied
    assert instructions("WORKDIR", -1)[-1][1] == "/app"
    assert "PYTHONPATH=/app" in {word for words in instructions("ENV", -1) for word in words}


def test_what_the_dockerfile_copies_reaches_the_engine() -> None:
    """Each source exists and .dockerignore, which leaves out everything else, lets it through."""
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    admitted = [rule.removeprefix("!") for rule in rules if rule.startswith("!")]
    sources = [word for words in instructions("COPY") if not words[1].startswith("--from") for word in words[1:-1]]
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert any(fnmatch.fnmatch(source, rule) for rule in admitted), source


def test_the_image_can_build_the_wheel() -> None:
    """Whatever the build reads of pyproject.toml's files is copied before it runs."""
    copied = {word for words in instructions("COPY", 0) for word in words[1:-1]}
    assert {"pyproject.toml", "README.md", "LICENSE", "smqueue"} <= copied


def test_the_images_python_is_supported() -> None:
    """Its Python is one that the package declares."""
    declared = (ROOT / "pyproject.toml").read_text()
    for words in instructions("FROM"):
        version = re.search(r"python:(\d+\.\d+)", words[1])
        assert version is not None
        assert f"Python :: {version[1]}" in declared


# --- each command as a process ---------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class Composition:
    """The services as processes of this machine: addresses differ, commands do not."""

    folder: Path
    redis_port: int = field(default_factory=free_port)
    flower_port: int = field(default_factory=free_port)
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.services = services(FLOWER_BASIC_AUTH=LOGIN)

    def command(self, name: str) -> list[str]:
        """The service's command; of the server, with the address and the folder that a container would give it."""
        command: list[str] = self.services[name]["command"]
        if name != "redis":
            return command
        assert command[0] == "valkey-server"
        where = ["--port", str(self.redis_port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        return [str(find_binary().path), *command[1:], *where]

    def environment(self, name: str) -> dict[str, str]:
        """Nothing of this process's own but what a container has, and the service's, with names as addresses."""
        given = {key: str(value) for key, value in self.services[name].get("environment", {}).items()}
        address = f"127.0.0.1:{self.redis_port}"
        return {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "HOME": str(self.folder),
            "HOSTNAME": socket.gethostname(),
            "FLOWER_ADDRESS": "127.0.0.1",
            "FLOWER_PORT": str(self.flower_port),
            **{key: value.replace("redis:6379", address) for key, value in given.items()},
        }

    def log(self, name: str) -> str:
        """What a service has said."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def start(self, name: str) -> subprocess.Popen[bytes]:
        """Start a service."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                self.command(name),
                env=self.environment(name),
                cwd=ROOT,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        return self.running[name]

    def healthy(self, name: str) -> bool:
        """Run a service's own health check."""
        kind, *words = self.services[name]["healthcheck"]["test"]
        command = ["sh", "-c", words[0]] if kind == "CMD-SHELL" else words
        command = [word.replace(":5555", f":{self.flower_port}") for word in command]
        assert self.running[name].poll() is None, self.log(name)
        return not subprocess.run(
            command, env=self.environment(name), cwd=ROOT, capture_output=True, timeout=60
        ).returncode

    def stop(self) -> None:
        """Stop all, the server last, as Compose does."""
        for name in sorted(self.running, key=lambda name: name == "redis"):
            process = self.running[name]
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture
def composition(tmp_path: Path) -> Iterator[Composition]:
    composed = Composition(tmp_path)
    try:
        yield composed
    finally:
        composed.stop()


def seen_by_flower(composed: Composition, login: str = "") -> set[str] | int:
    """The workers that Flower's API names, without their hosts; or the status with which it refuses."""
    request = urllib.request.Request(f"http://127.0.0.1:{composed.flower_port}/api/workers?refresh=1")
    if login:
        request.add_header("Authorization", f"Basic {base64.b64encode(login.encode()).decode()}")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return {name.partition("@")[0] for name in json.load(answer)}
    except urllib.error.HTTPError as refused:
        return refused.code


def test_every_service_runs(composition: Composition) -> None:
    """Each command, run as it stands, does its part: what the producer adds is finished by the workers, Flower shows
    both of them to who has the login and nobody else, and every health check passes.
    """
    server = composition.start("redis")
    with redis.Redis(port=composition.redis_port, socket_timeout=5) as client:
        wait_until(lambda: answers(client), "the server answers")
        assert client.config_get("append*")["appendonly"] == "yes"
        assert client.info("server")["process_id"] == server.pid
        for name in ("transitions", "triggers", "flower"):
            composition.start(name)
        producer = composition.start("producer")
        for name in ("transitions", "triggers", "flower"):
            wait_until(lambda name=name: composition.healthy(name), f"{name} is healthy", timeout_s=60)

        assert producer.wait(timeout=60) == 0, composition.log("producer")
        keys = Keys(composition.environment("producer")["SMQUEUE_NAMESPACE"])
        wait_until(lambda: ended(client, keys) >= 100, "all that was added has moved", timeout_s=60)
        wait_until(lambda: client.zcard(keys.operations) == 0, "every operation is finished", timeout_s=60)
        assert not client.hlen(keys.quarantine)

    assert seen_by_flower(composition) == 401
    assert seen_by_flower(composition, "operator:wrong") == 401
    both = {"transitions", "triggers"}
    wait_until(lambda: seen_by_flower(composition, LOGIN) == both, "Flower has seen both workers", timeout_s=30)


def answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


def ended(client: redis.Redis, keys: Keys) -> int:
    """How many operations have left a state."""
    return sum(1 for _ in client.scan_iter(match=f"{keys.prefix}inactive:*", count=1000))


def test_wrong_modules_give_one_line(composition: Composition) -> None:
    """A name that cannot be read or imported ends the worker with one line that names it, and no traceback."""
    environment = composition.environment("transitions") | {"SMQUEUE_MODULES": "orders"}
    run = subprocess.run(
        composition.command("transitions"), env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 1
    said = run.stderr.strip().splitlines()
    assert len(said) == 1, run.stderr
    assert "'orders' names no module" in said[0]
    assert "SMQUEUE_MODULES" in said[0]

"""A real Flower as a process, and who asks it over HTTP, without a browser."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

from tests.brokers import free_port
from tests.shopping import Shop
from tests.waiting import wait_until
from tests.workers import ROOT

STARTS_S = 60.0
CELERY = (sys.executable, "-m", "celery", "-A", "tests.apps.shop", "flower")
"""How most start it: with no option of ours."""


class Answer(NamedTuple):
    """What Flower has answered."""

    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def json(self) -> Any:
        """The text as JSON."""
        return json.loads(self.text)

    def value(self, name: str) -> str:
        """The value of a hidden control."""
        found = re.search(rf'name="{name}" value="([^"]*)"', self.text)
        assert found is not None, self.text
        return found[1]


class Site:
    """Where a Flower listens.

    Args:
        port: On loopback.
        socket: Its Unix socket, instead.
        prefix: Before every path.
        headers: Sent with every request.
    """

    def __init__(
        self, port: int = 0, *, socket: Path | None = None, prefix: str = "", headers: Mapping[str, str] = {}
    ) -> None:
        self.port, self.socket, self.prefix, self.headers = port, socket, prefix, dict(headers)

    @property
    def address(self) -> str:
        """For a browser."""
        return f"http://127.0.0.1:{self.port}{self.prefix}"

    def ask(self, method: str, path: str, body: str | None = None, **headers: str) -> Answer:
        """One request; headers with _ for -."""
        line = http.client.HTTPConnection("127.0.0.1", self.port or 80, timeout=20)
        if self.socket is not None:
            line.sock = socket.socket(socket.AF_UNIX)
            line.sock.connect(str(self.socket))
        try:
            sent = {**self.headers, **{name.replace("_", "-"): value for name, value in headers.items()}}
            line.request(method, self.prefix + path, body, sent)
            answer = line.getresponse()
            return Answer(answer.status, {**answer.headers}, answer.read().decode())
        finally:
            line.close()

    def get(self, path: str, **headers: str) -> Answer:
        """GET."""
        return self.ask("GET", path, **headers)

    def submit(self, path: str, form: Mapping[str, str], **headers: str) -> Answer:
        """POST a form."""
        return self.ask("POST", path, urlencode(form), Content_Type="application/x-www-form-urlencoded", **headers)

    def post(self, path: str, data: object, **headers: str) -> Answer:
        """POST JSON."""
        return self.ask("POST", path, json.dumps(data), **{"Content_Type": "application/json", **headers})

    def fill(self, path: str, **fields: str) -> Answer:
        """Open a form as a browser does, and submit it with these fields."""
        opened = self.get(path)
        assert opened.status == 200, opened.text
        cookie = opened.headers["Set-Cookie"].partition(";")[0]
        hidden = {"_xsrf": opened.value("_xsrf")}
        if path.partition("?")[0].endswith("/signal"):
            hidden |= {name: opened.value(name) for name in ("id", "signal", "module")}
        return self.submit(path.partition("?")[0], {**hidden, **fields}, Cookie=cookie)


@contextmanager
def flower(
    world: Shop, *options: str, command: tuple[str, ...] = CELERY, env: Mapping[str, str] = {}, prefix: str = "",
    headers: Mapping[str, str] = {},
) -> Generator[Site]:  # fmt: skip
    """Run a Flower until the block ends; it must end when it is asked to."""
    path = next((Path(one.partition("=")[2]) for one in options if one.startswith("--unix_socket=")), None)
    site = Site(free_port(), socket=path, prefix=prefix, headers=headers)
    log = world.directory / f"flower-{site.port}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, "--address=127.0.0.1", f"--port={site.port}", *options], cwd=ROOT,
            env={**os.environ, **world.env, "PYTHONPATH": str(ROOT), **env}, stdin=subprocess.DEVNULL, stdout=out,
            stderr=out, start_new_session=True,
        )  # fmt: skip

    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            return site.get("/healthcheck").status == 200
        except OSError:
            return False

    try:
        wait_until(answers, "Flower answers", STARTS_S)
        yield site
    except BaseException:
        print(log.read_text()[-4000:])
        raise
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(10)
                raise

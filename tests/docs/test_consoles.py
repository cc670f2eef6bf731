"""The commands of pages are typed into a shell, one block after another, beside a worker of the page's application."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from smqueue import Client, InvalidState
from smqueue.embedded import find_binary
from tests.brokers import free_port, redis_server
from tests.docs.pages import PAGES, ROOT, Block, blocks
from tests.docs.shell import Shell, expect_said
from tests.docs.test_blocks import FILE, SHOP, TUTORIAL
from tests.waiting import wait_until
from tests.workers import Worker, running

ELSEWHERE = {
    "make venv": "it installs what the tests run in",
    "make check": "CI runs it beside the tests",
    "make test": "it is what runs this",
    "make demo": "it is `smqueue demo`: test_the_demo_runs, with fewer orders",
    "make chaos": "it takes minutes: tests/faults/test_chaos.py is its short form",
}
"""Commands that are not typed, by how they begin, and why. All others are."""

ANSWERS = object()
LASTING: dict[str, Any] = {
    r"celery -A \w+ worker": ANSWERS,
    r"celery -A \w+ flower|smqueue flower": r"Visit me at(.|\n)*Connected to",
    r"smqueue metrics(?!.*--(once|alerts|dashboard))": r"/metrics \(Ctrl-C ends\)",
    r".*--watch": r"\S",
}
"""Commands that go on until they are ended, and what they say when they are at work; a worker answers then."""

STARTED = ("order-1", "order-2", "order-17", "order-18")
"""Operations that pages talk of, and nobody has paid yet."""


def commands(block: Block) -> list[tuple[str, str]]:
    """The commands of a block, each with what it says that it prints."""
    if block.language == "sh":
        return [(line, "") for line in block.text.splitlines()]
    parts = re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:] if block.language == "console" else []
    return [(command, said) for command, _, said in (part.partition("\n") for part in parts)]


def to_type(page: str) -> list[tuple[str, str]]:
    """Those of a page that are typed."""
    return [one for block in blocks(page) for one in commands(block) if not one[0].startswith(tuple(ELSEWHERE))]


@pytest.fixture
def folder(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a reader is who has the files of a page, or else the README's shop."""
    files = {found[1]: block for block in blocks(request.param) if (found := FILE.match(block.text))}
    for name, block in {"shop": SHOP, **files}.items():
        (tmp_path / f"{name}.py").parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.py").write_text(block.text)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    return tmp_path


@pytest.fixture
def shell(folder: Path) -> Iterator[Shell]:
    """A shell beside a server, and a worker of the shop that has some orders which wait."""
    with ExitStack() as stack:
        server = stack.enter_context(redis_server(str(find_binary().path), folder))
        url, port = f"{server}/0", int(server.rpartition(":")[2])
        env = {"SMQUEUE_URL": url, "CELERY_BROKER_URL": url}
        stack.enter_context(running(worker := Worker("shop", env, ["--pool", "solo"])))
        worker.wait_ready()
        flower = free_port()
        ports = {"6379": port, "5555": flower, "9110": free_port()}
        shell = Shell(folder, ports, {**env, "FLOWER_PORT": str(flower)})
        stack.callback(shell.end)
        shell.run(f'PATH="{Path(sys.executable).parent}:$PATH"')
        start(url)
        yield shell


def start(url: str) -> None:
    """Add what pages talk of, as their fields are in the page's shop."""
    with Client(url) as client:
        for name in STARTED:
            order = {"operation_id": name, "module": "orders", "type": "Awaiting"}
            try:
                client.add([{**order, "state": {"total": 12}}])
            except InvalidState:
                client.add([{**order, "state": {"order_id": name, "total": 12}}])


@pytest.mark.parametrize("folder", [page for page in PAGES if page != TUTORIAL and to_type(page)], indirect=True)
def test_commands_do_what_they_say(shell: Shell, request: pytest.FixtureRequest) -> None:
    """Every command of a page ends well, and prints what the page says; those that go on do what they are for, and end
    well when they are ended."""
    page: str = request.node.callspec.params["folder"]
    last: str | None = None
    for command, printed in to_type(page):
        lasting = next((says for kind, says in LASTING.items() if re.match(kind, command)), None)
        if lasting is None:
            expect_said(command, printed, shell.run(command))
            continue
        if last is not None:
            shell.run(END)
        begin(shell, command, lasting)
        last = command
    if last is not None:
        shell.run(END)
    assert "Traceback" not in shell.text()


END = "kill -TERM $! && wait $!"
"""Until then the last one goes on, so that the page can use it."""


def begin(shell: Shell, command: str, says: Any) -> None:
    """Type a command that goes on, and wait until it is at work."""

    def at_work() -> bool:
        if says is ANSWERS:
            pings = Celery(broker=shell.env["CELERY_BROKER_URL"], set_as_current=False).control.ping(timeout=0.5)
            return any(name.startswith("celery@") for answer in pings for name in answer)
        return bool(re.search(says, log.read_text()))

    if command.startswith("smqueue metrics") and "--port" not in command:
        command += " --port 0"  # its own may be taken here
    (log := shell.folder / f"lasting-{shell.count}.log").touch()
    shell.run(f"{command} > {log} 2>&1 &")
    wait_until(at_work, f"{command} to be at work", 120)


def test_what_is_not_typed_is_there() -> None:
    """Each command that is left out is on a page, and is a target of the Makefile."""
    shown = [command for page in PAGES for block in blocks(page) for command, _ in commands(block)]
    assert [one for one in ELSEWHERE if not any(command.startswith(one) for command in shown)] == []
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {one.split()[1] for one in ELSEWHERE} <= set(targets)


def test_the_demo_runs(tmp_path: Path) -> None:
    """What ``make demo`` starts kills a worker, empties the queues, and finds every order where its inputs demand."""
    shell = Shell(tmp_path, {})
    try:
        shell.run(f'PATH="{Path(sys.executable).parent}:$PATH"')
        said = shell.run("smqueue demo --orders 40")
    finally:
        shell.end()
    assert "killed with SIGKILL" in said
    assert "every check holds" in said

"""What the pages show is so: their Python runs, their data can be read, their settings are there."""

from __future__ import annotations

import ast
import json
import logging
import os
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from celery.signals import setup_logging
from click.testing import CliRunner

from smqueue import Module, State, Transaction, after
from smqueue.cli.commands import smqueue
from smqueue.embedded import EmbeddedServer
from tests.docs.pages import ANY_FENCE, PAGES, ROOT, Block, blocks
from tests.inprocess import Play
from tests.tracing import may_set_a_provider
from tests.workers import Worker, running

FILE = re.compile(r"# ([\w/]+)\.py\n")
"""The first line of a block that is a file of its own, which later ones import."""

TUTORIAL = "docs/tutorial.md"
"""Runs as a whole, in test_tutorial.py."""

CHECKED_ELSEWHERE = {
    ("docs/security.md", "text"): "tests/integration/test_acl.py",
    ("docs/producers.md", "bash"): "tests/integration/test_producers.py",
    ("docs/producers.md", "js"): "tests/integration/test_producers.py",
    ("docs/tracing.md", "text"): "test_the_drawn_trace_has_the_spans_that_there_are",
}
"""Blocks that a test of their own reads; whoever writes another one adds it, and its test, here."""

SHOP = next(block for block in blocks("README.md") if block.language == "python")
"""Pages that import ``shop`` and show none mean the README's."""


@pytest.fixture
def page_env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """A server that no other test uses, where the pages say that one is; and a folder for the files that they show."""
    with EmbeddedServer() as server:
        env = {"SMQUEUE_URL": server.url, "CELERY_BROKER_URL": server.broker_url, "PYTHONPATH": str(tmp_path)}
        monkeypatch.delenv("SMQUEUE_NAMESPACE", raising=False)
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        monkeypatch.syspath_prepend(str(tmp_path))
        may_set_a_provider(monkeypatch)
        yield env


@pytest.mark.parametrize("page", [page for page in PAGES if page != TUTORIAL])
def test_python_runs(page: str, page_env: dict[str, str], tmp_path: Path) -> None:
    """Every Python block of a page runs, in order and in one namespace; its applications are run by real workers."""
    shown = [block for block in blocks(page) if block.language == "python"]
    files = {found[1]: block for block in shown if (found := FILE.match(block.text))}
    if "shop" not in files and any(re.search(r"^from shop import ", block.text, re.MULTILINE) for block in shown):
        files["shop"] = SHOP
    for name, block in files.items():
        (tmp_path / f"{name}.py").parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.py").write_text(block.text)
    apps = [name.replace("/", ".") for name, block in files.items() if re.search(r"= Celery\(", block.text)]
    before = dict(os.environ)
    try:
        with running(*(workers := [Worker(name, page_env, ["--pool", "solo"]) for name in apps])):
            for worker in workers:
                worker.wait_ready()
            _run([block for block in shown if block not in files.values()], {})
    finally:
        os.environ.clear()  # pages set variables, too
        os.environ.update(before)
        for name in files:
            sys.modules.pop(name.replace("/", "."), None)
            sys.modules.pop(name.partition("/")[0], None)


def _run(shown: list[Block], scope: dict[str, Any]) -> None:
    for block in shown:
        tree = ast.increment_lineno(ast.parse(block.text, block.page), block.line - 1)  # errors name the page's line
        exec(compile(tree, block.page, "exec", dont_inherit=True), scope)  # without this file's __future__


def test_the_first_example_is_short() -> None:
    """The README's first example has about twenty lines, without those that are blank or name the file."""
    first = next(block for block in blocks("README.md") if block.language == "python")
    lines = [line for line in first.text.splitlines() if line.strip() and not FILE.match(line + "\n")]
    assert len(lines) <= 22


# --- all of them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_seen_and_checked(page: str) -> None:
    """No block of a page is passed over: none is fenced so that it is not found, or in a language that nobody reads."""
    shown = list(blocks(page))
    assert len(ANY_FENCE.findall((ROOT / page).read_text())) == 2 * len(shown), "a fence that is indented or not closed"
    for block in shown:
        known = block.language in {"python", "console", "sh", *DATA} or (page, block.language) in CHECKED_ELSEWHERE
        assert known, f"{page}:{block.line}: nothing checks {block.language or 'a block without a language'}"


DATA = {"json": json.loads, "toml": tomllib.loads, "yaml": yaml.safe_load}


@pytest.mark.parametrize("page", PAGES)
def test_data_can_be_read(page: str) -> None:
    """What is shown as data is data of that language."""
    for block in blocks(page):
        if block.language in DATA:
            DATA[block.language](block.text)


def test_the_shown_log_line_is_one(play: Play) -> None:
    """The line of JSON that docs/metrics.md shows is what a handler that raises leaves, by the page's formatter."""
    (shown,) = (json.loads(block.text) for block in blocks("docs/metrics.md") if block.language == "json")
    orders = Module("orders")

    @orders.state
    class Awaiting(State):
        order_id: str

    @orders.on(Awaiting, after(seconds=0))
    def expired(tx: Transaction, state: Awaiting, _: None) -> Awaiting:
        raise ValueError("unpaid")

    scope: dict[str, Any] = {}
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        _run([block for block in blocks("docs/metrics.md") if "log_as_json()" in block.text], scope)
        local = play(orders=orders)
        (machine,) = local.add("order-1", Awaiting("1"))
        local.until(lambda: local.explained("order-1").attempts, "it has failed")
    finally:
        setup_logging.disconnect(scope.get("log_as_json"))
        root.handlers, root.level = handlers, level
    lines = map(json.loads, scope["output"].getvalue().splitlines())
    line = next(one for one in lines if "unpaid" in one["message"])
    assert list(line) == list(shown)
    assert re.sub(r"\d", "0", line["asctime"]) == re.sub(r"\d", "0", shown["asctime"])
    assert line == shown | {"asctime": line["asctime"], "smqueue_machine_id": machine}
    assert len(machine) == len(shown["smqueue_machine_id"])


def test_the_drawn_trace_has_the_spans_that_there_are() -> None:
    """The trace that docs/tracing.md draws has no spans of ours but those of its table."""
    (drawn,) = [block.text for block in blocks("docs/tracing.md") if block.language == "text"]
    table = re.findall(r"^\| `(smqueue\.\w+)`", (ROOT / "docs/tracing.md").read_text(), re.MULTILINE)
    shown = set(re.findall(r"smqueue\.\w+", drawn))
    assert shown
    assert shown <= set(table)


# --- commands --------------------------------------------------------------------------------------------------------


def test_every_command_of_the_prose_exists() -> None:
    """What prose calls ``smqueue …`` is a command, and every command has a help text."""
    listed = set(smqueue.list_commands(None))  # pyright: ignore
    for page in (*PAGES, "CHANGELOG.md"):
        for name in re.findall(r"`smqueue ([a-z]+)", (ROOT / page).read_text()):
            assert name in listed, f"{page}: {name}"
    for name in listed:
        shown = CliRunner().invoke(smqueue, [name, "--help"])
        assert shown.exit_code == 0, shown.output
        assert shown.output.startswith("Usage:")


# --- settings --------------------------------------------------------------------------------------------------------


def test_every_setting_is_in_the_table() -> None:
    """The table of settings has the settings and variables that the library reads, and no others."""
    table = (ROOT / "docs/settings.md").read_text()
    shown = set(re.findall(r"^\|[^|]*`(smqueue_\w+)`", table, re.MULTILINE))
    shown_variables = set(re.findall(r"^\|[^|]*\|[^|]*`([A-Z_]+)`", table, re.MULTILINE))
    read, read_variables = set[str](), set[str]()
    for path in (ROOT / "smqueue").rglob("*.py"):
        if path.parent.name == "demo":
            continue
        text = path.read_text()
        read |= set(
            re.findall(r"(?:conf\.get\(|conf, |whole\(\w+(?:\.app)?, |queue_of\([\w.]+, )\"(smqueue_\w+)\"", text)
        )
        read_variables |= set(re.findall(r"environ(?:\.get\(|\[)\"((?!OTEL_)[A-Z_]+)\"", text))  # OpenTelemetry's own
        read_variables |= set(re.findall(r"^VARIABLE = \"([A-Z_]+)\"", text, re.MULTILINE))
    assert shown == read
    assert shown_variables == read_variables

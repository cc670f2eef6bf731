"""The tutorial, as a reader does it: its files written, its commands typed into one shell, what it prints compared."""

from __future__ import annotations

import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from tests.brokers import free_port
from tests.docs.pages import ROOT, Block, blocks
from tests.docs.shell import Shell, expect_said, offer_venv
from tests.docs.test_blocks import FILE, TUTORIAL
from tests.waiting import wait_until

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
SERVERS = {"--port 6379": "6379", "--port=5555": "5555"}
"""What commands begin, that go on, are known by; and the port where they then answer."""


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """A shell in a folder that has the environment of a checkout, not activated; with free ports for the page's."""
    offer_venv(tmp_path)
    shell = Shell(tmp_path, {"6379": free_port(), "5555": free_port()})
    try:
        yield shell
    finally:
        shell.end()


def test_the_tutorial_runs(shell: Shell, tmp_path: Path) -> None:
    """Each file can be written and each command typed, in the order of the page; each prints what the page says, and
    after a worker was killed with SIGKILL in the midst of it the sums are right. Its clicks do what it says."""
    done, clicked = 0, False
    for block in blocks(TUTORIAL):
        match block.language:
            case "python":
                name = FILE.match(block.text)
                assert name is not None, f"{TUTORIAL}:{block.line}: a file needs its name in the first line"
                (tmp_path / "shop" / f"{name[1]}.py").write_text(block.text)
            case "console":
                done += _type(shell, block)
                if "flower" in block.text and CHROMIUM is not None:
                    _click(CHROMIUM, f"http://127.0.0.1:{shell.ports['5555']}")
                    clicked = True
            case _:
                pytest.fail(f"{TUTORIAL}:{block.line}: {block.language} is not run")
    assert done > 20
    assert "Traceback" not in shell.text()
    if not clicked:
        pytest.skip("no Chromium is installed, so the tutorial was done without its clicks: apt install chromium")


def _type(shell: Shell, block: Block) -> int:
    """Type the commands of a block; returns how many."""
    commands = re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]
    for one in commands:
        command, _, expected = one.partition("\n")
        said = shell.run(command)
        for known, port in SERVERS.items():
            if known in command:
                wait_until(lambda port=port: _answers(shell.ports[port]), f"{command} to answer", 60)
        expect_said(command, expected, said)
    return len(commands)


def _answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def _click(chromium: str, address: str) -> None:
    """Make the clicks of the list, in its order, and compare what each shows with what it says."""
    with sync_playwright() as playwright:
        args = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=chromium, args=args)
        context = browser.new_context(http_credentials={"username": "me", "password": "secret"})
        page = context.new_page()
        page.set_default_timeout(30_000)
        expect.set_options(timeout=30_000)
        said: list[str] = []
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(address)
        clicks = Clicks(page)
        clicks.make()
        browser.close()
    assert not said
    told = (ROOT / TUTORIAL).read_text().partition("## 8.")[2].partition("## 9.")[0]
    assert clicks.made == re.findall(r"\*\*(.+?)\*\*", told), "what the page says is what was clicked"


class Clicks:
    """Those of the tutorial.

    Attributes:
        made: What was clicked or filled in, by what it is called.
    """

    def __init__(self, page: Page) -> None:
        self.page, self.made = page, list[str]()

    def make(self) -> None:
        """Make them."""
        page = self.page
        timeline = page.locator("#timeline li").first
        self.click("link", "Machines")
        self.fill("Operation", "order-1*")
        self.click("button", "Search")
        self.click("link", "order-17")
        expect(page.get_by_role("region", name="Why it is where it is")).to_contain_text("one was sent to order-71")
        expect(page.get_by_text("Live", exact=True)).to_be_visible()
        page.evaluate("window.untouched = true")
        self.click("link", "Signal…")
        self.fill("payload", "12")
        self.click("button", "Send")
        expect(page.get_by_role("heading", name="order-17 finished")).to_be_visible()
        expect(timeline).to_contain_text(re.compile("Awaiting →.*Shipped", re.DOTALL))
        expect(timeline).to_contain_text("won by paid")
        assert page.evaluate("window.untouched") is True

        self.click("link", "Machines")
        self.fill("Operation", "order-18")
        self.click("button", "Search")
        self.click("link", "Cancel…")
        self.click("link", "Leave it")
        expect(page.get_by_role("dialog")).to_be_hidden()
        expect(page.get_by_role("heading", name="order-18 active")).to_be_visible()
        self.click("link", "Cancel…")
        self.fill("Reason", "the customer called")
        self.click("button", "Cancel all its machines")
        expect(timeline).to_contain_text("cancelled: the customer called")

    def click(self, role: Literal["link", "button"], name: str) -> None:
        """Click on what is called so."""
        self.made.append(name)
        self.page.get_by_role(role, name=name).first.click()

    def fill(self, label: str, text: str) -> None:
        """Enter a text."""
        self.made.append(label)
        self.page.get_by_label(label).last.fill(text)


def test_the_tutorial_kills_a_worker() -> None:
    """It has what it promises: a SIGKILL of a worker by its process id, and the sums after it."""
    typed = "".join(block.text for block in blocks(TUTORIAL) if block.language == "console")
    assert "worker=$!" in typed
    assert "kill -9 $worker" in typed
    assert (ROOT / TUTORIAL).read_text().index("kill -9") < (ROOT / TUTORIAL).read_text().index("revenue: ")

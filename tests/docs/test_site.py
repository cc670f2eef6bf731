"""The site of docs/: it builds without a warning, needs nothing from elsewhere, and has all that is exported."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import smqueue
import smqueue.testing
from tests.docs.pages import ROOT

ADDRESS = re.compile(r"(?:https?:)?//([a-z0-9.-]+)", re.IGNORECASE)
LOCAL = re.compile(r"localhost|127\.0\.0\.1|0\.0\.0\.0|example\.\w+|[\w-]+")
"""What is no address in the world: this machine, an example, a host without a domain."""


class Page(HTMLParser):
    """What a page loads or links to, and the ids that can be linked to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets = list[str]()
        self.loads = list[str]()
        """What a browser fetches by itself: all targets but those of links that somebody clicks on."""
        self.ids = set[str]()
        self.scripts = list[str]()
        self._in_script = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in_script = tag == "script"
        for name, value in attrs:
            if name == "id" and value:
                self.ids.add(value)
            elif name in {"href", "src", "srcset", "data", "action", "poster", "style"} and value:
                self.targets.append(value)
                if tag != "a":
                    self.loads.append(value)

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False


def outside(text: str) -> list[str]:
    """The hosts of a text that are in the world."""
    return [host for host in ADDRESS.findall(text) if not LOCAL.fullmatch(host)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as ``make docs`` does, with a proxy that is not there: what is fetched from elsewhere fails."""
    folder = tmp_path_factory.mktemp("site")
    nowhere = "http://127.0.0.1:9"
    env = {**os.environ, "http_proxy": nowhere, "https_proxy": nowhere, "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    """Its pages, by their place."""
    return {page.relative_to(site).as_posix(): Page(page.read_text()) for page in site.rglob("*.html")}


def test_every_page_is_there(pages: dict[str, Page]) -> None:
    """Each file of docs/ is a page of the site, and in its navigation, or the build would have warned."""
    wanted = {one.relative_to(ROOT / "docs").with_suffix(".html").as_posix() for one in (ROOT / "docs").rglob("*.md")}
    assert len(wanted) > 30
    assert wanted <= pages.keys()


def test_nothing_comes_from_elsewhere(site: Path, pages: dict[str, Page]) -> None:
    """No page and no style sheet loads anything from an address in the world (a link may lead there); and no page has
    what the theme's script would fetch for it."""
    found = {(name, target) for name, page in pages.items() for target in page.loads if outside(target)}
    found |= {(name, script) for name, page in pages.items() for script in page.scripts if outside(script)}
    for sheet in site.rglob("*.css"):
        text = re.sub(r"url\(.?data:[^)]*\)", "", sheet.read_text())  # pictures within, which name vocabularies
        found |= {(sheet.name, one) for one in re.findall(r"url\(([^)]*)\)|@import ([^;]*)", text) if outside(str(one))}
    assert found == set()
    fetched = re.compile(r'class="mermaid|data-md-component="source"|fonts\.g')
    assert [page.name for page in site.rglob("*.html") if fetched.search(page.read_text())] == []


def test_an_address_in_the_world_is_found() -> None:
    """The check itself: it tells a host in the world from this machine and from examples."""
    text = (
        '<a href="https://redis.io/docs"><img src="//cdn.net/x.png"><a href="http://localhost:5555"><a href="a/b.html">'
    )
    assert [outside(target) for target in Page(text).targets] == [["redis.io"], ["cdn.net"], [], []]
    assert Page(text).loads == ["//cdn.net/x.png"]


@pytest.mark.parametrize("package", [smqueue, smqueue.testing])
def test_all_that_is_exported_is_in_the_reference(package: object, pages: dict[str, Page]) -> None:
    """Each name of ``__all__`` has its place in the reference, made from its docstring."""
    name: str = package.__name__  # type: ignore[attr-defined]
    exported: list[str] = package.__all__  # type: ignore[attr-defined]
    ids = {one for page, parsed in pages.items() if page.startswith("reference/") for one in parsed.ids}
    assert [one for one in exported if f"{name}.{one}" not in ids] == []


def test_links_into_pages_lead_somewhere(pages: dict[str, Page]) -> None:
    """Links of the site to a place in it find the page, and the place in the page."""
    lost = set[tuple[str, str]]()
    for name, page in pages.items():
        for target in page.targets:
            path, _, place = target.partition("#")
            if not path.endswith(".html") and (path or not place):
                continue
            found = os.path.normpath(os.path.join(os.path.dirname(name), path)) if path else name
            if found not in pages or (place and place not in pages[found].ids):
                lost.add((name, target))
    assert {one for one in lost if one[0] != "404.html"} == set()

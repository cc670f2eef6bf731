"""The tutorial's clicks, in a real Chromium, on a real Flower and a real worker."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.apps import shop
from tests.flower.site import Site
from tests.shopping import Shop

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
SOON_MS = 30_000

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: apt install chromium")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One browser for all."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    """A tab of its own; what it complains of fails the test."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(SOON_MS)
    expect.set_options(timeout=SOON_MS)
    said: list[str] = []
    page.on("pageerror", lambda error: said.append(str(error)))
    asked: set[str] = set()
    page.on("request", lambda request: asked.add(request.url.split("/")[2]))
    yield page
    hosts = {host.partition(":")[0] for host in asked}
    context.close()
    assert not said
    assert hosts == {"127.0.0.1"}


def test_the_clicks_of_the_tutorial(page: Page, site: Site, world: Shop) -> None:
    """Find a stuck order, read why, send what it waits for by a form, and watch it move without a reload; cancel
    another after being asked; and each refusal is told at the form."""
    world.add("order-17", shop.Awaiting("17", 3))
    world.add("order-18", shop.Awaiting("18", 3))
    world.executor.signal("order-71", shop.payment, shop.Payment(3))
    page.goto(f"{site.address}/")
    page.get_by_role("link", name="Machines").click()
    search = page.get_by_role("search")
    search.get_by_label("Operation").fill("order-1*")
    search.get_by_role("button", name="Search").click()
    page.get_by_role("link", name="order-17").click()
    expect(page.get_by_role("heading", name="order-17 active")).to_be_visible()
    expect(page.get_by_role("region", name="Why it is where it is")).to_contain_text("one was sent to order-71")
    expect(page.get_by_text("Live", exact=True)).to_be_visible()
    page.evaluate("window.untouched = true")

    page.get_by_role("link", name="Signal…").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("link", name="orders.payment")).to_have_attribute("aria-current", "true")  # awaited
    dialog.get_by_role("button", name="Send").click()
    expect(dialog.get_by_role("alert")).to_contain_text("amount: missing")
    expect(dialog.get_by_label("amount")).to_be_focused()
    dialog.get_by_label("amount").fill("3")
    dialog.get_by_role("button", name="Send").click()
    expect(dialog).to_be_hidden()
    moved = page.locator("#timeline li").first
    expect(moved).to_contain_text("Awaiting → to Packing won by paid")
    expect(page.locator(".state.current")).to_have_attribute("data-state", "Packing")
    expect(page.locator("#smq-said")).to_have_text("Packing, paid has won")
    world.executor.signal("order-17", shop.packed)  # by somebody else
    expect(page.get_by_role("heading", name="order-17 finished")).to_be_visible()
    assert page.evaluate("window.untouched") is True

    page.goto(f"{site.address}/machines/op/order-18")
    page.get_by_role("link", name="Cancel…").click()
    dialog.get_by_role("link", name="Leave it").click()
    expect(dialog).to_be_hidden()
    assert world.executor.has_active_states("order-18")
    page.get_by_role("link", name="Cancel…").click()
    dialog.get_by_label("Reason").fill("customer asked")
    dialog.get_by_role("button", name="Cancel all its machines").click()
    expect(page.locator("#timeline li").first).to_contain_text("cancelled: customer asked")
    assert not world.executor.has_active_states("order-18")


def test_the_keyboard_alone_is_enough(page: Page, site: Site, world: Shop) -> None:
    """Every step is reached by Tab and done by Enter; a dialog takes the focus, Escape leaves it, and the focus is
    back where it was; a part that is renewed meanwhile does not take it away."""
    world.add("keys", shop.Awaiting("k", 3))
    page.goto(f"{site.address}/machines/op/keys")
    expect(page.get_by_text("Live", exact=True)).to_be_visible()

    def tab_to(id: str) -> None:
        for _ in range(30):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.id") == id:
                return
        raise AssertionError(f"Tab does not lead to {id}")

    tab_to("act-pause")
    page.keyboard.press("Enter")
    expect(page.get_by_label("Reason")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(page.locator("#act-pause")).to_be_focused()
    world.executor.signal("keys", shop.packed)  # too early, so that it is kept: a change that is no step
    expect(page.get_by_text("1 signal is kept for which nobody waits")).to_be_visible()
    expect(page.locator("#act-pause")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.type("audit")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="keys paused")).to_be_visible()
    expect(page.get_by_role("link", name="Resume…")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_a_phone_and_can_be_read(chromium: Browser, site: Site, world: Shop, scheme: str) -> None:
    """On a phone no page is wider than the screen; text has a contrast of 4.5 at least, in light and dark; every
    control has a name, every page one main heading and its landmarks."""
    world.add(f"small-{scheme}", shop.Awaiting("s", 3))
    context = chromium.new_context(viewport={"width": 390, "height": 844}, color_scheme=scheme)  # type: ignore[arg-type]
    page = context.new_page()
    for path in ("/machines?state=Awaiting", f"/machines/op/small-{scheme}", f"/machines/op/small-{scheme}/cancel"):
        page.goto(site.address + path)
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), path
        assert page.evaluate(FAINT) == [], path
        assert page.evaluate(NAMELESS) == [], path
        assert page.locator("h1").count() == 1
        assert page.locator("main").count() == 1
    context.close()


def test_it_reads_without_javascript(chromium: Browser, site: Site, world: Shop) -> None:
    """Without a script the pages show the same, and a form acts by itself."""
    world.add("plain", shop.Awaiting("p", 3))
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{site.address}/machines/op/plain")
    expect(page.locator(".state.current")).to_have_attribute("data-state", "Awaiting")
    page.get_by_role("link", name="Signal…").click()
    page.get_by_label("amount").fill("3")
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("status").first).to_contain_text("payment sent to plain")
    context.close()
    world.executor.cancel("plain")


FAINT = """() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const over = (a, b) => [0, 1, 2].map((i) => a[i] * (a[3] ?? 1) + b[i] * (1 - (a[3] ?? 1)));
  const linear = (v) => v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4;
  const light = (c) => 0.2126 * linear(c[0]) + 0.7152 * linear(c[1]) + 0.0722 * linear(c[2]);
  const behind = (e) => {
    const chain = [];
    for (; e; e = e.parentElement) chain.push(rgb(getComputedStyle(e).backgroundColor));
    return chain.reverse().reduce((under, c) => over(c, under), [255, 255, 255]);
  };
  const found = [];
  for (const e of document.querySelectorAll(".smq *")) {
    const text = [...e.childNodes].filter((n) => n.nodeType === 3 && n.textContent.trim()).length;
    if (!text || e.closest("svg") || !e.offsetParent || e.closest(".visually-hidden")) continue;
    const under = behind(e), c = light(over(rgb(getComputedStyle(e).color), under)), d = light(under);
    const ratio = (Math.max(c, d) + 0.05) / (Math.min(c, d) + 0.05);
    if (ratio < 4.5) found.push(`${e.textContent.trim().slice(0, 40)}: ${ratio.toFixed(2)}`);
  }
  return found;
}"""
"""Texts whose contrast is under 4.5, the AA of WCAG."""

NAMELESS = """() => [...document.querySelectorAll("input:not([type=hidden]), select, textarea, a, button")]
  .filter((e) => e.closest("main"))
  .filter((e) => !(e.labels?.length || e.textContent.trim() || e.getAttribute("aria-label"))).map((e) => e.outerHTML)"""
"""Controls that a screen reader has no name for."""

"""The tutorial's clicks, in a real Chromium, on a real Flower and a real worker."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

from tests.apps import shop
from tests.flower.site import Site
from tests.shopping import Shop
from tests.waiting import wait_until

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
    op = f"/machines/op/small-{scheme}"
    world.executor.signal("small-light", shop.payment, shop.Payment(3))  # of one an edge of the graph was taken
    for path in ("/machines?state=Awaiting", "/machines/module/orders", op, f"{op}/cancel", f"{op}/signal"):
        page.goto(site.address + path)
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), path
        assert faint(page) == [], path
        assert page.evaluate(NAMELESS) == [], path
        assert page.locator("h1").count() == 1
        assert page.locator("main").count() == 1
        assert page.evaluate(DANGLING) == [], path
    page.goto(site.address + op)
    page.get_by_role("link", name="Cancel…").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    assert faint(page) == []
    assert page.locator("h1").count() == 1
    context.close()


def faint(page: Page) -> list[str]:
    """Text of too little contrast, once no colour fades into another any more: a button's does after a click."""
    page.evaluate(
        """Promise.allSettled(
          document.getAnimations().filter((one) => one instanceof CSSTransition).map((one) => one.finished)
        ).then(() => null)"""
    )
    found: list[str] = page.evaluate(FAINT)
    return found


def hide(page: Page, hidden: bool) -> None:
    """As if another tab were shown, or this one again."""
    page.evaluate(
        """(hidden) => {
          Object.defineProperty(document, "hidden", {value: hidden, configurable: true});
          document.dispatchEvent(new Event("visibilitychange"));
        }""",
        hidden,
    )


def test_a_page_that_nobody_sees_has_no_stream(page: Page, site: Site, world: Shop) -> None:
    """A browser has six connections for all tabs: the stream of a hidden page ends, and begins where it was when the
    page is seen again. A burst of steps meanwhile is more than a window: the link to the older ones stays."""
    world.add("burst", shop.Polling(10_000_000))
    page.goto(f"{site.address}/machines/op/burst")
    expect(page.get_by_text("Live", exact=True)).to_be_visible()
    with page.expect_event("requestfailed", lambda request: "/events" in request.url):
        hide(page, True)
    world.add("burst", shop.Instant(120))
    wait_until(lambda: site.get("/api/machines/burst").json["total_steps"] == 123, "all its steps are made")
    with page.expect_request(lambda request: "/events?after=0" in request.url):
        hide(page, False)
    expect(page.locator("[data-total]")).to_have_text("123")
    expect(page.locator("#timeline li[data-sequence]")).to_have_count(50)
    page.get_by_role("link", name="Older steps").click()
    expect(page.locator("#timeline li[data-sequence]")).to_have_count(100)
    page.get_by_role("link", name="Older steps").click()
    expect(page.locator("#timeline li[data-sequence]")).to_have_count(123)
    world.executor.cancel("burst")


def test_a_stream_comes_back_after_an_error(page: Page, site: Site, world: Shop) -> None:
    """An answer that is an error ends a browser's stream for good: the page says that the connection is lost, begins
    another one, and shows what it has missed."""
    world.add("cut", shop.Awaiting("1", 3))
    page.route("**/events*", lambda route: route.fulfill(status=503, body="no"))
    page.goto(f"{site.address}/machines/op/cut")
    expect(page.locator("#smq-said")).to_contain_text("The connection is lost")
    expect(page.locator("#smq-live")).to_contain_text("Connecting…")
    world.executor.signal("cut", shop.payment, shop.Payment(3))
    page.unroute("**/events*")
    expect(page.get_by_text("Live", exact=True)).to_be_visible()
    expect(page.locator("#timeline li").first).to_contain_text("Awaiting → to Packing")


@pytest.mark.parametrize("answer", ["error", "login"])
def test_an_error_is_not_put_into_the_page(page: Page, site: Site, world: Shop, answer: str) -> None:
    """Older steps that cannot be had, or only after a login, are asked for as a page, which says so."""
    world.add(f"told-{answer}", shop.Instant(60))
    world.ends(f"told-{answer}")

    def refuse(route: Route) -> None:
        if answer == "error":
            route.fulfill(status=500, body="<p>broken</p>")
        else:
            route.fulfill(status=302, headers={"Location": "/"})

    page.route("**part=timeline*", refuse)
    page.goto(f"{site.address}/machines/op/told-{answer}")
    page.get_by_role("link", name="Older steps").click()
    page.wait_for_url("**before=*")
    expect(page.get_by_text("show the newest")).to_be_visible()
    expect(page.locator("#timeline li[data-sequence]")).to_have_count(12)


def test_a_search_goes_on_by_itself(page: Page, site: Site, world: Shop) -> None:
    """While a page of a search has found nothing and there are more, the next is looked at, with a line that tells how
    far it is; it can be stopped."""
    world.add("rare", shop.Hosting(3_600_000))
    asked = 0
    follow = '<span data-follow="/machines?state=Hosting&amp;part=found&amp;cursor=x" data-looked="1000">more</span>'
    table = f"<table><tbody><tr><td>{follow}</td></tr></tbody></table><a rel=next href='/machines'>Next page</a>"

    def seek(route: Route) -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            whole = route.fetch().text()
            begin, end = whole.index('<div id="found">'), whole.index('<div id="part-overview"')
            route.fulfill(body=f'{whole[:begin]}<div id="found">{table}</div></section>{whole[end:]}')
        elif asked < 5 or held:
            route.fulfill(body=table)
        else:
            route.continue_(url=f"{site.address}/machines?state=Hosting&part=found")

    held = False
    page.route("**/machines?state=Hosting*", seek)
    page.goto(f"{site.address}/machines?state=Hosting")
    expect(page.locator("#found")).to_contain_text("rare")
    expect(page.locator("#smq-said")).to_contain_text("1 rows found")
    asked, held = 0, True
    page.goto(f"{site.address}/machines?state=Hosting")
    expect(page.locator("[data-progress]")).to_contain_text("Searching: nothing yet among")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("[data-progress]")).to_contain_text("Stopped: nothing among")
    expect(page.get_by_role("button", name="Stop")).to_have_count(0)
    page.unroute("**/machines?state=Hosting*")
    world.executor.cancel("rare")


def test_a_state_is_paused_from_its_modules_page(page: Page, site: Site, world: Shop) -> None:
    """Asked first; what is paused, and why, stands there afterwards, and it is resumed from there."""
    page.goto(f"{site.address}/machines/module/kinds")
    row = page.get_by_role("row", name="Joining")
    row.get_by_role("link", name="Pause…").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("heading", name="Pause state kinds.Joining?")).to_be_visible()
    dialog.get_by_label("Reason").fill("audit")
    dialog.get_by_role("button", name="Pause").click()
    expect(row).to_contain_text("paused")
    expect(row).to_contain_text("audit")
    row.get_by_role("link", name="Resume…").click()
    dialog.get_by_role("button", name="Resume").click()
    expect(row.get_by_role("link", name="Pause…")).to_be_visible()
    assert not [one for one in world.executor.paused() if one.module is not None]


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
  const fill = (e) => {
    const style = getComputedStyle(e), c = rgb(style.fill);
    return [c[0], c[1], c[2], (c[3] ?? 1) * parseFloat(style.fillOpacity)];
  };
  const found = [];
  const look = (e, ink, under) => {
    const c = light(over(ink, under)), d = light(under);
    const ratio = (Math.max(c, d) + 0.05) / (Math.min(c, d) + 0.05);
    if (ratio < 4.5) found.push(`${e.textContent.trim().slice(0, 40)}: ${ratio.toFixed(2)}`);
  };
  for (const e of document.querySelectorAll(".smq svg text")) {
    const boxes = [...e.parentElement.children].filter((n) => n.matches("rect:not(.end)"));
    look(e, fill(e), boxes.reduce((under, box) => over(fill(box), under), behind(e.closest("svg").parentElement)));
  }
  for (const e of document.querySelectorAll(".smq *")) {
    const text = [...e.childNodes].filter((n) => n.nodeType === 3 && n.textContent.trim()).length;
    if (!text || e.closest("svg") || !e.offsetParent || e.closest(".visually-hidden")) continue;
    look(e, rgb(getComputedStyle(e).color), behind(e));
  }
  return found;
}"""
"""Texts whose contrast is under 4.5, the AA of WCAG; those of graphs, too."""

DANGLING = """() => ["aria-labelledby", "aria-describedby"].flatMap((name) =>
  [...document.querySelectorAll(`main [${name}]`)].filter((e) => !e.matches("dialog"))
    .flatMap((e) => e.getAttribute(name).split(" ")).filter((id) => !document.getElementById(id)))"""
"""What names an element that is not there."""

NAMELESS = """() => [...document.querySelectorAll("input:not([type=hidden]), select, textarea, a, button")]
  .filter((e) => e.closest("main"))
  .filter((e) => !(e.labels?.length || e.textContent.trim() || e.getAttribute("aria-label"))).map((e) => e.outerHTML)"""
"""Controls that a screen reader has no name for."""

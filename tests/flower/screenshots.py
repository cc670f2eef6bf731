"""The pictures of the documentation, made anew: ``python -m tests.flower.screenshots [DIRECTORY]``."""

from __future__ import annotations

import shutil
import sys
import tempfile
from datetime import timedelta
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from smqueue.embedded import EmbeddedServer
from tests.apps import shop
from tests.flower.site import Site, flower
from tests.shopping import Shop
from tests.waiting import wait_until
from tests.workers import ROOT, running

IMAGES = ROOT / "docs" / "images"
DESK, PHONE = (1200, 860), (390, 844)


def main(images: Path) -> None:
    """Make all of them."""
    images.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, EmbeddedServer() as server:
        world = Shop(server.url, server.broker_url, "shop", Path(folder))
        worker = world.worker("--pool", "solo")
        with running(worker):
            worker.wait_ready()
            stage(world)
            with flower(world, env={"FLOWER_UNAUTHENTICATED_API": "1"}) as site, sync_playwright() as playwright:
                path = shutil.which("chromium")
                browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
                shoot(browser, site, "", images / "machines.png", "light", DESK)
                shoot(browser, site, "/op/order-17", images / "signal.png", "light", DESK, dialog=True)
                shoot(browser, site, "/op/order-18", images / "operation-dark.png", "dark", DESK, whole=True)
                shoot(browser, site, "/op/order-17", images / "operation-phone.png", "dark", PHONE)
                browser.close()


def stage(world: Shop) -> None:
    """Some orders, of which one is stuck: its payment went to another."""
    for number in range(17, 60):
        world.add(f"order-{number}", shop.Awaiting(str(number), 300, timedelta(hours=3)))
    for number in range(18, 30):
        world.executor.signal(f"order-{number}", shop.payment, shop.Payment(300))
    for number in range(22, 28):
        world.executor.signal(f"order-{number}", shop.packed)
        world.ends(f"order-{number}")
    world.executor.signal("order-71", shop.payment, shop.Payment(300))
    world.add("broken", shop.Breaking("raise"))
    world.executor.pause("order-40", reason="stock take")
    wait_until(lambda: world.executor.overview().quarantined, "one is set aside", 60)


def shoot(
    browser: Browser, site: Site, page_of: str, path: Path, scheme: str, size: tuple[int, int], *, dialog: bool = False,
    whole: bool = False,
) -> None:  # fmt: skip
    """One picture."""
    viewport = {"width": size[0], "height": size[1]}
    context = browser.new_context(viewport=viewport, color_scheme=scheme)  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(f"{site.address}/machines{page_of}")
    page.get_by_text("Live", exact=True).wait_for()
    if not page_of:
        page.get_by_text("the mean of the last minute").wait_for()
    if dialog:
        page.get_by_role("link", name="Signal…").click()
        page.get_by_label("amount").fill("300")
    page.screenshot(path=path, full_page=whole)
    context.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES)

"""Flower's pages and API of machines, over HTTP."""

from __future__ import annotations

import http.client
import json
import re
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from html import unescape
from urllib.parse import quote

import pytest

from tests.apps import shop
from tests.flower.site import Answer, Site
from tests.shopping import Shop
from tests.waiting import wait_until


@pytest.fixture
def op() -> str:
    """An operation of its own, with an id that has to be escaped everywhere."""
    return f"o/<b>&'{uuid.uuid4().hex[:6]}"


def page(site: Site, op: str, rest: str = "") -> Answer:
    """A page of an operation."""
    return site.get(f"/machines/op/{quote(op, safe='')}{rest}")


def words(answer: Answer) -> str:
    """What is to be read on a page."""
    return unescape(" ".join(re.sub(r"<(script|style).*?</\1>|<[^>]*>", " ", answer.text, flags=re.DOTALL).split()))


def test_all_of_flowers_pages_lead_to_machines_and_no_page_to_another_address(site: Site, world: Shop) -> None:
    """``celery -A app flower`` with no option has Machines in the navigation of its own pages; what our pages load
    comes from Flower."""
    for path in ("/", "/tasks", "/broker", "/machines", "/nothing-there"):
        assert 'href="/machines"' in site.get(path).text, path
    text = site.get("/machines").text
    loaded = re.findall(r'<(?:link|script|img|use)[^>]*(?:href|src)="([^"]+)"', text)
    assert any(address.startswith("/machines/static/machines.js?v=") for address in loaded)
    assert all(address[0] in "/#" and not address.startswith("//") for address in loaded), loaded
    for name in ("machines.css", "machines.js"):
        assert site.get(f"/machines/static/{name}").status == 200


def test_the_overview_counts_and_its_search_finds(site: Site, world: Shop) -> None:
    """Counts by module and state are exact; a search by prefix, state and age is paged by its cursor; an exact id
    leads to the operation's page; what makes no sense is told at the form."""
    mark = uuid.uuid4().hex[:6]
    for n in range(60):
        world.add(f"many-{mark}-{n:02}", shop.Watching(f"nobody-{mark}"))

    def counted() -> int:
        states = site.get("/api/machines-overview").json["states"]
        return next((one["active"] for one in states if one["state"] == "Watching"), 0)

    wait_until(lambda: counted() == 60, "all are counted")  # what was looked at a second ago is shown again
    assert re.search(r'Watching</a></td>\s*<td class="text-end smq-number">60<', site.get("/machines").text)
    first = site.get(f"/machines?operation=many-{mark}-*&state=Watching")
    names = set(re.findall(rf"many-{mark}-\d\d", first.text))
    following = unescape(re.search(r'rel="next" href="([^"#]+)', first.text)[1])  # type: ignore[index]
    names |= set(re.findall(rf"many-{mark}-\d\d", site.get(following).text))
    assert len(names) == 60
    assert "No active machine is so" in site.get(f"/machines?operation=many-{mark}-*&older=2h").text
    exact = site.get(f"/machines?operation=many-{mark}-07")
    assert (exact.status, exact.headers["Location"]) == (302, f"/machines/op/many-{mark}-07")
    wrong = site.get("/machines?older=soon")
    assert wrong.status == 400
    assert "older: 'soon' is no span of time" in words(wrong)


def test_an_operations_page_says_why_and_who_won(site: Site, world: Shop, op: str) -> None:
    """Its sentences, its graph with the state lit, its armed triggers with their time, and a timeline with the winner
    and what the loser was doing; ids are escaped."""
    world.add(op, shop.Awaiting("1", 5, timedelta(hours=3)))
    world.executor.signal(op, shop.payment, shop.Payment(7))
    wait_until(lambda: "Packing" in page(site, op).text, "it has moved")
    found = page(site, op)
    said = words(found)
    assert "handed_over waits for signal packed" in said
    assert re.search(r"Awaiting → to Packing won by paid", said)
    assert re.search(r"lost: expired \(deadline\) had (3 h|2 h 59 min) left", said)
    assert re.search(r'<g class="state current" data-state="Packing"', found.text)
    assert re.search(
        r'<g class="transition taken" data-from="Awaiting" data-to="Packing" data-handler="paid"', found.text
    )
    assert "<b>" not in found.text
    assert op in said
    world.add("later", shop.Awaiting("2", 5, timedelta(hours=3)))
    assert re.search(r'<time [^>]*data-until="\d+\.\d+"[^>]*>in (3 h|2 h 59 min)</time>', page(site, "later").text)


def test_an_operation_that_nobody_knows_is_said_so(site: Site) -> None:
    """404, in words, on the page and in the API."""
    missing = page(site, "no-such")
    assert missing.status == 404
    assert "Nothing is known of operation no-such" in words(missing)
    told = site.get("/api/machines/no-such")
    assert (told.status, told.json["error"]) == (404, "NoSuchOperation")


def test_a_form_signals_once_and_tells_what_is_wrong_at_its_field(site: Site, world: Shop, op: str) -> None:
    """The form is made from the payload's schema; what does not fit is told at the field, with what was entered; a
    form that is submitted twice sends one signal; the next page says what was done."""
    world.add(op, shop.Awaiting("1", 5))
    path = f"/machines/op/{quote(op, safe='')}/signal?signal=payment&module=orders"
    opened = site.get(path)
    assert re.search(r'<input class="form-control " type="number" step="1" id="c-amount"', opened.text)
    cookie = opened.headers["Set-Cookie"].partition(";")[0]
    hidden = {name: opened.value(name) for name in ("_xsrf", "id", "signal", "module")}
    bare = path.partition("?")[0]
    for wrong, problem in (("", "payment.amount: missing"), ("lots", "amount is not a number")):
        refused = site.submit(bare, {**hidden, "field:amount": wrong}, Cookie=cookie)
        assert refused.status == 400
        assert problem in words(refused)
        assert re.search(r'id="c-amount"[^>]*smq-form-error"[^>]*aria-invalid="true"', refused.text)
    for _ in range(2):
        sent = site.submit(bare, {**hidden, "field:amount": "7"}, Cookie=cookie)
        assert (sent.status, sent.headers["Location"]) == (303, bare.removesuffix("/signal"))
    wait_until(lambda: "Packing" in page(site, op).text, "it has moved")
    assert "kept for whoever waits" not in page(site, op).text
    flash = sent.headers["Set-Cookie"].partition(";")[0]
    assert f"payment sent to {op}" in words(site.get(bare.removesuffix("/signal"), Cookie=flash))


def test_pause_resume_retry_and_cancel_ask_first(site: Site, world: Shop, op: str) -> None:
    """GET only asks; the POST of its form acts; a reason is kept; an ended operation refuses with its reason."""
    world.add(op, shop.Awaiting("1", 5))
    path = f"/machines/op/{quote(op, safe='')}"
    assert site.fill(f"{path}/pause", reason="stock take").status == 303
    assert "paused" in words(page(site, op))
    assert "stock take" in words(site.get("/machines"))
    assert site.fill(f"{path}/resume").status == 303
    assert site.fill(f"{path}/retry").status == 303
    assert site.get(f"{path}/cancel").status == 200
    assert world.executor.has_active_states(op)
    assert site.fill(f"{path}/cancel", reason="customer asked").status == 303
    assert not world.executor.has_active_states(op)
    assert "cancelled: customer asked" in words(page(site, op))
    over = site.fill(f"{path}/signal?signal=packed&module=orders")
    assert over.status == 409
    assert "has finished" in words(over)


@pytest.mark.parametrize("act", ["signal", "cancel", "pause", "resume", "retry"])
def test_a_foreign_page_cannot_act(site: Site, world: Shop, act: str) -> None:
    """Without the token of a form, or from another site, nothing is done: also where Flower has no login."""
    op = f"safe-{act}"
    world.add(op, shop.Awaiting("1", 5))
    path, form = f"/machines/op/{op}/{act}", {"signal": "packed", "module": "orders"}
    assert site.submit(path, form).status == 403
    assert site.submit(path, {**form, "_xsrf": "made-up"}, Cookie="_xsrf=other").status == 403
    foreign = {"Sec_Fetch_Site": "cross-site"}
    assert site.post(f"/api/machines/{op}/{act}", form, **foreign).status == 403
    assert site.post(f"/api/machines/{op}/{act}", form, Origin="https://elsewhere.example").status == 403
    assert site.post(f"/api/machines/{op}/{act}", form, Content_Type="text/plain").status == 415
    explained = world.executor.explain(op)
    assert [one.status for one in explained.active] == ["waiting"]
    assert not explained.buffered


def test_the_api_steers_and_tells_errors(site: Site, world: Shop, op: str) -> None:
    """Scripts get what the pages show, send signals and steer; an error has its type, its text and its field."""
    world.add(op, shop.Awaiting("1", 5))
    api = f"/api/machines/{quote(op, safe='')}"
    refused = site.post(f"{api}/signal", {"signal": "payment", "payload": {"amount": "7"}})
    assert (refused.status, refused.json["error"], refused.json["field"]) == (400, "InvalidPayload", "payment.amount")
    assert site.post(f"{api}/signal", ["no", "object"]).status == 400
    assert site.post(f"{api}/pause", {"reason": "audit"}).json["done"] is None
    told = site.get(api).json
    assert (told["standing"], told["machines"][0]["status"]) == ("paused", "paused")
    assert site.post(f"{api}/resume", {}).status == 200
    assert site.post(f"{api}/signal", {"signal": "payment", "payload": {"amount": 7}}).json["done"] == "DELIVERED"
    wait_until(lambda: site.get(api).json["total_steps"] == 2, "it has moved")
    step = site.get(api).json["steps"][0]
    assert (step["source"], step["target"], step["won"]) == ("Awaiting", "Packing", "paid")
    assert site.post(f"{api}/cancel", {"reason": "enough"}).json["done"] == 1
    machines = site.get(f"/api/machines?operation={quote(op, safe='')}").json
    assert machines == {"machines": [], "cursor": None}
    assert site.get("/api/machines?cursor=made-up").json["field"] == "cursor"


def test_a_long_history_is_read_a_window_at_a_time(site: Site, world: Shop) -> None:
    """All steps of a history are on its pages, each once, newest first, by following ``before``; a page has 50."""
    world.add("long", shop.Instant(120))
    world.ends("long")
    seen: list[int] = []
    before = ""
    for _ in range(4):
        told = site.get(f"/api/machines/long?before={before}").json
        seen += [step["sequence"] for step in told["steps"]]
        assert len(told["steps"]) <= 50
        if (before := told["before"]) is None:
            break
    assert seen == list(range(121, -1, -1))
    assert all(step["source"] == "Instant" for step in told["steps"][:-1])
    part = site.get("/machines/op/long?part=timeline&after=118").text
    assert re.findall(r'data-sequence="(\d+)"', part) == ["121", "120", "119"]


def test_events_tell_steps_from_where_one_was(site: Site, world: Shop) -> None:
    """The stream of an operation begins behind ``Last-Event-ID``, and tells each later step, and what is no step."""
    world.add("told", shop.Awaiting("1", 5))
    world.executor.signal("told", shop.payment, shop.Payment(7))
    wait_until(lambda: site.get("/api/machines/told").json["total_steps"] == 2, "it has moved")
    line = http.client.HTTPConnection("127.0.0.1", site.port, timeout=30)
    line.request("GET", "/machines/op/told/events", headers={"Last-Event-ID": "0"})
    answer = line.getresponse()
    assert answer.getheader("Content-Type", "").startswith("text/event-stream")

    def until(start: bytes) -> bytes:
        while not (read := answer.readline()).startswith(start):
            assert read
        return read

    assert until(b"id: ") == b"id: 1\n"
    over = threading.Event()

    def early_ones() -> None:
        while not over.wait(0.5):  # more and more of them: whenever one looks first, there is a change later
            world.executor.signal("told", shop.payment, shop.Payment(1))

    with ThreadPoolExecutor() as pool:
        sending = pool.submit(early_ones)
        until(b"event: changed")
        over.set()
        sending.result()
    world.executor.signal("told", shop.packed)
    assert until(b"id: ") == b"id: 2\n"
    assert json.loads(until(b"data: ").removeprefix(b"data: "))["terminal"] is True
    line.close()

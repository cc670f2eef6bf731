"""What scripts and browsers may send, and what may stand in Redis: what is wrong is told, and it is never a 500."""

from __future__ import annotations

import http.client
import json
import uuid
from base64 import urlsafe_b64encode
from html import unescape
from urllib.parse import quote

import pytest

from smqueue import StateMachine
from tests.apps import shop
from tests.flower.site import Site
from tests.flower.test_pages import words
from tests.shopping import Shop
from tests.waiting import wait_until


def cursor(text: str) -> str:
    """A made-up one."""
    return urlsafe_b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("field", "path"),
    [
        ("limit", "/api/machines?limit=" + "9" * 5_000),
        ("limit", "/api/machines?limit=0"),
        ("cursor", "/api/machines?cursor=" + cursor('[0,"op",NaN,0,""]')),
        ("cursor", "/api/machines?cursor=" + cursor('[0,"\\ud800",0,0,""]')),
        ("cursor", "/api/machines?cursor=" + cursor('[0,"op",0,1e30,""]')),
        ("cursor", "/api/machines?cursor=" + cursor('[1e30,"op",0,0,""]')),
        ("cursor", "/api/machines?quarantined=1&cursor=" + cursor('[0,"",0,-7,""]')),
        ("cursor", "/api/machines?cursor=" + "x" * 5_000),
        ("older", "/api/machines?older=" + "9" * 5_000 + "d"),
        ("older", "/api/machines?older=1e400s"),
        ("before", "/api/machines/known?before=" + "9" * 5_000),
        ("after", "/machines/op/known/events?after=" + "9" * 5_000),
        ("after", "/machines/op/known/events?after=-1"),
        ("before", "/machines/op/known?before=x"),
    ],
)
def test_what_makes_no_sense_in_an_address_is_told(site: Site, world: Shop, field: str, path: str) -> None:
    """400, with the name of the field."""
    answer = site.get(path)
    assert answer.status == 400
    if path.startswith("/api/"):
        assert (answer.json["error"], answer.json["field"]) == ("InvalidInput", field)
    elif "events" not in path:
        assert field in words(answer).lower()


def test_a_stream_does_not_begin_behind_nonsense(site: Site, world: Shop) -> None:
    """Nor by the header that a browser sends."""
    assert site.get("/machines/op/known/events", Last_Event_ID="9" * 5_000).status == 400


@pytest.mark.parametrize(
    ("field", "body"),
    [
        ("body", "{"),
        ("body", "[]"),
        ("body", "[" * 100_000),
        ("body", '{"payload": ' + "[" * 100_000),
        ("body", '{"signal": "\\ud800"}'),
        ("body", '{"signal": "packed", "payload": NaN}'),
        ("machine", '{"signal": "packed", "machine": ["m"]}'),
        ("id", '{"signal": "packed", "id": 7}'),
        ("module", '{"signal": "packed", "module": {}}'),
        ("signal", '{"signal": 7}'),
        ("signal", "{}"),
        ("force", '{"force": "yes"}'),
        ("children", '{"children": 1}'),
        ("reason", '{"reason": []}'),
    ],
)
def test_what_makes_no_sense_in_a_body_is_told(site: Site, world: Shop, field: str, body: str) -> None:
    """400, with the name of the field."""
    act = "cancel" if field in {"force", "children", "reason"} else "signal"
    answer = site.ask("POST", f"/api/machines/known/{act}", body, Content_Type="application/json")
    assert (answer.status, answer.json["field"]) == (400, field)


def test_nothing_is_cancelled_that_nobody_knows(site: Site, world: Shop) -> None:
    """404, in the API and at the form; not: 0 machines ended."""
    assert site.post("/api/machines/no-such/cancel", {}).json["error"] == "NoSuchOperation"
    refused = site.fill("/machines/op/no-such/cancel")
    assert refused.status == 404
    assert "Nothing is known of operation no-such" in words(refused)
    world.add("known-one", shop.Awaiting("1", 5))
    assert site.post("/api/machines/known-one/cancel", {"force": True, "children": False}).json["done"] == 1


@pytest.mark.parametrize("op", ["overview", ".", "..", "module", "_", "?op=x", "é/%2E"])
def test_an_operation_of_any_name_has_its_page(site: Site, world: Shop, op: str) -> None:
    """Where its links lead, its page, its API, its stream and its buttons are its own."""
    world.add(op, shop.Awaiting("1", 5))
    leads = site.get(f"/machines?operation={quote(op, safe='')}").headers["Location"]
    assert not {"..", "."} & {*leads.partition("?")[0].split("/")}, "a browser would go elsewhere"
    found = site.get(leads)
    assert (found.status, op in words(found)) == (200, True)
    path, _, query = leads.partition("?")
    api = f"/api{path.replace('/op/', '/')}"
    assert site.get(f"{api}?{query}").json["operation_id"] == op
    assert site.post(f"{api}/pause?{query}", {"reason": "audit"}).status == 200
    (one,) = world.executor.explain(op).active
    assert one.status == "paused"
    line = http.client.HTTPConnection("127.0.0.1", site.port, timeout=30)
    line.request("GET", f"{path}/events?{query}")
    answer = line.getresponse()
    while not (read := answer.readline()).startswith(b"data: "):
        assert read
    assert json.loads(read.removeprefix(b"data: "))["operation_id"] == op
    line.close()
    world.executor.cancel(op)


def test_a_module_and_a_state_are_paused_and_resumed(site: Site, world: Shop) -> None:
    """By forms and by scripts; the module's page says what is paused, since when and why, and offers to resume it."""
    op = f"held-{uuid.uuid4().hex[:6]}"
    world.add(op, shop.Polling(1_000_000))

    def status() -> str:
        return world.executor.explain(op).active[0].status

    assert site.fill("/machines/module/kinds/pause", reason="bank is down").status == 303
    try:
        assert status() == "paused"
        page = site.get("/machines/module/kinds")
        assert "bank is down" in words(page)
        assert 'href="/machines/module/kinds/resume"' in page.text
    finally:
        assert site.fill("/machines/module/kinds/resume").status == 303
    assert status() == "waiting"
    assert site.post("/api/machines/module/kinds/pause", {"state": "Polling", "reason": "audit"}).json == {
        "done": None, "message": "state kinds.Polling is paused.",
    }  # fmt: skip
    assert status() == "paused"
    page = site.get("/machines/module/kinds")
    assert 'href="/machines/module/kinds/resume?state=Polling"' in page.text
    assert 'href="/machines/module/kinds/pause"' in page.text
    assert site.post("/api/machines/module/kinds/resume", {"state": "Polling"}).status == 200
    assert status() == "waiting"
    assert site.post("/api/machines/module/kinds/pause", {"state": "Nothing"}).json["field"] == "state"
    assert site.post("/api/machines/module/nothing/pause", {}).json["error"] == "UnknownModule"
    foreign = {"Sec_Fetch_Site": "cross-site"}
    assert site.post("/api/machines/module/kinds/pause", {}, **foreign).status == 403
    assert site.submit("/machines/module/kinds/pause", {}).status == 403
    assert status() == "waiting"
    world.executor.cancel(op)


def test_what_is_quarantined_among_many_is_found_from_its_operation(site: Site, world: Shop) -> None:
    """The page of an operation shows some of its machines; it says so, leads to those that are quarantined, and offers
    to retry them although it shows none."""
    op = f"crowd-{uuid.uuid4().hex[:6]}"
    states = [shop.Watching(f"nobody-{op}-{n}") for n in range(300)]
    world.executor.add_state_machines([StateMachine(op, state) for state in states])
    shown = str(site.get(f"/api/machines/{op}").json["machines"])
    hidden = next(state for state in states if f"'{state.other}'" not in shown)
    record = world.executor.instances.place(StateMachine(op, hidden)).record
    note = {"error": "ValueError: x", "op": op, "entry": f"{record}:none", "at": 0}
    world.redis.hset(world.keys.quarantine, record, json.dumps(note))
    page = site.get(f"/machines/op/{op}")
    assert 'id="act-retry"' in page.text
    assert "about 50 of its 300 active machines" in words(page)
    leads = next(part for part in page.text.split('"') if "quarantined=1" in part)
    found = words(site.get(unescape(leads).partition("#")[0]))
    assert hidden.other in found
    assert found.count(f"nobody-{op}") == 1
    world.redis.hdel(world.keys.quarantine, record)
    world.executor.cancel(op)


def test_garbage_in_redis_is_no_error_of_a_page(site: Site, world: Shop) -> None:
    """A note, a step and a record that are none: the list, the search and the page of the operation are shown."""
    op = f"bent-{uuid.uuid4().hex[:6]}"
    world.add(op, shop.Awaiting("1", 5))
    world.executor.signal(op, shop.payment, shop.Payment(7))
    wait_until(lambda: site.get(f"/api/machines/{op}").json["total_steps"] == 2, "it has moved")
    world.redis.hset(world.keys.quarantine, "nothing", "[")
    world.redis.rpush(world.keys.history(op), '{"machine":["m"],"step":3,"to":"x","at":1}')
    world.redis.hset(world.keys.active(op), "x", "y")
    for path in ("/machines?quarantined=1", "/machines?module=orders", f"/machines/op/{op}", f"/api/machines/{op}"):
        assert site.get(path).status == 200, path
    assert len(site.get(f"/api/machines?operation={op}").json["machines"]) == 2
    world.redis.hdel(world.keys.quarantine, "nothing")
    world.redis.hdel(world.keys.active(op), "x")
    world.executor.cancel(op)

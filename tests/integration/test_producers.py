"""Producers that know nothing of machines, each a process of its own, as docs/producers.md shows them."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest
import redis
from celery import Celery
from playwright.sync_api import sync_playwright

from smqueue import Client, InvalidPayload
from smqueue.cli import run
from smqueue.keys import Keys
from tests.brokers import free_port, process, redis_server
from tests.docs.pages import ROOT, blocks
from tests.node_packages import node_modules
from tests.waiting import wait_until
from tests.workers import Worker, running

PAGE = "docs/producers.md"
SECRET = "sesame"
WAIT_S = 60


def shown(language: str, saying: str = "") -> str:
    """The first block of the page in a language that says something."""
    return next(block.text for block in blocks(PAGE) if block.language == language and saying in block.text)


@dataclass(frozen=True)
class Place:
    """Where the application of the page is at work.

    Attributes:
        url: Of state, messages and results.
        web: Of the web application.
        client: For what a test wants to know.
        directory: Of this place alone.
    """

    url: str
    web: str
    client: Client
    directory: Path

    @property
    def env(self) -> dict[str, str]:
        """What its processes are started with."""
        return {"SMQUEUE_URL": self.url, "CELERY_BROKER_URL": self.url, "WEBHOOK_SECRET": SECRET}

    def steps(self, order_id: str) -> list[str]:
        """The types of the states of an order, of its own module."""
        with self.client.subscribe(order_id, "orders", timeout=0) as updates:
            return [update.state["type"] for update in updates]

    def revenue(self) -> int:
        """What all orders have brought."""
        with redis.Redis.from_url(self.url) as store:
            return int(store.get(Keys("smqueue").data("orders", "revenue")) or 0)  # type: ignore[arg-type]

    def shipped(self, order_id: str) -> None:
        """Wait until an order, which was refused a payment and then paid once, is shipped."""
        wait_until(lambda: self.steps(order_id) == ["Awaiting", "Shipped"], f"{order_id} is shipped", WAIT_S)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A server, a worker of the page's application, and the web application."""
    if (binary := shutil.which("redis-server")) is None:
        pytest.skip("there is no redis-server on the PATH")
    directory = tmp_path_factory.mktemp("producers")
    (directory / "shop.py").write_text(shown("python", "# shop.py"))
    with ExitStack() as stack:
        url = stack.enter_context(redis_server(binary, directory)) + "/0"
        port = free_port()
        place = Place(url, f"http://127.0.0.1:{port}", Client(url), directory)
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("PYTHONPATH", str(directory))
        worker = Worker("shop", place.env, ["-c", "2"])
        stack.enter_context(running(worker))
        stack.enter_context(serving(place))
        worker.wait_ready()
        yield place
        place.client.close()


@contextmanager
def serving(place: Place) -> Generator[None]:
    """The web application, until the block ends."""
    port = place.web.rpartition(":")[2]
    command = [sys.executable, "-m", "uvicorn", "examples.web.app:app", "--host", "127.0.0.1", "--port", port]
    log = place.directory / f"web-{port}.log"
    env = {**place.env, "PYTHONPATH": str(ROOT)}
    with process([*command, "--timeout-graceful-shutdown", "1"], env, log) as server:

        def answers() -> bool:
            assert server.poll() is None, log.read_text()
            try:
                return httpx.get(f"{place.web}/openapi.json").is_success
            except httpx.TransportError:
                return False

        wait_until(answers, "the web application answers", WAIT_S)
        yield


@contextmanager
def other_server(place: Place) -> Generator[Place]:
    """A second process of the web application."""
    other = replace(place, web=f"http://127.0.0.1:{free_port()}")
    with serving(other):
        yield other


def ran(command: list[str], env: dict[str, str]) -> list[str]:
    """The lines that a program prints, which ends well."""
    done = subprocess.run(
        command, env={**os.environ, **env}, cwd=ROOT, capture_output=True, text=True, timeout=WAIT_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


REFUSED = "The payload does not fit its schema. payment.amount: expected int, got str"


def test_redis_cli(place: Place) -> None:
    """What the page shows of redis-cli, run by a shell: an order is started and paid with one command each; the payment
    that does not fit is answered with the error, the one that is no JSON is refused by the command itself."""
    if shutil.which("redis-cli") is None:
        pytest.skip("there is no redis-cli on the PATH")
    assert run(["functions", "load", "--url", place.url]) == 0
    alias = f'redis-cli() {{ command redis-cli -u {place.url} "$@"; }}\n'
    said = ran(["bash", "-eu", "-c", alias + shown("bash")], {})
    added, refused, paid = (json.loads(line) for line in said if line.startswith('{"'))
    assert list(added) == ["value"]
    assert refused == {
        "error": "InvalidPayload", "args": ["payment.amount", "expected int, got str"], "message": REFUSED,
    }  # fmt: skip
    assert paid == {"value": "DELIVERED"}
    assert "InvalidInput payload: not JSON" in said[-1] or "InvalidInput payload: not JSON" in said[-2]
    place.shipped("order-1")


def test_celery_alone(place: Place) -> None:
    """What the page shows of Celery, where smqueue cannot be imported: the payment that does not fit raises an error
    under its own name at the producer, with its data and a sentence."""
    bare = f"import sys; sys.modules['smqueue'] = None\n{shown('python', 'send_task')}"
    refused, paid = ran([sys.executable, "-c", bare], place.env)
    assert refused == f"InvalidPayload ('payment.amount', 'expected int, got str', '{REFUSED}')"
    assert paid == "DELIVERED"
    place.shipped("order-2")


def test_celery_beside_smqueue(place: Place) -> None:
    """Where smqueue is installed the error is its own class, with its fields and its text."""
    producer = Celery("producer", broker=place.url, backend=place.url, set_as_current=False)
    with pytest.raises(InvalidPayload) as caught:
        producer.send_task("smqueue.signal", ["order-0", "payment", {"amount": "300"}]).get(timeout=WAIT_S)
    assert (caught.value.field, caught.value.problem) == ("payment.amount", "expected int, got str")
    assert str(caught.value) == REFUSED


def test_node(place: Place, tmp_path: Path) -> None:
    """What the page shows of Node, run by it: celery-node starts an order and pays it, and the payment that does not
    fit is an error there, with its type, its data and a sentence."""
    if shutil.which("npm") is None:
        pytest.skip("there is no npm on the PATH")
    try:
        modules = node_modules()
    except subprocess.SubprocessError as error:
        pytest.skip(f"npm cannot install celery-node: {error}")
    (script := tmp_path / "producer.js").write_text(shown("js", "celery-node"))
    said = ran(["node", str(script)], {**place.env, "NODE_PATH": str(modules)})
    assert said == [f"InvalidPayload {REFUSED}", "DELIVERED"]
    place.shipped("order-3")


def test_a_browser_follows(place: Place) -> None:
    """What the page shows for a browser, run by one on a page of the web application: it tells of the states of an
    order, those that were and those that come."""
    if (chromium := os.environ.get("CHROMIUM") or shutil.which("chromium")) is None:
        pytest.skip("no Chromium is installed: apt install chromium")
    state = {"order_id": "o-5", "total": 300}
    place.client.add([{"operation_id": "o-5", "module": "orders", "type": "Awaiting", "state": state}])
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage"])
        page = browser.new_page()
        page.goto(f"{place.web}/openapi.json")
        page.set_default_timeout(WAIT_S * 1000)
        page.evaluate("() => { window.told = []; console.log = (state) => told.push(state.type) }")
        page.add_script_tag(content=shown("js", "EventSource"))
        page.wait_for_function("told.join() == 'Awaiting'")
        place.client.signal("o-5", "payment", {"amount": 300})
        page.wait_for_function("told.includes('Shipped')")
        browser.close()


def test_fastapi(place: Place) -> None:
    """Over HTTP an order is started and paid; what a worker refuses is 422 with the field, what exists already 409, and
    a payment under one key is one."""
    with httpx.Client(base_url=place.web, timeout=WAIT_S) as http:
        bad = http.put("/orders/o-1", json={"total": "much"})
        assert (bad.status_code, bad.json()["detail"][0]["loc"]) == (422, ["body", "total"])
        assert http.put("/orders/o-1", json={"total": 300}).status_code == 201
        assert http.put("/orders/o-1", json={"total": 300}).status_code == 409
        bad = http.post("/orders/o-1/payment", json={"amount": "300"})
        assert bad.status_code == 422
        assert bad.json() == {
            "detail": [{"type": "InvalidPayload", "loc": ["body", "amount"], "msg": "expected int, got str"}]
        }
        assert http.post("/orders/o-1/payment", content="{").status_code == 422, "FastAPI's own, in the same form"
        before, key = place.revenue(), {"idempotency-key": "k-1"}
        answers = [http.post("/orders/o-1/payment", json={"amount": 300}, headers=key) for _ in range(3)]
        assert {answer.status_code for answer in answers} <= {202, 409}
        assert answers[0].json() == {"delivery": "DELIVERED"}
        place.shipped("o-1")
        assert place.revenue() == before + 300


def test_a_webhook_pays_once(place: Place) -> None:
    """However often a provider calls with one event, it is one payment; a body that is not signed, or signed otherwise,
    is not read; one that does not fit is refused."""

    def call(body: bytes, signature: bytes | None = None) -> httpx.Response:
        signed = (
            hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest().encode() if signature is None else signature
        )
        headers = {b"x-signature": signed}
        return httpx.post(f"{place.web}/webhooks/payments", content=body, headers=headers, timeout=WAIT_S)

    order = {"operation_id": "o-2", "module": "orders", "type": "Awaiting", "state": {"order_id": "o-2", "total": 300}}
    place.client.add([order])
    event = json.dumps({"id": "evt-1", "order_id": "o-2", "amount": 100}).encode()
    forged = [call(event, signature) for signature in (b"", b"0" * 64, "größe".encode())]
    assert [answer.status_code for answer in forged] == [401, 401, 401]
    assert [call(event).json()["delivery"] for _ in range(3)] == ["DELIVERED", "DUPLICATE", "DUPLICATE"]
    unfit = [call(body) for body in (b"{", b"[]", b"{}", event.replace(b"100", b'"x"'))]
    assert [answer.status_code for answer in unfit] == [400, 400, 400, 422]
    nameless = [call(event.replace(b'"evt-1"', id)) for id in (b"null", b'""', b"7")]
    assert [answer.status_code for answer in nameless] == [400, 400, 400]
    before = place.revenue()
    assert call(event.replace(b"evt-1", b"evt-2").replace(b"100", b"300")).json() == {"delivery": "DELIVERED"}
    place.shipped("o-2")
    assert place.revenue() == before + 300


def test_the_web_application_is_served_again() -> None:
    """Whoever serves it twice in one process, as tests do, gets a client that is open each time, and none is left."""
    code = """
import asyncio
from examples.web.app import app, lifespan

async def serve():
    async with lifespan(app):
        assert not app.state.client._board.closed
        return app.state.client

first, second = asyncio.run(serve()), asyncio.run(serve())
assert first is not second
print(first._board.closed, second._board.closed)
"""
    assert ran([sys.executable, "-c", code], {"SMQUEUE_URL": "redis://localhost", "PYTHONPATH": str(ROOT)}) == [
        "True True"
    ]


def told(place: Place, path: str, last: str | None, until: int) -> list[tuple[str, str]]:
    """What an event source is told before it leaves: id and type of state of each event, to one with that id."""
    headers = {"last-event-id": last} if last is not None else {}
    found: list[tuple[str, str]] = []
    with httpx.stream("GET", place.web + path, headers=headers, timeout=WAIT_S) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        for line in response.iter_lines():
            name, _, value = line.partition(": ")
            if name == "id":
                found.append((value, ""))
            elif name == "data":
                found[-1] = (found[-1][0], json.loads(value)["state"]["type"])
                if found[-1][0] == str(until):
                    return found
    raise AssertionError(f"the stream ended after {found}")


def test_events_over_reconnects(place: Place) -> None:
    """An event source that leaves and comes back, while things happen, to another server process in the end, is told
    everything once and in order, live and past; who may not see an operation is refused. (semantics 36)"""
    order = {"operation_id": "o-3", "module": "orders", "type": "Awaiting", "state": {"order_id": "o-3", "total": 300}}
    place.client.add([order])
    first = told(place, "/events/o-3", None, 0)
    assert first == [("0", "Awaiting")]
    with ThreadPoolExecutor() as pool:
        live = pool.submit(told, place, "/events/o-3", "0", 2)
        place.client.signal("o-3", "payment", {"amount": 300})
        second = live.result()
    with other_server(place) as elsewhere, ThreadPoolExecutor() as pool:
        live = pool.submit(told, elsewhere, "/events/o-3", "2", 4)
        place.client.signal("o-3", "delivery", "receipt")
        third = live.result()
    told_of = [*first, *second, *third]
    assert [id for id, _ in told_of] == ["0", "1", "2", "3", "4"]
    assert sorted(kind for _, kind in told_of) == ["Awaiting", "Delivered", "OnTheRoad", "Packed", "Shipped"]
    assert told(place, "/events/o-3", None, 4) == told_of, "the whole history is the same"
    assert told(place, "/events/o-3?after=1&module=parcels", None, 4) == [
        one for one in told_of[2:] if one[1] in {"Packed", "OnTheRoad", "Delivered"}
    ]
    assert [httpx.get(place.web + path).status_code for path in ("/events/secret", "/events/o-3?after=x")] == [403, 400]

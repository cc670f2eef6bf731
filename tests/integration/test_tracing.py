"""One trace from a web request to the committed transition, over real processes: a web service and workers."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from celery import Celery
from opentelemetry.instrumentation.celery import CeleryInstrumentor

from smqueue import ExecutorBuilder, Module
from smqueue.embedded import EmbeddedServer
from tests.apps.wiring import environment
from tests.tracing import Seen, recording, written
from tests.waiting import wait_until
from tests.workers import ROOT, Worker, running


@dataclass
class Traced:
    """What has been recorded of what runs for a test."""

    directory: Path
    env: dict[str, str]

    def spans(self, operation: str) -> list[Seen]:
        """smqueue's spans of an operation."""
        return [one for one in written(self.directory) if one["operation_id"] == operation]

    def until(self, operation: str, name: str, **attributes: object) -> Seen:
        """Wait for a span of an operation."""

        def found() -> Seen | None:
            spans = [one for one in self.spans(operation) if one.name == f"smqueue.{name}"]
            return next((s for s in spans if all(s[key] == value for key, value in attributes.items())), None)

        span = wait_until(found, f"there is a span {name} of {operation} with {attributes}", timeout_s=90)
        assert span is not None
        return span

    def parents(self, span: Seen) -> list[Seen]:
        """A span, its parent, and so on up to the first of its trace; a parent that is missing fails."""
        known, line = {one.id: one for one in written(self.directory)}, [span]
        while (parent := line[-1].parent) is not None:
            assert parent in known, f"{line[-1].name} has a parent that nobody has recorded"
            line.append(known[parent])
        return line


def tracing(server: EmbeddedServer, directory: Path, instrumented: str) -> Traced:
    """Nothing runs yet."""
    env = environment(server.url, server.broker_url, f"traced-{uuid.uuid4().hex[:8]}", directory)
    return Traced(directory, env | {"TEST_TRACED": "yes", "TEST_INSTRUMENTED": instrumented})


@pytest.fixture(scope="module")
def traced(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    """A worker of two processes, in which Celery is instrumented."""
    traced = tracing(server, tmp_path_factory.mktemp("traced"), "yes")
    worker = Worker("tests.apps.traced:app", traced.env, ["--pool", "prefork", "-c", "2"])
    with running(worker):
        worker.wait_ready()
        yield traced


@pytest.fixture(scope="module")
def web(traced: Traced) -> Iterator[httpx.Client]:
    """A web service that feeds it."""
    socket, log = f"{traced.directory}/web.sock", traced.directory / "web.log"
    command = [sys.executable, "-m", "uvicorn", "tests.apps.traced:web", "--uds", socket]
    with log.open("wb") as out:
        env = {**os.environ, **traced.env}
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=out, stderr=subprocess.STDOUT)
    try:
        wait_until(lambda: "Uvicorn running" in log.read_text(), "the web service runs", timeout_s=60)
        with httpx.Client(transport=httpx.HTTPTransport(uds=socket), base_url="http://web", timeout=60) as client:
            yield client
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture
def post(web: httpx.Client) -> Callable[..., None]:
    def post(path: str, **query: object) -> None:
        web.post(path, params={key: str(value) for key, value in query.items()}).raise_for_status()

    return post


@pytest.mark.parametrize("kind", ["orders", "plain"])
def test_one_trace_from_the_request_to_the_transition(traced: Traced, post: Callable[..., None], kind: str) -> None:
    """The request that pays, the signal that it sends, the transition in a worker and what comes of that, up to the
    end, are one trace, whose every span has its parent; the request that began the order is linked to it. Typed and
    plain clients alike."""
    order = f"{kind}-{os.urandom(4).hex()}"
    post(f"/{kind}/{order}")
    post(f"/{kind}/{order}/payment", amount=7)
    over = traced.until(order, "transition", **{"state.to": "Shipped"})
    paid = traced.until(order, "transition", trigger="paid")
    signal, add = traced.until(order, "signal"), traced.until(order, "add")
    line = traced.parents(over)
    assert {one.trace for one in line} == {signal.trace} != {add.trace}
    names = [one.name for one in line if one.name.startswith("smqueue.")]
    steps = ["smqueue.trigger", "smqueue.transition"]
    assert [name for name in names if name in {*steps, "smqueue.signal"}] == [
        "smqueue.transition", *steps, *steps, *steps, "smqueue.signal",
    ]  # fmt: skip
    assert line[-1].name == f"POST /{kind}/{{order}}/payment"
    assert traced.parents(paid)[1].id == signal.id
    assert paid.links == (add.id,)
    assert traced.parents(add)[-1].name == f"POST /{kind}/{{order}}"
    assert paid.pid not in {signal.pid, os.getpid()}
    user = {one.name: one for one in written(traced.directory) if one.trace == signal.trace}
    assert user["booking"].parent == paid.id
    assert {"looking", "handing over"} <= user.keys()


def test_celerys_own_spans_join_in(traced: Traced, post: Callable[..., None]) -> None:
    """Where Celery is instrumented, a task that a handler has sent and the task of a trigger are in the trace, and
    hints, which are for many, in none of a request."""
    order = f"mail-{os.urandom(4).hex()}"
    post(f"/orders/{order}")
    post(f"/orders/{order}/payment", amount=7)
    traced.until(order, "transition", **{"state.to": "Shipped"})
    trace = traced.until(order, "signal").trace

    def ran() -> bool:
        names = {one.name for one in written(traced.directory) if one.trace == trace}
        return {"run/traced.mail", "mailing", "run/traced.label", "labelling"} <= names

    wait_until(ran, "the tasks are in the trace", timeout_s=60)
    mailing = next(one for one in written(traced.directory) if one.trace == trace and one.name == "mailing")
    paid = traced.until(order, "transition", trigger="paid")
    assert paid.id in [one.id for one in traced.parents(mailing)]
    hints = [one for one in written(traced.directory) if one.name.endswith("/smqueue.transition")]
    assert trace not in {one.trace for one in hints}


def test_a_killed_worker_leaves_no_gap(traced: Traced, post: Callable[..., None]) -> None:
    """A handler's process dies in the middle: the attempt that survives is the only one told of, and the trace is
    whole."""
    order = f"deadly-{os.urandom(4).hex()}"
    post(f"/orders/{order}")
    post(f"/orders/{order}/payment", amount=7)
    over = traced.until(order, "transition", **{"state.to": "Shipped"})
    assert (traced.directory / f"killed-{order}").exists()
    assert len([one for one in traced.spans(order) if one["trigger"] == "paid"]) == 1
    assert traced.parents(over)[-1].name == "POST /orders/{order}/payment"


def test_celery_need_not_be_instrumented(server: EmbeddedServer, tmp_path: Path) -> None:
    """Whoever sends ``smqueue.add`` and ``smqueue.signal`` with a ``traceparent`` among the headers, without smqueue
    and in whatever language, begins the trace; and that goes on over the task of a trigger."""
    traced = tracing(server, tmp_path, "no")
    order, trace, parent = f"bare-{os.urandom(4).hex()}", os.urandom(16).hex(), os.urandom(8).hex()
    header, namespace = {"traceparent": f"00-{trace}-{parent}-01"}, traced.env["TEST_NAMESPACE"]
    worker = Worker("tests.apps.traced:app", traced.env, ["--pool", "threads", "-c", "1"])
    with running(worker), Celery("bare", broker=traced.env["TEST_BROKER_URL"], set_as_current=False) as bare:
        machine = {"operation_id": order, "module": "orders", "type": "Awaiting", "state": {"order": order}}
        bare.send_task("smqueue.add", args=[[machine]], headers=header, queue=namespace)
        bare.send_task("smqueue.signal", args=[order, "payment", {"amount": 7}], headers=header, queue=namespace)
        traced.until(order, "transition", **{"state.to": "Shipped"})
    spans = traced.spans(order)
    assert {one.trace for one in spans} == {trace}
    assert {one.parent for one in spans if one.name in {"smqueue.add", "smqueue.signal"}} == {parent}
    handed = next(one for one in spans if one["trigger"] == "labelled" and one.name == "smqueue.transition")
    sent = next(one for one in spans if one["trigger"] == "labelled" and one.name == "smqueue.trigger")
    assert handed.parent == sent.id


def test_a_hint_that_is_pushed_is_in_no_trace(server: EmbeddedServer, namespace: str) -> None:
    """Commits push one rendered message for minutes: it names no span, although an instrumented Celery gives each
    message that it sends one."""
    app = Celery("pushed", broker=server.broker_url, set_as_current=False)
    executor = ExecutorBuilder().with_module("orders", Module("orders")).build(app, url=server.url, namespace=namespace)
    with recording() as recorder:
        CeleryInstrumentor().instrument(tracer_provider=recorder.provider)
        try:
            with recorder.span("request") as request:
                push = executor.instances.push(executor.deployment.keys("o"))
        finally:
            CeleryInstrumentor().uninstrument()
    assert push is not None
    assert "smqueue.transition" in push.message
    assert "traceparent" not in push.message
    sent = recorder.one("apply_async/smqueue.transition")
    assert sent.trace != request.trace

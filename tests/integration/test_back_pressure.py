"""What is bounded, which error says so, and that nothing that was committed is ever refused or lost for it."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery

from smqueue import Client, ExecutorBuilder, Module, State, StateMachine, Transaction
from smqueue.embedded import EmbeddedServer
from smqueue.errors import BrokerUnavailable, OutboxFull, TooLarge, TooManyActive
from smqueue.protocols import requests
from smqueue.relay import SENDS
from smqueue.roundtrip import Call, Commit, LostReply, RoundTrip
from smqueue.transaction import REQUESTS_LIMIT
from tests.inprocess import Local, Play
from tests.waiting import wait_until

pressed = Module("pressed")
word = pressed.signal("word", str)


@pressed.state
class Waiting(State):
    n: int


@pressed.state(terminal=True)
class Told(State):
    n: int


@pressed.on(Waiting, word)
def told(tx: Transaction, state: Waiting, got: str) -> Told | None:
    if got == "spawn":
        tx.add_state_machines([StateMachine("spawned", Waiting(n)) for n in range(10)])
    if got == "send":
        tx.send_task("note", [state.n])
    return None if got == "stay" else Told(state.n)


@pytest.fixture
def local(play: Play) -> Local:
    return play(pressed=pressed)


# --- active machines -------------------------------------------------------------------------------------------------


def test_a_batch_over_the_limit_is_refused_as_a_whole(local: Local) -> None:
    """With ``smqueue_max_active`` a batch for which there is no room is TooManyActive, with the figures, and nothing of
    it is written; one that fits is added."""
    local.instances.max_active = 7
    local.add("op", *[Waiting(n) for n in range(5)])
    before = local.everything()
    with pytest.raises(TooManyActive) as caught:
        local.add("more", *[Waiting(n) for n in range(3)])
    assert (caught.value.active, caught.value.added, caught.value.limit) == (5, 3, 7)
    assert "smqueue_max_active" in str(caught.value)
    assert local.everything() == before
    local.add("more", Waiting(0), Waiting(1))


def test_an_end_makes_room(local: Local) -> None:
    """A machine that has ended counts no more; one in quarantine or paused does."""
    local.instances.max_active = 1
    local.add("op", Waiting(1))
    local.executor.pause("op")
    with pytest.raises(TooManyActive):
        local.add("more", Waiting(1))
    local.executor.resume("op")
    local.executor.signal("op", word, "go")
    local.settle("op")
    local.add("more", Waiting(1))


def test_what_is_there_already_needs_no_room(local: Local) -> None:
    """With ``exist_ok`` machines that exist are not counted a second time: adding again is safe at the limit, too."""
    local.instances.max_active = 2
    local.add("op", Waiting(1), Waiting(2))
    machines = [StateMachine("op", Waiting(n)) for n in (1, 2)]
    assert len(local.executor.add_state_machines(machines, exist_ok=True)) == 2


def test_an_add_that_filled_the_limit_is_not_denied_for_its_lost_reply(local: Local) -> None:
    """The reply to the commit that took the last room is lost: the repetition recognises it, and does not find itself
    in its own way. (semantics 5)"""
    local.instances.max_active = 1
    lost = iter([True])

    def lose(request: RoundTrip) -> None:
        if isinstance(request, Commit | Call) and next(lost, False):
            raise LostReply

    with local.around_trips(after=lose):
        (machine,) = local.add("op", Waiting(1))
    assert not next(lost, False)
    ((_, active),) = local.executor.get_active_states("op")
    assert active.machine_id == machine


def test_unrelated_adds_are_in_nobodys_way(local: Local) -> None:
    """The limit is a look, not a WATCH: what others add meanwhile is no conflict. So that much it can be exceeded."""
    local.instances.max_active = 3
    other = local.another()
    local.add("op", Waiting(1))
    commits = 0

    def meddle(_: Commit) -> None:
        nonlocal commits
        commits += 1
        other.add(f"meanwhile-{commits}", Waiting(1))

    with local.before_commits(meddle):
        local.add("more", Waiting(1), Waiting(2))
    assert commits == 1
    assert len(list(local.executor.get_active_operations())) == 3
    with pytest.raises(TooManyActive):
        local.add("again", Waiting(1))


def test_transitions_are_never_refused(local: Local) -> None:
    """What a handler spawns belongs to its transition, which has happened: the limit is for producers."""
    local.instances.max_active = 1
    local.add("op", Waiting(1))
    local.executor.signal("op", word, "spawn")
    local.settle("op")
    assert len(local.active("spawned")) == 10
    with pytest.raises(TooManyActive):
        local.executor.autocommit(lambda tx: tx.add_state_machines([StateMachine("mine", Waiting(1))]))
    local.executor.autocommit(lambda tx: tx.set("other", "writes"))


def test_machines_that_a_transition_starts_in_another_shard_are_never_refused(play: Play) -> None:
    """They travel by outbox, and arrive whatever the limit there is."""
    local = play(shards=2, pressed=pressed)
    here = next(f"op{n}" for n in range(99) if local.keys(f"op{n}").shard != local.keys("spawned").shard)
    local.instances.max_active = 1
    local.add(here, Waiting(1))
    local.executor.signal(here, word, "spawn")
    local.until(lambda: len(local.active("spawned")) == 10, "all to have arrived")


def test_a_client_gets_the_error_typed(local: Local) -> None:
    """Whoever adds by way of a worker is told the same."""
    local.instances.max_active = 1
    local.add("op", Waiting(1))
    machine = {"operation_id": "more", "module": "pressed", "type": "Waiting", "state": {"n": 1}}
    _, error = asked(local, lambda client: client.add([machine], timeout=30))
    assert isinstance(error, TooManyActive)
    assert (error.added, error.limit) == (1, 1)


def test_the_setting_is_for_the_namespace(server: EmbeddedServer, namespace: str) -> None:
    """``smqueue_max_active`` is read from Celery's configuration; of several shards each has its share."""
    app = Celery("pressed", broker="memory://", set_as_current=False)
    app.conf.update(smqueue_max_active=10, smqueue_shards=4)
    executor = ExecutorBuilder().with_module("pressed", pressed).build(app, url=server.url, namespace=namespace)
    assert executor.instances.max_active == 3
    app = Celery("pressed", broker="memory://", set_as_current=False)
    app.conf.update(smqueue_shards=4)
    executor = ExecutorBuilder().with_module("pressed", pressed).build(app, url=server.url, namespace=namespace)
    assert executor.instances.max_active is None


def asked(local: Local, call: Callable[[Client], Any]) -> tuple[Any, Exception | None]:
    """A client's call on a thread of its own, answered by this process: what it returned, or raised."""
    got: list[tuple[Any, Exception | None]] = []

    def run() -> None:
        try:
            got.append((call(Client(local.settings.url, local.namespace)), None))
        except Exception as error:
            got.append((None, error))

    thread = threading.Thread(target=run)
    thread.start()
    local.until(lambda: got, "the answer", timeout_s=40)
    thread.join()
    return got[0]


# --- the outbox ------------------------------------------------------------------------------------------------------


def test_a_client_is_refused_when_nobody_answers(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    """With that many requests waiting for a worker a client's next one is OutboxFull at once, and leaves nothing; a
    transition's own are never refused."""
    monkeypatch.setattr(requests, "REQUESTS_KEPT", 3)
    local.add("op", Waiting(1))
    local.sent.down = True
    for n in range(3):
        local.executor.autocommit(lambda tx, n=n: tx.send_task("note", [n]))
    before = local.everything()
    with pytest.raises(OutboxFull) as caught:
        Client(local.settings.url, local.namespace).signal("op", "word", "go", timeout=30)
    assert caught.value.limit == 3
    assert "ask again later" in str(caught.value)
    assert local.everything() == before
    local.executor.signal("op", word, "send")
    local.settle("op")
    assert local.redis.llen(local.keys().requests) == 4
    local.sent.down = False
    local.requests_due()
    local.until(lambda: len(local.sent.tasks) == 4, "all tasks to be sent")
    local.add("next", Waiting(1))
    answer, error = asked(local, lambda client: client.signal("next", "word", "go", timeout=30))
    assert error is None, answer


def test_a_request_that_was_accepted_is_not_refused_for_its_lost_reply(
    local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that took the last place and lost the reply asks again, and is not told that it is full.
    (semantics 5)"""
    monkeypatch.setattr(requests, "REQUESTS_KEPT", 1)
    data = {"id": "one", "kind": "client-signal"}
    local.driver.run(requests.ask(local.keys(), data))
    local.driver.run(requests.ask(local.keys(), data))
    assert local.redis.llen(local.keys().requests) == 1
    with pytest.raises(OutboxFull):
        local.driver.run(requests.ask(local.keys(), {**data, "id": "two"}))


def test_one_transaction_leaves_no_more_than_so_much(local: Local) -> None:
    """A task over the payload limit is TooLarge, more than 10,000 tasks and signals are OutboxFull; nothing is
    written."""

    def many(tx: Transaction) -> None:
        for _ in range(REQUESTS_LIMIT + 1):
            tx.send_task("note")

    before = local.everything()
    with pytest.raises(TooLarge) as large:
        local.executor.autocommit(lambda tx: tx.send_task("note", ["x" * local.instances.limit]))
    assert large.value.what == "task note"
    with pytest.raises(OutboxFull):
        local.executor.autocommit(many)
    assert local.everything() == before


# --- tasks that cannot be sent ---------------------------------------------------------------------------------------


def sends(local: Local, fail: Callable[[str], Exception | None]) -> list[str]:
    """Let the sending of a task fail by its name; the list takes each attempt."""
    attempts: list[str] = []
    send = local.sent.send_task

    def hooked(name: str, *given: Any) -> None:
        attempts.append(name)
        if (error := fail(name)) is not None:
            raise error
        send(name, *given)

    local.sent.send_task = hooked  # type: ignore[method-assign]
    return attempts


def test_a_task_that_can_never_be_sent_is_set_aside(local: Local, caplog: pytest.LogCaptureFixture) -> None:
    """One whose options Celery does not take is tried some times, then set aside with its error, which is logged; it
    keeps no other waiting."""
    attempts = sends(local, lambda name: TypeError("no such option") if name == "bad" else None)
    local.executor.autocommit(lambda tx: (tx.send_task("bad", [1]), tx.send_task("good")))
    assert [name for name, *_ in local.sent.tasks] == ["good"]
    for _ in range(SENDS):
        assert local.redis.llen(local.keys().requests) == 1
        local.requests_due()
        local.run()
    assert attempts.count("bad") == SENDS + 1  # the first time by its maker
    assert not local.redis.exists(local.keys().requests)
    (aside,) = [json.loads(raw) for raw in local.redis.lrange(local.keys().unsent, 0, -1)]
    assert (aside["name"], aside["args"], aside["error"]) == ("bad", [1], "TypeError: no such option")
    assert f"task bad, id {aside['id']}, cannot be sent and is set aside: TypeError: no such option" in caplog.text


def test_what_was_committed_waits_for_the_broker_for_ever(local: Local, caplog: pytest.LogCaptureFixture) -> None:
    """A task that the broker does not take is never set aside. While the broker is away each go tries one task, not
    each of them, for each would wait; it is said once, and once that it is back, and then all are sent.
    (semantics 5)"""
    caplog.set_level(logging.WARNING)
    away = True
    attempts = sends(local, lambda _: BrokerUnavailable("connection refused") if away else None)
    local.executor.autocommit(lambda tx: [tx.send_task("note", [n]) for n in range(2)])  # type: ignore[func-returns-value]
    assert len(attempts) == 1
    caplog.clear()
    for go in range(3 * SENDS):
        local.requests_due()
        local.run()
        assert len(attempts) == go + 2
    assert local.redis.llen(local.keys().requests) == 2
    assert caplog.text.count("stays for later") == 1
    away = False
    local.requests_due()
    local.run()
    assert sorted(args[0] for _, args, *_ in local.sent.tasks) == [0, 1]
    assert caplog.text.count("the broker takes tasks again") == 1
    assert not local.redis.exists(local.keys().requests, local.keys().unsent)


def test_a_broker_that_is_away_is_told_from_a_task_that_cannot_be_sent(server: EmbeddedServer, namespace: str) -> None:
    """Celery's errors of a broker that does not answer are BrokerUnavailable, whatever kombu calls them; others are
    the task's."""
    app = Celery("pressed", broker="redis+socket:///nowhere/s.sock", set_as_current=False)
    app.conf.update(broker_transport_options={"max_retries": 0}, task_publish_retry=False)
    executor = ExecutorBuilder().with_module("pressed", pressed).build(app, url=server.url, namespace=namespace)
    with pytest.raises(BrokerUnavailable):
        executor.outbound.send_task("note", [], {}, "id", {})
    with pytest.raises(TypeError):
        executor.outbound.send_task("note", [], {}, "id", {"countdown": "soon"})


# --- hints -----------------------------------------------------------------------------------------------------------


def test_hints_that_nobody_took_expire(server: EmbeddedServer, namespace: str) -> None:
    """A hint bears a date after which a worker throws it away unread: of a week without workers two hours are left to
    go through. It is so far away that clocks which are an hour apart do not matter."""
    from kombu import Connection

    from smqueue.worker.outbound import HINT_EXPIRES_S

    app = Celery("pressed", broker=server.broker_url, set_as_current=False)
    app.conf.update(task_default_queue=namespace)
    executor = ExecutorBuilder().with_module("pressed", pressed).build(app, url=server.url, namespace=namespace)
    executor.outbound.hint(namespace, 0)
    with Connection(server.broker_url) as connection, connection.SimpleQueue(namespace) as queue:
        message = queue.get(timeout=10)
        assert message.headers["expires"] is not None
        message.ack()
    assert HINT_EXPIRES_S > 3_600


def test_a_worker_throws_expired_hints_away(local: Local, server: EmbeddedServer, namespace: str) -> None:
    """A hint that is past its date costs a worker no look at Redis: it is discarded on receipt, and what is due is
    found all the same."""
    from tests.apps.faulty import Trying, faulty, word
    from tests.apps.wiring import environment
    from tests.workers import Worker, running

    app = Celery("pressed", broker=server.broker_url, set_as_current=False)
    app.conf.update(task_default_queue=namespace)
    for _ in range(5):
        app.send_task("smqueue.transition", (namespace, 0), expires=0.001)
    with running(
        one := Worker("tests.apps.faulty", environment(server.url, server.broker_url, namespace), ["-c", "1"])
    ):
        one.wait_ready()
        wait_until(lambda: one.output.count("Discarding revoked task: smqueue.transition") == 5, "all to be discarded")
        client = Local(server.url, namespace, {"faulty": faulty})
        client.add("op", Trying(1))
        client.executor.signal("op", word, "go")
        client.executor.await_operation("op", 30)

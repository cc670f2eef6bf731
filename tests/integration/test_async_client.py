"""Clients for event loops: thousands of tasks that wait cost few threads and connections, and leave nothing behind."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from smqueue import (
    AsyncClient,
    AwaitTimeout,
    ClientClosed,
    Delivery,
    InvalidInput,
    Module,
    State,
    StateMachine,
    StoreRefused,
    StoreUnavailable,
    Transaction,
)
from smqueue.deployment import Deployment, Settings
from smqueue.drivers.bells import Exchange
from smqueue.embedded import EmbeddedServer
from smqueue.notifier import AsyncUpdates
from smqueue.producer import SignalFor
from smqueue.roundtrip import RoundTrip
from tests.inprocess import Local, Play
from tests.proxy import Proxy
from tests.waiting import wait_until

WAIT_S = 60
queueing = Module("queueing")
word = queueing.signal("word", str)


@queueing.state
class Here(State):
    n: int


@queueing.state(terminal=True)
class Gone(State):
    n: int


@queueing.on(Here, word)
def told(tx: Transaction, state: Here, got: str) -> Gone | Here | None:
    tx.rpush("told", got)
    return Gone(state.n) if got == "go" else Here(state.n + 1) if got == "on" else None


@pytest.fixture
def local(play: Play) -> Local:
    return play(queueing=queueing)


def here(op: str, n: int = 1) -> dict[str, Any]:
    return {"operation_id": op, "module": "queueing", "type": "Here", "state": {"n": n}}


def threads() -> list[str]:
    """Those of asynchronous clients."""
    return [thread.name for thread in threading.enumerate() if thread.name in {"smqueue-together", "smqueue-bells"}]


def threads_end() -> None:
    """They do; the last step of a thread is its own."""
    wait_until(lambda: not threads(), "the client's threads to end", WAIT_S)


def listened(local: Local) -> int:
    """How many doorbells of the namespace anybody is subscribed to."""
    return len(local.redis.execute_command("PUBSUB", "SHARDCHANNELS", f"{{{local.namespace}.*"))


def named(local: Local) -> str:
    """The server's URL, for connections that ``connections`` counts."""
    return f"{local.settings.url}&client_name={local.namespace}"


def connections(local: Local) -> int:
    """How many there are of that name."""
    return len([one for one in local.redis.client_list() if one["name"] == local.namespace])


async def until(predicate: Callable[[], object], description: str) -> None:
    """Wait for a fact, and let the loop run."""
    await asyncio.to_thread(wait_until, predicate, description, WAIT_S)


def bounded(main: Coroutine[Any, Any, Any]) -> Any:
    """Run it; what hangs fails."""
    return asyncio.run(asyncio.wait_for(main, 2 * WAIT_S))


class Answering:
    """A worker on a thread of its own, which answers clients and moves machines."""

    def __init__(self, local: Local) -> None:
        self._local, self._done = local.another(), threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._done.is_set():
            self._local.run()
            self._done.wait(0.01)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


# --- how much it takes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("typed", "count"), [(False, 1_000), (True, 100)], ids=["AsyncClient", "async_client()"])
def test_two_thousand_wait_on_few_threads_and_connections(local: Local, typed: bool, count: int) -> None:
    """1,000 tasks that each await an operation and 1,000 that each follow one need no thread and no connection of their
    own; all of them are told, by a ring, and at the end all is given back. (semantics 35, 36)"""
    names = [f"op{n}" for n in range(count)]
    local.executor.add_state_machines([StateMachine(name, Here(1)) for name in names])
    executor = Local(named(local), local.namespace, local.modules).executor

    async def follow(client: Any, name: str) -> list[bool]:
        seen: list[bool] = []
        async for update in client.subscribe(name):
            seen.append(update.terminal)
            if update.terminal:
                break
        return seen

    async def main() -> None:
        made = executor.async_client() if typed else AsyncClient(named(local), local.namespace)
        async with made as client:
            waits = [asyncio.create_task(client.await_operation(name)) for name in names]
            follows = [asyncio.create_task(follow(client, name)) for name in names]
            await until(lambda: listened(local) == len(names), "all to be subscribed")
            assert len(threads()) <= 2
            assert connections(local) == 2
            await asyncio.to_thread(local.executor.signal_many, [SignalFor(name, word, "go") for name in names])
            await asyncio.to_thread(local.until, lambda: not local.redis.exists(local.keys().operations), "all to end")
            assert await asyncio.gather(*waits) == [None] * len(names)
            assert await asyncio.gather(*follows) == [[False, True]] * len(names)
            await until(lambda: listened(local) == 0, "all to be unsubscribed")
        threads_end()
        wait_until(lambda: connections(local) == typed, "its connections to be closed")  # one is the executor's

    bounded(main())


def test_what_many_ask_of_workers_travels_together(local: Local) -> None:
    """500 tasks that ask at the same time cost a few writes, over no more connections than one task would need."""

    async def main() -> None:
        async with AsyncClient(named(local), local.namespace) as client:
            asked = [asyncio.create_task(client.add([here(f"op{n}")])) for n in range(500)]
            await until(lambda: local.redis.llen(local.keys().requests) == 500, "all to have asked")
            await until(lambda: listened(local) == 500, "all to wait for the answer")
            assert connections(local) == 2
            with Answering(local):
                ids = await asyncio.gather(*asked)
        assert len({id for (id,) in ids}) == 500

    bounded(main())
    assert not list(local.redis.scan_iter(match=f"{local.keys().prefix}reply:*"))


def test_no_call_holds_up_the_loop(namespace: str) -> None:
    """A server that takes connections and never answers keeps the caller waiting, and nobody else on its loop."""
    with tempfile.TemporaryDirectory(prefix="smq") as folder:
        import socket

        path = str(Path(folder) / "s")
        with socket.socket(socket.AF_UNIX) as silent:
            silent.bind(path)
            silent.listen(64)

            async def main() -> None:
                client = AsyncClient(f"unix://{path}?socket_timeout=3", namespace)
                asked = asyncio.create_task(client.await_operation("op"))
                rounds = 0
                while not asked.done():
                    await asyncio.sleep(0.01)
                    rounds += 1
                assert rounds > 20
                with pytest.raises(StoreUnavailable):
                    await asked
                await client.aclose()

            bounded(main())


# --- giving up -------------------------------------------------------------------------------------------------------


def test_a_cancelled_task_leaves_nothing_behind(local: Local) -> None:
    """Tasks that are cancelled while they wait, follow or ask leave no thread, no subscription and no key that stays;
    the client goes on, and what was asked for is done as after a lost answer."""
    local.add("op", Here(1))

    async def follow(client: AsyncClient) -> None:
        async with client.subscribe("op") as updates:
            async for _ in updates:
                pass

    async def follow_all(client: AsyncClient) -> None:
        async for _ in client.subscribe_all():
            pass

    async def main() -> None:
        client = AsyncClient(local.settings.url, local.namespace)
        kinds: list[Callable[[], Coroutine[Any, Any, Any]]] = [
            lambda: client.await_operation("op"),
            lambda: client.await_inactive_state(here("op")),
            lambda: client.await_active_state(here("other")),
            lambda: client.signal("op", "word", "heard"),
            lambda: follow(client),
            lambda: follow_all(client),
        ]
        tasks = [asyncio.create_task(kind()) for kind in kinds * 20]
        await until(lambda: listened(local) == 3 + 20, "all to be subscribed")
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(one) for one in ended} == {asyncio.CancelledError}
        await until(lambda: listened(local) == 0, "all to be unsubscribed")
        with Answering(local):
            await client.signal("op", "word", "go")
            await client.await_operation("op", WAIT_S)
        await client.aclose()
        threads_end()

    bounded(main())
    assert local.listed("queueing", "told") == [*[b"heard"] * 20, b"go"]
    passing = [*local.redis.scan_iter(match=f"{local.keys().prefix}reply:*")]
    passing += local.redis.scan_iter(match=f"{local.keys().prefix}marker:*")
    assert all(0 < local.redis.ttl(key) <= 600 for key in passing)


def test_a_timeout_of_the_callers_own(local: Local) -> None:
    """``asyncio.timeout`` around a wait works as around anything; and so does the client's."""
    local.add("op", Here(1))

    async def main() -> None:
        async with AsyncClient(local.settings.url, local.namespace) as client:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await client.await_operation("op")
            with pytest.raises(AwaitTimeout) as caught:
                await client.signal("op", "word", "x", timeout=0.05)
            assert caught.value.seconds == 0.05

    bounded(main())


def test_who_stops_iterating_need_not_close(local: Local) -> None:
    """An iterator that is left by ``break`` and forgotten is unsubscribed; so is a client that is never closed."""
    local.add("op", Here(1))

    async def main() -> None:
        client = AsyncClient(local.settings.url, local.namespace)
        async for update in client.subscribe("op"):
            assert update.sequence == 0
            break
        gc.collect()
        await until(lambda: listened(local) == 0, "it to be unsubscribed")

    bounded(main())
    gc.collect()
    threads_end()


@pytest.mark.parametrize("which", ["one operation", "all"])
def test_closing_a_subscription_ends_an_iteration(local: Local, monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    """A subscription that is closed while a task waits for its next update ends there, at once, and is not made
    again."""
    monkeypatch.setattr("smqueue.drivers.bells.LONGEST_S", 3_600)
    monkeypatch.setattr("smqueue.drivers.bells.SILENCE_S", 3_600)
    local.add("op", Here(1))
    one, seen = which == "one operation", list[int]()

    async def follow(updates: AsyncUpdates) -> None:
        async for update in updates:
            seen.append(update.sequence)

    async def main() -> None:
        async with AsyncClient(local.settings.url, local.namespace) as client:
            updates = client.subscribe("op") if one else client.subscribe_all()
            following = asyncio.create_task(follow(updates))
            await until(lambda: len(seen) == one, "what there is to be told")
            await until(lambda: listened(local) == 1, "it to be subscribed")
            await updates.aclose()
            await following
            assert [update async for update in updates] == []
            await until(lambda: listened(local) == 0, "it to be unsubscribed")

    bounded(main())


def test_a_timeout_holds_with_a_server_that_hangs(namespace: str) -> None:
    """With a server that takes connections and never answers a call ends when its timeout is over, long before the
    socket's."""
    with tempfile.TemporaryDirectory(prefix="smq") as folder:
        import socket

        path = str(Path(folder) / "s")
        silent = socket.socket(socket.AF_UNIX)
        silent.bind(path)
        silent.listen(64)

        async def main() -> None:
            client = AsyncClient(f"unix://{path}?socket_timeout=3600", namespace)
            calls: list[Coroutine[Any, Any, Any]] = [
                client.await_operation("op", 0.05),
                client.await_active_state(here("op"), 0.05),
                client.add([here("op")], timeout=0.05),
                client.signal("op", "word", timeout=0.05),
            ]
            told = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), WAIT_S)
            assert {type(one) for one in told} == {AwaitTimeout}
            assert [one async for one in client.subscribe("op", timeout=0.05)] == []
            silent.close()  # and so ends what the threads are waiting for
            await client.aclose()

        bounded(main())


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda client: client.add([here("op")], timeout="5"), "timeout"),
        (lambda client: client.signal("op", "word", timeout="5"), "timeout"),
        (lambda client: client.await_active_state({**here("op"), "module": None}), "module"),
        (lambda client: client.await_active_state({**here("op"), "type": 1}), "type"),
        (lambda client: client.await_inactive_state({**here("op"), "state": {"n": object()}}), "state"),
        (lambda client: client.await_inactive_state([here("op")]), "machine"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_before_anything_is_sent(call: Callable[[Any], Any], field: str) -> None:
    """The error names the field, and no server is asked."""
    client = AsyncClient("unix:///tmp/no-such-smqueue.sock")
    with pytest.raises(InvalidInput) as caught:
        bounded(call(client))
    assert caught.value.field == field
    bounded(client.aclose())


def test_closing_tells_who_still_waits(local: Local) -> None:
    """At ``aclose`` whoever waits gets ClientClosed, and so does every later call."""
    local.add("op", Here(1))

    async def main() -> None:
        client = AsyncClient(local.settings.url, local.namespace)
        updates = client.subscribe("op")
        await updates.__anext__()
        tasks = [
            asyncio.create_task(client.await_operation("op")),
            asyncio.create_task(client.add([here("new")])),
            asyncio.create_task(updates.__anext__()),
        ]
        await until(lambda: local.redis.llen(local.keys().requests) == 1, "it to have asked")
        await until(lambda: listened(local) == 2, "all to be subscribed")
        await client.aclose()
        assert {type(one) for one in await asyncio.gather(*tasks, return_exceptions=True)} == {ClientClosed}
        for late in (client.await_operation("op"), client.signal("op", "word", "go"), updates.__anext__()):
            with pytest.raises(ClientClosed):
                await late
        await client.aclose()

    bounded(main())
    threads_end()


@pytest.mark.parametrize("how", ["a timeout", "the loop is gone"])
def test_closing_that_is_given_up(local: Local, caplog: pytest.LogCaptureFixture, how: str) -> None:
    """An ``aclose`` that is cancelled leaves the client closed and its threads ending; closed again, also from another
    loop, it waits for them and leaves no connection, and no thread complains."""
    local.add("op", Here(1))
    held, ended = threading.Event(), threading.Event()

    def hold(_: RoundTrip) -> None:
        held.set()
        assert ended.wait(WAIT_S)

    client = AsyncClient(named(local), local.namespace)

    async def main() -> None:
        with pytest.raises(AwaitTimeout):
            await client.await_operation("op", 0.01)
        driver: Any = client._deployment.driver  # pyright: ignore[reportPrivateUsage]
        trip = driver._trip
        driver._trip = lambda line, request: (hold(request), trip(line, request))[1]
        asked = asyncio.create_task(client.await_operation("op"))
        await until(held.is_set, "it to ask")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await client.aclose()
        if how == "a timeout":
            ended.set()
            await client.aclose()
        asked.cancel()

    bounded(main())
    ended.set()
    threads_end()
    bounded(client.aclose())
    wait_until(lambda: connections(local) == 0, "its connections to be closed")
    assert not caplog.records


def test_an_error_of_many_is_one_for_each(local: Local) -> None:
    """Each of many that fail together, in what they ask for or listen to, gets an error of its own: no traceback grows
    with their number."""
    name = local.namespace
    local.redis.execute_command("ACL", "SETUSER", name, "on", ">pw", "allkeys", "+@all", "-ssubscribe")
    refused = AsyncClient(local.settings.url.replace("unix://", f"unix://{name}:pw@"), name)
    away = AsyncClient("unix:///tmp/no-such-smqueue.sock", name)

    async def main() -> None:
        for client in (refused, away):
            waits = [client.await_operation("op") for _ in range(30)]
            errors = await asyncio.gather(*waits, return_exceptions=True)
            assert {type(one) for one in errors} == {StoreRefused if client is refused else StoreUnavailable}
            assert len({id(one) for one in errors}) == 30
            assert all(one.args for one in errors if isinstance(one, Exception))
            await client.aclose()

    try:
        bounded(main())
    finally:
        local.redis.execute_command("ACL", "DELUSER", name)


def test_what_was_listened_to_is_forgotten(local: Local) -> None:
    """However many answers are waited for, nothing is kept of the channels that they came by."""
    wires: list[Any] = []

    async def main() -> None:
        async with AsyncClient(local.settings.url, local.namespace) as client:
            with Answering(local):
                for n in range(20):
                    await client.add([here(f"op{n}")])
            await until(lambda: listened(local) == 0, "all to be unsubscribed")
            exchange: Any = client._board._bells._exchange  # type: ignore[attr-defined]
            wires.extend(exchange._wires.values())
            await until(lambda: not wires[0].asked, "the last to be confirmed")
            assert not wires[0].leaving

    bounded(main())
    assert len(wires) == 1


def test_one_client_for_several_loops(local: Local) -> None:
    """A client may be made outside of any loop, and used by one after the other, and by two at a time."""
    client = local.executor.async_client()
    for n in range(2):
        asyncio.run(client.add([StateMachine(f"op{n}", Here(n))]))
        with pytest.raises(AwaitTimeout):
            asyncio.run(client.await_operation(f"op{n}", 0.01))
    waiting = [threading.Thread(target=lambda n=n: bounded(client.await_operation(f"op{n}", WAIT_S))) for n in range(2)]
    for thread in waiting:
        thread.start()
    wait_until(lambda: listened(local) == 2, "both to be subscribed")
    asyncio.run(client.signal("op0", word, "go"))
    asyncio.run(client.signal("op1", word, "go"))
    local.settle("op0", "op1")
    for thread in waiting:
        thread.join(WAIT_S)
        assert not thread.is_alive()
    asyncio.run(client.aclose())
    threads_end()


# --- trouble ---------------------------------------------------------------------------------------------------------


def test_a_server_that_restarts_during_a_wait(play: Play) -> None:
    """Tasks that wait, follow or ask while the server restarts go on, and are told of what comes after.
    (semantics 35)"""
    with tempfile.TemporaryDirectory(prefix="smq") as data, EmbeddedServer(Path(data), fsync="always") as server:
        local = play(url=server.url, queueing=queueing)
        local.driver._circuit.patience_s = WAIT_S  # pyright: ignore[reportPrivateUsage]
        local.add("op", Here(1))

        async def follow(client: AsyncClient) -> list[int]:
            return [update.sequence async for update in client.subscribe("op", timeout=WAIT_S) if update.terminal]

        async def main() -> None:
            client = AsyncClient(server.url, local.namespace)
            driver: Any = await asyncio.to_thread(lambda: client._deployment.driver)  # pyright: ignore[reportPrivateUsage]
            driver._circuit.patience_s = WAIT_S
            tasks = [asyncio.create_task(client.await_operation("op", WAIT_S)) for _ in range(50)]
            asked = asyncio.create_task(client.add([here("new")], timeout=WAIT_S))
            async with client.subscribe("op", timeout=WAIT_S) as updates:
                assert (await updates.__anext__()).sequence == 0
                last = asyncio.create_task(updates.__anext__())
                await until(lambda: local.redis.llen(local.keys().requests) == 1, "it to have asked")
                await until(lambda: listened(local) == 2, "all to be subscribed")
                await asyncio.to_thread(server.stop)
                await asyncio.to_thread(server.start)
                await until(lambda: listened(local) == 2, "all to be subscribed again")
                with Answering(local):
                    await asyncio.to_thread(local.executor.signal, "op", word, "go")
                    assert (await last).terminal
                    await asyncio.gather(*tasks)
                    assert len(await asked) == 1
            await client.aclose()

        bounded(main())


def test_connections_that_are_cut_again_and_again(local: Local, proxy: Proxy) -> None:
    """However often its connections are cut off, a follower sees each update once, in order. (semantics 36)"""
    local.add("op", Here(0))

    async def main() -> list[int]:
        client = AsyncClient(proxy.url, local.namespace)
        seen: list[int] = []
        async with client.subscribe("op", timeout=WAIT_S) as updates:
            for n in range(12):
                seen.append((await updates.__anext__()).sequence)
                if n % 3 == 0:
                    proxy.cut()
                await asyncio.to_thread(local.executor.signal, "op", word, "on")
                await asyncio.to_thread(local.run)
        await client.aclose()
        return seen

    assert bounded(main()) == [*range(12)]


def test_a_wait_is_ended_by_a_ring(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits hears of the end, and of an answer, by the bell: it would look again by itself only in an hour.
    (semantics 35)"""
    monkeypatch.setattr("smqueue.drivers.bells.LONGEST_S", 3_600)
    monkeypatch.setattr("smqueue.drivers.switchboard.LONGEST_S", 3_600)
    monkeypatch.setattr("smqueue.drivers.bells.SILENCE_S", 3_600)  # a sign of life would ring, too
    local.add("op", Here(1))

    async def main() -> None:
        async with AsyncClient(local.settings.url, local.namespace) as client:
            waiting = asyncio.create_task(client.await_operation("op"))
            asked = asyncio.create_task(client.signal("op", "word", "go", timeout=None))
            await until(lambda: listened(local) == 2, "both to be subscribed")
            with Answering(local):
                assert await asked is Delivery.DELIVERED
                await waiting

    bounded(main())


def test_a_subscription_that_comes_late_misses_nothing(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    """What happens between a look and a subscription that is confirmed only later is seen: the confirmation rings.
    (semantics 35)"""
    monkeypatch.setattr("smqueue.drivers.bells.LONGEST_S", 3_600)
    monkeypatch.setattr("smqueue.drivers.switchboard.CONFIRMED_S", 0)
    local.add("op", Here(1))
    adjust, ended = Exchange._adjust, threading.Event()  # pyright: ignore[reportPrivateUsage]
    looks: list[RoundTrip] = []

    def late(self: Exchange) -> None:
        assert not self._fresh or ended.wait(WAIT_S)  # pyright: ignore[reportPrivateUsage]
        adjust(self)

    monkeypatch.setattr(Exchange, "_adjust", late)

    async def main() -> None:
        async with local.executor.async_client() as client:
            with local.around_trips(after=looks.append):
                waiting = asyncio.create_task(client.await_operation("op"))
                await until(lambda: len(looks) == 2, "it to have looked in vain")
            await client.signal("op", word, "go")
            await asyncio.to_thread(local.settle, "op")
            ended.set()
            await waiting

    bounded(main())


def test_a_silent_connection_is_replaced(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that neither rings nor answers is taken for lost, and what was missed there is looked at."""
    monkeypatch.setattr("smqueue.drivers.bells.LONGEST_S", 3_600)
    monkeypatch.setattr("smqueue.drivers.bells.SILENCE_S", 0.2)
    local.add("op", Here(1))
    heard, deaf = Exchange._read, threading.Event()  # pyright: ignore[reportPrivateUsage]
    first: list[Any] = []

    def read(self: Exchange, wire: Any) -> None:
        first.append(wire)
        if deaf.is_set() and wire is first[0]:
            wire.socket.recv(65_536)  # lost on its way
        else:
            heard(self, wire)

    monkeypatch.setattr(Exchange, "_read", read)

    async def main() -> None:
        async with AsyncClient(local.settings.url, local.namespace) as client:
            waiting = asyncio.create_task(client.await_operation("op"))
            await until(lambda: listened(local) == 1, "it to be subscribed")
            await until(lambda: first, "that to be confirmed")
            deaf.set()
            await asyncio.to_thread(local.executor.signal, "op", word, "go")
            await asyncio.to_thread(local.settle, "op")
            await waiting

    bounded(main())


def test_a_subscription_that_is_refused_is_an_error(local: Local, server: EmbeddedServer) -> None:
    """Who may look but not listen is told so, instead of being left to wait."""
    name = local.namespace
    local.redis.execute_command("ACL", "SETUSER", name, "on", ">pw", "allkeys", "+@all", "-ssubscribe")

    async def main() -> None:
        async with AsyncClient(f"unix://{name}:pw@{server.socket_path}?db=0", name) as client:
            with pytest.raises(StoreRefused) as caught:
                await client.await_operation("op")
            assert "ssubscribe" in str(caught.value)

    try:
        bounded(main())
    finally:
        local.redis.execute_command("ACL", "DELUSER", name)


@pytest.mark.parametrize("lost", [b"ask", b"LINDEX"], ids=["of asking", "with the answer"])
def test_a_signal_whose_reply_was_lost_counts_once(local: Local, proxy: Proxy, lost: bytes) -> None:
    """A lost reply is no error of the caller, and the signal is given once; sent again under its id it is a DUPLICATE.
    (semantics 5)"""
    from smqueue.drivers.scripts import script

    token = script("ask").sha.encode() if lost == b"ask" else lost
    local.add("op", Here(1))

    async def main() -> None:
        async with AsyncClient(proxy.url, local.namespace) as client:
            with Answering(local):
                with pytest.raises(AwaitTimeout):
                    await client.await_operation("op", 0.01)  # it has connected, and knows the server
                proxy.lose_replies(1, token)
                assert await client.signal("op", "word", "heard", id="once", timeout=WAIT_S) is Delivery.DELIVERED
                assert proxy.lost == 1
                assert await client.signal("op", "word", "heard", id="once", timeout=WAIT_S) is Delivery.DUPLICATE
                await until(lambda: local.listed("queueing", "told"), "it to be told")

    bounded(main())
    assert local.listed("queueing", "told") == [b"heard"]


def test_a_client_is_used_in_a_forked_process(local: Local) -> None:
    """A process forked from one whose client has threads and connections makes its own."""
    local.add("op", Here(1))
    client = local.executor.async_client()
    with pytest.raises(AwaitTimeout):
        asyncio.run(client.await_operation("op", 0.01))
    receiving, sending = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            signal.alarm(30)
            asyncio.run(client.add([StateMachine("forked", Here(1))]))
            try:
                asyncio.run(client.await_operation("op", 0.01))
            except AwaitTimeout:
                os.write(sending, json.dumps(len(threads())).encode())
                asyncio.run(client.aclose())
                status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert json.loads(os.read(receiving, 100)) == 3
    os.close(receiving)
    os.close(sending)
    assert local.active("forked") == [Here(1)]
    assert asyncio.run(client.signal("op", word, "heard")) is Delivery.DELIVERED
    asyncio.run(client.aclose())
    threads_end()


def test_a_fork_while_another_thread_connects() -> None:
    """A process that is forked while a thread makes the first connection makes its own, and does not wait for one that
    will never be made there."""
    parent, connecting, goes_on = os.getpid(), threading.Event(), threading.Event()

    def driver(_: Settings) -> Any:
        if os.getpid() == parent:
            connecting.set()
            assert goes_on.wait(WAIT_S)
        raise StoreUnavailable("here", "no answer")

    deployment = Deployment(lambda: Settings("redis://here"), driver)
    errors: list[Exception] = []

    def connect() -> None:
        try:
            _ = deployment.driver
        except StoreUnavailable as error:
            errors.append(error)

    thread = threading.Thread(target=connect)
    thread.start()
    assert connecting.wait(WAIT_S)
    child = os.fork()
    if not child:
        try:
            signal.alarm(30)
            errors.clear()
            connect()
        finally:
            os._exit(len(errors) - 1)
    goes_on.set()
    thread.join(WAIT_S)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(errors) == 1


def test_clients_that_were_forgotten_end(local: Local) -> None:
    """Clients that nobody keeps, one for each request say, do not pile up threads."""
    for n in range(5):
        asyncio.run(local.executor.async_client().add([StateMachine(f"op{n}", Here(1))]))
    gc.collect()
    threads_end()

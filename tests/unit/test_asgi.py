"""The stream of an operation's updates, by the ASGI specification, with a client that says what it is told to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, MutableMapping
from datetime import UTC, datetime
from typing import Annotated, Any, Self

import pytest

from smqueue import Module, Secret, State
from smqueue.asgi import OperationEvents, Scope
from smqueue.errors import HistoryRewound, StoreUnavailable
from smqueue.following import Update
from smqueue.queries import MachineId
from smqueue.sse import HEARTBEAT, START, event_of

AT = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
Message = MutableMapping[str, Any]


def update(sequence: int, state: Any = None, **more: Any) -> Update:
    return Update("op", "shop", MachineId("m"), sequence + 1, sequence, state, False, AT, **more)


class Updates:
    """A subscription that brings what it is given, then waits for ever."""

    def __init__(self, coming: list[Update | Exception]) -> None:
        self.coming, self.open = coming, False

    async def __aenter__(self) -> Self:
        self.open = True
        return self

    async def __aexit__(self, *_: object) -> None:
        self.open = False

    async def __anext__(self) -> Update:
        if not self.coming:
            await asyncio.Event().wait()
        found = self.coming.pop(0)
        if isinstance(found, Exception):
            raise found
        return found


class Stub:
    """A client with one subscription."""

    def __init__(self, *coming: Update | Exception) -> None:
        self.updates, self.asked = Updates(list(coming)), list[tuple[Any, ...]]()

    def subscribe(self, *asked: Any) -> Updates:
        self.asked.append(asked)
        return self.updates


def anybody(scope: Scope, operation_id: str) -> bool:
    return True


def served(
    client: Stub, path: str = "/op", *, method: str = "GET", query: str = "", last: str | None = None, root: str = "",
    until: Callable[[str], object] = lambda _: False, **options: Any,
) -> tuple[int, str, bool]:  # fmt: skip
    """Status, body, and whether it was ended by the server; the client leaves when ``until`` says so of the body."""
    headers = [] if last is None else [(b"last-event-id", last.encode())]
    scope = {"type": "http", "method": method, "path": path, "root_path": root, "query_string": query.encode()}
    sent: list[Message] = []

    async def main() -> None:
        leaves = asyncio.Event()

        async def receive() -> Message:
            if not any(message["type"] == "http.response.start" for message in sent):
                return {"type": "http.request", "body": b"", "more_body": False}
            await leaves.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            sent.append(message)
            if until(body()):
                leaves.set()

        stub: Any = client
        app = OperationEvents(stub, **{"allow": anybody, **options})
        await asyncio.wait_for(app({**scope, "headers": headers}, receive, send), 30)

    def body() -> str:
        return b"".join(message.get("body", b"") for message in sent).decode()

    asyncio.run(main())
    assert not client.updates.open
    return sent[0]["status"], body(), not sent[-1].get("more_body", False)


def test_an_event() -> None:
    """Its id is the sequence, its data one line of JSON with the update's fields; what does not apply is left out."""
    text = event_of(update(7, {"type": "A", "state": {"text": "a\nb\u2028é"}}, won="paid"))
    id, data, *rest = text.split("\n")
    assert (id, rest) == ("id: 7", ["", ""])
    assert json.loads(data.removeprefix("data: ")) == {
        "operation_id": "op", "module": "shop", "machine_id": "m", "step": 8, "sequence": 7, "terminal": False,
        "state": {"type": "A", "state": {"text": "a\nb\u2028é"}}, "at": "2030-01-02T03:04:05+00:00", "won": "paid",
    }  # fmt: skip


def test_an_event_shows_no_secret() -> None:
    """A typed state is told as its text, in which secrets are hidden."""
    shop = Module("shop")

    @shop.state(terminal=True)
    class Card(State):
        owner: str
        number: Annotated[str, Secret]

    text = event_of(update(0, Card("me", "4000-1234")))
    assert "Card(owner='me', number=" in text
    assert "4000" not in text


def test_updates_are_streamed_until_the_client_leaves() -> None:
    """A comment at once, then each update as an event; when the client has left the subscription is ended."""
    client = Stub(update(0), update(1))
    status, body, ended = served(client, until=lambda body: "id: 1" in body)
    assert (status, body, ended) == (200, HEARTBEAT + event_of(update(0)) + event_of(update(1)), False)
    assert client.asked == [("op", None, None)]


@pytest.mark.parametrize(
    ("query", "last", "asked"),
    [
        ("", "3", ("op", 3, None)),
        ("after=3&module=shop", None, ("op", 3, "shop")),
        ("after=3", "5", ("op", 5, None)),  # it comes back: by its address it would be told again
        ("after=3", "", ("op", 3, None)),
        ("after=3", START, ("op", None, None)),  # what the address says is gone
        ("after=" + "9" * 18, None, ("op", 10**18 - 1, None)),
    ],
)
def test_where_it_begins(query: str, last: str | None, asked: tuple[Any, ...]) -> None:
    """Behind what the client has been told, else behind what the address says."""
    client = Stub()
    assert served(client, query=query, last=last, until=lambda body: HEARTBEAT in body)[0] == 200
    assert client.asked == [(asked[0], asked[2], asked[1])]


def test_silence_is_broken() -> None:
    """While nothing happens comments are sent, one after another."""
    assert served(Stub(), until=lambda body: body.count(HEARTBEAT) > 3, heartbeat_s=0.01)[0] == 200


def test_who_may_not() -> None:
    """Who is not allowed, also by a coroutine function, gets 403 and nothing is subscribed; it is asked with the scope
    and the operation."""
    for answer in (False, True):

        async def allow(scope: Scope, operation_id: str, answer: bool = answer) -> bool:
            return answer and scope["path"] == "/op" and operation_id == "op"

        client = Stub(update(0))
        status, _, _ = served(client, allow=allow, until=lambda body: "id: 0" in body)
        assert (status, len(client.asked)) == ((200, 1) if answer else (403, 0))


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ({"path": "/"}, 404),
        ({"path": "/events", "root": "/events"}, 404),
        ({"method": "POST"}, 405),
        ({"query": "after=x"}, 400),
        ({"last": "-1"}, 400),
        ({"last": "²"}, 400),
        ({"last": "1" * 19}, 400),
        ({"query": "after=" + "1" * 5_000}, 400),
        ({"query": f"after={START}"}, 400),
    ],
)
def test_what_makes_no_sense(request_: dict[str, Any], status: int) -> None:
    """It is refused in words, and nothing is subscribed."""
    client = Stub()
    found, body, ended = served(client, **request_)
    assert (found, ended, client.asked) == (status, True, [])
    assert len(body) > 10


@pytest.mark.parametrize(("path", "root"), [("/a/b", ""), ("/events/a/b", "/events"), ("/a/b", "/events")])
def test_below_a_mount(path: str, root: str) -> None:
    """The operation is what comes below the mount, slashes and all; older frameworks leave the mount out."""
    client = Stub()
    served(client, path, root=root, until=lambda body: HEARTBEAT in body)
    assert client.asked == [("a/b", None, None)]


def test_a_history_that_is_another() -> None:
    """The client is told by an event whose id has it begin anew when it comes back, whatever its address says."""
    status, body, ended = served(Stub(update(0), HistoryRewound("op", 0, 1)))
    assert (status, ended) == (200, True)
    assert body.startswith(
        HEARTBEAT + event_of(update(0)) + 'event: rewound\nid: start\ndata: "The history of operation op'
    )


def test_a_store_that_is_away() -> None:
    """The stream ends, and says nothing of where the store is; the client comes back."""
    error = StoreUnavailable("redis://inside:6379", "gone")
    assert served(Stub(update(0), error)) == (200, HEARTBEAT + event_of(update(0)), True)


def test_an_event_of_ones_own() -> None:
    """``event`` renders, and what it makes nothing of is not told."""
    client = Stub(update(0), update(1))
    event = lambda one: f"data: {one.sequence}\n\n" if one.sequence else ""  # noqa: E731
    _, body, _ = served(client, event=event, until=lambda body: "data: 1" in body)
    assert body == f"{HEARTBEAT}data: 1\n\n"

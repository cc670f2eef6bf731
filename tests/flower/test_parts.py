"""What the pages are made of: forms of schemas, and rates of totals."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal

import pytest
import redis
from celery import Celery

from smqueue import ExecutorBuilder, Module, Secret, State, StateMachine, Transaction, after
from smqueue.embedded import EmbeddedServer
from smqueue.flower.forms import WHOLE, Misread, controls, payload
from smqueue.flower.looks import Asked, find, past, seen
from smqueue.flower.rates import Rates
from smqueue.flower.show import Show
from smqueue.flower.spans import span_of, spelled
from smqueue.flower.steps import transitions
from smqueue.instances import Instance, Instances
from smqueue.overview import EdgeCount, Overview
from smqueue.schemas import codec_for
from tests.apps import shop, vault
from tests.inprocess import Local, Play

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


class Way(Enum):
    CARD = 1
    CASH = 2


@dataclass(frozen=True)
class Item:
    name: str


@dataclass(frozen=True)
class Order:
    name: str
    amount: Decimal
    count: int
    way: Way
    size: Literal["s", "m"]
    gift: bool
    token: Annotated[str, Secret]
    items: list[Item]
    share: float = 1.0
    note: str | None = None
    patience: timedelta | None = None


ENTERED = {
    "name": "", "amount": "12.50", "count": "3", "way": '"CASH"', "size": '"m"', "gift": "true", "token": "t",
    "items": '[{"name": "pen"}]', "share": "", "note": "",
    "patience": "1d 1.5h",
}  # fmt: skip


def test_each_field_has_a_control_of_its_kind_and_what_is_entered_fits_the_schema() -> None:
    """Text, numbers, choices, secrets and JSON for what holds others; what may be left out is; an empty text is one."""
    codec = codec_for(Order, identity=False, where="order")
    kinds = {control.name: (control.kind, control.required) for control in controls(codec)}
    assert kinds == {
        "name": ("text", True), "amount": ("text", True), "count": ("number", True), "way": ("select", True),
        "size": ("select", True), "gift": ("select", True), "token": ("password", True), "items": ("json", True),
        "share": ("number", False), "note": ("text", False), "patience": ("span", False),
    }  # fmt: skip
    order = codec.load(payload(codec, ENTERED))
    patience = timedelta(days=1, hours=1.5)
    assert order == Order("", Decimal("12.5"), 3, Way.CASH, "m", True, "t", [Item("pen")], patience=patience)


@pytest.mark.parametrize(("hint", "text", "value"), [(None, "", None), (int, "7", 7), (str, "seven", "seven")])
def test_a_payload_that_is_no_record_has_one_control_or_none(hint: Any, text: str, value: Any) -> None:
    """A signal without payload has no control; a single value has one."""
    codec = codec_for(hint, identity=False, where="payment")
    assert len(controls(codec)) == (hint is not None)
    assert payload(codec, {WHOLE: text}) == value


def test_what_is_not_of_its_kind_is_told_with_its_control() -> None:
    """A number that is none, and JSON that is none, name their control."""
    codec = codec_for(Order, identity=False, where="order")
    for name in ("count", "items", "patience"):
        with pytest.raises(Misread) as told:
            payload(codec, {**ENTERED, name: "{"})
        assert told.value.name == name


@pytest.mark.parametrize("us", [0, 1, 250_000, 1_500_000, 90_000_000, 10_800_000_000, 88_200_000_000, 10**18 + 1])
def test_a_span_of_time_is_written_as_it_is_read(us: int) -> None:
    """Whatever is written comes back exactly; what is no span says what to write."""
    assert span_of(spelled(us)) == timedelta(microseconds=us)
    assert spelled(10_800_000_000) == "3h"
    for wrong in ("", "3", "h", "3 weeks", "1e3s", "-1s", "9" * 5_000 + "s", "9" * 90 + "d"):
        with pytest.raises(ValueError, match=r"span of time|too long"):
            span_of(wrong)


def test_pages_tell_durations_as_people_do() -> None:
    """Also of what is stored in microseconds; without the module's code it is told as it is stored."""
    instances = Instances()
    instances.register(Instance("orders", shop.orders, None, "here"))
    state = {"order_id": "1", "total": 5, "patience": 10_800_000_000}
    told = Show(None, None, NOON, instances).state(state, "orders", "Awaiting")
    assert told == 'order_id="1" total=5 patience=3h'
    assert "patience=10800000000" in Show(None, None, NOON).state(state, "orders", "Awaiting")
    assert Show(None, None, NOON, instances).state({"patience": "x"}, "orders", "Awaiting") == 'patience="x"'


doors = Module("doors")


@doors.state
class Closed(State):
    n: int


@doors.state
class Open(State):
    n: int


push = doors.signal("push")


@doors.on(Closed, push)
def pushed(tx: Transaction, state: Closed, _: None) -> Open:
    return Open(state.n)


@doors.on(Open, push)
def shut(tx: Transaction, state: Open, _: None) -> Closed:
    return Closed(state.n)


@doors.on((Closed, Open), after(hours=1))
def rusted(tx: Transaction, state: Closed | Open, _: None) -> Closed:
    return Closed(-1)


def moved(local: Local, op: str, times: int) -> None:
    """So many signals, each taken by the machine that has waited longest."""
    for _ in range(times):
        local.executor.signal(op, push)
        local.run()


def test_a_timeline_of_many_machines_says_where_each_came_from(play: Play) -> None:
    """However many steps of others lie between two of one machine: its source and its losers are told, and it is
    counted."""
    local = play(doors=doors)
    local.executor.add_state_machines([StateMachine("many", Closed(n)) for n in range(700)])
    for _ in range(60):
        local.executor.signal("many", push)
    local.until(lambda: past(local.executor, "many").total == 760)
    steps = past(local.executor, "many").steps
    assert [(one.source, one.target, one.won) for one in steps] == [("Closed", "Open", "pushed")] * 50
    assert all(one.losers and one.losers[0].startswith("rusted (deadline) had") for one in steps)
    assert transitions(local.executor.deployment, "many") == {"doors": {("Closed", "Open", "pushed"): 60}}
    assert past(local.executor, "many", before=5).steps[0].source is None


def test_what_losers_were_doing_is_not_made_up(play: Play) -> None:
    """It is kept of the last leaving of a state alone: of an earlier one it is said that it is not kept."""
    local = play(doors=doors)
    local.add("op", Closed(1))
    moved(local, "op", 3)
    steps = past(local.executor, "op").steps
    assert [one.source for one in steps] == ["Closed", "Open", "Closed", None]
    assert [one.losers is not None for one in steps] == [True, True, False, False]


GARBAGE = [
    b"", b"x", b"[]", b"\xff", b"[" * 100_000, b'{"machine":["m"],"step":1,"to":"doors Closed {}","at":1}',
    b'{"machine":"m","step":"1","to":"doors Closed {}","at":1}', b'{"machine":"m","step":1,"to":"x","at":1e300}',
    b'{"machine":"m","step":1,"to":"x","at":99999999999999999999}', b'{"machine":"m","step":1,"to":7,"at":1}',
    b'{"machine":"m","step":1,"to":"x","at":1,"won":[]}', b'{"machine":"m","step":1,"to":"x","at":1,"version":"x"}',
]  # fmt: skip


def test_garbage_in_a_history_hides_nothing(play: Play) -> None:
    """Entries that are none are left out of the timeline, of the graph's counts and of what is told live, and all
    others are there; a history that is no list is empty."""
    local = play(doors=doors)
    local.add("op", Closed(1))
    moved(local, "op", 1)
    key = local.keys().history("op")
    local.redis.rpush(key, *GARBAGE)
    moved(local, "op", 1)
    local.redis.hset(local.keys().inactive("op"), 'doors Open {"n":1}', "x")
    found = past(local.executor, "op")
    assert [one.sequence for one in found.steps] == [2 + len(GARBAGE), 1, 0]
    assert found.steps[0].losers is None
    assert sum(transitions(local.executor.deployment, "op")["doors"].values()) == 2
    assert seen(local.executor, "op").standing == "active"
    with local.executor.notifier.subscribe("op", timeout=0) as updates:
        told = [one.sequence for one in updates]
    assert {0, 1, 2 + len(GARBAGE)} <= {*told}
    local.redis.delete(key)
    local.redis.set(key, "x")
    assert past(local.executor, "op").steps == []
    assert transitions(local.executor.deployment, "op") == {}


def test_secrets_are_on_no_page(server: EmbeddedServer, namespace: str, redis_client: redis.Redis) -> None:
    """What an operation's page and its timeline are made of holds no secret of a state; other fields it does."""
    app = Celery("vault", broker=server.broker_url, set_as_current=False)
    executor = ExecutorBuilder().with_module("vault", vault.vault).build(app, url=server.url, namespace=namespace)
    executor.add_state_machines([StateMachine("op", vault.Locked("cellar", "hush-hush"))])
    executor.cancel("op")
    executor.add_state_machines([StateMachine("op", vault.Locked("attic", "hush-hush"))])
    shown = str((seen(executor, "op"), past(executor, "op"), find(executor, Asked(module="vault"))))
    assert "hush" not in shown
    assert "attic" in shown
    assert "cellar" in shown


def test_rates_are_of_the_last_minute_and_the_line_of_the_last_hour() -> None:
    """What has come and gone in the last minute, not since the beginning; a namespace that was emptied begins anew."""
    rates = Rates()
    assert rates.transitions is None
    for second in range(0, 4_000, 5):  # 2 a second; in the last minute 5 a second
        count = 2 * second + 3 * max(0, second - 3_935)
        edges = (EdgeCount("orders", "A", "B", "paid", count), EdgeCount("orders", None, "A", "+add", 7 * second))
        rates.add(Overview("shop", NOON + timedelta(seconds=second), edges=edges))
    assert rates.transitions == pytest.approx(300)
    assert rates.per_minute(("orders", "A")) == pytest.approx((420, 300))
    assert rates.per_minute(("orders", "B")) == pytest.approx((300, 0))
    line = rates.line()
    assert len(line) == 60
    assert line[0] == pytest.approx(120)
    rates.add(Overview("shop", NOON + timedelta(seconds=4_000)))
    assert rates.transitions is None

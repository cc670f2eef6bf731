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

from smqueue import ExecutorBuilder, Secret, StateMachine
from smqueue.embedded import EmbeddedServer
from smqueue.flower.forms import WHOLE, Misread, controls, payload
from smqueue.flower.looks import Asked, find, past, seen
from smqueue.flower.rates import Rates
from smqueue.overview import EdgeCount, Overview
from smqueue.schemas import codec_for
from tests.apps import vault

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


ENTERED = {
    "name": "", "amount": "12.50", "count": "3", "way": '"CASH"', "size": '"m"', "gift": "true", "token": "t",
    "items": '[{"name": "pen"}]', "share": "", "note": "",
}  # fmt: skip


def test_each_field_has_a_control_of_its_kind_and_what_is_entered_fits_the_schema() -> None:
    """Text, numbers, choices, secrets and JSON for what holds others; what may be left out is; an empty text is one."""
    codec = codec_for(Order, identity=False, where="order")
    kinds = {control.name: (control.kind, control.required) for control in controls(codec)}
    assert kinds == {
        "name": ("text", True), "amount": ("text", True), "count": ("number", True), "way": ("select", True),
        "size": ("select", True), "gift": ("select", True), "token": ("password", True), "items": ("json", True),
        "share": ("number", False), "note": ("text", False),
    }  # fmt: skip
    order = codec.load(payload(codec, ENTERED))
    assert order == Order("", Decimal("12.5"), 3, Way.CASH, "m", True, "t", [Item("pen")])


@pytest.mark.parametrize(("hint", "text", "value"), [(None, "", None), (int, "7", 7), (str, "seven", "seven")])
def test_a_payload_that_is_no_record_has_one_control_or_none(hint: Any, text: str, value: Any) -> None:
    """A signal without payload has no control; a single value has one."""
    codec = codec_for(hint, identity=False, where="payment")
    assert len(controls(codec)) == (hint is not None)
    assert payload(codec, {WHOLE: text}) == value


def test_what_is_not_of_its_kind_is_told_with_its_control() -> None:
    """A number that is none, and JSON that is none, name their control."""
    codec = codec_for(Order, identity=False, where="order")
    for name in ("count", "items"):
        with pytest.raises(Misread) as told:
            payload(codec, {**ENTERED, name: "{"})
        assert told.value.name == name


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

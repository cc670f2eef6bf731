"""What many tasks of event loops ask for travels together."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from smqueue.drivers.together import Together
from smqueue.errors import StoreUnavailable
from smqueue.roundtrip import Call, Calls, LostReply, Steps

WAIT_S = 30


class Gated:
    """A driver that answers no request before the gate is open; it notes how many scripts each brings.

    Args:
        answer: What a request gets.
    """

    url = "redis://user:secret@localhost"

    def __init__(self, answer: Callable[[Calls], Any]) -> None:
        self.answer, self.gate, self.sizes = answer, threading.Event(), list[int]()

    def run(self, steps: Steps[Any]) -> Any:
        reply: Any = None
        while True:
            try:
                request: Any = steps.throw(reply) if isinstance(reply, Exception) else steps.send(reply)
            except StopIteration as end:
                return end.value
            assert self.gate.wait(WAIT_S)
            self.sizes.append(len(request.calls))
            reply = self.answer(request)


def numbers(request: Calls) -> list[int]:
    """Each script's first argument."""
    return [int(call.args[0]) for call in request.calls]


def asking(number: int) -> Steps[int]:
    """One script."""
    reply = yield Call("any", ("key",), (number,))
    return int(reply)


def all_of(driver: Any, count: int) -> list[Any]:
    """So many tasks ask at the same time; the gate opens once all have."""
    together = Together(lambda: driver)

    async def ask() -> list[Any]:
        tasks = [asyncio.ensure_future(together.run(asking(n), lambda it: it * 10)) for n in range(count)]
        await asyncio.sleep(0)  # each has asked
        driver.gate.set()
        return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), WAIT_S)

    return asyncio.run(ask())


def test_what_is_asked_for_meanwhile_is_one_request() -> None:
    """Fifty tasks that ask while a request is under way cost one more, and each gets its own answer."""
    driver = Gated(numbers)
    assert all_of(driver, 50) == [n * 10 for n in range(50)]
    assert sum(driver.sizes) == 50
    assert len(driver.sizes) <= 2


def test_a_lost_reply_is_an_error_of_each_without_the_password() -> None:
    """Nobody knows whether what was asked for was applied: each is told, in the words of a call that ran alone."""
    told = all_of(Gated(lambda _: LostReply()), 3)
    assert {type(one) for one in told} == {StoreUnavailable}
    assert "secret" not in str(told[0])


def test_what_the_driver_raises_reaches_each() -> None:
    """A driver that gives up leaves nobody waiting."""

    def fail(_: Calls) -> Any:
        raise StoreUnavailable("here", "no answer")

    assert [str(one) for one in all_of(Gated(fail), 3)] == [str(StoreUnavailable("here", "no answer"))] * 3


def test_one_that_has_given_up_is_in_nobodys_way() -> None:
    """A task that is cancelled while its request is under way changes nothing for the others."""
    driver: Any = Gated(numbers)
    together = Together(lambda: driver)

    async def ask() -> int:
        impatient = asyncio.ensure_future(together.run(asking(1), lambda it: it))
        other = asyncio.ensure_future(together.run(asking(2), lambda it: it))
        await asyncio.sleep(0)
        impatient.cancel()
        with pytest.raises(asyncio.CancelledError):
            await impatient
        driver.gate.set()
        return await asyncio.wait_for(other, WAIT_S)

    assert asyncio.run(ask()) == 2

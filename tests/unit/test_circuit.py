"""The circuit: a short absence of the server is waited out, a long one fails at once, and its return is found soon."""

from __future__ import annotations

import threading

import pytest

from smqueue.drivers.circuit import PATIENCE_S, PAUSES, PROBE_S, Circuit
from smqueue.errors import StoreRefused, StoreUnavailable

CAP_S = PAUSES.cap.total_seconds()


class World:
    """A server that answers from a time on, a clock that only sleeping moves, and a circuit between them."""

    def __init__(self, back_at: float = float("inf"), takes_s: float = 0.0) -> None:
        self.now, self.back_at, self.takes_s = 1000.0, 1000.0 + back_at, takes_s
        self.asked: list[float] = []
        self.circuit = Circuit(lambda: self.now, self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def connect(self) -> str:
        self.asked.append(self.now)
        if self.now < self.back_at:
            self.now += self.takes_s
            raise StoreUnavailable("redis://there", "connection refused")
        return "connected"

    def call(self) -> str:
        return self.circuit.run(self.connect)

    def fails(self) -> float:
        """Call in vain; returns how long that took, in seconds."""
        began = self.now
        with pytest.raises(StoreUnavailable) as caught:
            self.call()
        assert caught.value.url == "redis://there"
        assert "connection refused" in str(caught.value)
        return self.now - began


def test_a_restart_is_no_error() -> None:
    """A server that is away for less than 5 s costs its callers a delay and no error, and it is not hammered: pauses
    double up to a second. (semantics 5)"""
    world = World(back_at=3.0)
    assert world.call() == "connected"
    assert 3.0 <= world.now - 1000.0 <= 3.0 + CAP_S
    pauses = [later - earlier for earlier, later in zip(world.asked, world.asked[1:], strict=False)]
    assert all(PAUSES.delay_ms(n + 1) / 2001 <= pause <= PAUSES.delay_ms(n + 1) / 999 for n, pause in enumerate(pauses))
    assert len(world.asked) < 15


def test_once_open_callers_fail_at_once() -> None:
    """After one has waited in vain for 5 s, callers get StoreUnavailable at once, and all of them together ask the
    server about once a second."""
    world = World()
    assert PATIENCE_S - CAP_S <= world.fails() <= PATIENCE_S
    world.asked.clear()
    began = world.now
    while world.now < began + 60:
        assert world.fails() == 0
        world.now += 0.01
    assert 55 <= len(world.asked) <= 140  # a half to a whole second, after the first few


def test_a_server_that_swallows_packets_delays_one_caller_only() -> None:
    """Where even failing takes long, one caller at a time tries; whoever comes meanwhile is told at once."""
    world = World(takes_s=5.0)
    world.fails()
    world.now += CAP_S
    trying, told = threading.Event(), threading.Event()

    def slow() -> str:
        trying.set()
        assert told.wait(10)
        raise StoreUnavailable("redis://there", "timed out")

    errors: list[Exception] = []

    def probe() -> None:
        try:
            world.circuit.run(slow)
        except StoreUnavailable as error:
            errors.append(error)

    thread = threading.Thread(target=probe)
    thread.start()
    assert trying.wait(10)
    asked = len(world.asked)
    assert world.fails() == 0
    assert len(world.asked) == asked
    told.set()
    thread.join(10)
    assert [error.args[1] for error in errors] == ["timed out"]


def test_its_return_is_found_within_a_second() -> None:
    """The first caller that comes a second after the server has finds it, and after that all do, at once."""
    world = World(back_at=120.0)
    while world.now < world.back_at:
        world.fails()
        world.now += 0.3
    world.now += CAP_S
    assert world.call() == "connected"
    asked = len(world.asked)
    assert [world.call() for _ in range(10)] == ["connected"] * 10
    assert len(world.asked) == asked + 10


def test_a_probe_that_never_comes_back_keeps_no_other_away() -> None:
    """A thread that dies while it probes does not leave the circuit open for ever."""
    world = World(back_at=10.0)
    world.fails()
    world.now += CAP_S
    with pytest.raises(KeyboardInterrupt):
        world.circuit.run(interrupted)
    world.now += PROBE_S
    assert world.call() == "connected"


def interrupted() -> None:
    raise KeyboardInterrupt


def test_a_refusal_is_an_answer() -> None:
    """A server that refuses is there: it is not waited for, and the circuit closes."""
    world = World(back_at=7.0)

    def refused() -> None:
        raise StoreRefused("redis://there", "wrong password")

    with pytest.raises(StoreRefused):
        world.circuit.run(refused)
    assert world.now == 1000.0
    world.fails()
    world.now += CAP_S
    with pytest.raises(StoreRefused):
        world.circuit.run(refused)
    world.now += 2.0
    world.asked.clear()
    assert world.call() == "connected"
    assert len(world.asked) == 1


def test_what_has_never_answered_is_not_waited_for() -> None:
    """Without patience, as for an address that has never answered, the first failure is an error."""
    world = World()
    with pytest.raises(StoreUnavailable):
        world.circuit.run(world.connect, patient=False)
    assert world.now == 1000.0

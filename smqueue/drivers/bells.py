"""Doorbells for many who wait: one thread, and one connection to each server, for the tasks of any event loops.

It rings also when a subscription has been confirmed, and when it was lost: whoever looks at each ring misses nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import selectors
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any
from weakref import finalize

from redis.exceptions import RedisError, ResponseError

from smqueue.drivers.blocking import Blocking
from smqueue.drivers.connect import ELSEWHERE, LOST, pack, translated
from smqueue.drivers.nodes import Node, Nodes
from smqueue.errors import SmqueueError, StoreUnavailable, fresh

log = logging.getLogger("smqueue.bells")

LONGEST_S = 15.0
"""One look at the latest after this long. Longer than for one who waits alone: a lost connection is a ring here."""
CONFIRMED_S = 2.0
"""So long is a subscription waited for before the first look: when it comes later, it rings."""
AGAIN_S = 0.5
"""How often a server that is away is tried."""
SILENCE_S = 10.0
"""After so long a connection is asked for a sign of life, and after as long again it is taken for lost."""


class Ear:
    """What one task listens with; made on its loop."""

    def __init__(self, channels: Sequence[str]) -> None:
        self.channels, self.loop = channels, asyncio.get_running_loop()
        self.error: SmqueueError | None = None
        self._rung = asyncio.Event()

    def ring(self) -> None:
        """On its loop: wake the task."""
        self._rung.set()

    async def rest(self, seconds: float) -> None:
        """Until it rings, or for so long; several rings count as one.

        Raises:
            SmqueueError: It will never ring: the server refuses the subscription, or the client was closed.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(min(seconds, LONGEST_S * random.uniform(0.7, 1))):
                await self._rung.wait()
        self._rung.clear()
        if self.error is not None:
            raise fresh(self.error)


class Bells:
    """Rings ears. The thread starts with the first, anew after a fork, and ends when this is closed or forgotten.

    Args:
        driver: Gives what knows the servers; called on the thread, since it may have to connect.
    """

    def __init__(self, driver: Callable[[], Blocking]) -> None:
        self._driver = driver
        self._pid = 0
        self._starting: dict[int, threading.Lock] = {}  # by process: one that is held at a fork stays held
        self._exchange: Exchange | None = None

    def hear(self, ear: Ear) -> None:
        """Ring this one when any of its channels does."""
        if self._pid != os.getpid():
            self._start()
        assert self._exchange is not None
        self._exchange.order(self._exchange.hear, ear)

    def leave(self, ear: Ear) -> None:
        """Ring it no more."""
        if self._pid == os.getpid() and self._exchange is not None:
            self._exchange.order(self._exchange.leave, ear)

    def close(self, error: SmqueueError) -> Future[None] | None:
        """Ring all ears a last time, with this error, and end; the future is done when the thread has."""
        if self._pid != os.getpid() or self._exchange is None:
            return None
        self._exchange.order(self._exchange.end, error)
        return self._exchange.ended

    def _start(self) -> None:
        with self._starting.setdefault(os.getpid(), threading.Lock()):
            if self._pid != os.getpid():
                self._exchange = exchange = Exchange(self._driver)
                threading.Thread(target=exchange.run, name="smqueue-bells", daemon=True).start()
                finalize(self, exchange.order, exchange.end, None).atexit = False
                self._pid = os.getpid()


class Wire:
    """One subscribed connection."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.connection: Any = node.apart()
        self.socket: Any = None
        self.asked = deque[tuple[bytes, str]]()  # whose answers are to come, in order
        self.leaving = Counter[str]()
        self.confirmed = set[str]()
        self.heard_s = time.monotonic()
        self.probed = False

    @property
    def expecting(self) -> bool:
        """Whether it has anything to say."""
        return bool(self.confirmed or self.asked)

    @property
    def silent_s(self) -> float:
        """When it has said nothing for too long."""
        return self.heard_s + SILENCE_S * (1 + self.probed)

    def left(self, channel: str) -> None:
        """One SUNSUBSCRIBE of it was answered."""
        self.leaving[channel] -= 1
        if not self.leaving[channel]:
            del self.leaving[channel]  # the channel of an answer never comes again

    def send(self, command: bytes, channels: Sequence[str]) -> None:
        """One command for each channel, for they may be in several slots; in one write."""
        if not self.expecting:
            self.heard_s, self.probed = time.monotonic(), False
        self.asked += [(command, channel) for channel in channels]
        if command == b"SUNSUBSCRIBE":
            self.leaving.update(channels)
        self.connection._sock.sendall(b"".join([pack((command, channel)) for channel in channels]))


class Exchange:
    """What the thread of ``Bells`` does; only ``order`` is for others."""

    def __init__(self, driver: Callable[[], Blocking]) -> None:
        self._driver = driver
        self.ended = Future[None]()
        self._orders = deque[tuple[Callable[[Any], None], Any]]()
        self._inside, self._outside = socket.socketpair()
        self._outside.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._inside, selectors.EVENT_READ)
        self._ears: dict[str, set[Ear]] = {}
        self._wires: dict[Node, Wire] = {}
        self._at: dict[str, Wire] = {}
        self._fresh, self._stale = set[str](), set[str]()  # to be subscribed, and unsubscribed, perhaps
        self._rung = set[Ear]()
        self._again_s = 0.0
        self._ending = False

    def order(self, what: Callable[[Any], None], about: Any) -> None:
        """Have the thread do this; from any thread."""
        self._orders.append((what, about))
        with suppress(OSError):  # full: it will wake up anyway; closed: it has ended
            self._outside.send(b"!")

    # --- on the thread -------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Until ``end``."""
        try:
            while not self._ending:
                self._turn()
        finally:
            for wire in self._wires.values():
                wire.connection.disconnect()
            self._selector.close()
            self._inside.close()
            self._outside.close()
            self.ended.set_result(None)

    def hear(self, ear: Ear) -> None:
        """One more ear."""
        for channel in ear.channels:
            self._ears.setdefault(channel, set()).add(ear)
            if channel not in self._at:
                self._fresh.add(channel)
        if all(channel in self._at and channel in self._at[channel].confirmed for channel in ear.channels):
            self._rung.add(ear)  # else the confirmation will ring

    def leave(self, ear: Ear) -> None:
        """One less."""
        for channel in ear.channels:
            ears = self._ears.get(channel, set())
            ears.discard(ear)
            if not ears:
                self._ears.pop(channel, None)
                self._stale.add(channel)

    def end(self, error: SmqueueError | None) -> None:
        """Tell all why, and end."""
        self._ending = True
        if error is not None:
            self._fail(self._ears, error)

    def _turn(self) -> None:
        try:
            ready = [key.data for key, _ in self._selector.select(self._idle_s())]
            if None in ready:
                self._inside.recv(4096)
            while self._orders:
                what, about = self._orders.popleft()
                what(about)
            for wire in ready:
                if wire is not None and wire.node in self._wires:
                    self._read(wire)
            self._adjust()
            self._probe()
        except Exception as error:  # whatever it is: nobody may wait for a thread that is gone
            log.warning("doorbells are not heard for a moment: %s: %s", type(error).__name__, error)
            for wire in list(self._wires.values()):
                self._lose(wire)
            self._wait_a_moment(self._ears)
        self._tell()

    def _idle_s(self) -> float | None:
        now = time.monotonic()
        waits = [wire.silent_s - now for wire in self._wires.values() if wire.expecting]
        if self._fresh:
            waits.append(self._again_s - now)
        return max(0.0, min(waits)) if waits else None

    def _adjust(self) -> None:
        """Unsubscribe what nobody listens to any more, and subscribe what is new."""
        gone: dict[Wire, list[str]] = {}
        for channel in self._stale:
            if channel not in self._ears and (wire := self._at.pop(channel, None)) is not None:
                gone.setdefault(wire, []).append(channel)
        self._stale.clear()
        for wire, channels in gone.items():
            wire.confirmed.difference_update(channels)
            self._send(wire, b"SUNSUBSCRIBE", channels)
        self._fresh = {channel for channel in self._fresh if channel in self._ears and channel not in self._at}
        if not self._fresh or time.monotonic() < self._again_s:
            return
        for node, channels in self._nodes_of(self._fresh).items():
            if (wire := self._wires.get(node) or self._connect(node, channels)) is not None:
                self._at |= dict.fromkeys(channels, wire)
                self._fresh.difference_update(channels)
                self._send(wire, b"SSUBSCRIBE", channels)

    def _nodes_of(self, channels: Iterable[str]) -> dict[Node, list[str]]:
        found: dict[Node, list[str]] = {}
        for channel in channels:
            try:
                found.setdefault(self._servers().node(channel), []).append(channel)
            except SmqueueError as error:
                self._unreached([channel], error)
        return found

    def _connect(self, node: Node, channels: Sequence[str]) -> Wire | None:
        wire = Wire(node)
        try:
            wire.connection.connect()
        except (RedisError, OSError, SmqueueError) as error:
            self._servers().look_again()
            self._unreached(channels, translated(node.url, error))
            return None
        self._wires[node] = wire
        wire.socket = wire.connection._sock  # kept: a connection that was lost has none
        self._selector.register(wire.socket, selectors.EVENT_READ, wire)
        return wire

    def _unreached(self, channels: Sequence[str], error: SmqueueError) -> None:
        """Nobody there: let them look, which says so too; later again. Refused: that is final."""
        if isinstance(error, StoreUnavailable):
            self._wait_a_moment(channels)
        else:
            self._fail(channels, error)

    def _read(self, wire: Wire) -> None:
        try:
            while wire.connection.can_read(timeout=0):
                try:
                    self._take(wire, wire.connection.read_response(disable_decoding=True))
                except LOST:
                    raise
                except ResponseError as error:
                    self._refused(wire, *wire.asked.popleft(), error)
        except LOST:
            self._lose(wire)

    def _take(self, wire: Wire, said: Any) -> None:
        kind, channel = said[0], said[1].decode()
        wire.heard_s, wire.probed = time.monotonic(), False
        if kind == b"sunsubscribe" and not wire.leaving[channel]:  # the channel's slot has moved to another node
            self._servers().look_again()
            self._forget(wire, channel)
            return
        if kind != b"smessage":
            wire.asked.popleft()
            if kind == b"sunsubscribe":
                wire.left(channel)
            elif self._at.get(channel) is wire:
                wire.confirmed.add(channel)
        self._rung |= self._ears.get(channel, set())

    def _refused(self, wire: Wire, command: bytes, channel: str, error: Exception) -> None:
        if command == b"SUNSUBSCRIBE":
            wire.left(channel)
            return
        self._forget(wire, channel)
        if isinstance(error, ELSEWHERE):
            self._servers().look_again()
            self._wait_a_moment([channel])
        else:
            self._fail([channel], translated(wire.node.url, error))

    def _send(self, wire: Wire, command: bytes, channels: Sequence[str]) -> None:
        try:
            wire.send(command, channels)
        except LOST:
            self._lose(wire)

    def _probe(self) -> None:
        now = time.monotonic()
        for wire in list(self._wires.values()):
            if not wire.expecting or now < wire.silent_s:
                continue
            if wire.probed:
                self._lose(wire)
                continue
            wire.probed = True
            self._send(wire, b"SSUBSCRIBE", list(wire.confirmed)[:1])  # which changes nothing, and is answered

    def _lose(self, wire: Wire) -> None:
        """Hang up: what was heard here is subscribed anew, and looked at meanwhile."""
        with suppress(KeyError, ValueError):
            self._selector.unregister(wire.socket)
        wire.connection.disconnect()
        self._wires.pop(wire.node, None)
        self._servers().look_again()
        lost = [channel for channel, at in self._at.items() if at is wire]
        for channel in lost:
            self._forget(wire, channel)
        self._wait_a_moment(lost)

    def _forget(self, wire: Wire, channel: str) -> None:
        wire.confirmed.discard(channel)
        if self._at.get(channel) is wire:
            del self._at[channel]
            self._fresh.add(channel)

    def _wait_a_moment(self, channels: Iterable[str]) -> None:
        self._again_s = time.monotonic() + AGAIN_S
        for channel in channels:
            self._rung |= self._ears.get(channel, set())

    def _fail(self, channels: Iterable[str], error: SmqueueError) -> None:
        for channel in list(channels):
            for ear in self._ears.pop(channel, set()):
                ear.error = error
                self._rung.add(ear)

    def _servers(self) -> Nodes:
        return self._driver().nodes()

    def _tell(self) -> None:
        """Wake those who were rung for, each loop once."""
        loops: dict[asyncio.AbstractEventLoop, list[Ear]] = {}
        for ear in self._rung:
            loops.setdefault(ear.loop, []).append(ear)
        self._rung.clear()
        for loop, ears in loops.items():
            try:
                loop.call_soon_threadsafe(_ring, ears)
            except RuntimeError:  # it was closed meanwhile
                for ear in ears:
                    self.leave(ear)


def _ring(ears: Sequence[Ear]) -> None:
    for ear in ears:
        ear.ring()

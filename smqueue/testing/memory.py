"""The in-memory driver: protocols over the model of Redis."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

from smqueue.drivers.driver import Later, Started
from smqueue.errors import NothingHappens, StoreRefused, StoreUnavailable
from smqueue.roundtrip import Arg, Call, Calls, Commit, LostReply, Pause, Read, RoundTrip, Run, Steps
from smqueue.testing.store import Store
from smqueue.testing.values import ReplyError

T = TypeVar("T")
MAX_LOST = 3
URL = "memory://"


class Connection:
    """One client's connection: what it WATCHes, and whether that was changed."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.watched: set[str] = set()
        self.dirty = False
        store.watchers.append(self._changed)

    def trip(self, request: RoundTrip) -> Any:
        """The reply, as for every driver; ``None`` for a conflict, an exception as a value."""
        match request:
            case Read(watch, commands):
                self.watched |= set(watch)
                self.store.looked |= set(watch)
                return [self.store.do(*command) for command in commands]
            case Commit(commands):
                self.store.looked |= self.watched
                for key in self.watched:
                    self.store.get(key.encode(errors="surrogateescape"))  # one that has expired has changed
                conflict = self.dirty
                self.reset()
                return None if conflict else [self.store.do(*command) for command in commands]
            case Call(script, keys, args, own):
                reply = self.store.call(script, keys, args + own)
                if own and isinstance(reply, list):
                    return [_told(one) for one in reply]
                return _told(reply)
            case Calls(calls):
                return [self.trip(call) for call in calls]
            case Pause():
                return None

    def reset(self) -> None:
        """WATCH nothing any more."""
        self.watched, self.dirty = set(), False

    def close(self) -> None:
        """Be gone."""
        self.store.watchers.remove(self._changed)

    def _changed(self, key: str) -> None:
        if key in self.watched:
            self.dirty = True


def _told(reply: Any) -> Any:
    return StoreRefused(URL, str(reply)) if isinstance(reply, ReplyError) else reply


class Doorbell:
    """Waits by letting virtual time pass."""

    def __init__(self, driver: Memory) -> None:
        self._driver = driver

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def wait(self, seconds: float) -> None:
        """Let time pass until something has happened, or for ``seconds``.

        Raises:
            NothingHappens: For ever, and there is nothing that could ever happen.
        """
        self._driver.pass_time(seconds)

    def clock(self) -> float:
        """Seconds of virtual time."""
        return self._driver.store.now_us / 1_000_000

    def ring(self) -> None:
        """Nobody waits: time has passed."""

    def close(self) -> None:
        """Nothing to close."""


class Memory:
    """Runs protocols, one at a time; safe to share between threads.

    Args:
        store: What they run on.
    """

    url, overlaps = URL, False

    def __init__(self, store: Store) -> None:
        self.store = store
        self.pass_time: Callable[[float], None] = self._advance
        """What a doorbell does to wait for so many seconds, perhaps ``inf``: whoever has machines to run sets it."""
        self._lock = threading.RLock()

    def run(self, steps: Steps[T]) -> T:
        """Run a protocol to its end.

        Raises:
            Exception: What the protocol raised.
        """
        with self._lock:
            run, connection, lost = Run(steps), Connection(self.store), 0
            try:
                while run.request is not None:
                    reply = self._trip(connection, run.request)
                    lost = lost + 1 if isinstance(reply, LostReply) else 0
                    if lost > MAX_LOST:
                        run.steps.close()
                        raise StoreUnavailable(URL, "no answer")
                    if lost:
                        connection.reset()
                    run.answer(reply)
            finally:
                connection.close()
        if isinstance(run.error, LostReply):
            raise StoreUnavailable(URL, "no answer") from None
        return run.result()

    def start(self, steps: Steps[T]) -> Started[T]:
        """Begin a protocol, which goes on when its result is asked for."""
        return Later(self, steps)

    def command(self, *args: Arg) -> Any:
        """One command outside of any protocol."""
        with self._lock:
            reply = self.store.do(*args)
        if isinstance(reply, ReplyError):
            raise StoreRefused(URL, str(reply))
        return reply

    def doorbell(self, *_: str) -> Doorbell:
        """A doorbell for any channels: whatever happens, it rings, and all that wait look again."""
        return Doorbell(self)

    def close(self) -> None:
        """Nothing to close."""

    def _advance(self, seconds: float) -> None:
        if seconds == float("inf"):
            raise NothingHappens("nothing here runs any machines")
        self.store.advance(round(seconds * 1_000_000))

    def _trip(self, connection: Connection, request: RoundTrip) -> Any:
        return connection.trip(request)

"""Being told of state changes: the history of an operation in order and then live, or all operations live."""

from __future__ import annotations

import threading
from itertools import count
from types import TracebackType
from typing import Self, TypeVar

from smqueue.deployment import Deployment
from smqueue.drivers.switchboard import Board
from smqueue.drivers.waiter import Waiter
from smqueue.following import PAGE, Decode, Following, FollowingAll, FollowingOne, Update, history, read_entries
from smqueue.turns import Timeout, Turns

T = TypeVar("T")


class Updates:
    """Updates as they come: an iterator, and a context manager that closes its connection.

    It is subscribed from the start: what happens from here on is told.

    Args:
        following: What is told.
        deployment: Where from.
    """

    def __init__(self, following: Following, deployment: Deployment) -> None:
        self._following, self._waiter = following, Waiter(lambda: deployment.driver)
        self._taking = threading.Lock()
        self._waiter.run(following.begin())

    def __iter__(self) -> Self:
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the subscription, from any thread: an iteration under way ends soon, at once unless Redis is away."""
        self._following.closed = True
        self._waiter.ring()
        self._hang_up()

    def __next__(self) -> Update:
        try:
            with self._taking:
                update = self._waiter.run(self._following.next())
        finally:
            if self._following.closed:
                self._hang_up()
        if update is None:
            raise StopIteration
        return update

    def _hang_up(self) -> None:
        """Whoever iterates does it at the end: the connection is not taken away from under a thread that reads."""
        if self._taking.acquire(blocking=False):
            try:
                self._waiter.close()
            finally:
                self._taking.release()


class AsyncUpdates:
    """Updates as they come: an asynchronous iterator, and a context manager. It has no connection of its own.

    It is subscribed when it is entered, or else when its first update is awaited. For one task at a time; one that is
    cancelled while it waits has lost nothing: whoever iterates on is told the next update.

    Args:
        following: What is told.
        board: What it calls through.
    """

    def __init__(self, following: Following, board: Board) -> None:
        self._following, self._caller = following, board.caller()
        self._begun = False

    def __aiter__(self) -> Self:
        return self

    async def __aenter__(self) -> Self:
        await self._begin()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the subscription; a task that iterates is told the end."""
        self._following.closed = True
        self._caller.close()

    async def __anext__(self) -> Update:
        await self._begin()
        if (update := await self._run(self._following.next())) is None:
            self._caller.close()
            raise StopAsyncIteration
        return update

    async def _begin(self) -> None:
        if not self._begun and not self._following.closed:
            await self._run(self._following.begin())
            self._begun = True

    async def _run(self, turns: Turns[T]) -> T:
        try:
            return await self._caller.run(turns)
        except BaseException:  # a task that is cancelled leaves no subscription behind
            self._caller.close()
            raise


class Notifier:
    """Subscriptions to one deployment."""

    def __init__(self, deployment: Deployment, decode: Decode) -> None:
        self._deployment, self._decode = deployment, decode

    def subscribe(
        self, operation_id: str, module: str | None = None, after: int | None = None, *, timeout: Timeout = None
    ) -> Updates:
        """Follow one operation: its history in order, then live; no gap, no duplicate, over reconnects too.

        Args:
            operation_id: May not exist yet.
            module: Only of this module instance.
            after: Resume behind this sequence.
            timeout: End when nothing has come for this long; for ever unless given. A server that hangs may hold that
                up by the socket's timeouts, 5 s for connecting and 5 s for an answer.

        Returns:
            An iterator, and a context manager that closes its connection.

        Raises:
            InvalidInput: ``after`` is no sequence, or ``timeout`` no time.
            HistoryRewound: From the iterator: what was read of the history is not there any more.
        """
        following = FollowingOne(self._deployment, self._decode, operation_id, module, after, timeout)
        return Updates(following, self._deployment)

    def history(self, operation_id: str) -> list[Update]:
        """What has happened in one operation so far, in order; empty when it has never been started."""
        keys = self._deployment.keys(operation_id)
        found: list[Update] = []
        for first in count(0, PAGE):
            _, lines = self._deployment.driver.run(history(keys, operation_id, first))
            found += read_entries(self._decode, operation_id, first, lines)
            if len(lines) < PAGE:
                break
        return found

    def subscribe_all(self, module: str | None = None, *, timeout: Timeout = None) -> Updates:
        """Follow all operations, from now on: what happened before is not told.

        The last 10,000 updates are kept for a reader that is slower than that; what it loses all the same it is told.

        Args:
            module: Only of this module instance.
            timeout: As for ``subscribe``.

        Returns:
            An iterator, and a context manager that closes its connection.

        Raises:
            InvalidInput: ``timeout`` is no time.
            UpdatesLost: From the iterator, with their number; iterating on goes on with the later ones.
        """
        return Updates(FollowingAll(self._deployment, self._decode, module, timeout), self._deployment)

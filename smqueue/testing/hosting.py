"""Coroutines and channels in memory: what ``smqueue.worker.hosting`` does on a thread, done when it is asked for."""

from __future__ import annotations

import asyncio
import inspect
import logging
from typing import Any

from smqueue.errors import DefinitionError, SmqueueError, error_text
from smqueue.keys import Keys, new_id
from smqueue.leases import Lease
from smqueue.protocols import runs
from smqueue.protocols.claim import Armed, claim
from smqueue.records import compact
from smqueue.retry import Retry
from smqueue.testing.engine import LocalEngine
from smqueue.testing.store import Store
from smqueue.testing.virtual import HostingLoop
from smqueue.trigger_types import Channel, Wait
from smqueue.worker.code import Attempt
from smqueue.worker.hosting import NAME_AGAIN_MS, Hosted

log = logging.getLogger("smqueue.testing")

CLAIM = 500


class LocalHost:
    """Hosts what waits, on a loop that goes by the store's clock.

    Args:
        engine: Whose triggers.
        store: Whose clock.
    """

    def __init__(self, engine: LocalEngine, store: Store) -> None:
        self._engine, self._store = engine, store
        self._loop: HostingLoop | None = None
        self.held: dict[str, Hosted] = {}
        """By entry: pending coroutines, and machines that listen to a channel."""
        self._heard = 0
        self._done = 0
        self.published: list[tuple[str, bytes]] = []
        """All that handlers have published on channels."""

    @property
    def next_us(self) -> int | None:
        """When a coroutine is next due, in µs of the store's clock."""
        if self._loop is None or self._loop.next_s is None or not self.held:
            return None
        return round(self._loop.next_s * 1_000_000)

    def run(self, moved: bool) -> int:
        """Run what can run now; returns how many outcomes and failures that brought.

        Args:
            moved: Machines have moved, perhaps away from what is pending here.
        """
        self._done = 0
        if moved:
            self._renew()
        self.subscribe()
        if self._loop is not None:
            self._loop.run_ready()
        self._hear()
        return self._done

    def subscribe(self) -> None:
        """Take over what is due, as a worker does within milliseconds."""
        for keys in self._engine.executor.deployment.all_keys():
            while self._engine.driver.command("ZCOUNT", keys.hosted, "-inf", self._store.now_ms):
                self._renew()
                self._claim(keys)

    def publish(self, channel: str, message: Any) -> int:
        """Publish; returns how many machines took the message."""
        before = self._done
        for one in [one for one in self.held.values() if one.channel == channel]:
            self._offer(one, message)
        return self._done - before

    def close(self) -> None:
        """Cancel what is pending."""
        for entry in list(self.held):
            self._end(entry)
        if self._loop is not None:
            self._loop.run_ready()
            self._loop.close()
            self._loop = None

    # --- inside --------------------------------------------------------------------------------------------------

    def _renew(self) -> None:
        """Renew all leases, as a process does that lives; drop what is held no longer."""
        by_shard: dict[str, list[Lease]] = {}
        for one in self.held.values():
            by_shard.setdefault(one.lease.schedule, []).append(one.lease)
        for leases in by_shard.values():
            pairs = [(lease.entry, lease.token) for lease in leases]
            for entry in self._engine.driver.run(runs.renew(leases[0].keys, leases[0].schedule, pairs)):
                self._end(entry)

    def _claim(self, keys: Keys) -> None:
        token = new_id()
        due = self._engine.driver.run(claim(keys, self._engine.instances, CLAIM, keys.hosted, token))
        for one in due.unreadable:
            log.warning("a trigger cannot be hosted here: %s", one.error)
        for armed in due.triggers:
            try:
                self._host(keys, armed, token, due.watched)
            except Exception as error:  # contexts and dynamic transitions are the user's code; its lease runs out
                log.warning("trigger %s of operation %s is not hosted: %s", armed.trigger, armed.machine.op, error)

    def _host(self, keys: Keys, armed: Armed, token: str, watched: bool) -> None:
        handler = self._engine.instances.handlers(armed.placed).get(armed.trigger)
        if handler is None:
            return
        one = Hosted(
            Attempt(self._engine, keys, armed, handler, token, watched), Lease(keys, keys.hosted, armed.entry, token)
        )
        self._end(armed.entry)
        self.held[armed.entry] = one
        trigger: Any = handler.trigger
        if isinstance(trigger, Wait):
            if self._loop is None:
                self._loop = HostingLoop(lambda: self._store.now_us / 1_000_000)
            one.task = self._loop.create_task(self._spanned(one, trigger))
        elif isinstance(trigger, Channel):
            try:
                one.channel = trigger.name_for(armed.placed.state)
            except Exception as error:  # the user's function of the state
                self._end(armed.entry)
                one.attempt.again(NAME_AGAIN_MS, error_text(error))

    async def _spanned(self, one: Hosted, trigger: Wait[Any, Any]) -> None:
        with one.attempt.spanned():
            await self._wait(one, trigger)

    async def _wait(self, one: Hosted, trigger: Wait[Any, Any]) -> None:
        attempt = one.attempt
        try:
            value = trigger.fn(attempt.armed.placed.state, attempt.context)
            if not inspect.isawaitable(value):
                raise DefinitionError(f"wait({trigger.text}): its function returned no awaitable", trigger.where)
            attempt.record(await value)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            attempt.failed(error, trigger.retry)
        finally:
            self._done += 1
            if self.held.get(one.lease.entry) is one:
                self._end(one.lease.entry)

    def _hear(self) -> None:
        """Give what handlers have published to those who listen."""
        while self._heard < len(self._store.published):
            channel, raw = self._store.published[self._heard]
            self._heard += 1
            if not channel.startswith("{"):  # else a bell of smqueue's own
                self.published.append((channel, raw))
                self.publish(channel, raw)

    def _offer(self, one: Hosted, given: Any) -> None:
        attempt = one.attempt
        trigger: Any = attempt.handler.trigger
        try:
            raw = given if isinstance(given, bytes) else _raw(trigger, attempt, given)
            message = trigger.message(raw, attempt.handler.outcome)
            if not trigger.accepts(message, attempt.armed.placed.state):
                return
        except Exception as error:  # a bad message is the sender's fault, and no reason to stop listening
            log.warning("%s: a message is left out: %s", attempt.label, error_text(error))
            return
        self._end(one.lease.entry)
        self._done += 1
        try:
            attempt.record(message)
        except SmqueueError as error:
            log.warning("%s: a message was not recorded: %s", attempt.label, error)
            attempt.failed(error, Retry())

    def _end(self, entry: str) -> None:
        one = self.held.pop(entry, None)
        if one is not None and one.task is not None and not one.task.done() and self._loop is not None:
            running = asyncio.current_task(self._loop)
            if one.task is not running:
                one.task.cancel()


def _raw(trigger: Channel[Any, Any], attempt: Attempt, message: Any) -> bytes:
    """A message as its sender would publish it: JSON of the trigger's type, or of what is JSON already."""
    if not isinstance(message, str | int | float | bool | list | dict | None):
        message = (trigger.codec or attempt.handler.outcome).check(message)
    return compact(message).encode()

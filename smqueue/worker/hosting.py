"""Coroutines and channel subscriptions: many thousands pending on one event loop, leased, and started elsewhere when
their process dies."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import threading
from collections.abc import Callable
from concurrent import futures
from typing import TYPE_CHECKING, Any

from smqueue.drivers.channels import Channels
from smqueue.drivers.group import group
from smqueue.drivers.together import result_of
from smqueue.errors import DefinitionError, SmqueueError, error_text
from smqueue.handlers import Handler
from smqueue.keys import Keys, new_id
from smqueue.leases import Lease
from smqueue.logs import about_machine
from smqueue.protocols import runs
from smqueue.protocols.claim import Armed, claim
from smqueue.retry import Retry
from smqueue.roundtrip import Steps
from smqueue.trigger_types import Channel, Wait
from smqueue.worker import events
from smqueue.worker.code import Attempt

if TYPE_CHECKING:
    from smqueue.worker.engine import Engine

log = logging.getLogger("smqueue.hosting")

CLAIM = 500
TOGETHER = 250
"""Outcomes that one message brings in one write."""
NAME_AGAIN_MS = 10_000
"""When a channel whose name could not be made is tried again."""
FOR_EVER_S = 10 * 365 * 86_400.0
STOP_S = 5.0
"""How long a cancelled coroutine may take to clean up."""


class Hosted:
    """One pending coroutine, or one machine that listens to a channel."""

    def __init__(self, attempt: Attempt, lease: Lease) -> None:
        self.attempt, self.lease = attempt, lease
        self.task: asyncio.Task[None] | None = None
        self.channel = ""
        self.over = False  # it has ended, and that is being recorded


class Host:
    """Hosts what waits in this process: one thread, one event loop, one pub/sub connection.

    Args:
        engine: Whose triggers.
        capacity: How many may be pending here.
        wake: Called, on the loop, when somebody rings for the pump.
    """

    def __init__(self, engine: Engine, capacity: int, wake: Callable[[], None]) -> None:
        self._engine, self._capacity, self._wake = engine, capacity, wake
        self._wakers = {keys.wake for keys in engine.executor.deployment.all_keys()}
        self._token = new_id()
        """One for all claims: what this process holds it can claim again, and it is the same lease."""
        self._hosted: dict[str, Hosted] = {}
        self._listeners: dict[str, dict[str, Hosted]] = {}
        self._loop = asyncio.new_event_loop()
        self._records = futures.ThreadPoolExecutor(4, thread_name_prefix="smqueue-outcomes")
        self._channels: Channels | None = None
        self._listening: asyncio.Task[None] | None = None
        self._leaving: asyncio.Task[None] | None = None  # the loop itself keeps no reference
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="smqueue-host", daemon=True)

    def start(self) -> None:
        """Start the loop."""
        self._thread.start()
        self._ready.wait(10)
        self._engine.loop, self._engine.loop_pid = self._loop, os.getpid()

    def stop(self) -> None:
        """Cancel what is pending here: the leases run out, and others start it.

        Code that a thread of the pool has running on the loop goes on to its end; then the loop stops.
        """
        self._engine.loop = None
        self._engine.leases.release([one.lease for one in list(self._hosted.values())])
        futures.wait([asyncio.run_coroutine_threadsafe(self._leave(), self._loop)], STOP_S)
        self._records.shutdown(wait=False, cancel_futures=True)

    def __len__(self) -> int:
        return len(self._hosted)

    @property
    def room(self) -> int:
        """How many more may be pending here."""
        return self._capacity - len(self._hosted)

    def claim(self, keys: Keys) -> bool:
        """Take over what is due; called by the pump's thread. Returns whether there may be more."""
        if (room := min(CLAIM, self.room)) <= 0:
            return False
        due = self._engine.driver.run(claim(keys, self._engine.instances, room, keys.hosted, self._token))
        for one in due.unreadable:
            log.warning("a trigger cannot be hosted here: %s", one.error)
        found: list[Hosted] = []
        for armed in due.triggers:
            try:
                found += self._host(keys, armed, due.watched)
            except Exception as error:  # contexts and dynamic transitions are the user's code; its lease runs out
                what = (armed.trigger, armed.machine.op, error)
                log.warning("trigger %s of operation %s is not hosted: %s", *what, extra=about_machine(armed))
        self._engine.leases.add([one.lease for one in found], FOR_EVER_S, self.drop)
        self._loop.call_soon_threadsafe(self._begin, found)
        return due.more

    def drop(self, lease: Lease) -> None:
        """This is no longer held: its race is over, or another process runs it."""
        self._loop.call_soon_threadsafe(self._drop, lease)

    # --- on the loop's thread ------------------------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._channels = Channels(self._engine.driver.url, self._heard, self._confirmed)
        for channel in self._wakers:
            self._channels.want(channel)
        self._listening = self._loop.create_task(self._channels.run())
        self._loop.call_soon(self._ready.set)
        self._loop.run_forever()

    async def _leave(self) -> None:
        assert self._listening is not None
        pending = [self._listening, *(one.task for one in self._hosted.values() if one.task is not None)]
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=STOP_S)
        self._leaving = self._loop.create_task(self._stop_when_idle())

    async def _stop_when_idle(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        if others:
            await asyncio.wait(others)
        self._loop.stop()

    def _host(self, keys: Keys, armed: Armed, watched: bool) -> list[Hosted]:
        handler = self._engine.instances.handlers(armed.placed).get(armed.trigger)
        if handler is None:
            return []
        attempt = Attempt(self._engine, keys, armed, handler, self._token, watched)
        return [Hosted(attempt, Lease(keys, keys.hosted, armed.entry, self._token))]

    def _begin(self, found: list[Hosted]) -> None:
        assert self._channels is not None
        heard: list[Lease] = []
        for one in found:
            known = self._hosted.get(one.lease.entry)
            if known is not None and not known.over:  # not renewed in time, and nobody else has taken it: it goes on
                continue
            self._hosted[one.lease.entry] = one
            trigger: Any = one.attempt.handler.trigger
            if isinstance(trigger, Wait):
                one.task = self._loop.create_task(self._spanned(one, trigger))
            elif isinstance(trigger, Channel):
                try:
                    one.channel = trigger.name_for(one.attempt.armed.placed.state)
                except Exception as error:  # the user's function of the state
                    self._end(one.lease.entry)
                    self._records.submit(one.attempt.again, NAME_AGAIN_MS, error_text(error))
                    continue
                self._listeners.setdefault(one.channel, {})[one.lease.entry] = one
                if self._channels.want(one.channel):
                    heard.append(one.lease)
        if heard:
            self._records.submit(self._renew, heard)
        if told := [events.started(one.attempt.id) for one in found if one.attempt.watched]:
            self._records.submit(self._engine.outbound.tell, *told)

    async def _spanned(self, one: Hosted, trigger: Wait[Any, Any]) -> None:
        with one.attempt.spanned():
            await self._wait(one, trigger)

    async def _wait(self, one: Hosted, trigger: Wait[Any, Any]) -> None:
        attempt = one.attempt
        try:
            value = trigger.fn(attempt.armed.placed.state, attempt.context)
            if not inspect.isawaitable(value):
                raise DefinitionError(f"wait({trigger.text}): its function returned no awaitable", trigger.where)
            value = await value
            one.over = True
            await self._call(attempt.record, value)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            one.over = True
            try:
                await self._call(attempt.failed, error, trigger.retry)
            except SmqueueError as problem:
                whose = about_machine(attempt.armed)
                log.warning("an outcome was not recorded, and is tried again: %s", problem, extra=whose)
        finally:
            if self._hosted.get(one.lease.entry) is one:
                self._end(one.lease.entry)

    async def _call(self, fn: Any, *args: Any) -> Any:
        return await self._loop.run_in_executor(self._records, fn, *args)

    def _confirmed(self, channel: str) -> None:
        """The server has confirmed a subscription: say so where ``explain`` looks."""
        if channel in self._wakers:
            self._wake()  # what has rung until now went unheard
        leases = [one.lease for one in self._listeners.get(channel, {}).values()]
        if leases:
            self._records.submit(self._renew, leases)

    def _renew(self, leases: list[Lease]) -> None:
        for at in range(0, len(leases), CLAIM):
            part = leases[at : at + CLAIM]
            pairs = [(lease.entry, lease.token) for lease in part]
            self._engine.driver.run(runs.renew(part[0].keys, part[0].schedule, pairs))

    def _heard(self, channel: str, raw: bytes) -> None:
        if channel in self._wakers:
            self._wake()
            return
        found: dict[Keys, list[tuple[Hosted, Any]]] = {}
        for entry, one in list(self._listeners.get(channel, {}).items()):
            trigger: Any = one.attempt.handler.trigger
            try:
                message = trigger.message(raw, one.attempt.handler.outcome)
                if not trigger.accepts(message, one.attempt.armed.placed.state):
                    continue
            except Exception as error:  # a bad message is the sender's fault, and no reason to stop listening
                self._records.submit(_told, self._label(one.attempt.handler, one), error, one.attempt.armed)
                continue
            self._end(entry)
            found.setdefault(one.lease.keys, []).append((one, message))
        for keys, heard in found.items():
            for at in range(0, len(heard), TOGETHER):
                self._records.submit(self._record, keys, heard[at : at + TOGETHER])

    def _record(self, keys: Keys, heard: list[tuple[Hosted, Any]]) -> None:
        """One message is the outcome of many triggers: they are recorded in one write."""
        asked: list[tuple[Hosted, Steps[tuple[str, bool]]]] = []
        for one, message in heard:
            try:
                asked.append((one, one.attempt.recording(message)))
            except SmqueueError as error:
                self._failed(one, error)
        hint, driver = False, self._engine.driver
        try:
            ended = driver.run(group([steps for _, steps in asked]))
        except SmqueueError as error:
            for one, _ in asked:
                self._failed(one, error)
            return
        for (one, _), run in zip(asked, ended, strict=True):
            try:
                hint = result_of(run, driver.url)[1] or hint
            except SmqueueError as error:
                self._failed(one, error)
        if hint:
            self._engine.outbound.hint(keys.namespace, keys.shard)

    def _failed(self, one: Hosted, error: SmqueueError) -> None:
        whose = about_machine(one.attempt.armed)
        log.warning("%s: a message was not recorded: %s", self._label(one.attempt.handler, one), error, extra=whose)
        one.attempt.failed(error, Retry())

    def _label(self, handler: Handler, one: Hosted) -> str:
        return handler.label(one.attempt.armed.placed.module, one.attempt.armed.placed.type.name)

    def _drop(self, lease: Lease) -> None:
        one = self._hosted.get(lease.entry)
        if one is not None:
            self._end(lease.entry)

    def _end(self, entry: str) -> None:
        one = self._hosted.pop(entry, None)
        if one is None:
            return
        self._engine.leases.release([one.lease])
        if one.task is not None and one.task is not asyncio.current_task(self._loop):
            one.task.cancel()
        if one.channel:
            listeners = self._listeners.get(one.channel, {})
            listeners.pop(entry, None)
            if not listeners:
                self._listeners.pop(one.channel, None)
                assert self._channels is not None
                self._channels.unwant(one.channel)


def _told(label: str, error: Exception, armed: Armed) -> None:
    what = (label, type(error).__name__, error)
    log.warning("%s: a message is left out: %s: %s", *what, extra=about_machine(armed))

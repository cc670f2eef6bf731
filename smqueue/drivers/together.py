"""Running what many ask for at the same time as groups: one look and one EXEC for all, or one write of scripts."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, TypeVar

from redis.exceptions import RedisError

from smqueue.drivers.connect import shown, translated
from smqueue.drivers.driver import Driver
from smqueue.drivers.group import group
from smqueue.errors import StoreUnavailable
from smqueue.roundtrip import LostReply, Run, Steps

T = TypeVar("T")
R = TypeVar("R")
LARGEST = 64


class Asked(NamedTuple):
    """A protocol, what is made of its result, and who waits for that."""

    steps: Steps[Any]
    then: Callable[[Any], Any]
    loop: asyncio.AbstractEventLoop
    answer: asyncio.Future[Any]


class Outcome(NamedTuple):
    """What ``then`` returned."""

    value: Any


class Together:
    """A thread that runs protocols for event loops: whatever has been asked for meanwhile, as one group.

    The thread is started with the first of them, and so anew after a fork.

    Args:
        driver: What runs the groups.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._pid = 0
        self._starting: dict[int, threading.Lock] = {}  # by process: one that is held at a fork stays held
        self._asked = SimpleQueue[Asked]()

    async def run(self, steps: Steps[T], then: Callable[[T], R]) -> R:
        """Run a protocol to its end, and ``then`` on the thread with its result; returns what that returned.

        Raises:
            StoreUnavailable: No answer; whether the last request was applied is not known.
            StoreRefused: The server does not take our commands.
            Exception: What the protocol or ``then`` raised.
        """
        if self._pid != os.getpid():
            self._start()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[R] = loop.create_future()
        self._asked.put(Asked(steps, then, loop, answer))
        return await answer

    def _start(self) -> None:
        with self._starting.setdefault(os.getpid(), threading.Lock()):
            if self._pid != os.getpid():
                self._asked, self._pid = SimpleQueue(), os.getpid()
                threading.Thread(target=self._serve, args=(self._asked,), name="smqueue-together", daemon=True).start()

    def _serve(self, queue: SimpleQueue[Asked]) -> None:
        while True:
            some = [queue.get()]
            with suppress(Empty):
                while len(some) < LARGEST:
                    some.append(queue.get_nowait())
            ended: Sequence[Run[Any] | Exception]
            try:
                ended = self._driver.run(group([asked.steps for asked in some]))
            except Exception as error:
                ended = [error] * len(some)
            told: dict[asyncio.AbstractEventLoop, list[tuple[Asked, Outcome | Exception]]] = {}
            for asked, run in zip(some, ended, strict=True):
                told.setdefault(asked.loop, []).append((asked, self._outcome(asked, run)))
            for loop, answers in told.items():
                with suppress(RuntimeError):  # it was closed meanwhile
                    loop.call_soon_threadsafe(_tell, answers)

    def _outcome(self, asked: Asked, run: Run[Any] | Exception) -> Outcome | Exception:
        try:
            return run if isinstance(run, Exception) else Outcome(asked.then(result_of(run, self._driver.url)))
        except Exception as raised:
            return raised


def result_of(run: Run[T], url: str) -> T:
    """What a member of a group returned, its errors as those of a protocol that ran alone.

    Raises:
        StoreUnavailable: No answer; whether the last request was applied is not known.
        Exception: What it raised.
    """
    match run.error:
        case LostReply() as lost:
            raise StoreUnavailable(shown(url), str(lost.__cause__ or "no answer")) from None
        case RedisError() as error:
            raise translated(url, error) from None
        case _:
            return run.result()


def _tell(answers: list[tuple[Asked, Outcome | Exception]]) -> None:
    for asked, outcome in answers:
        if asked.answer.done():  # its caller has given up
            continue
        if isinstance(outcome, Exception):
            asked.answer.set_exception(outcome)
        else:
            asked.answer.set_result(outcome.value)

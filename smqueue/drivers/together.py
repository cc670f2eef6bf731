"""Running what many ask for at the same time as groups: one look and one EXEC for all, or one write of scripts."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, TypeVar
from weakref import finalize

from redis.exceptions import RedisError

from smqueue.drivers.connect import shown, translated
from smqueue.drivers.driver import Driver
from smqueue.drivers.group import group
from smqueue.errors import SmqueueError, StoreUnavailable, fresh
from smqueue.roundtrip import LostReply, Run, Steps

T = TypeVar("T")
R = TypeVar("R")
LARGEST = 64


Asked = tuple[Steps[Any], Callable[[Any], Any], asyncio.AbstractEventLoop, asyncio.Future[Any]]
"""A protocol, what is made of its result, and who waits for that: on which loop, and for what."""

Told = tuple[asyncio.Future[Any], Any, Exception | None]
"""Who waits, and what for: a result, or an error."""


class ClientClosed(SmqueueError):
    """This client was closed: make another one, or keep one open for as long as the program runs."""


class Together:
    """A thread that runs protocols for event loops: whatever has been asked for meanwhile, as one group.

    The thread is started with the first of them, and so anew after a fork. It ends when this is closed or forgotten.

    Args:
        driver: Gives what runs the groups; called on the thread, since it may have to connect.
    """

    def __init__(self, driver: Callable[[], Driver]) -> None:
        self._driver = driver
        self._pid = 0
        self._starting: dict[int, threading.Lock] = {}  # by process: one that is held at a fork stays held
        self._asked = SimpleQueue[Asked | None]()
        self._ended = Future[None]()
        self._closed = False

    def run(self, steps: Steps[T], then: Callable[[T], R]) -> asyncio.Future[R]:
        """Run a protocol to its end, and ``then`` on the thread with its result; to be awaited for what that returned.

        Raises:
            StoreUnavailable: No answer; whether the last request was applied is not known.
            StoreRefused: The server does not take our commands.
            ClientClosed: It is closed.
            Exception: What the protocol or ``then`` raised.
        """
        if self._pid != os.getpid() and not self._closed:
            self._start()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[R] = loop.create_future()
        self._asked.put((steps, then, loop, answer))
        if self._closed:  # looked at only now: what came before the end of the queue is served
            raise ClientClosed
        return answer

    def close(self) -> Future[None]:
        """Take nothing more, do what was asked for, and end; the future is done when the thread has."""
        self._closed = True
        if self._pid == os.getpid():
            self._asked.put(None)
            return self._ended
        return _done()

    def _start(self) -> None:
        with self._starting.setdefault(os.getpid(), threading.Lock()):
            if self._pid != os.getpid():
                self._asked, self._ended = SimpleQueue(), Future()
                service = (self._driver, self._asked, self._ended)  # not self: the thread must not keep it
                threading.Thread(target=_serve, args=service, name="smqueue-together", daemon=True).start()
                finalize(self, self._asked.put, None).atexit = False
                self._pid = os.getpid()


def _done() -> Future[None]:
    done = Future[None]()
    done.set_result(None)
    return done


def _serve(driver_of: Callable[[], Driver], queue: SimpleQueue[Asked | None], ended: Future[None]) -> None:
    more = True
    while more:
        taken: list[Asked | None] = []  # while it waits it keeps nothing
        taken.append(queue.get())
        with suppress(Empty):
            while len(taken) < LARGEST:
                taken.append(queue.get_nowait())
        more = None not in taken
        _run([asked for asked in taken if asked is not None], driver_of)
    ended.set_result(None)


def _run(some: Sequence[Asked], driver_of: Callable[[], Driver]) -> None:
    ended: Sequence[Run[Any] | Exception]
    url = ""
    try:
        driver = driver_of()
        url = driver.url
        ended = driver.run(group([steps for steps, _, _, _ in some]))
    except Exception as error:
        ended = [error] * len(some)
    told: dict[asyncio.AbstractEventLoop, list[Told]] = {}
    raised: set[int] = set()
    for (_, then, loop, answer), run in zip(some, ended, strict=True):
        if (answers := told.get(loop)) is None:
            answers = told[loop] = []
        answers.append(_outcome(answer, then, run, url, raised))
    for loop, answers in told.items():
        with suppress(RuntimeError):  # it was closed meanwhile
            loop.call_soon_threadsafe(_tell, answers)


def _outcome(
    answer: asyncio.Future[Any], then: Callable[[Any], Any], run: Run[Any] | Exception, url: str, raised: set[int]
) -> Told:
    try:
        if not isinstance(run, Exception):
            return answer, then(result_of(run, url)), None
    except Exception as error:
        return answer, None, _apart(error, raised)
    return answer, None, _apart(run, raised)


def _apart(error: Exception, raised: set[int]) -> Exception:
    """An error that no other caller is given; ``raised`` has the ids of those that one has been given."""
    again = id(error) in raised
    raised.add(id(error))
    return fresh(error) if again else error


def result_of(run: Run[T], url: str) -> T:
    """What a member of a group returned, its errors as those of a protocol that ran alone.

    Raises:
        StoreUnavailable: No answer; whether the last request was applied is not known.
        Exception: What it raised.
    """
    match run.error:
        case None:
            return run.result()
        case LostReply() as lost:
            raise StoreUnavailable(shown(url), str(lost.__cause__ or "no answer")) from None
        case RedisError() as error:
            raise translated(url, error) from None
        case _:
            return run.result()


def _tell(answers: list[Told]) -> None:
    for answer, result, error in answers:
        if answer.done():  # its caller has given up
            continue
        if error is None:
            answer.set_result(result)
        else:
            answer.set_exception(error)

"""One process of a namespace in the simulation: the code that runs in production, over a driver that asks a scheduler.

What the code draws at random is drawn from its process's own counter, so that a run can be repeated.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from hashlib import blake2b
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

from greenlet import getcurrent, greenlet

from smqueue import Executor
from smqueue.deployment import Deployment, Settings
from smqueue.drain import Drain
from smqueue.drivers.driver import Driver, Later
from smqueue.errors import StoreUnavailable
from smqueue.instances import Instance, Instances
from smqueue.keys import Keys
from smqueue.relay import Relay
from smqueue.roundtrip import Call, Calls, Commit, LostReply, Pause, Read, RoundTrip, Run
from smqueue.tallies import Tallies
from smqueue.testing.memory import Connection
from smqueue.testing.store import Store
from tests.inprocess import Sent
from tests.simulation.machines import k, m

NAMESPACE = "sim"
KEYS = Keys(NAMESPACE)


class Killed(BaseException):
    """The process is dead: nothing catches this."""


class NoLeases:
    """Renewals are steps of their own in the simulation, not a thread's."""

    @contextmanager
    def hold(self, leases: object, limit_s: float) -> Generator[None]:
        yield

    def add(self, *args: object) -> None:
        pass

    def release(self, leases: object) -> None:
        pass


def _instances() -> Instances:
    made = Instances()
    for id, module in (("m", m), ("k", k)):
        made.register(Instance(id, module, None, "here"))
    return made


INSTANCES = _instances()


class Process:
    """What one process holds.

    Args:
        driver: Its way to the store.
        notes: What the stage's setting up has left for actors: entries, claims.
        name: Its own.
    """

    def __init__(self, driver: Driver, notes: dict[str, Any], name: str = "") -> None:
        self.driver, self.notes, self.name, self.sent = driver, notes, name, Sent()
        deployment = Deployment(lambda: Settings("memory://", NAMESPACE), lambda _: driver)
        deployment._opened = driver  # enlisted already
        outbound: Any = self.sent
        leases: Any = NoLeases()
        self.executor = Executor(deployment, lambda: INSTANCES, outbound)
        self.drain = Drain(driver, KEYS, INSTANCES, leases, outbound)
        self.relay = Relay(driver, KEYS, INSTANCES, outbound)
        self.engine: Any = SimpleNamespace(
            driver=driver, instances=INSTANCES, leases=leases, outbound=outbound, executor=self.executor,
            tallies=Tallies(),
        )  # fmt: skip


Actor = Callable[[Process], Any]


class Asking:
    """A driver that hands each request to the scheduler, and goes on with its answer."""

    url, overlaps = "memory://", False

    def __init__(self, live: Live) -> None:
        self._live = live

    def run(self, steps: Any) -> Any:
        run: Run[Any] = Run(steps)
        while run.request is not None:
            match run.request:
                case Pause():
                    run.answer(None)
                case Calls(calls):
                    run.answer(self._each(calls))
                case request:
                    run.answer(self._live.ask(request))
        if run.watched:
            self._live.ask(Read((), (("UNWATCH",),)))
        if isinstance(run.error, LostReply):
            raise StoreUnavailable(self.url, "no answer") from None
        return run.result()

    def start(self, steps: Any) -> Any:
        return Later(self, steps)

    def _each(self, calls: Sequence[Call]) -> Any:
        """Scripts of one write are atomic each, not together: others may come between them, or their sender die."""
        replies: list[Any] = []
        for one in calls:
            replies.append(self._live.ask(one))
            if isinstance(replies[-1], LostReply):
                return replies[-1]
        return replies

    def command(self, *args: Any) -> Any:
        return self._live.ask(Read((), (args,)))[0]

    def doorbell(self, *channels: str) -> Any:
        raise NotImplementedError("nobody waits in the simulation")

    def close(self) -> None:
        pass


class Told(NamedTuple):
    """All that a process has been told so far, which is all that it can know: the last reply, and what came before."""

    before: Told | None
    how: str
    reply: Any
    digest: int

    def then(self, how: str, reply: Any) -> Told:
        """The same, and one reply more."""
        return Told(self, how, reply, hash((self.digest, how, repr(reply))))


NOTHING = Told(None, "", None, 0)


class Point(NamedTuple):
    """What a process does once it has been told something: its next request, or how it ended."""

    request: RoundTrip | None
    result: Any = None
    error: BaseException | None = None
    tasks: tuple[Any, ...] = ()
    hints: int = 0

    def killed(self) -> Point:
        """How it ends when it is killed here."""
        return Point(None, error=Killed(), tasks=self.tasks, hints=self.hints)


class Live:
    """A process under way, which the scheduler tells what it asked for."""

    def __init__(self, index: int, actor: Actor, notes: dict[str, Any]) -> None:
        self.index, self.drawn, self.told = index, 0, NOTHING
        self._actor, self._result, self._error = actor, None, None
        self._process = Process(Asking(self), notes, str(index))
        self._green = greenlet(self._main)
        self.point = self._go(None)

    def ask(self, request: RoundTrip) -> Any:
        """Called by the process: wait for the scheduler's answer."""
        if self._error is not None:
            raise self._error
        return getcurrent().parent.switch(request)

    def tell(self, told: Told) -> Point:
        """Go on with a reply, or without one when it was lost."""
        self.told = told
        self.point = self._go(told.reply if told.how == "go" else LostReply())
        return self.point

    def close(self) -> None:
        """Let it go."""
        if not self._green.dead:
            self._error = Killed()
            self._green.throw(self._error)

    def _main(self, _: object) -> None:
        try:
            self._result = self._actor(self._process)
        except (Exception, Killed) as error:
            self._error = error

    def _go(self, value: Any) -> Point:
        global _running
        _running, before = self, _running
        try:
            request = self._green.switch(value)
        finally:
            _running = before
        sent = self._process.sent
        if not self._green.dead:
            return Point(request, tasks=tuple(sent.tasks), hints=sent.hints)
        return Point(None, self._result, self._error, tuple(sent.tasks), sent.hints)


class Ghost(NamedTuple):
    """A request whose sender has given it up, and which may still arrive."""

    connection: Connection
    request: RoundTrip


# --- what is drawn -------------------------------------------------------------------------------------------------

_running: Live | None = None
_setup = SimpleNamespace(index=-1, drawn=0)


def _bytes(count: int) -> bytes:
    who: Any = _running or _setup
    who.drawn += 1
    return blake2b(f"{who.index} {who.drawn}".encode(), digest_size=count).digest()


class _Stopped:
    """A clock of the process that stands still: budgets are no part of what is explored."""

    @staticmethod
    def monotonic() -> float:
        return 0.0

    @staticmethod
    def time() -> float:
        return 0.0

    @staticmethod
    def perf_counter() -> float:
        return 0.0


@contextmanager
def repeatable() -> Generator[None]:
    """Ids and jitter come from counters, budgets of time never run out."""
    _setup.drawn = 0
    with ExitStack() as stack:
        stack.enter_context(patch("smqueue.keys.token_bytes", _bytes))
        stack.enter_context(patch("smqueue.keys.DRAWN", 1))
        stack.enter_context(patch("smqueue.keys._drawn", deque()))
        for place in ("arming", "begin", "move"):
            stack.enter_context(patch(f"smqueue.protocols.{place}.randrange", lambda _: 0))
        stack.enter_context(patch("smqueue.roundtrip.uniform", lambda *_: 0.0))
        stack.enter_context(patch("smqueue.retry.random.uniform", lambda low, high: high))
        for place in ("smqueue.drivers.group", "smqueue.drain", "smqueue.cancelling"):
            stack.enter_context(patch(f"{place}.time", _Stopped))
        yield


class Clocked(Store):
    """A store whose clock a process can move: time that passes is a step like any other."""

    def do(self, *command: Any) -> Any:
        if command[0] == "#ADVANCE":
            return self.advance(command[1])
        if command[0] == "UNWATCH":
            return None
        return super().do(*command)


def writes(request: RoundTrip) -> bool:
    """Whether a request may change the store."""
    return not isinstance(request, Read) and not (isinstance(request, Commit) and not request.commands)

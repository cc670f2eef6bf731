"""Round trips to Redis as values: a protocol is a generator that yields them and is sent the replies.

A protocol does no I/O, so that one and the same runs under every driver: blocking, in a group, simulated. The untyped
reply of Redis is met in this file only.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from random import uniform
from typing import Any, Generic, NamedTuple, TypeVar, cast

from msgspec import Struct

from smqueue.errors import TornCommit

Arg = str | bytes | int | float
Command = tuple[Arg, ...]
T = TypeVar("T")
A = TypeVar("A")


class Read(NamedTuple):
    """WATCH and look, in one round trip. Reply: a list of raw replies, one per command; an error reply is a value."""

    watch: tuple[str, ...]
    commands: tuple[Command, ...]
    check: tuple[str, ...] = ()
    """Keys looked at without a WATCH: increments by others leave what was seen true, replacements do not."""


class Commit(NamedTuple):
    """MULTI/EXEC. Reply: a list of raw replies; ``None`` when a watched key had changed: then nothing was written."""

    commands: tuple[Command, ...]


class Call(Struct, gc=False):
    """One script, atomic. Reply: whatever it returns."""

    script: str
    keys: tuple[str, ...]
    args: tuple[Arg, ...]
    own: tuple[Arg, ...] = ()
    """What is this caller's own, if the script takes several callers: it is run once for those of a group that have the
    other arguments in common. Reply: a list with a reply for each of them; an error reply is a value."""
    commits: bool = False
    """It is a commit, and so within MULTI/EXEC, with all others of one write."""


class Calls(NamedTuple):
    """Several scripts in one write, each atomic by itself. Reply: a list of what each returns; an error is a value."""

    calls: tuple[Call, ...]


class Pause(NamedTuple):
    """Not a round trip: wait a little before looking again. Reply: ``None``."""

    ms: float


def commits(request: object) -> bool:
    """Whether a request is a commit that writes something."""
    match request:
        case Commit(commands):
            return bool(commands)
        case Calls(calls):
            return any(call.commits for call in calls)
        case Call():
            return request.commits
        case _:
            return False


class LostReply(Exception):
    """Thrown into a protocol: the request may or may not have been applied, and its WATCHes are gone."""


RoundTrip = Read | Commit | Call | Calls | Pause
Steps = Generator[RoundTrip, Any, T]


NOTHING: frozenset[str] = frozenset()


class Run(Generic[T]):
    """A protocol under way: the round trip that it waits for, or how it ended."""

    __slots__ = ("_value", "checked", "error", "request", "steps", "watched")

    def __init__(self, steps: Steps[T]) -> None:
        self.steps = steps
        self.request: RoundTrip | None = None
        self.error: Exception | None = None
        self.watched: frozenset[str] = NOTHING  # what its next commit rests on
        self.checked: frozenset[str] = NOTHING
        self._value: T | None = None
        self._go_on(None)

    def answer(self, reply: object) -> None:
        """Send the reply to the pending request; an exception is thrown into the protocol."""
        request = self.request
        if isinstance(request, Read):
            self.watched = self.watched.union(request.watch)
            self.checked = self.checked.union(request.check)
        elif isinstance(request, Commit):  # EXEC drops every WATCH; a script does not
            self.watched = self.checked = NOTHING
        self._go_on(reply)

    def _go_on(self, reply: object) -> None:
        try:
            self.request = self.steps.throw(reply) if isinstance(reply, Exception) else self.steps.send(reply)
        except StopIteration as end:
            self.request, self._value = None, cast("T", end.value)
        except Exception as error:
            self.request, self.error = None, error

    def result(self) -> T:
        """What the protocol returned.

        Raises:
            Exception: What the protocol raised.
        """
        if self.error is not None:
            raise self.error
        return cast("T", self._value)


def read(watch: Sequence[str], *commands: Command, check: Sequence[str] = ()) -> Steps[list[Any]]:
    """WATCH ``watch``, then look; 1 round trip."""
    return (yield Read(tuple(watch), commands, tuple(check)))


def commit(commands: Sequence[Command]) -> Steps[list[Any] | None]:
    """Apply all of ``commands``, or none; 1 round trip.

    Returns:
        The replies; ``None`` if a watched key had changed, and then nothing was written.

    Raises:
        TornCommit: A command failed inside EXEC while its neighbours were applied.
    """
    replies = cast("list[Any] | None", (yield Commit(tuple(commands))))
    for command, reply in zip(commands, replies or (), strict=False):
        if isinstance(reply, Exception):
            raise TornCommit(f"{command[0]} {command[1] if len(command) > 1 else ''}: {reply}")
    return replies


def back_off(attempt: int) -> Steps[None]:
    """After a conflict: wait a little longer each time, jittered, up to about 50 ms."""
    yield Pause(uniform(0, min(50.0, 0.5 * 2**attempt)))


def call(script: str, keys: Sequence[str], args: Sequence[Arg], parse: Callable[[Any], A]) -> Steps[A]:
    """Run one script; 1 round trip."""
    return parse((yield Call(script, tuple(keys), tuple(args))))


def own_call(
    script: str, keys: tuple[str, ...], args: tuple[Arg, ...], own: Sequence[Arg], commits: bool = False
) -> Call:
    """One run of a script that takes several callers, with what is this caller's own.

    To be yielded, and its reply given to ``own_reply``: no protocol of its own, for this is how most requests are made.
    """
    return Call(script, keys, args, (len(own), *own), commits)


def own_reply(reply: Any) -> Any:
    """What the script returned to this caller; an error reply is raised."""
    (own,) = reply
    if isinstance(own, Exception):
        raise own
    return own


def own_repeat(call: Call, attempts: int) -> Steps[Any]:
    """Make a caller's own call of a script that recognises its own repetition; a lost reply asks again."""
    for _ in range(attempts - 1):
        try:
            return own_reply((yield call))
        except LostReply:
            continue
    return own_reply((yield call))


def repeat(script: str, keys: Sequence[str], args: Sequence[Arg], parse: Callable[[Any], A], attempts: int) -> Steps[A]:
    """Run a script that recognises its own repetition; a lost reply asks again."""
    return (yield from again(lambda: call(script, keys, args, parse), attempts))


def again(steps: Callable[[], Steps[T]], attempts: int) -> Steps[T]:
    """Run a protocol that recognises its own repetition; a lost reply tries again."""
    for _ in range(attempts - 1):
        try:
            return (yield from steps())
        except LostReply:
            continue
    return (yield from steps())


def answers(*commands: Command) -> Steps[list[Any]]:
    """Look, without a WATCH; 1 round trip. The first error reply is raised."""
    replies = yield from read([], *commands)
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
    return replies


def single(*command: Arg) -> Steps[Any]:
    """One command outside of any protocol; 1 round trip. An error reply is raised."""
    (reply,) = yield from answers(command)
    return reply


def over(look: Callable[[], Steps[T]]) -> Steps[T]:
    """Look again when the connection was lost meanwhile: a look changes nothing. The driver bounds how often."""
    while True:
        try:
            return (yield from look())
        except LostReply:
            continue


def text(raw: Any) -> str:
    """A bulk reply as text."""
    return raw.decode() if isinstance(raw, bytes) else str(raw)


def time_us(reply: Any) -> int:
    """The reply to TIME, in microseconds since the epoch."""
    return int(reply[0]) * 1_000_000 + int(reply[1])

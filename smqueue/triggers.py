"""The triggers, as users write them. Also the types that they make, for those who annotate with them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol, overload

from smqueue.checks import duration, function, instant, is_signature, nonempty, timeout_s_of, type_name
from smqueue.errors import DefinitionError
from smqueue.handlers import Handler
from smqueue.places import here
from smqueue.retry import Failed, Retry
from smqueue.trigger_types import (
    Call,
    Channel,
    Deadline,
    Finished,
    Kind,
    Now,
    Poll,
    Reached,
    Signal,
    TaskTrigger,
    Trigger,
    Wait,
)

if TYPE_CHECKING:
    from typing import TypeVar

    from smqueue.states import Context, State

    S = TypeVar("S", bound=State)
    T = TypeVar("T")
    A = TypeVar("A", bound=State)
    B = TypeVar("B", bound=State)
    C = TypeVar("C", bound=State)
    D = TypeVar("D", bound=State)

__all__ = [
    "Call",
    "Channel",
    "Deadline",
    "Failed",
    "Finished",
    "Handler",
    "Kind",
    "Now",
    "Poll",
    "Reached",
    "Retry",
    "Signal",
    "TaskTrigger",
    "Trigger",
    "Wait",
    "after",
    "at",
    "call",
    "channel",
    "finished",
    "now",
    "poll",
    "reached",
    "task",
    "wait",
]


class SignatureLike(Protocol):
    """What smqueue needs of a ``celery.canvas.Signature``, so that defining machines does not import Celery."""

    def apply_async(self, *args: Any, **kwargs: Any) -> Any:
        """Send the task."""
        ...


@overload
def after(delay: timedelta, /) -> Trigger[State, None]: ...
@overload
def after(delay: Callable[[S], timedelta], /) -> Trigger[S, None]: ...
@overload
def after(
    *,
    weeks: float = 0,
    days: float = 0,
    hours: float = 0,
    minutes: float = 0,
    seconds: float = 0,
    milliseconds: float = 0,
) -> Trigger[State, None]: ...
def after(delay: Any = None, /, **parts: float) -> Any:
    """Complete a while after the state is entered: at an absolute deadline, fixed then, that never restarts.

    Args:
        delay: A ``timedelta``, or a function of the state that returns one.
        **parts: Or its parts: ``weeks days hours minutes seconds milliseconds``.

    Returns:
        A trigger with the outcome ``None``.

    Raises:
        DefinitionError: Not a duration, or a negative one.
    """
    where = here()
    if delay is None:
        if not parts:
            raise DefinitionError("after() waits how long? Write after(minutes=30) or after(timedelta(…))", where)
        try:
            delay = timedelta(**parts)
        except (TypeError, OverflowError) as error:
            raise DefinitionError(f"after(…): {error}", where) from error
    elif parts:
        raise DefinitionError("after(…) takes either a timedelta or its parts, not both", where)
    if not callable(delay):
        duration(delay, "after(…)", where, least=timedelta())
    return Deadline[Any](delay, relative=True, where=where)


@overload
def at(when: datetime, /) -> Trigger[State, None]: ...
@overload
def at(when: Callable[[S], datetime], /) -> Trigger[S, None]: ...
def at(when: Any, /) -> Any:
    """Complete at an instant.

    Args:
        when: A ``datetime`` with a time zone, or a function of the state that returns one.

    Returns:
        A trigger with the outcome ``None``.

    Raises:
        DefinitionError: Not a ``datetime``, or one without a time zone.
    """
    where = here()
    if not callable(when):
        instant(when, where)
    return Deadline[Any](when, relative=False, where=where)


@overload
def poll(
    fn: Callable[[S, Context[Any, Any]], Awaitable[T | None]],
    *,
    every: timedelta | Callable[[S], timedelta],
    timeout: timedelta | float | None = None,
    backoff: float | None = None,
) -> Poll[S, T]: ...
@overload
def poll(
    fn: Callable[[S, Context[Any, Any]], Awaitable[T | None] | T | None],
    *,
    every: timedelta | Callable[[S], timedelta],
    timeout: timedelta | float | None = None,
    backoff: float | None = None,
) -> Poll[S, T]: ...
def poll(fn: Any, *, every: Any, timeout: Any = None, backoff: Any = None) -> Any:
    """Call ``fn(state, context)`` again and again until it returns something other than ``None``.

    Args:
        fn: A plain or ``async`` function.
        every: The pause between polls: a ``timedelta``, or a function of the state that returns one.
        timeout: What one attempt may take: a ``timedelta``, or seconds.
        backoff: The factor, 1 or more, by which the pause grows with each poll, up to a day.

    Returns:
        A trigger whose outcome is what ``fn`` returned.

    Raises:
        DefinitionError: An argument of the wrong type or range.
    """
    where = here()
    function(fn, "poll(…)", where)
    if not callable(every):
        duration(every, "poll(every=…)", where)
    factor: Any = backoff
    if factor is not None and (isinstance(factor, bool) or not isinstance(factor, int | float) or not factor >= 1):
        raise DefinitionError(f"poll(backoff={factor!r}): give a factor of 1 or more, backoff=1.5", where)
    return Poll[Any, Any](fn, every, timeout_s_of(timeout, "poll(timeout=…)", where), backoff, where)


@overload
def call(
    fn: Callable[[S, Context[Any, Any]], Awaitable[T] | T],
    *,
    timeout: timedelta | float | None = None,
    retry: Retry = ...,
) -> Call[S, T]: ...
@overload
def call(
    fn: Callable[[S, Context[Any, Any]], Awaitable[T]],
    *,
    timeout: timedelta | float | None = None,
    retry: Retry = ...,
) -> Call[S, T]: ...
def call(fn: Any, *, timeout: Any = None, retry: Any = None) -> Any:
    """Call ``fn(state, context)`` until it returns; for a short piece of I/O. It runs at least once, maybe more.

    Args:
        fn: A plain or ``async`` function; ``context.attempt_id`` is the same each time, for idempotent services.
        timeout: What one attempt may take: a ``timedelta``, or seconds.
        retry: How often and how spaced an exception is retried.

    Returns:
        A trigger whose outcome is what ``fn`` returned, or ``Failed`` when ``retry`` is exhausted.

    Raises:
        DefinitionError: An argument of the wrong type or range.
    """
    where = here()
    function(fn, "call(…)", where)
    return Call[Any, Any](fn, timeout_s_of(timeout, "call(timeout=…)", where), retry_of(retry, "call", where), where)


def wait(fn: Callable[[S, Context[Any, Any]], Awaitable[T]], *, retry: Retry | None = None) -> Wait[S, T]:
    """Run the coroutine ``fn(state, context)`` for as long as it takes; many thousands can be pending in one process.

    Args:
        fn: An ``async`` function. It is started again elsewhere when its process dies.
        retry: How often and how spaced an exception is retried.

    Returns:
        A trigger whose outcome is what the coroutine returned, or ``Failed`` when ``retry`` is exhausted.

    Raises:
        DefinitionError: An argument of the wrong type.
    """
    where = here()
    function(fn, "wait(…)", where)
    return Wait(fn, retry_of(retry, "wait", where), where)


@overload
def channel(name: str, where: None = None, payload_type: None = None) -> Channel[State, Any]: ...
@overload
def channel(name: str, where: None = None, *, payload_type: type[T]) -> Channel[State, T]: ...
@overload
def channel(name: str, where: None = None, *, decode: Callable[[bytes], T]) -> Channel[State, T]: ...
@overload
def channel(name: str, where: Callable[[Any, S], bool], payload_type: None = None) -> Channel[S, Any]: ...
@overload
def channel(name: str, where: Callable[[T, S], bool], payload_type: type[T]) -> Channel[S, T]: ...
@overload
def channel(name: str, where: Callable[[T, S], bool], *, decode: Callable[[bytes], T]) -> Channel[S, T]: ...
@overload
def channel(
    name: Callable[[S], str], where: Callable[[Any, S], bool] | None = None, payload_type: None = None
) -> Channel[S, Any]: ...
@overload
def channel(
    name: Callable[[S], str], where: Callable[[T, S], bool] | None = None, *, payload_type: type[T]
) -> Channel[S, T]: ...
@overload
def channel(
    name: Callable[[S], str], where: Callable[[T, S], bool] | None = None, *, decode: Callable[[bytes], T]
) -> Channel[S, T]: ...
def channel(name: Any, where: Any = None, payload_type: Any = None, *, decode: Any = None) -> Any:
    """Complete with a message on a plain Redis pub/sub channel. What is published while nobody listens is missed.

    Args:
        name: The channel, or a function of the state that returns it. Not relative to anything: as published.
        where: A predicate ``(message, state) -> bool``; a message it refuses is passed over.
        payload_type: The type of a message, as for a signal; without it the handler's annotation says.
        decode: Makes the message of the raw bytes, for channels that do not carry JSON.

    Returns:
        A trigger whose outcome is the message.

    Raises:
        DefinitionError: An argument of the wrong type.
    """
    place = here()
    if not callable(name):
        nonempty(name, "channel(…)", place)
    for given, argument in ((where, "where"), (decode, "decode")):
        if given is not None and not callable(given):
            raise DefinitionError(f"channel({argument}={type_name(given)}): give a function", place)
    if payload_type is not None and decode is not None:
        raise DefinitionError("channel(…) takes payload_type= for JSON or decode= for other bytes, not both", place)
    return Channel[Any, Any](name, where, payload_type, decode, place)


@overload
def task(signature: SignatureLike) -> TaskTrigger[State, Any]: ...
@overload
def task(signature: Callable[[S], SignatureLike]) -> TaskTrigger[S, Any]: ...
def task(signature: Any) -> Any:
    """Send a Celery task and complete when it has finished. Needs no result back end.

    Args:
        signature: A Celery signature such as ``add.s(1, 2)``, or a function of the state that returns one.

    Returns:
        A trigger whose outcome is the task's result, or ``Failed``.

    Raises:
        DefinitionError: Neither a signature nor a function.
    """
    where = here()
    if not is_signature(signature) and (hasattr(signature, "apply_async") or not callable(signature)):
        raise DefinitionError(f"task({type_name(signature)}): give a signature, task(add.s(1, 2))", where)
    return TaskTrigger[Any, Any](signature, where)


@overload
def reached(operation_id: str, s1: type[A], /) -> Reached[State, A]: ...
@overload
def reached(operation_id: str, s1: type[A], s2: type[B], /) -> Reached[State, A | B]: ...
@overload
def reached(operation_id: str, s1: type[A], s2: type[B], s3: type[C], /) -> Reached[State, A | B | C]: ...
@overload
def reached(
    operation_id: str, s1: type[A], s2: type[B], s3: type[C], s4: type[D], /
) -> Reached[State, A | B | C | D]: ...
@overload
def reached(operation_id: Callable[[S], str], s1: type[A], /) -> Reached[S, A]: ...
@overload
def reached(operation_id: Callable[[S], str], s1: type[A], s2: type[B], /) -> Reached[S, A | B]: ...
@overload
def reached(operation_id: Callable[[S], str], s1: type[A], s2: type[B], s3: type[C], /) -> Reached[S, A | B | C]: ...
@overload
def reached(
    operation_id: Callable[[S], str], s1: type[A], s2: type[B], s3: type[C], s4: type[D], /
) -> Reached[S, A | B | C | D]: ...
@overload
def reached(
    operation_id: str, s1: type[A], s2: type[A], s3: type[A], s4: type[A], s5: type[A], /, *more: type[A]
) -> Reached[State, A]: ...
@overload
def reached(
    operation_id: Callable[[S], str], s1: type[A], s2: type[A], s3: type[A], s4: type[A], s5: type[A], /, *more: type[A]
) -> Reached[S, A]: ...
def reached(operation_id: Any, /, *states: Any) -> Any:
    """Complete when a machine of an operation is, or has ever been, in one of some states.

    Args:
        operation_id: The operation, or a function of the state that returns it.
        *states: State classes, of any module.

    Returns:
        A trigger whose outcome is the state.

    Raises:
        DefinitionError: No state class given, or something else.
    """
    where = here()
    if not callable(operation_id):
        nonempty(operation_id, "reached(…)", where)
    if not states or not all(isinstance(state, type) for state in states):
        raise DefinitionError(
            "reached(…) waits for which states? Write reached(operation_id, Shipped, Cancelled)", where
        )
    return Reached[Any, Any](operation_id, states, where)


@overload
def finished(operation_id: str) -> Trigger[State, None]: ...
@overload
def finished(operation_id: Callable[[S], str]) -> Trigger[S, None]: ...
def finished(operation_id: Any) -> Any:
    """Complete when an operation has had states and none is active any more.

    Args:
        operation_id: The operation, or a function of the state that returns it.

    Returns:
        A trigger with the outcome ``None``.

    Raises:
        DefinitionError: Neither text nor a function.
    """
    where = here()
    if not callable(operation_id):
        nonempty(operation_id, "finished(…)", where)
    return Finished[Any](operation_id, where)


def now() -> Trigger[State, None]:
    """Complete at once, with the outcome ``None``."""
    return Now(here())


def retry_of(value: Any, what: str, where: str) -> Retry:
    """Check a ``retry=``; none: the default one."""
    if value is None:
        return Retry()
    if not isinstance(value, Retry):
        raise DefinitionError(f"{what}(retry=…) got {type_name(value)}: give Retry(max_attempts=…)", where)
    return value

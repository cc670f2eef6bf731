"""What a state can wait for, as the engine reads it.

A trigger is a description. It holds no connection, runs nothing and knows no instance of its module; where it has a
value (duration, deadline, channel, operation id) that may be a function of the state.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal

from smqueue.checks import duration, instant, is_signature, named, nonempty, of_state, shown, type_name
from smqueue.errors import DefinitionError, InvalidOutcome
from smqueue.retry import Failed, Retry
from smqueue.schemas import Codec, ValidationProblem, codec_for

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    from smqueue.modules import Module
    from smqueue.states import State

    S_contra = TypeVar("S_contra", contravariant=True, default=Any)
    O_co = TypeVar("O_co", covariant=True, default=Any)
    P = TypeVar("P", default=Any)
else:  # defaults of type variables come with Python 3.13; only type checkers need them
    from typing import TypeVar

    S_contra = TypeVar("S_contra", contravariant=True)
    O_co = TypeVar("O_co", covariant=True)
    P = TypeVar("P")

Kind = Literal["signal", "deadline", "poll", "call", "wait", "channel", "task", "reached", "finished", "now", "cancel"]

DAY_MS = 86_400_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
LAST_US = (datetime.max.replace(tzinfo=UTC) - EPOCH) // MICROSECOND  # later instants have no datetime


class Trigger(Generic[S_contra, O_co]):
    """Something that a state waits for: completes once, with an outcome.

    Generic in the state whose machines may wait for it and in the type of its outcome.

    Attributes:
        kind: Which of the ten; ``cancel`` is none that a state can wait for.
        where: The place in the user's code that made it, ``file:line``.
    """

    kind: ClassVar[Kind]
    where: str

    @property
    def text(self) -> str:
        """The trigger in a few words, for diagrams and ``explain``."""
        return self.kind


class Signal(Trigger["State", P]):
    """A signal that a module declares; made by ``module.signal``, used as a trigger and to send.

    Attributes:
        name: Unique in its module.
        module: The module that declares it.
        payload_type: As declared; ``None`` for a signal without payload.
        codec: Encodes and checks the payload.
    """

    kind = "signal"

    def __init__(self, name: str, module: Module[Any], payload_type: Any, codec: Codec[Any], where: str) -> None:
        self.name = name
        self.module = module
        self.payload_type = payload_type
        self.codec = codec
        self.where = where

    @property
    def text(self) -> str:
        """The trigger in a few words."""
        return f"signal {self.name}"

    def __repr__(self) -> str:
        return f"<Signal {self.name} of {self.module.name}>"


class Deadline(Trigger[S_contra, None]):
    """Completes at an instant that is fixed when the state is entered."""

    kind = "deadline"

    def __init__(self, when: Any, *, relative: bool, where: str) -> None:
        self.when = when
        self.relative = relative
        self.where = where

    def due_us(self, state: State, entered_us: int) -> int:
        """Return the deadline of ``state`` entered at ``entered_us``; both in microseconds since the epoch, UTC."""
        value = of_state(self.when, state)
        if self.relative:
            due_us = entered_us + duration(value, "after(…)", self.where, least=None) // MICROSECOND
        else:
            due_us = (instant(value, self.where) - EPOCH) // MICROSECOND
        return max(0, min(due_us, LAST_US))

    @property
    def text(self) -> str:
        """The trigger in a few words."""
        return f"{'after' if self.relative else 'at'} {shown(self.when)}"


class Poll(Trigger[S_contra, O_co]):
    """Asks again and again until the answer is not ``None``."""

    kind = "poll"

    def __init__(
        self, fn: Callable[..., Any], every: Any, timeout_s: float | None, backoff: float | None, where: str
    ) -> None:
        self.fn = fn
        self.every = every
        self.timeout_s = timeout_s
        self.backoff = backoff
        self.where = where

    def every_ms(self, state: State, polls: int) -> int:
        """Return the pause after poll number ``polls`` (from 0), in ms; it grows by back-off up to a day."""
        every = duration(of_state(self.every, state), "poll(every=…)", self.where)
        every_ms = max(every // timedelta(milliseconds=1), 1)
        if self.backoff is None:
            return every_ms
        try:
            grown = every_ms * self.backoff**polls
        except OverflowError:
            grown = float(DAY_MS)
        return max(every_ms, int(min(grown, DAY_MS)))

    @property
    def text(self) -> str:
        """The trigger in a few words."""
        return f"poll {named(self.fn)} every {shown(self.every)}"


class Call(Trigger[S_contra, O_co | Failed], Generic[S_contra, O_co]):
    """Calls a function until it returns, or ``retry`` is exhausted."""

    kind = "call"

    def __init__(self, fn: Callable[..., Any], timeout_s: float | None, retry: Retry, where: str) -> None:
        self.fn = fn
        self.timeout_s = timeout_s
        self.retry = retry
        self.where = where

    @property
    def text(self) -> str:
        """The trigger in a few words."""
        return f"call {named(self.fn)}"


class Wait(Trigger[S_contra, O_co | Failed], Generic[S_contra, O_co]):
    """Runs a coroutine, for as long as it takes."""

    kind = "wait"

    def __init__(self, fn: Callable[..., Any], retry: Retry, where: str) -> None:
        self.fn = fn
        self.retry = retry
        self.where = where

    @property
    def text(self) -> str:
        """The trigger in a few words."""
        return f"wait {named(self.fn)}"


class Channel(Trigger[S_contra, O_co]):
    """Listens to a plain Redis pub/sub channel.

    Attributes:
        where_fn: The predicate ``(message, state) -> bool``, or ``None``.
        payload_type: The type of a message, if given; else the handler's annotation says.
        codec: Loads a JSON message of ``payload_type``; ``None`` when that is not given.
        decode: Makes the message of the raw bytes, instead of JSON; or ``None``.
    """

    kind = "channel"

    def __init__(self, name: Any, where_fn: Any, payload_type: Any, decode: Any, where: str) -> None:
        self.name = name
        self.where_fn = where_fn
        self.payload_type = payload_type
        self.decode = decode
        self.where = where
        self.codec: Codec[Any] | None = (
            None if payload_type is None else codec_for(payload_type, identity=False, where=f"channel ({where})")
        )

    def name_for(self, state: State) -> str:
        """Return the channel that a machine in ``state`` listens to."""
        return nonempty(of_state(self.name, state), "channel(…)", self.where)

    def message(self, raw: bytes, outcome: Codec[Any]) -> Any:
        """Return the message that ``raw`` holds.

        Args:
            raw: As published.
            outcome: The codec of the handler, for a channel without ``payload_type``.

        Raises:
            InvalidOutcome: Not JSON, or JSON of another form. What a ``decode`` function raises is raised as it is.
        """
        if self.decode is not None:
            return self.decode(raw)
        try:
            return (self.codec or outcome).load(json.loads(raw))
        except ValidationProblem as problem:
            raise InvalidOutcome(problem.field, problem.problem) from problem
        except ValueError as error:
            raise InvalidOutcome("message", f"not JSON: {error}") from error

    def accepts(self, message: Any, state: State) -> bool:
        """Return whether the predicate, if there is one, lets ``message`` pass."""
        return self.where_fn is None or bool(self.where_fn(message, state))

    @property
    def text(self) -> str:
        """The trigger in a few words."""
        return f"channel {shown(self.name)}"


class TaskTrigger(Trigger[S_contra, O_co | Failed], Generic[S_contra, O_co]):
    """Sends a Celery task and waits for its end."""

    kind = "task"

    def __init__(self, signature: Any, where: str) -> None:
        self.signature = signature
        self.where = where

    def signature_for(self, state: State) -> Any:
        """Return the Celery signature to send for ``state``."""
        given = self.signature if is_signature(self.signature) else self.signature(state)
        if not is_signature(given):
            raise DefinitionError(
                f"task(…): its function returned {type_name(given)}, not a Celery signature", self.where
            )
        return given

    @property
    def text(self) -> str:
        """The trigger in a few words."""
        return f"task {self.signature['task']}" if is_signature(self.signature) else "task of the state"


class Reached(Trigger[S_contra, O_co]):
    """Completes when a machine of an operation has ever been in one of some states."""

    kind = "reached"

    def __init__(self, operation: Any, states: tuple[type[State], ...], where: str) -> None:
        self.operation = operation
        self.states = states
        self.where = where

    def operation_for(self, state: State) -> str:
        """Return the id of the operation that is watched."""
        return nonempty(of_state(self.operation, state), "reached(…)", self.where)

    @property
    def text(self) -> str:
        """The trigger in a few words."""
        return f"reached {shown(self.operation)} {' or '.join(state.__name__ for state in self.states)}"


class Finished(Trigger[S_contra, None]):
    """Completes when an operation has had states and none is active."""

    kind = "finished"

    def __init__(self, operation: Any, where: str) -> None:
        self.operation = operation
        self.where = where

    def operation_for(self, state: State) -> str:
        """Return the id of the operation that is watched."""
        return nonempty(of_state(self.operation, state), "finished(…)", self.where)

    @property
    def text(self) -> str:
        """The trigger in a few words."""
        return f"finished {shown(self.operation)}"


class Now(Trigger["State", None]):
    """Completes at once."""

    kind = "now"

    def __init__(self, where: str) -> None:
        self.where = where


class Cancel(Trigger[S_contra, "str | None"]):
    """What stands in a trigger's place for a cancel handler: it never races, and its outcome is the reason."""

    kind = "cancel"

    def __init__(self, where: str) -> None:
        self.where = where

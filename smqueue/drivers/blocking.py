"""The blocking driver: runs a protocol over one connection, below redis-py's pipelines.

WATCH and the reads go out in one packed write, MULTI … EXEC in another: a pipeline would need three round trips.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Generic, TypeVar, cast

from redis.exceptions import AskError, NoScriptError, ReadOnlyError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError

from smqueue.drivers.circuit import Circuit
from smqueue.drivers.cluster import slot_of
from smqueue.drivers.connect import ELSEWHERE, LOST, ONE_SLOT, exchange, receive, send, shown, translated
from smqueue.drivers.doorbell import Doorbell
from smqueue.drivers.driver import Later, Started
from smqueue.drivers.line import Line
from smqueue.drivers.nodes import Nodes, nodes_of
from smqueue.drivers.scripts import script
from smqueue.errors import NotReplicated, StoreRefused, StoreUnavailable
from smqueue.roundtrip import Call, Calls, Command, Commit, LostReply, Pause, Read, RoundTrip, Run, Steps, single

T = TypeVar("T")
MAX_LOST = 3
"""After how many lost replies in a row a protocol is given up, and its caller told that there is no answer."""
ELSEWHERE_S = 5.0
"""For how long a node of a cluster is sought that serves a slot, in seconds."""
REPLICA_MS = 2_000
"""For how long a replica is waited for: less than an answer, and than a lease."""


class Blocking:
    """Runs protocols, one at a time per thread; safe to share between threads, and after a fork.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``; of sentinels ``redis+sentinel://host:port,…/service``; of a
            cluster ``redis+cluster://host:port,…``.
        durability: ``"fsync"``: servers that write to disk before they answer, or none; ``"replica"``: no commit is
            acknowledged before a replica has it.
    """

    def __init__(self, url: str, durability: str | None = None) -> None:
        self.url, self.durability = url, durability
        self._lock, self._lock_pid = threading.Lock(), os.getpid()
        self._opened: Nodes | None = None
        self._pid = 0
        self._circuit = Circuit()

    def run(self, steps: Steps[T]) -> T:
        """Run a protocol to its end.

        Raises:
            StoreUnavailable: No answer; whether the last request was applied is not known.
            NotReplicated: No replica has it in time; whether it was applied is not known.
            StoreRefused: The server does not take our commands.
            Exception: What the protocol raised.
        """
        return self.go_on(Run(steps), Line(self.nodes()))

    def start(self, steps: Steps[T]) -> Started[T]:
        """Begin a protocol: if it asks for a script first, that is sent, and the server works while the caller does."""
        return Begun(self, steps) if self.overlaps else Later(self, steps)

    @property
    def overlaps(self) -> bool:
        """Whether that is worth it: not where each reply waits for a replica."""
        return self.durability != "replica"

    def go_on(self, run: Run[T], line: Line) -> T:
        """Run a protocol that has begun to its end; see ``run``."""
        lost, doubt = 0, False
        with line:
            while run.request is not None:
                reply = self._trip(line, run.request)
                lost = lost + 1 if isinstance(reply, LostReply) else 0
                if lost > MAX_LOST:
                    run.steps.close()
                    raise StoreUnavailable(shown(self.url), str(cast("LostReply", reply).__cause__ or "no answer"))
                if lost:
                    line.leave()
                    doubt = True
                run.answer(reply)
            if doubt or line.watching:  # ended on a look
                self._end(line)
        if isinstance(run.error, LostReply):
            raise StoreUnavailable(shown(self.url), str(run.error.__cause__ or "no answer")) from None
        if isinstance(run.error, RedisError):
            raise translated(self.url, run.error) from None
        return run.result()

    def command(self, *args: Any) -> Any:
        """One command outside of any protocol, for looks that need none."""
        return self.run(single(*args))

    def doorbell(self, *channels: str) -> Doorbell:
        """A doorbell that rings for any of these channels."""
        return Doorbell(self.nodes(), *channels)

    def close(self) -> None:
        """Close all connections."""
        if self._opened is not None and self._pid == os.getpid():
            self._opened.close()

    def nodes(self) -> Nodes:
        """The servers as this process knows them; after a fork anew."""
        if self._opened is None or self._pid != os.getpid():
            if self._lock_pid != os.getpid():
                self._lock, self._lock_pid = threading.Lock(), os.getpid()  # held at a fork, it would stay held
            with self._lock:
                if self._opened is None or self._pid != os.getpid():
                    self._opened = nodes_of(self.url, self.durability, self._circuit)
                    self._pid = os.getpid()
        return self._opened

    def _trip(self, line: Line, request: RoundTrip) -> Any:
        """The reply; ``None`` for a conflict; an exception, to be thrown into the protocol, as a value."""
        watching, until = line.watching, None
        while True:
            try:
                return self._ask(line, request)
            except LOST as error:
                line.disconnect()
                return _lost(error)
            except ReadOnlyError as error:  # a replica by now; also what was under way was not applied, if it was one
                if line.renewed:  # so it is no old connection, but where the URL leads to
                    return translated(self.url, error)
                line.renew()
                if watching or isinstance(request, Calls) or self.durability == "replica":
                    return _lost(error)
            except ELSEWHERE as error:  # certainly not applied, if it was one request
                line.astray()
                if isinstance(request, Calls):
                    time.sleep(0.02)
                    return _lost(error)
                if isinstance(error, AskError) and line.key is not None and error.slot_id != slot_of(line.key):
                    return StoreRefused(shown(self.url), f"a key is in another slot than {line.key!s}: {ONE_SLOT}")
                if watching:  # what it rests on may change before it is watched elsewhere: the protocol looks again
                    return None if isinstance(request, Commit) else _lost(error)
                until = until or time.monotonic() + ELSEWHERE_S
                if not line.many or time.monotonic() > until:
                    raise translated(self.url, error) from None
                time.sleep(0.02)
            except StoreRefused as error:
                return error

    def _ask(self, line: Line, request: RoundTrip) -> Any:
        if isinstance(request, Pause):
            time.sleep(request.ms / 1000)
            return None
        connection = line.to(request)
        match request:
            case Read(watch, commands):
                first: list[Command] = [("WATCH", *watch)] if watch else []
                line.watching = line.watching or bool(watch)
                replies = exchange(connection, [*first, *commands])
                self.refuse(replies[: len(first)])
                return replies[len(first) :]
            case Commit(commands):
                confirm = self._confirm(line)  # of an empty one too: a verdict rests on what it has seen to hold still
                sent = exchange(connection, [("MULTI",), *commands, ("EXEC",), *confirm])
                line.watching = False
                replies = sent[len(commands) + 1]
                if isinstance(replies, Exception):  # a command was refused: its own error says more than EXEC's
                    self.refuse(sent)
                if replies is not None:
                    self._see_confirmed(sent[len(commands) + 2 :])
                return replies
            case Call():
                (reply,) = self._call(line, connection, [request])
                self.refuse([reply])
                return self.told(reply)
            case Calls(calls):
                return [self.told(one) for one in self._call(line, connection, calls)]

    def told(self, reply: Any) -> Any:
        """The reply of a script, with errors as values, those of a caller among several, too."""
        if isinstance(reply, list):
            return [self.told(one) if isinstance(one, RedisError) else one for one in reply]
        return translated(self.url, reply) if isinstance(reply, RedisError) else reply

    def _call(self, line: Line, connection: Any, calls: Sequence[Call]) -> list[Any]:
        """Run scripts by their digests; those that the server does not know yet, by their text."""
        return self.called(line, connection, calls, send(connection, self.calling(line, calls)))

    def calling(self, line: Line, calls: Sequence[Call], by_text: bool = False) -> list[Command]:
        """Scripts as they are sent: those that are commits within MULTI/EXEC, all or nothing each."""
        commands: list[Command] = []
        for call in calls:
            code, keys = script(call.script), line.guarded(call.keys)
            named = ("EVAL", code.text) if by_text else ("EVALSHA", code.sha)
            commands.append((*named, len(keys), *keys, *call.args, *call.own))
        if any(call.commits for call in calls):
            commands = [("MULTI",), *commands, ("EXEC",)]
        return [*commands, *self._confirm(line)]

    def called(self, line: Line, connection: Any, calls: Sequence[Call], sent: int) -> list[Any]:
        """The replies to scripts that were sent, with so many commands."""
        found = receive(connection, sent)
        count = len(calls)
        if any(call.commits for call in calls):
            line.watching = False
            replies = found[count + 1]
            if not isinstance(replies, list):  # one was refused: its own error says more than EXEC's
                self.refuse(found)
                raise RedisConnectionError("something was watched, and has changed")
            found = [*replies, *found[count + 2 :]]
        self._see_confirmed(found[count:])
        replies = found[:count]
        if unknown := [place for place, reply in enumerate(replies) if isinstance(reply, NoScriptError)]:
            told = [calls[place] for place in unknown]
            again = self.called(line, connection, told, send(connection, self.calling(line, told, by_text=True)))
            for place, reply in zip(unknown, again, strict=True):
                replies[place] = reply
        return replies

    def _end(self, line: Line) -> None:
        """Leave no WATCH; and what was seen is told to the caller: it has to be safe too."""
        commands = (("UNWATCH",), *self._confirm(line))
        reply = self._trip(line, Read((), commands)) if line.watching or len(commands) > 1 else [None]
        line.watching = False
        if self.durability == "replica":
            self._see_confirmed(reply[1:] if isinstance(reply, list) else [reply])

    def _confirm(self, line: Line) -> list[Command]:
        """Wait for a replica, in the same trip.

        WAIT is for what this connection has written itself. (Of one that has only read, Redis 7.0 waits for all that
        it may have seen, but Valkey 9.1 for nothing.) So it writes, whatever the request itself has done.
        """
        if self.durability != "replica" or line.key is None:
            return []
        return [("HSET", line.beside("meta"), "confirmed", 1), ("WAIT", 1, REPLICA_MS)]

    def _see_confirmed(self, replies: Sequence[Any]) -> None:
        if replies and not (isinstance(replies[-1], int) and replies[-1] >= 1):
            problem = str(replies[-1]) if isinstance(replies[-1], Exception) else f"for {REPLICA_MS / 1000:g} s"
            raise NotReplicated(shown(self.url), problem)

    def refuse(self, replies: Sequence[Any]) -> None:
        """Raise the first error among replies, as one of ours."""
        for reply in replies:
            if isinstance(reply, Exception):
                raise translated(self.url, reply)


class Begun(Generic[T]):
    """A protocol whose first scripts are sent when it begins.

    What fails meanwhile is no error of who begins it: its protocol is told, or asks again, when the result is wanted.
    """

    def __init__(self, driver: Blocking, steps: Steps[T]) -> None:
        self._driver, self._run = driver, Run(steps)
        self._line, self._connection, self._sent = Line(driver.nodes()), None, 0
        match self._run.request:
            case Call() as call:
                self._calls: Sequence[Call] = (call,)
            case Calls(calls):
                self._calls = calls
            case _:
                return
        with suppress(StoreUnavailable):  # then all of it is asked for later, which says so
            self._try(self._send)

    def result(self) -> T:
        """Read the reply, and go on to the end; raises as ``Blocking.run``."""
        if self._sent:
            self._try(self._receive)
            self._sent = 0
        return self._driver.go_on(self._run, self._line)

    def abandon(self) -> None:
        """Do not go on; what was sent may be applied."""
        if self._sent:
            self._hang_up()
            self._run.steps.close()

    def _send(self) -> None:
        assert self._run.request is not None
        self._connection = self._line.to(self._run.request)
        self._sent = send(self._connection, self._driver.calling(self._line, self._calls))

    def _receive(self) -> None:
        replies = self._driver.called(self._line, self._connection, self._calls, self._sent)
        told = [self._driver.told(reply) for reply in replies]
        if isinstance(self._run.request, Call):
            self._driver.refuse(told)
        self._run.answer(told if isinstance(self._run.request, Calls) else told[0])

    def _try(self, act: Callable[[], None]) -> None:
        try:
            act()
        except StoreRefused as error:
            self._hang_up()
            self._run.answer(error)
        except (*LOST, *ELSEWHERE, ReadOnlyError) as error:
            self._hang_up()
            if isinstance(error, LOST) or isinstance(self._run.request, Calls):
                self._run.answer(_lost(error))
            # else it was certainly not applied, and is asked again
        except BaseException:
            self._hang_up()
            raise

    def _hang_up(self) -> None:
        self._sent = 0
        self._line.disconnect()
        self._line.leave()


def _lost(cause: Exception) -> LostReply:
    lost = LostReply()
    lost.__cause__ = cause
    return lost

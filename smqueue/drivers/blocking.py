"""The blocking driver: runs a protocol over one connection, below redis-py's pipelines.

WATCH and the reads go out in one packed write, MULTI … EXEC in another: a pipeline would need three round trips.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from typing import Any, TypeVar, cast

from redis.exceptions import AskError, NoScriptError, ReadOnlyError, RedisError

from smqueue.drivers.circuit import Circuit
from smqueue.drivers.cluster import slot_of
from smqueue.drivers.connect import ELSEWHERE, LOST, ONE_SLOT, exchange, shown, translated
from smqueue.drivers.doorbell import Doorbell
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
        run = Run(steps)
        lost, doubt = 0, False
        with Line(self.nodes()) as line:
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
                self._refuse(replies[: len(first)])
                return replies[len(first) :]
            case Commit(commands):
                confirm = self._confirm(line)  # of an empty one too: a verdict rests on what it has seen to hold still
                sent = exchange(connection, [("MULTI",), *commands, ("EXEC",), *confirm])
                line.watching = False
                replies = sent[len(commands) + 1]
                if isinstance(replies, Exception):  # a command was refused: its own error says more than EXEC's
                    self._refuse(sent)
                if replies is not None:
                    self._see_confirmed(sent[len(commands) + 2 :])
                return replies
            case Call():
                (reply,) = self._call(line, connection, [request])
                self._refuse([reply])
                return self._told(reply)
            case Calls(calls):
                return [self._told(one) for one in self._call(line, connection, calls)]

    def _told(self, reply: Any) -> Any:
        """The reply of a script, with errors as values, those of a caller among several, too."""
        if isinstance(reply, list):
            return [self._told(one) if isinstance(one, RedisError) else one for one in reply]
        return translated(self.url, reply) if isinstance(reply, RedisError) else reply

    def _call(self, line: Line, connection: Any, calls: Sequence[Call]) -> list[Any]:
        """Run scripts by their digests; those that the server does not know yet, by their text."""
        confirm = self._confirm(line)
        commits = any(call.commits for call in calls)
        named = [(script(call.script), line.guarded(call.keys), call.args + call.own) for call in calls]

        def send(commands: list[Command]) -> list[Any]:
            if not commits:
                return exchange(connection, [*commands, *confirm])
            sent = exchange(connection, [("MULTI",), *commands, ("EXEC",), *confirm])
            line.watching = False
            if not isinstance(replies := sent[len(commands) + 1], list):
                self._refuse(sent)
            return [*replies, *sent[len(commands) + 2 :]]

        replies = send([("EVALSHA", code.sha, len(keys), *keys, *args) for code, keys, args in named])
        if unknown := [place for place, reply in enumerate(replies) if isinstance(reply, NoScriptError)]:
            told = [named[place] for place in unknown]
            texts = send([("EVAL", code.text, len(keys), *keys, *args) for code, keys, args in told])
            for place, reply in zip(unknown, texts, strict=False):
                replies[place] = reply
        self._see_confirmed(replies[len(calls) :])
        return replies[: len(calls)]

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

    def _refuse(self, replies: Sequence[Any]) -> None:
        for reply in replies:
            if isinstance(reply, Exception):
                raise translated(self.url, reply)


def _lost(cause: Exception) -> LostReply:
    lost = LostReply()
    lost.__cause__ = cause
    return lost

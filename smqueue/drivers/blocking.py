"""The blocking driver: runs a protocol over one connection, below redis-py's pipelines.

WATCH and the reads go out in one packed write, MULTI … EXEC in another: a pipeline would need three round trips.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import hiredis
import redis
from redis.exceptions import NoScriptError, RedisError, ResponseError

from smqueue.drivers.connect import LOST, check_version, pool_of, shown, translated
from smqueue.drivers.doorbell import Doorbell
from smqueue.drivers.scripts import script
from smqueue.errors import StoreRefused, StoreUnavailable
from smqueue.roundtrip import Call, Command, Commit, LostReply, Pause, Read, RoundTrip, Run, Steps

T = TypeVar("T")
pack = cast("Any", hiredis).pack_command
MAX_LOST = 3
"""After how many lost replies in a row a protocol is given up, and its caller told that there is no answer."""


class Blocking:
    """Runs protocols, one at a time per thread; safe to share between threads, and after a fork.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._lock, self._lock_pid = threading.Lock(), os.getpid()
        self._pool: redis.ConnectionPool | None = None
        self._pid = 0

    def run(self, steps: Steps[T]) -> T:
        """Run a protocol to its end.

        Raises:
            StoreUnavailable: No answer; whether the last request was applied is not known.
            StoreRefused: The server does not take our commands.
            Exception: What the protocol raised.
        """
        run = Run(steps)
        lost = 0
        with self._connection() as connection:
            while run.request is not None:
                reply = self._trip(connection, run.request)
                lost = lost + 1 if isinstance(reply, LostReply) else 0
                if lost > MAX_LOST:
                    run.steps.close()
                    raise StoreUnavailable(shown(self.url), str(cast("LostReply", reply).__cause__ or "no answer"))
                run.answer(reply)
            if run.watched and connection.is_connected:  # ended on a look
                self._trip(connection, Read((), (("UNWATCH",),)))
        if isinstance(run.error, LostReply):
            raise StoreUnavailable(shown(self.url), str(run.error.__cause__ or "no answer")) from None
        if isinstance(run.error, RedisError):
            raise translated(self.url, run.error) from None
        return run.result()

    def command(self, *args: Any) -> Any:
        """One command outside of any protocol, for looks that need none."""
        return self.run(_single(args))

    def doorbell(self, *channels: str) -> Doorbell:
        """A doorbell that rings for any of these channels."""
        return Doorbell(self.url, *channels)

    def close(self) -> None:
        """Close all connections."""
        if self._pool is not None and self._pid == os.getpid():
            self._pool.disconnect()

    @contextmanager
    def _connection(self) -> Generator[Any]:
        pool = self._open()
        try:
            connection: Any = pool.get_connection()
        except (RedisError, OSError) as error:
            raise translated(self.url, error) from None
        try:
            yield connection
        except BaseException:
            connection.disconnect()  # its WATCHes, and replies that nobody read
            raise
        finally:
            pool.release(connection)

    def _open(self) -> redis.ConnectionPool:
        """The pool of this process; after a fork another one."""
        if self._pool is None or self._pid != os.getpid():
            if self._lock_pid != os.getpid():
                self._lock, self._lock_pid = threading.Lock(), os.getpid()  # held at a fork, it would stay held
            with self._lock:
                if self._pool is None or self._pid != os.getpid():
                    pool = pool_of(self.url)
                    try:
                        connection: Any = pool.get_connection()
                        info: Any = _send(connection, [("INFO", "server")])[0]
                        pool.release(connection)
                    except (RedisError, OSError) as error:
                        raise translated(self.url, error) from None
                    if isinstance(info, Exception):
                        raise translated(self.url, info)
                    check_version(self.url, info)
                    self._pool, self._pid = pool, os.getpid()
        return self._pool

    def _trip(self, connection: Any, request: RoundTrip) -> Any:
        """The reply; ``None`` for a conflict; an exception, to be thrown into the protocol, as a value."""
        try:
            match request:
                case Read(watch, commands):
                    first: list[Command] = [("WATCH", *watch)] if watch else []
                    replies = _send(connection, [*first, *commands])
                    self._refuse(replies[: len(first)])
                    return replies[len(first) :]
                case Commit(commands):
                    *queued, replies = _send(connection, [("MULTI",), *commands, ("EXEC",)])
                    self._refuse([reply for reply in queued if isinstance(reply, Exception)] or [replies])
                    return replies
                case Call(name, keys, args):
                    return self._call(connection, name, keys, args)
                case Pause(ms):
                    time.sleep(ms / 1000)
                    return None
        except LOST as error:
            connection.disconnect()
            lost = LostReply()
            lost.__cause__ = error
            return lost
        except StoreRefused as error:
            return error

    def _call(self, connection: Any, name: str, keys: Sequence[str], args: Sequence[Any]) -> Any:
        code = script(name)
        (reply,) = _send(connection, [("EVALSHA", code.sha, len(keys), *keys, *args)])
        if isinstance(reply, NoScriptError):
            (reply,) = _send(connection, [("EVAL", code.text, len(keys), *keys, *args)])
        self._refuse([reply])
        return reply

    def _refuse(self, replies: Sequence[Any]) -> None:
        for reply in replies:
            if isinstance(reply, Exception):
                raise translated(self.url, reply)


def _send(connection: Any, commands: Sequence[Command]) -> list[Any]:
    connection.send_packed_command([b"".join([pack(command) for command in commands])])
    return [_reply(connection) for _ in commands]


def _reply(connection: Any) -> Any:
    try:
        return connection.read_response(disable_decoding=True)
    except ResponseError as error:  # an answer too: the stream stays in step
        return error


def _single(args: tuple[Any, ...]) -> Steps[Any]:
    replies = yield Read((), (args,))
    if isinstance(replies[0], Exception):
        raise replies[0]
    return replies[0]

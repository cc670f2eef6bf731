"""Playing a recorded stream bare: the same processes, connections and writes, through redis-py, and nothing else."""

from __future__ import annotations

import multiprocessing
import operator
import threading
import time
from collections.abc import Sequence
from typing import Any

import redis
from redis.exceptions import RedisError

from benchmarks.figure import Absent
from benchmarks.stream import Spoken, Stream, Write

LIMIT_S = 180
LOOK_EVERY_S = 0.0001
"""How often one that is ahead of a producer looks whether that has caught up."""


class Play:
    """What the playing processes share.

    Args:
        stream: What is played.
        socket: Of a fresh server.
    """

    def __init__(self, stream: Stream, socket: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._producers, self._workers, self._socket = len(stream.producers), len(stream.workers), socket
        self._told = context.RawArray("q", max(1, self._producers))  # replies that each producer's connection has read
        self._begin = context.Barrier(self._producers + self._workers + 1)
        self._ended = context.Barrier(self._producers + self._workers + 1)

    def wait(self) -> float:
        """Seconds from when all began with the measured part until the last has ended."""
        self._begin.wait(LIMIT_S)
        began = time.monotonic()
        self._ended.wait(LIMIT_S)
        return time.monotonic() - began

    def process(self, connections: Sequence[tuple[int | None, Spoken]]) -> None:
        """One process: a thread for each of its connections. A number is that of a producer's connection."""
        threads = [threading.Thread(target=self._line, args=one, daemon=True) for one in connections]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT_S)

    def _line(self, number: int | None, spoken: Spoken) -> None:
        connection = redis.UnixDomainSocketConnection(path=self._socket, socket_timeout=30, protocol=2)
        connection.connect()
        read = self._play(connection, number, spoken.before, 0)
        self._begin.wait(LIMIT_S)
        self._play(connection, number, spoken.measured, read)
        self._ended.wait(LIMIT_S)
        connection.disconnect()

    def _play(self, connection: Any, number: int | None, writes: Sequence[Write], read: int) -> int:
        """Write, and read what is answered; returns how many replies this connection has read so far."""
        asked = read
        for write in writes:
            read = self._read(connection, number, read, min(write.after, asked))
            while any(map(operator.lt, self._told, write.told)):
                time.sleep(LOOK_EVERY_S)
            connection.send_packed_command([write.data])
            asked += write.commands
        return self._read(connection, number, read, asked)

    def _read(self, connection: Any, number: int | None, read: int, until: int) -> int:
        while read < until:
            try:
                connection.read_response(disable_decoding=True)
            except RedisError as error:
                if not isinstance(error, redis.ResponseError):
                    raise
            read += 1
            if number is not None:
                self._told[number] = read
        return read


def play(stream: Stream, socket: str) -> float:
    """Play a stream on a fresh server; returns the seconds that its measured part takes.

    Raises:
        Absent: It does not come to its end.
    """
    shared = Play(stream, socket)
    by_process: dict[int, list[tuple[int | None, Spoken]]] = {}
    for number, spoken in enumerate(stream.producers):
        by_process.setdefault(spoken.pid, []).append((number, spoken))
    for spoken in stream.workers:
        by_process.setdefault(spoken.pid, []).append((None, spoken))
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=shared.process, args=(some,), daemon=True) for some in by_process.values()]
    try:
        for process in processes:
            process.start()
        return shared.wait()
    except threading.BrokenBarrierError:
        raise Absent(f"the recorded stream did not come to its end within {LIMIT_S} s") from None
    finally:
        for process in processes:
            process.join(5)
            process.kill()
            process.join()

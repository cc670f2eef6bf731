"""``python -m benchmarks.recorder SERVER_SOCKET OWN_SOCKET FILE``: a proxy that keeps what passes, and when.

It is a process of its own, so that those whose commands it passes on share no interpreter with it. At SIGTERM it writes
``FILE``: a pickled list of ``Passed``, as plain tuples.
"""

from __future__ import annotations

import pickle
import selectors
import signal
import socket
import struct
import sys
import time
from pathlib import Path
from typing import NamedTuple

CHUNK = 1 << 20


class Passed(NamedTuple):
    """Bytes that one end has sent.

    Attributes:
        at: Seconds, by this machine's monotonic clock.
        pid: The process whose connection it is.
        line: Which connection.
        asked: Whether it goes to the server.
        data: The bytes.
    """

    at: float
    pid: int
    line: int
    asked: bool
    data: bytes


class Line(NamedTuple):
    """One direction of one connection."""

    number: int
    pid: int
    asked: bool
    source: socket.socket
    target: socket.socket


def record(server: str, own: str, file: Path) -> None:
    """Pass bytes on until SIGTERM."""
    passed: list[Passed] = []
    going = True

    def stop(*_: object) -> None:
        nonlocal going
        going = False

    signal.signal(signal.SIGTERM, stop)
    with socket.socket(socket.AF_UNIX) as listening, selectors.DefaultSelector() as selector:
        listening.bind(own)
        listening.listen(128)
        selector.register(listening, selectors.EVENT_READ)
        lines = 0
        while going:
            for key, _ in selector.select(0.2):
                line: Line | None = key.data
                if line is None:
                    lines += 1
                    _connect(listening, server, lines, selector)
                elif data := _read(line):
                    passed.append(Passed(time.monotonic(), line.pid, line.number, line.asked, data))
                else:
                    _hang_up(line, selector)
    file.write_bytes(pickle.dumps([tuple(one) for one in passed]))


def _connect(listening: socket.socket, server: str, number: int, selector: selectors.BaseSelector) -> None:
    near, _ = listening.accept()
    far = socket.socket(socket.AF_UNIX)
    far.connect(server)
    pid, _, _ = struct.unpack("3i", near.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    selector.register(near, selectors.EVENT_READ, Line(number, pid, True, near, far))
    selector.register(far, selectors.EVENT_READ, Line(number, pid, False, far, near))


def _read(line: Line) -> bytes:
    try:
        data = line.source.recv(CHUNK)
        line.target.sendall(data)
    except OSError:  # the other end has hung up
        return b""
    return data


def _hang_up(line: Line, selector: selectors.BaseSelector) -> None:
    for end in (line.source, line.target):
        if end.fileno() >= 0:
            selector.unregister(end)
            end.close()


if __name__ == "__main__":
    record(sys.argv[1], sys.argv[2], Path(sys.argv[3]))

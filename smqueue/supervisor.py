"""The process between smqueue and one that it started: it ends that one when the process that asked for it is gone.

Started as a script by ``smqueue.embedded`` and ``smqueue.processes`` (standard library only, so that it is up in some
30 ms). It works alike on Linux and macOS, from any thread of the parent, and when the parent is killed with SIGKILL. A
parent-death signal would be Linux only and fire when the *thread* that spawned the process ends; a pipe would be held
open by forked children. It leads the process group of all that it starts, so that a group's number never belongs to
anybody else while it is signalled, and takes the whole group with it when it ends: of a killed worker nothing lives on.

Held by ``test_the_server_dies_with_a_killed_parent`` and ``test_nothing_outlives_a_killed_parent`` in
``tests/integration``.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

LOOK_EVERY_S = 0.2
"""How often the parent is looked for."""

GRACE_S = 10
"""How long an orphan may take to end well (a server writes its last data) before it is killed."""


def supervise(parent: int, kept: int, private: Sequence[str], command: Sequence[str]) -> int:
    """Run a command until it ends, or until ``parent`` is gone. Its process id goes to standard output, as a line.

    (0 stands for one that could not be started.)

    Args:
        parent: The process id of the process that wants it.
        kept: A descriptor for it to hold, such as that of a lock; -1 for none.
        private: Directories that are of no use without the parent, and removed with it.
        command: What to run; its standard input is ours, and all of its output goes to our standard error.

    Returns:
        Its exit status.
    """
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # inherited from the thread that started us
    process: subprocess.Popen[bytes] | None = None
    stopping, ended, orphaned = threading.Event(), threading.Event(), threading.Event()

    def stop(*_: Any) -> None:
        stopping.set()
        if process is not None:
            process.terminate()

    def watch(process: subprocess.Popen[bytes]) -> None:
        while os.getppid() == parent:
            if ended.wait(LOOK_EVERY_S):
                return
        orphaned.set()
        process.terminate()
        if not ended.wait(GRACE_S):
            process.kill()

    signal.signal(signal.SIGTERM, stop)
    try:
        process = subprocess.Popen(command, stdout=sys.stderr, pass_fds=[kept] if kept >= 0 else [])  # noqa: S603
    except OSError as error:
        sys.stderr.write(f"{command[0]} cannot be run: {error}\n")
        _tell(0)
        return 1
    if kept >= 0:
        os.close(kept)  # now a lock lives exactly as long as its holder
    threading.Thread(target=watch, args=(process,), daemon=True).start()
    if stopping.is_set():  # asked to while it was being spawned
        process.terminate()
    _tell(process.pid)
    status = process.wait()
    ended.set()
    if orphaned.is_set():
        for directory in private:
            shutil.rmtree(directory, ignore_errors=True)
    return status


def main(parent: str, kept: str, private: str, *command: str) -> None:
    """Supervise, say the exit status to a parent that listens, and end with all that is left of the group."""
    status = supervise(int(parent), int(kept), list(filter(None, private.split(os.pathsep))), command)
    _tell(status)
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    sys.exit(status)


def _tell(number: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # the parent has stopped listening, or is gone: the watch will see it
        os.write(1, b"%d\n" % number)


if __name__ == "__main__":
    main(*sys.argv[1:])

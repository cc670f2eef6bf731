"""The process between smqueue and its embedded server: it ends the server once the process that asked for it is gone.

Started as a script by ``smqueue.embedded`` (standard library only, so that it is up in some 30 ms). It works alike on
Linux and macOS, from any thread of the parent, and when the parent is killed with SIGKILL. A parent-death signal would
be Linux only and fire when the *thread* that spawned the server ends; a pipe would be held open by forked children.
Being the server's parent, it never signals a process id that has been given to another process since.

Held by ``tests/integration/test_embedded.py::test_the_server_dies_with_a_killed_parent``.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from typing import Any

LOOK_EVERY_S = 0.2
"""How often the parent is looked for."""

GRACE_S = 10
"""How long an orphaned server may take to write its last data before it is killed."""


def supervise(parent: int, lock: int, binary: str, private: list[str]) -> int:
    """Run the server until it ends, or until ``parent`` is gone.

    Args:
        parent: The process id of the process that wants the server.
        lock: The descriptor of the data directory's lock, for the server to hold.
        binary: The server; it reads its configuration from standard input.
        private: Directories that are of no use without the parent, and removed with it.

    Returns:
        The server's exit status.
    """
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # inherited from the thread that started us
    os.umask(0o077)
    server: subprocess.Popen[bytes] | None = None
    stopping, ended, orphaned = threading.Event(), threading.Event(), threading.Event()

    def stop(*_: Any) -> None:
        stopping.set()
        if server is not None:
            server.terminate()

    def watch(server: subprocess.Popen[bytes]) -> None:
        while os.getppid() == parent:
            if ended.wait(LOOK_EVERY_S):
                return
        orphaned.set()
        server.terminate()
        if not ended.wait(GRACE_S):
            server.kill()

    signal.signal(signal.SIGTERM, stop)
    try:
        server = subprocess.Popen([binary, "-"], stdout=sys.stderr, pass_fds=(lock,))  # noqa: S603  the chosen server
    except OSError as error:
        sys.stderr.write(f"{binary} cannot be run: {error}\n")
        return 1
    os.close(lock)  # now the lock lives exactly as long as the server
    threading.Thread(target=watch, args=(server,), daemon=True).start()
    if stopping.is_set():  # asked to while the server was being spawned
        server.terminate()
    with contextlib.suppress(BrokenPipeError):  # the parent is gone already: the watch will see it
        os.write(1, b"%d\n" % server.pid)
    status = server.wait()
    ended.set()
    if orphaned.is_set():
        for directory in private:
            shutil.rmtree(directory, ignore_errors=True)
    return status


if __name__ == "__main__":
    sys.exit(supervise(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:]))

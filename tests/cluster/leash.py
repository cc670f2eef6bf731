"""The parent of a stand-in container's process: what the test session says reaches it, and it never outlives that.

Started as a script by ``tests/cluster/local_docker.py``, with a command to run. Each line on standard input is a signal
number. The end of standard input means that the session is gone, however it ended.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading


def hold(command: list[str]) -> int:
    """Run a command in a process group of its own until it ends or the session does.

    Returns:
        Its exit status as Docker gives it: 128 more than the signal that ended it.
    """
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    threading.Thread(target=_obey, args=(process,), daemon=True).start()
    status = process.wait()
    _kill_group(process)  # as in a container, where nothing outlives the first process
    return status if status >= 0 else 128 - status


def _obey(process: subprocess.Popen[bytes]) -> None:
    for line in sys.stdin:
        number = int(line)
        if number == signal.SIGKILL:
            _kill_group(process)
        else:
            process.send_signal(number)  # as Docker does: to the first process only
    _kill_group(process)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    # While one of the group lives, its id is given to no other process. macOS refuses for a group of zombies.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(hold(sys.argv[1:]))

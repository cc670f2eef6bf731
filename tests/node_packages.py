"""The packages of tests/node, installed once for all test processes, from the lock file beside them."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
from pathlib import Path

from tests.docs.pages import ROOT

WANTED = ROOT / "tests/node"
INSTALL_S = 240


def node_modules() -> Path:
    """The folder of modules, for NODE_PATH; what is there of this lock file is taken as it is.

    Raises:
        FileNotFoundError: There is no npm.
        subprocess.SubprocessError: It cannot install them, or not in time.
    """
    lock = (WANTED / "package-lock.json").read_bytes()
    folder = ROOT / "build" / f"node-{hashlib.sha256(lock).hexdigest()[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as one:
        fcntl.flock(one, fcntl.LOCK_EX)  # test processes come at the same time
        if not (folder / "done").exists():
            for name in ("package.json", "package-lock.json"):
                shutil.copy(WANTED / name, folder)
            command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"]
            subprocess.run(command, cwd=folder, check=True, timeout=INSTALL_S, capture_output=True, text=True)
            (folder / "done").touch()
    return folder / "node_modules"

"""One measurement at a time on a device, the host included: two disturb each other.

A lock file a device in this user's temporary folder, freed by closing it or by the end of the process that holds it.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from bblab.errors import RunError

EVERY_S = 1.0  # between two tries of one that waits


def owner() -> str:
    """This user on this machine, as eight characters."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return hashlib.sha256(f"{user}@{platform.node()}".encode()).hexdigest()[:8]


def folder() -> Path:
    return Path(tempfile.gettempdir()) / f"bblab-locks-{owner()}"


def locked(
    name: str, device: str, *, waits: bool = False, sleep: Callable[[float], object] = time.sleep
) -> IO[str] | None:
    """The open lock file. Raises RunError, naming the process that holds it, or waits for it with `waits`.

    None where this machine's temporary folder cannot hold a lock: better measured unguarded than not at all.
    """
    path = folder() / hashlib.sha256(name.encode()).hexdigest()[:16]
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError:
        return None
    while not _taken(file):
        if waits:
            sleep(EVERY_S)
            continue
        file.seek(0)
        holder = file.read().strip()
        file.close()
        raise RunError(
            f"{device} is being measured by another bblab" + (f" (process {holder})" if holder else ""),
            hint="wait for it (--wait), or end it: two measurements on one device disturb each other",
        )
    file.seek(0)
    file.truncate()
    file.write(str(os.getpid()))
    file.flush()
    return file


def _taken(file: IO[str]) -> bool:
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):  # not on this system, not in this file system
        return True
    return True

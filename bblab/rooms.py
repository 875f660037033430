"""Where content lives: the built-in rooms, then the rooms of the user's lab.

A room is a folder of what a designer edits: `blocks`, `arch_specs`, `pretrain`, `reports`. In a checkout the
built-in rooms are top-level folders; in an installed wheel they lie inside the package. A lab is a folder with
the same four rooms (all optional), its notebook `lab.sqlite` and its settings `lab.toml`.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOMS = ("blocks", "arch_specs", "pretrain", "reports")
_PACKAGE = Path(__file__).resolve().parent


def room(name: str) -> Path:
    """The folder of a built-in room."""
    assert name in ROOMS, name
    checkout = _PACKAGE.parent
    # A folder `blocks` beside an installed package may be anyone's: only our own checkout has all the rooms
    # and a pyproject.toml beside them.
    if (checkout / "pyproject.toml").is_file() and all((checkout / r).is_dir() for r in ROOMS):
        return checkout / name
    return _PACKAGE / name


def cache_dir() -> Path:
    """Where remembered op lists and converted models are kept; safe to delete. `BBLAB_CACHE` overrides it.

    A folder that cannot be written is replaced by one for this process: only time is lost.
    """
    if set_by_user := os.environ.get("BBLAB_CACHE"):
        return _writable_or_temporary(Path(set_by_user).expanduser())
    import platformdirs

    return _writable_or_temporary(Path(platformdirs.user_cache_dir("bblab", appauthor=False)))


@cache
def _writable_or_temporary(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        own = Path(tempfile.mkdtemp(prefix="bblab-cache-"))
        atexit.register(shutil.rmtree, own, ignore_errors=True)
        return own


def default_lab_dir() -> Path:
    """`BBLAB_LAB`, else the platform's user-data folder."""
    if set_by_user := os.environ.get("BBLAB_LAB"):
        return Path(set_by_user).expanduser()
    import platformdirs

    return Path(platformdirs.user_data_dir("bblab", appauthor=False))


@dataclass(frozen=True, slots=True)
class Rooms:
    """The built-in rooms and those of one lab.

    `lab` is never the current folder unless the user says so: code is not loaded from where one happens to stand.
    """

    lab: Path

    def folders(self, name: str) -> Iterator[tuple[str, Path]]:
        """The existing folders of a room, as (origin, folder); origin is "built-in" or "lab"."""
        yield "built-in", room(name)
        own = self.lab / name
        if own.is_dir():
            yield "lab", own

    def files(self, name: str, suffix: str) -> dict[str, Path]:
        """Every file of a room by its stem. A lab's file wins over a built-in one of the same name."""
        found: dict[str, Path] = {}
        for _, folder in self.folders(name):
            for path in sorted(folder.glob(f"*{suffix}")):
                if not path.name.startswith(("_", ".")):
                    found[path.stem] = path
        return found

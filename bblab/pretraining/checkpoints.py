"""Checkpoints that are whole or not there: written beside, synchronised, renamed; older ones go only afterwards.

mmengine's own hook removes the old file before it writes the new one, in place; a full disk then leaves neither.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from bblab.errors import BblabError, RunError

EPOCH = re.compile(r"epoch_(\d+)\.pth")
PART = re.compile(r"epoch_(\d+)_iter_(\d+)\.pth")
BEST = "best.pth"


def order(path: Path) -> tuple[int, int] | None:
    """(epochs done, iterations done in the next) of a checkpoint's name; None for another file."""
    if match := EPOCH.fullmatch(path.name):
        return int(match[1]), 0
    if match := PART.fullmatch(path.name):
        return int(match[1]), int(match[2])
    return None


def listed(folder: Path) -> list[Path]:
    """The checkpoints of a run, newest first."""
    found = [(at, path) for path in folder.glob("*.pth") if (at := order(path)) is not None]
    return [path for _, path in sorted(found, reverse=True)]


def newest(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that loads, and what was wrong with those that do not. No link or pointer is trusted."""
    import torch

    wrong: list[str] = []
    for path in listed(folder):
        try:
            value = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            if {"meta", "state_dict", "optimizer"} <= set(value):
                return path, wrong
            wrong.append(f"{path.name} is no checkpoint of a run")
        except Exception as error:
            wrong.append(f"{path.name} does not load ({type(error).__name__}): left alone")
    return None, wrong


def write(path: Path, save: Callable[[Path], None]) -> dict[str, Any]:
    """Write a file by way of a temporary one; its size and sha256. On failure the folder is as before.

    Raises RunError where it cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        save(partial)
        digest = hashlib.sha256()
        with partial.open("rb+") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
            os.fsync(file.fileno())
        size = partial.stat().st_size
        partial.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise RunError(
            f"the checkpoint {path.name} cannot be written: {error.strerror or error}",
            hint="the one before is kept; free some space and go on with --resume"
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            else "the one before is kept; mend the folder and go on with --resume",
        ) from None
    except RuntimeError as error:  # torch's zip writer on a full disk
        raise RunError(
            f"the checkpoint {path.name} cannot be written: {error}",
            hint="the one before is kept; free some space and go on with --resume",
        ) from None
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    return {"file": path.name, "bytes": size, "sha256": digest.hexdigest()}


def sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut, where the system can."""
    with suppress(OSError, AttributeError):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` epoch checkpoints, and those inside an epoch that a later one replaces."""
    paths = listed(folder)
    epochs = [p for p in paths if EPOCH.fullmatch(p.name)]
    newest_at = order(paths[0]) if paths else None
    for path in paths:
        is_old = path in epochs[max(1, keep) :] or (PART.fullmatch(path.name) and order(path) != newest_at)
        if is_old:
            with suppress(OSError):
                path.unlink()


def link_best(path: Path) -> None:
    """Let best.pth name this checkpoint: a hard link, which takes no room; a copy where there are none."""
    best = path.with_name(BEST)
    partial = path.with_name(f".{BEST}.{os.getpid()}.partial")
    try:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        try:
            os.link(path, partial)
        except OSError:
            shutil.copyfile(path, partial)
        partial.replace(best)
    except OSError:  # best.pth is a convenience: epoch files carry the run
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def check_room(folder: Path, parameters: int, *, keep: int, has_ema: bool, moments: int) -> None:
    """Raises BblabError where the disk has no room for the checkpoints that a run keeps at a time."""
    one = 4 * parameters * (1 + moments + has_ema)
    needed = one * (keep + 2) + 4 * parameters
    free = shutil.disk_usage(folder).free + sum(path.stat().st_size for path in listed(folder))  # those make room
    if free < needed:
        raise BblabError(
            f"{folder} has {free / 1e6:.0f} MB free; this run needs {needed / 1e6:.0f} MB for its checkpoints",
            hint="free some space, or name another place with --run DIR",
        )

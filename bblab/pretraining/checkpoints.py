"""Checkpoints that are whole or not there: written beside, synchronised, renamed; older ones go only afterwards.

mmengine's own hook removes the old file before it writes the new one, in place; a full disk then leaves neither.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Mapping
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


def newest(folder: Path, *, is_whole: bool = False) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that is as it was written, and what is wrong with newer ones. No link is trusted.

    is_whole: only of whole epochs. Where the record has the file's sha256 it must be that; else the file's own
    checksums must hold.
    """
    import torch

    from bblab.weights.verifying import verify

    wrong: list[str] = []
    for path in listed(folder):
        if is_whole and not EPOCH.fullmatch(path.name):
            continue
        try:
            verify(path)
            value = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            if {"meta", "state_dict", "optimizer"} <= set(value):
                return path, wrong
            wrong.append(f"{path.name} is no checkpoint of a run")
        except BblabError as damage:
            wrong.append(f"{path.name} does not load as it was written ({damage.message.partition(': ')[2]}): not used")
        except Exception as error:
            wrong.append(f"{path.name} does not load ({type(error).__name__}): not used")
    return None, wrong


def start(folder: Path) -> tuple[Path | None, list[str]]:
    """Where a run goes on: as `newest`. Raises RunError where there are checkpoints, none of them whole."""
    path, wrong = newest(folder)
    if wrong and path is None:
        listing = "\n".join(f"  {line}" for line in wrong)
        raise RunError(
            f"no checkpoint in {folder} can be gone on with:\n{listing}",
            hint="copy them again from a backup; or begin anew: the same command without --resume, another --run",
        )
    return path, wrong


def write(
    path: Path, save: Callable[[Path], None], on_written: Callable[[Mapping[str, Any]], None] | None = None
) -> dict[str, Any]:
    """Write a file by way of a temporary one; its size and sha256. On failure the folder is as before.

    `on_written` gets them before the file has its name: what bears the name has its sum on record, whenever the process
    is killed. Raises RunError where it cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        save(partial)
        digest = hashlib.sha256()
        with partial.open("rb+") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
            os.fsync(file.fileno())
        facts = {"file": path.name, "bytes": partial.stat().st_size, "sha256": digest.hexdigest()}
        if on_written is not None:
            on_written(facts)
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
    return facts


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


def check_room(
    folder: Path, parameters: int, *, keep: int, has_ema: bool, moments: int, accumulates: bool = False
) -> None:
    """Raises BblabError where the disk has no room for the checkpoints that a run keeps at a time."""
    one = 4 * parameters * (1 + moments + has_ema + accumulates)
    needed = one * (keep + 2) + 4 * parameters
    free = shutil.disk_usage(folder).free + sum(path.stat().st_size for path in listed(folder))  # those make room
    if free < needed:
        raise BblabError(
            f"{folder} has {free / 1e6:.0f} MB free; this run needs {needed / 1e6:.0f} MB for its checkpoints",
            hint="free some space, or name another place with --run DIR",
        )

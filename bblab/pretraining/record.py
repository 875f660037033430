"""The record of a run: JSON lines that are only ever appended, in the run's folder.

A line is written whole or, where a process was killed in it, skipped when reading. Nothing here imports torch.
"""

from __future__ import annotations

import json
import math
import os
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RECORD = "record.jsonl"
PROGRESS = "progress.json"
PLAN = "run.json"
LOCK = "lock"

DONE, GATED, STOPPED, BAD_LOSS, FAILED, KILLED = "done", "gated", "stopped", "bad loss", "failed", "killed"
"""How a run ended. `killed` is never written: it is a run without an end whose process is gone."""


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def append(folder: Path, kind: str, **values: Any) -> None:
    """One line. A line that a killed process left unfinished is closed first.

    The first one of a record bears an id: two trainings begin alike in one second, and a folder may be moved.
    """
    path = folder / RECORD
    born = {} if path.exists() else {"record_id": uuid.uuid4().hex}
    line = json.dumps({"kind": kind, "time_utc": now(), **born, **_finite(values)}, ensure_ascii=False, allow_nan=False)
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = "\n" + line
        file.write(f"{line}\n".encode())
        file.flush()
        os.fsync(file.fileno())


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value


def read(folder: Path) -> list[dict[str, Any]]:
    """Every whole line, in order; none where there is no record."""
    found = []
    with suppress(OSError):
        for line in (folder / RECORD).read_bytes().splitlines():
            with suppress(ValueError):
                value = json.loads(line)
                if isinstance(value, dict):
                    found.append(value)
    return found


@dataclass(frozen=True, slots=True)
class History:
    """What a run's record says. Epochs count from 1; an epoch that was trained twice (after a crash) counts once."""

    lines: tuple[Mapping[str, Any], ...]

    @classmethod
    def of(cls, folder: Path) -> History:
        return cls(tuple(read(folder)))

    def by_epoch(self, kind: str) -> dict[int, Mapping[str, Any]]:
        return dict(sorted({line["epoch"]: line for line in self.lines if line["kind"] == kind}.items()))

    @property
    def epochs(self) -> dict[int, Mapping[str, Any]]:
        return self.by_epoch("epoch")

    @property
    def validations(self) -> dict[int, Mapping[str, Any]]:
        return self.by_epoch("val")

    def scored(self, epoch: int, images: int) -> int:
        """Validation images behind an epoch's score: all `images` where the record does not say."""
        count = self.validations.get(epoch, {}).get("images")
        return images if count is None else int(count)

    @property
    def end(self) -> Mapping[str, Any] | None:
        """The line that ended the last start; None where the process is running, or is gone without a word."""
        starts = [i for i, line in enumerate(self.lines) if line["kind"] == "start"]
        after = self.lines[starts[-1] :] if starts else self.lines
        return next((line for line in reversed(after) if line["kind"] == "end"), None)

    @property
    def last(self) -> dict[str, Mapping[str, Any]]:
        """The last line of each kind."""
        return {line["kind"]: line for line in self.lines}

    @property
    def train_s(self) -> float:
        return sum(line["epoch_s"] for line in self.epochs.values()) + sum(
            line["val_s"] + line.get("norms_s", 0.0) for line in self.validations.values()
        )

    def curve(self, kind: str, key: str) -> list[float | None]:
        """A value by epoch, from epoch 1."""
        found = self.by_epoch(kind)
        return [found[e].get(key) if e in found else None for e in range(1, max(found, default=0) + 1)]


def write_progress(folder: Path, value: Mapping[str, Any]) -> None:
    """Where the run is, for whoever looks: replaced whole. A full disk does not end a training for this."""
    path = folder / PROGRESS
    partial = folder / f".{PROGRESS}.{os.getpid()}.partial"
    try:
        partial.write_text(json.dumps(_finite(value)), encoding="utf-8")
        partial.replace(path)
    except OSError:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def read_progress(folder: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        value = json.loads((folder / PROGRESS).read_bytes())
        if isinstance(value, dict):
            return value
    return {}


def is_running(folder: Path) -> bool:
    """Whether a process is training in this folder now: it holds a lock, which dies with it."""
    try:
        import fcntl
    except ImportError:  # Windows
        return False
    try:
        with (folder / LOCK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def hold(folder: Path) -> Any:
    """Take the folder's lock for as long as the returned file is open; None where another process has it."""
    file = (folder / LOCK).open("ab")
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        pass
    except OSError:
        file.close()
        return None
    return file

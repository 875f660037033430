"""What the data room hands on: a data set, what is wrong with it, and what was done to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from bblab.errors import BblabError

Progress = Callable[[int, int, float | None, str], None]
"""Told (done, total, seconds left or None, what is being done)."""

Layout = Literal["folders", "imagenet", "annotations"]
Split = Literal["train", "val"]
Severity = Literal["error", "warning", "note"]
SPLITS: tuple[Split, ...] = ("train", "val")


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with a data set. An error cannot be trained on; a warning costs accuracy; a note is a fact."""

    severity: Severity
    rule: str
    where: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" + (f"\n  {self.hint}" if self.hint else "")


@dataclass(frozen=True, slots=True)
class BadFile:
    """An image that cannot be used: the split, its path below the split's folder, and why."""

    split: Split
    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class DataInfo:
    """A data set as training reads it.

    `root` is absolute. `classes` are the training set's, in the order of their labels. `ann_*` are lists of
    "path label" lines (relative to root where they lie in it), None where the class folders are read; paths in a list
    are relative to `prefix_*`, which is relative to root. `hash` is of every image's name, label and size: equal
    hashes mean the same data wherever it lies. `prepared` holds the settings of `bblab data prepare`, if it made this.
    """

    root: str
    layout: Layout
    classes: tuple[str, ...]
    train_count: int
    val_count: int
    hash: str
    ann_train: str | None = None
    ann_val: str | None = None
    prefix_train: str = "train"
    prefix_val: str = "val"
    problems: tuple[Problem, ...] = ()
    prepared: Mapping[str, Any] | None = None

    @property
    def errors(self) -> tuple[Problem, ...]:
        return tuple(p for p in self.problems if p.severity == "error")

    def require_sound(self) -> None:
        """Raise BblabError with everything that keeps this data from being trained on."""
        if self.errors:
            text = "\n".join(str(p) for p in self.errors)
            raise BblabError(f"{self.root} cannot be trained on:\n{text}", hint=f"bblab data check {self.root}")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> DataInfo:
        known = {f.name for f in fields(cls)}
        given = {k: v for k, v in value.items() if k in known}
        problems = tuple(Problem(**p) for p in given.get("problems", ()))
        return cls(**{**given, "classes": tuple(given["classes"]), "problems": problems})


@dataclass(frozen=True, slots=True)
class Checked:
    """A data set with every image looked at. `formats` counts them by what they are inside, whatever their name."""

    info: DataInfo
    bad: tuple[BadFile, ...]
    formats: Mapping[str, int]
    images: int
    read_bytes: int
    seconds: float
    problems: tuple[Problem, ...]

    @property
    def worst(self) -> str | None:
        severities = {p.severity for p in self.problems}
        return next((s for s in ("error", "warning", "note") if s in severities), None)


@dataclass(frozen=True, slots=True)
class Prepared:
    """What `prepare` made: the new data set, what was left out, and how much was done now and before."""

    info: DataInfo
    bad: tuple[BadFile, ...]
    written: int
    reused: int
    read_bytes: int
    total_bytes: int
    seconds: float
    problems: tuple[Problem, ...]


def some(names: Iterable[object], count: int = 5) -> str:
    """The first few of many: "a, b, c and 12 more"."""
    listed = [str(n) for n in names]
    more = f" and {len(listed) - count:,} more" if len(listed) > count else ""
    return ", ".join(listed[:count]) + more


def number(count: int, word: str) -> str:
    """ "1 image", "1,200 images"."""
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"


def by_reason(bad: Iterable[BadFile]) -> str:
    """ "3 truncated, 1 empty"."""
    return ", ".join(f"{n:,} {reason}" for reason, n in Counter(b.reason for b in bad).most_common())

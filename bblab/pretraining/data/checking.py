"""Open every image of a data set before a training does: corrupt, truncated, empty, missing, in both splits."""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from bblab.errors import RunError
from bblab.pretraining.data import images, listing, pool
from bblab.pretraining.data.values import SPLITS, BadFile, Checked, Problem, Progress, Split, by_reason, number, some

SMALL_PX = 32
Row = tuple[int, str, int, int, str, int]
"""Index, format, height, width, why it is bad (or ""), the first 8 bytes of the file's hash."""


def check(
    folder: str | Path,
    ann_train: str | Path | None = None,
    ann_val: str | Path | None = None,
    *,
    contents: bool = True,
    jobs: int | None = None,
    cache: Path | None = None,
    on_progress: Progress | None = None,
) -> Checked:
    """Everything that is wrong with a data set. With `contents` every image is read and decoded, in `jobs` processes.

    Raises BblabError for a missing folder or list, RunError when stopped by Ctrl-C.
    """
    began = time.monotonic()
    if on_progress:
        on_progress(0, 0, None, "listing files")
    listed = listing.read(folder, ann_train, ann_val)
    info = listing.to_info(listed, cache)
    problems = list(listed.problems)
    bad: list[BadFile] = []
    formats: Counter[str] = Counter()
    total = info.train_count + info.val_count
    read_bytes = 0
    if contents and total:
        images.packages()
        found = _look(listed, jobs or pool.cores(), total, on_progress)
        read_bytes = sum(max(size, 0) for s in SPLITS for size in listed.splits[s].sizes)
        for split in SPLITS:
            paths = listed.splits[split].paths
            for index, kind, _, _, why, _ in found[split]:
                if not why:
                    formats[kind] += 1
                else:
                    bad.append(BadFile(split, paths[index], why))
        problems += _told(listed, found, bad, total)
    seconds = time.monotonic() - began
    order = {"error": 0, "warning": 1, "note": 2}
    problems.sort(key=lambda p: order[p.severity])
    return Checked(info, tuple(bad), dict(formats), total, read_bytes, seconds, tuple(problems))


def look(items: Sequence[tuple[int, str]]) -> list[Row]:
    """Worker: decode each of (index, path)."""
    rows: list[Row] = []
    for index, path in items:
        try:
            data = images.read_file(path)
            kind, height, width = images.examine(data)
            mark = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")
            rows.append((index, kind, height, width, "", mark))
        except images.BadImage as bad:
            rows.append((index, "", 0, 0, str(bad), 0))
    return rows


def crashed(item: tuple[int, str]) -> list[Row]:
    return [(item[0], "", 0, 0, "crashes the decoder", 0)]


def _look(listed: listing.Listing, jobs: int, total: int, on_progress: Progress | None) -> dict[Split, list[Row]]:
    found: dict[Split, list[Row]] = {s: [] for s in SPLITS}
    clock = pool.Clock(time.monotonic)
    done = num_bad = 0
    try:
        for split in SPLITS:
            s = listed.splits[split]
            base = str(listed.root / s.prefix)
            items = [(i, os.path.join(base, path)) for i, path in enumerate(s.paths)]  # noqa: PTH118
            for rows in pool.spread(look, items, crashed, jobs=jobs if len(items) > 256 else 1):
                found[split] += rows
                done += len(rows)
                num_bad += sum(bool(row[4]) for row in rows)
                if on_progress:
                    said = f"{split}: {clock.rate(done):,.0f} images/s, {num_bad:,} bad"
                    on_progress(done, total, clock.left(done, total), said)
    except KeyboardInterrupt:
        said = f"stopped by hand after {done:,} of {total:,} images, {num_bad:,} of them bad"
        raise RunError(said, hint="a check keeps nothing; --quick looks at names and sizes only") from None
    return found


def _told(listed: listing.Listing, found: dict[Split, list[Row]], bad: Sequence[BadFile], total: int) -> list[Problem]:
    problems: list[Problem] = []
    for split in SPLITS:
        mine = [b for b in bad if b.split == split and b.reason not in ("empty", "missing")]  # those are told already
        if mine:
            names = some(f"{b.path} ({b.reason})" for b in mine)
            hint = "copy them again; `bblab data prepare` leaves them out"
            said = f"not decodable: {number(len(mine), 'image')} ({by_reason(mine)}): {names}"
            problems.append(Problem("error", "corrupt-image", split, said, hint))
        small = [row for row in found[split] if not row[4] and min(row[2], row[3]) < SMALL_PX]
        if small:
            names = some(f"{listed.splits[split].paths[row[0]]} ({row[3]}x{row[2]})" for row in small)
            problems.append(
                Problem("note", "small-image", split, f"{number(len(small), 'image')} below {SMALL_PX} px: {names}")
            )
    return problems + _same(listed, found)


def _same(listed: listing.Listing, found: dict[Split, list[Row]]) -> list[Problem]:
    """Files with equal contents: across splits they flatter the accuracy, with two labels they cannot be learnt."""
    problems: list[Problem] = []
    train, val = listed.splits["train"], listed.splits["val"]
    first: dict[int, int] = {}
    again: list[str] = []
    contradicting: list[str] = []
    for index, _, _, _, why, mark in found["train"]:
        if why:
            continue
        other = first.setdefault(mark, index)
        if other != index:
            pair = f"{train.paths[other]} = {train.paths[index]}"
            (again if train.labels[other] == train.labels[index] else contradicting).append(pair)
    leaks = [
        f"{val.paths[index]} = {train.paths[first[mark]]}"
        for index, _, _, _, why, mark in found["val"]
        if not why and mark in first
    ]
    if leaks:
        share = len(leaks) / len(val)
        said = f"in train too, byte for byte: {number(len(leaks), 'image')} ({share:.1%}): {some(leaks, 2)}"
        problems.append(Problem("warning", "train-in-val", "val", said, "they raise the validation accuracy"))
    if contradicting:
        said = f"in two classes: {number(len(contradicting), 'image')}: {some(contradicting, 2)}"
        problems.append(Problem("warning", "two-labels", "train", said, "no net can learn both"))
    if again:
        said = f"twice in the same class: {number(len(again), 'image')}: {some(again, 2)}"
        problems.append(Problem("note", "same-image", "train", said))
    return problems

"""A copy of a data set that loads fast: short side 256 px, JPEG quality 90, lists and class names beside it.

A training decodes every image once an epoch, and most of a photo's pixels are thrown away by the crop: made smaller
once, the same CPU feeds several times the images (benchmarks/data_pipeline.py). The copy is plain files, read by stock
mmpretrain too:

    OUT/train/CLASS/*.jpg, OUT/val/CLASS/*.jpg     the images that decode
    OUT/meta/train.txt, val.txt, classes.txt       "path label" lines; names in the order of the labels
    OUT/meta/bad.txt                               what was left out and why
    OUT/meta/bblab.json, progress.jsonl            settings, counts and hash; what is done, for going on after a kill

An image counts as done when it has its final name and its line in progress.jsonl, and its size is the line's: a killed
process, a full disk or a power cut never leaves half an image that is taken for a whole one.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from bblab.errors import BblabError, RunError
from bblab.pretraining.data import images, listing, pool
from bblab.pretraining.data.listing import META, Listing, SplitListing, write_atomically
from bblab.pretraining.data.values import (
    SPLITS,
    BadFile,
    DataInfo,
    Prepared,
    Problem,
    Progress,
    Split,
    by_reason,
)  # fmt: skip

PROGRESS = "meta/progress.jsonl"
VERSION = 1
SAMPLE = 48
"""Images that are made smaller beforehand, to know how much room all of them take."""
MANY_BAD = 0.01


@dataclass(frozen=True, slots=True)
class Job:
    """One image to make: its place in the split's list, where it is read, where it goes."""

    index: int
    source: str
    target: str


Row = tuple[int, int, str]
"""Index, bytes written, why it is bad (or "")."""


def prepare(
    folder: str | Path,
    out: str | Path,
    ann_train: str | Path | None = None,
    ann_val: str | Path | None = None,
    *,
    short_side_px: int = 256,
    quality: int = 90,
    jobs: int | None = None,
    on_progress: Progress | None = None,
) -> Prepared:
    """Write the copy, or go on with one that was stopped. Images that do not decode are left out and listed.

    Raises BblabError for a data set that cannot be trained on whatever its images are (an empty class), for an OUT
    that holds something else or was made with other settings; RunError for too little room, before anything is
    written, for a disk that fills up, and when stopped by hand: then the same call goes on.
    """
    began = time.monotonic()
    images.packages()
    if not 16 <= short_side_px <= 4096 or not 1 <= quality <= 100:
        raise BblabError(f"short side {short_side_px} px, quality {quality}", hint="16 to 4096 px, quality 1 to 100")
    root, target = listing.root_of(folder), _target(out)
    _refuse_nesting(root, target)
    if on_progress:
        on_progress(0, 0, None, "listing files")
    listed = listing.read(root, ann_train, ann_val)
    _refuse_hopeless(listed)
    settings = {"version": VERSION, "short_side_px": short_side_px, "quality": quality}
    names = _target_names(listed)
    with _journal(target, settings, root) as (journal, lines):
        sizes, total_done = _done_before(target, listed, names, lines)
        todo = {
            s: [
                Job(i, os.path.join(root, listed.splits[s].prefix, path), os.path.join(target, s, names[s][i]))  # noqa: PTH118
                for i, path in enumerate(listed.splits[s].paths)
                if sizes[s][i] < 0
            ]
            for s in SPLITS
        }
        _refuse_too_little_room(target, [job for s in SPLITS for job in todo[s]], short_side_px, quality)
        work = functools.partial(make, short_side_px=short_side_px, quality=quality)
        bad, read_bytes = _make_all(listed, names, todo, sizes, journal, work, jobs or pool.cores(), on_progress)
    return _finish(target, listed, names, sizes, bad, settings, total_done, read_bytes, time.monotonic() - began)


def recorded(root: Path) -> DataInfo | None:
    """What a finished `prepare` says of its folder, if some of its images, picked over the whole list, are there."""
    value = listing.remembered(root)
    if value is None:
        return None
    try:
        info = DataInfo.from_json({**value["info"], "root": str(root), "prepared": value["settings"]})
        for s in SPLITS:
            ann = root / "meta" / f"{s}.txt"
            if ann.stat().st_size != value["list_bytes"][s] or not all(_picked(ann, root / s)):
                return None
    except (OSError, KeyError, TypeError, ValueError):
        return None
    return info


def _picked(ann: Path, base: Path, count: int = 16) -> Iterator[bool]:
    with ann.open("rb") as file:
        size = ann.stat().st_size
        for i in range(count):
            file.seek(size * i // count)
            if i:
                file.readline()  # the rest of a line
            line = file.readline().decode("utf-8", "surrogateescape").strip()
            if line:
                yield (base / line.rpartition(" ")[0]).is_file()


# ---------------------------------------------------------------------------------------------- before


def _target(out: str | Path) -> Path:
    from bblab.spec import expanded

    if not str(out).strip():
        raise BblabError("an output folder without a name", hint="name a new folder")
    path = expanded(out)
    if path.exists() and not path.is_dir():
        raise BblabError(f"{path} is a file", hint="name a new folder")
    return path.absolute()


def _refuse_nesting(root: Path, target: Path) -> None:
    resolved = target.resolve()
    if resolved == root or root.is_relative_to(resolved):
        raise BblabError(f"{target} holds the images that are read", hint="name a new folder elsewhere")
    if any(resolved.is_relative_to(root / s) for s in SPLITS):
        raise BblabError(f"{target} would become a class of {root}", hint="name a new folder elsewhere")


def _refuse_hopeless(listed: Listing) -> None:
    """Errors that leaving out single images does not mend."""
    single = ("empty-image", "missing-image")
    found = [p for p in listed.problems if p.severity == "error" and p.rule not in single]
    for s in SPLITS:
        there = [size for size in listed.splits[s].sizes if size > 0]
        if len(listed.splits[s]) and not there:
            found += [p for p in listed.problems if p.rule in single and p.where == s]
    if found:
        text = "\n".join(str(p) for p in found)
        raise BblabError(f"{listed.root} cannot be trained on:\n{text}", hint="nothing was written")


def _target_names(listed: Listing) -> dict[Split, list[str]]:
    """Where each image goes below its split: CLASS/NAME.jpg, no two alike, the folders in the order of the labels."""
    folders = [re.sub(r"[^\w.+-]+", "_", name).strip("._") or "class" for name in listed.classes]
    if folders != sorted(set(folders)):  # a reader of class folders must number them as the lists do
        digits = len(str(len(folders) - 1))
        folders = [f"{i:0{digits}d}_{name}" for i, name in enumerate(folders)]
    names: dict[Split, list[str]] = {}
    for split in SPLITS:
        s = listed.splits[split]
        taken: set[str] = set()
        names[split] = []
        for path, label in zip(s.paths, s.labels, strict=True):
            own = path.removeprefix(listed.classes[label] + "/")
            parts = [part for part in own.split("/") if part not in ("", ".", "..")]
            # A list is read as UTF-8 lines: a name with a line break or in another encoding gets plain characters.
            tail = "/".join(re.sub(r"[\x00-\x1f\ud800-\udfff]", "_", part).strip() or "_" for part in parts)
            stem, _, _ = tail.rpartition(".")
            name = f"{folders[label]}/{stem or tail}.jpg"
            if name in taken:
                name = f"{folders[label]}/{tail}.jpg"
            count = 2
            while name in taken:
                name = f"{folders[label]}/{tail}.{count}.jpg"
                count += 1
            taken.add(name)
            names[split].append(name)
    return names


@contextmanager
def _journal(target: Path, settings: dict[str, Any], root: Path) -> Iterator[tuple[TextIO, list[dict[str, Any]]]]:
    """progress.jsonl, locked, open for appending; and its lines so far. Raises BblabError for someone else's folder."""
    path = target / PROGRESS
    try:
        if not path.exists():
            others = _foreign(target)
            if others:
                raise BblabError(
                    f"{target} holds something else ({listing.some(others, 3)})", hint="name a new or an empty folder"
                )
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+", encoding="utf-8") as file:
            _lock(file, target)
            file.seek(0)
            lines = [line for line in map(_json, file) if line is not None]
            head = lines[0] if lines else None
            if head is None:
                file.seek(0)
                file.truncate()
                head = {**settings, "source": str(root)}
            elif any(head.get(k) != v for k, v in settings.items()):
                said = f"{head.get('short_side_px')} px, quality {head.get('quality')}"
                raise BblabError(f"{target} was begun with {said}", hint="name a new folder, or the same settings")
            file.write("\n" if lines else "")  # ends a line that a kill cut off
            if not lines:
                file.write(json.dumps(head) + "\n")
            file.flush()
            yield file, lines[1:]
    except OSError as error:
        raise _failed(target, error) from None


def _foreign(target: Path) -> list[str]:
    """What stands in a folder that no `prepare` has begun."""
    if not target.is_dir():
        return []
    return sorted(p.name for p in target.iterdir() if not p.name.startswith(".") and p.name != "lost+found")


def _lock(file: TextIO, target: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise BblabError(f"another process prepares {target}", hint="wait for it, or stop it") from None


def _json(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
        return value if isinstance(value, dict) else None
    except ValueError:
        return None


def _done_before(
    target: Path, listed: Listing, names: dict[Split, list[str]], lines: list[dict[str, Any]]
) -> tuple[dict[Split, list[int]], int]:
    """Bytes of each image that is done, -1 for those to do. Files of images that left the source are deleted."""
    sizes: dict[Split, list[int]] = {s: [-1] * len(names[s]) for s in SPLITS}
    done = 0
    for s in SPLITS:
        known = {name: (source, size) for line in lines for name, source, size in line.get(s, ())}
        there = _there(target / s)
        source_sizes = listed.splits[s].sizes
        for i, name in enumerate(names[s]):
            entry = known.pop(name, None)
            if entry is not None and entry[0] == source_sizes[i] and there.get(name) == entry[1]:
                sizes[s][i] = entry[1]
                done += 1
        for name in known:
            if name in there:
                (target / s / name).unlink(missing_ok=True)
    return sizes, done


def _there(folder: Path) -> dict[str, int]:
    """Every file below a folder with its size; half-written ones are deleted on the way."""
    found: dict[str, int] = {}
    for base, _, files in os.walk(folder):
        for name in files:
            path = os.path.join(base, name)  # noqa: PTH118 - a Path for each of a million costs time
            if name.startswith(".") and name.endswith(".partial"):
                Path(path).unlink(missing_ok=True)
            else:
                found[os.path.relpath(path, folder)] = os.stat(path).st_size  # noqa: PTH116
    return found


def _refuse_too_little_room(target: Path, jobs: Sequence[Job], short_side_px: int, quality: int) -> None:
    if not jobs:
        return
    sizes = []
    for job in jobs[:: max(1, len(jobs) // SAMPLE)][:SAMPLE]:
        try:
            sizes.append(len(images.smaller(images.read_file(job.source), short_side_px, quality)))
        except images.BadImage:
            continue
    if not sizes:
        return
    block = 4096
    each = sum(-(-size // block) * block for size in sizes) / len(sizes)
    needed = 1.05 * len(jobs) * (each + 64)  # its lines in the lists
    disk = shutil.disk_usage(target)
    if needed > disk.free:
        raise RunError(
            f"{target} needs about {needed / 1e9:.3g} GB for {len(jobs):,} images, {disk.free / 1e9:.3g} GB are free",
            hint="another disk, or a smaller --short-side or --quality",
        )
    if hasattr(os, "statvfs"):
        files = os.statvfs(target).f_favail
        if 0 < files < len(jobs):  # 0: a file system that does not count them
            raise RunError(f"{target} has room for {files:,} more files, {len(jobs):,} are needed", hint="another disk")


# ---------------------------------------------------------------------------------------------- the work


def make(jobs: Sequence[Job], *, short_side_px: int, quality: int) -> list[Row]:
    """Worker: write each smaller image under its final name, whole or not at all."""
    rows: list[Row] = []
    for job in jobs:
        try:
            data = images.smaller(images.read_file(job.source), short_side_px, quality)
        except images.BadImage as bad:
            rows.append((job.index, 0, str(bad)))
            continue
        folder, _, name = job.target.rpartition("/")
        partial = f"{folder}/.{name}.partial"
        try:
            _write(partial, data)
        except FileNotFoundError:
            os.makedirs(folder, exist_ok=True)  # noqa: PTH103
            _write(partial, data)
        os.replace(partial, job.target)  # noqa: PTH105
        rows.append((job.index, len(data), ""))
    return rows


def _write(path: str, data: bytes) -> None:
    try:
        with open(path, "wb", buffering=0) as file:  # noqa: PTH123
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]
    except OSError as error:
        if error.errno != errno.ENOENT:
            Path(path).unlink(missing_ok=True)
        raise


def crashed(job: Job) -> list[Row]:
    return [(job.index, 0, "crashes the decoder")]


def _make_all(
    listed: Listing,
    names: dict[Split, list[str]],
    todo: dict[Split, list[Job]],
    sizes: dict[Split, list[int]],
    journal: TextIO,
    work: functools.partial[list[Row]],
    jobs: int,
    on_progress: Progress | None,
) -> tuple[list[BadFile], int]:
    """Make what is to do, writing down each chunk. Changes `sizes`. Returns the bad files and the bytes read."""
    total = sum(len(names[s]) for s in SPLITS)
    before = total - sum(len(todo[s]) for s in SPLITS)
    clock = pool.Clock(time.monotonic)
    bad: list[BadFile] = []
    now = read_bytes = 0
    try:
        for s in SPLITS:
            source = listed.splits[s]
            for rows in pool.spread(work, todo[s], crashed, jobs=jobs if len(todo[s]) > 256 else 1):
                made = [[names[s][i], source.sizes[i], size] for i, size, why in rows if not why]
                bad += [BadFile(s, source.paths[i], why) for i, _, why in rows if why]
                for i, size, why in rows:
                    sizes[s][i] = size if not why else -1
                    read_bytes += max(0, source.sizes[i])
                if made:
                    journal.write(json.dumps({s: made}, separators=(",", ":")) + "\n")
                    journal.flush()
                now += len(rows)
                if on_progress:
                    said = f"{s}: {clock.rate(now):,.0f} images/s, {len(bad):,} bad"
                    on_progress(before + now, total, clock.left(now, total - before), said)
    except KeyboardInterrupt:
        said = f"stopped by hand: {before + now - len(bad):,} of {total:,} images are done"
        raise RunError(said, hint="the same command goes on from there") from None
    return bad, read_bytes


def _failed(target: Path, error: OSError) -> RunError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        said = f"no room left for {target}: {error.strerror}"
        return RunError(said, hint="what is done is kept: free some space, and the same command goes on")
    return RunError(f"{target} cannot be written: {error.strerror}", hint="check the path and its permissions")


# ---------------------------------------------------------------------------------------------- after


def _finish(
    target: Path,
    listed: Listing,
    names: dict[Split, list[str]],
    sizes: dict[Split, list[int]],
    bad: Sequence[BadFile],
    settings: dict[str, Any],
    reused: int,
    read_bytes: int,
    seconds: float,
) -> Prepared:
    """Write the lists, the record last: it is what makes the folder complete."""
    made = Listing(target.resolve(), "imagenet", listed.classes, {}, [])
    for s in SPLITS:
        rows = zip(names[s], listed.splits[s].labels, sizes[s], strict=True)
        kept = sorted(row for row in rows if row[2] >= 0)
        made.splits[s] = SplitListing(s, s, ann=made.root / "meta" / f"{s}.txt")
        for name, label, size in kept:
            made.splits[s].add(name, label, size)
    listing.count(made)
    carried = ("class-not-in-val", "wrong-count", "uneven-classes", "stray-images", "ignored-images")
    known = {(p.rule, p.where) for p in made.problems}
    problems = made.problems + [p for p in listed.problems if p.rule in carried and (p.rule, p.where) not in known]
    total = sum(len(names[s]) for s in SPLITS)
    if bad:
        is_many = len(bad) > max(MANY_BAD * total, 1)
        said = f"{len(bad):,} of {total:,} images left out ({by_reason(bad)}): {target / 'meta' / 'bad.txt'}"
        hint = "is the copy or the disk that they come from damaged?" if is_many else ""
        problems.append(Problem("error" if is_many else "warning", "left-out", "images", said, hint))
    try:
        text = {s: made.annotation(s) for s in SPLITS}
        for s in SPLITS:
            write_atomically(target / "meta" / f"{s}.txt", text[s])
        write_atomically(target / "meta" / "classes.txt", "".join(f"{c}\n" for c in listed.classes))
        lines = (f"{b.split}/{b.path}\t{b.reason}\n" for b in bad)
        write_atomically(target / "meta" / "bad.txt", "".join(lines))
        made.problems[:] = [p for p in problems if p.rule != "left-out"]
        info = replace(listing.to_info(made), prepared=settings)
        record = {
            "is_complete": True,
            "settings": settings,
            "source": str(listed.root),
            "source_hash": listed.hash(),
            "list_bytes": {s: len(text[s].encode()) for s in SPLITS},
            "num_bad": len(bad),
            "info": {k: v for k, v in asdict(info).items() if k not in ("root", "prepared")},
        }
        write_atomically(target / META, json.dumps(record, indent=1) + "\n")
    except OSError as error:
        raise _failed(target, error) from None
    total_bytes = sum(size for s in SPLITS for size in sizes[s] if size > 0)
    written = sum(len(made.splits[s]) for s in SPLITS) - reused
    return Prepared(info, tuple(bad), written, reused, read_bytes, total_bytes, seconds, tuple(problems))

"""Which images a data set has, and their labels, read the way training will read them.

Three layouts: class folders (train/CLASS/..., val/CLASS/...), ImageNet's (train/, val/ and meta/train.txt, meta/val.txt
or only the latter), and annotation files anywhere ("path label" lines). Labels always number the *training* classes:
mmpretrain's CustomDataset numbers the folders of each split by themselves, so that one class missing in val gives
every later one a wrong label without a word.
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bblab.errors import BblabError
from bblab.pretraining.data.images import EXTENSIONS
from bblab.pretraining.data.values import SPLITS, DataInfo, Layout, Problem, Severity, Split, number, some

META = "meta/bblab.json"
OTHER_NAMES = {"val": ("valid", "validation", "test", "eval"), "train": ("training",)}
IMAGENET_COUNTS = {"train": 1_281_167, "val": 50_000}
_PICTURES = (*EXTENSIONS, ".tiff", ".webp", ".gif", ".jfif", ".heic", ".avif", ".jp2")
MISSING = -1
"""The size of an image that an annotation lists but that is not there."""


@dataclass(slots=True)
class SplitListing:
    """The images of one split: paths below `root / prefix`, labels, sizes in bytes, in the order of training."""

    split: Split
    prefix: str
    paths: list[str] = field(default_factory=list)
    labels: array[int] = field(default_factory=lambda: array("q"))
    sizes: array[int] = field(default_factory=lambda: array("q"))
    ann: Path | None = None

    def add(self, path: str, label: int, size: int) -> None:
        self.paths.append(path)
        self.labels.append(label)
        self.sizes.append(size)

    def __len__(self) -> int:
        return len(self.paths)


@dataclass(slots=True)
class Listing:
    """Everything read of a data set before any image is opened."""

    root: Path
    layout: Layout
    classes: tuple[str, ...]
    splits: dict[Split, SplitListing]
    problems: list[Problem]
    is_as_stock: bool = True
    """Whether mmpretrain reads the same from the class folders themselves, without a list."""

    def hash(self) -> str:
        """Of names, labels and sizes; not of where the data lies."""
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        for name in SPLITS:
            s = self.splits[name]
            rows = sorted(zip(s.paths, s.labels, s.sizes, strict=True))
            for start in range(0, len(rows), 10_000):
                text = "".join(f"{name}\0{p}\0{n}\0{size}\n" for p, n, size in rows[start : start + 10_000])
                digest.update(text.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()[:16]

    def annotation(self, split: Split) -> str:
        """The "path label" lines of a split, as mmpretrain reads them."""
        s = self.splits[split]
        return "".join(f"{p} {n}\n" for p, n in zip(s.paths, s.labels, strict=True))


def root_of(folder: str | Path) -> Path:
    """The absolute folder. Raises BblabError for one that is missing or no folder."""
    from bblab.spec import expanded

    if not str(folder).strip():
        raise BblabError("a data folder without a name", hint="name the folder that holds train/ and val/")
    path = expanded(folder)
    try:
        if not path.exists():
            near = path.parent if path.parent.is_dir() else None
            there = f"{near} has: {some(sorted(p.name for p in near.iterdir() if p.is_dir()))}" if near else ""
            raise BblabError(f"no data folder {path}", hint=there or "check the path; is the disk mounted?")
        if not path.is_dir():
            raise BblabError(f"{path} is a file", hint="name the folder that holds train/ and val/")
    except (OSError, ValueError) as error:
        raise BblabError(f"{path}: {getattr(error, 'strerror', None) or error}", hint="check the path") from None
    return path.resolve()


def read(folder: str | Path, ann_train: str | Path | None = None, ann_val: str | Path | None = None) -> Listing:
    """Every image of a data set with its label. Problems are collected, not raised.

    Raises BblabError for a folder or annotation file that is missing, or one annotation file without the other.
    """
    root = root_of(folder)
    if (ann_train is None) != (ann_val is None):
        given = "--ann-train" if ann_train else "--ann-val"
        raise BblabError(f"{given} alone", hint="training needs a list of each split: name both files")
    problems: list[Problem] = []
    if ann_train is not None and ann_val is not None:
        anns: dict[Split, Path | None] = {"train": _file(root, ann_train), "val": _file(root, ann_val)}
        layout: Layout = "annotations"
    else:
        anns, layout = _found_annotations(root)
    listing = Listing(root, layout, (), {}, problems)
    if anns["train"] is None:
        classes = _train_classes(root, problems)
        listing.splits["train"] = _walk(root, "train", classes, listing)
    else:
        listing.splits["train"] = _from_annotation(root, "train", anns["train"], layout, problems)
        classes = _annotated_classes(root, listing.splits["train"], anns["train"], problems)
    listing.classes = tuple(classes)
    if anns["val"] is None:
        listing.splits["val"] = _walk(root, "val", classes, listing)
    else:
        listing.splits["val"] = _from_annotation(root, "val", anns["val"], layout, problems)
    count(listing)
    return listing


# ---------------------------------------------------------------------------------------------- class folders


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as found:
        return [e for e in found if not e.name.startswith(".")]


def _class_folders(folder: Path) -> list[str]:
    return sorted(e.name for e in _entries(folder) if e.is_dir())


def _train_classes(root: Path, problems: list[Problem]) -> list[str]:
    folder = root / "train"
    return _class_folders(folder) if folder.is_dir() else []


def _walk(root: Path, split: Split, classes: list[str], listing: Listing) -> SplitListing:
    """The class folders of a split; classes are the training set's, whatever folders this split has."""
    found = SplitListing(split, split)
    problems, folder = listing.problems, root / split
    if not folder.is_dir():
        problems.append(Problem("error", "missing-split", split, f"no folder {folder}", _instead(root, split)))
        return found
    try:
        entries = _entries(folder)
        here = sorted(e.name for e in entries if e.is_dir())
        hidden = [e for e in os.listdir(folder) if e.startswith(".") and (folder / e).is_dir()]  # noqa: PTH208
    except OSError as error:
        problems.append(Problem("error", "unreadable", split, f"{folder}: {error.strerror}", "check its permissions"))
        return found
    stray = [e.name for e in entries if e.is_file() and e.name.lower().endswith(_PICTURES)]
    if stray and not here:
        hint = f"write {root}/meta/{split}.txt with a line 'IMAGE LABEL' for each, or name it with --ann-{split}"
        problems.append(
            Problem("error", "flat-split", split, f"{len(stray):,} images and no class folders in {folder}", hint)
        )
    elif stray:
        problems.append(
            Problem(
                "warning",
                "stray-images",
                split,
                f"{number(len(stray), 'image')} outside the class folders: {some(stray)}",
            )
        )
    labels = {name: i for i, name in enumerate(classes)}
    unknown = [name for name in here if name not in labels]
    absent = [name for name in classes if name not in here]
    listing.is_as_stock &= not hidden and here == list(classes)
    empty, ignored = [], Counter[str]()
    for name in here:
        rows = sorted(_images(folder / name, name, ignored, problems, split))
        if not rows:
            empty.append(name)
        for path, size in rows:
            if name in labels:
                found.add(path, labels[name], size)
    if unknown:
        hint = f"move them to train/ too, or delete them from {split}/"
        problems.append(
            Problem("error", "class-not-in-train", split, f"{_num(unknown, 'class', 'es')} not in train", hint)
        )
    if empty:
        severity: Severity = "error" if split == "train" else "warning"
        hint = "delete the empty folders, or copy their images again" if split == "train" else ""
        problems.append(Problem(severity, "empty-class", split, f"no image in {_num(empty, 'class', 'es')}", hint))
        listing.is_as_stock = False
    if absent and split == "val" and here:
        hint = "they are trained but never scored; labels are numbered after train all the same"
        problems.append(
            Problem("warning", "class-not-in-val", split, f"{_num(absent, 'class', 'es')} of train absent", hint)
        )
    for suffix, count in sorted(ignored.items()):
        hint = f"images are {', '.join(EXTENSIONS)}"
        if suffix in _PICTURES:
            problems.append(
                Problem("warning", "ignored-images", split, f"{number(count, suffix + ' file')} not read", hint)
            )
    return found


def _num(names: list[str], word: str, plural: str) -> str:
    return f"{len(names):,} {word if len(names) == 1 else word + plural}: {some(names)}"


def _images(
    folder: Path, name: str, ignored: Counter[str], problems: list[Problem], split: Split, depth: int = 0
) -> Iterator[tuple[str, int]]:
    try:
        entries = _entries(folder)
        for entry in entries:
            path = f"{name}/{entry.name}"
            if entry.is_dir():
                if depth < 32:  # a link to a folder above would never end
                    yield from _images(folder / entry.name, path, ignored, problems, split, depth + 1)
            elif not entry.name.lower().endswith(EXTENSIONS):
                ignored[Path(entry.name).suffix.lower()] += 1
            elif entry.is_file():
                yield path, entry.stat().st_size
            else:
                problems.append(Problem("warning", "missing-image", split, f"{path} is a link to nothing"))
    except OSError as error:
        problems.append(Problem("error", "unreadable", split, f"{folder}: {error.strerror}", "check its permissions"))


def _instead(root: Path, split: Split) -> str:
    if root.name in SPLITS and (root.parent / split).is_dir():
        return f"did you mean {root.parent}?"
    others = [name for name in OTHER_NAMES[split] if (root / name).is_dir()]
    if others:
        return f"there is {root / others[0]}: rename it to {split}, or link it: ln -s {others[0]} {root / split}"
    for deeper in ("imagenet", "ILSVRC2012", "ILSVRC/Data/CLS-LOC", "data"):
        if (root / deeper / split).is_dir():
            return f"did you mean {root / deeper}?"
    if (root / split.upper()).is_dir() or (root / split.title()).is_dir():
        return f"folder names are lower case: {split}"
    here = _class_folders(root)
    return f"a data folder holds train/ and val/ with a folder for each class; here: {some(here) or 'no folders'}"


# ---------------------------------------------------------------------------------------------- annotation files


def _file(root: Path, given: str | Path) -> Path:
    from bblab.spec import expanded

    path = expanded(given)
    for candidate in (path, root / path):
        if candidate.is_file():
            return candidate.resolve()
    raise BblabError(f"no annotation file {path}", hint=f"looked from here and in {root}")


def _found_annotations(root: Path) -> tuple[dict[Split, Path | None], Layout]:
    meta: dict[Split, Path | None] = {s: _if_file(root / "meta" / f"{s}.txt") for s in SPLITS}
    if any(meta.values()):
        return meta, "imagenet"
    beside: dict[Split, Path | None] = {s: _if_file(root / f"{s}.txt") for s in SPLITS}
    if all(beside.values()):
        return beside, "annotations"
    return {"train": None, "val": None}, "folders"


def _if_file(path: Path) -> Path | None:
    return path if path.is_file() else None


def _from_annotation(root: Path, split: Split, ann: Path, layout: Layout, problems: list[Problem]) -> SplitListing:
    found = SplitListing(split, split if layout == "imagenet" else "", ann=ann)
    try:
        lines = ann.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        said = getattr(error, "strerror", None) or "not UTF-8 text"
        raise BblabError(f"{ann}: {said}", hint="an annotation file has a line 'IMAGE LABEL' for each image") from None
    rows: list[tuple[str, int]] = []
    wrong: list[str] = []
    for place, line in enumerate(lines, 1):
        path, _, written = line.strip().rpartition(" ")
        if path and written.isascii() and written.isdigit():
            rows.append((path.strip(), int(written)))
        else:
            wrong.append(f"line {place}: {line.strip()[:60] or 'blank'}")
    if wrong:
        hint = "each line is 'IMAGE LABEL', the label a whole number from 0"
        problems.append(
            Problem("error", "bad-line", ann.name, f"{number(len(wrong), 'line')} not read: {some(wrong, 3)}", hint)
        )
    if layout == "annotations" and rows and not (root / rows[0][0]).exists() and (root / split / rows[0][0]).exists():
        found.prefix = split
    elif layout == "imagenet" and rows:
        base = root / split
        if not (base / rows[0][0]).exists() and (root / rows[0][0]).exists():
            found.prefix = ""
    seen: dict[str, int] = {}
    twice: list[str] = []
    two_labels: list[str] = []
    base = root / found.prefix
    gone: list[str] = []
    for path, label in rows:
        if path in seen:
            (twice if seen[path] == label else two_labels).append(path)
        seen[path] = label
        try:
            size = os.stat(os.path.join(base, path)).st_size  # noqa: PTH116, PTH118 - a Path for each costs time
        except (OSError, ValueError):
            size = MISSING
            gone.append(path)
        found.add(path, label, size)
    if gone:
        all_gone = len(gone) == len(rows)
        hint = f"paths are read below {base}" if all_gone else "copy them again, or take their lines out"
        problems.append(
            Problem(
                "error",
                "missing-image",
                split,
                f"not there: {len(gone):,} of {number(len(rows), 'listed image')}: {some(gone)}",
                hint,
            )
        )
    if twice:
        problems.append(Problem("warning", "listed-twice", split, f"{number(len(twice), 'image')}: {some(twice)}"))
    if two_labels:
        problems.append(
            Problem("error", "two-labels", split, f"{number(len(two_labels), 'image')}: {some(two_labels)}")
        )
    if not rows and not wrong:
        problems.append(Problem("error", "no-images", split, f"{ann} is empty"))
    return found


def _annotated_classes(root: Path, train: SplitListing, ann: Path, problems: list[Problem]) -> list[str]:
    """Names of the labels: of classes.txt beside the list or in the data folder, else of the images' folders."""
    count = max(train.labels, default=-1) + 1
    if count > 1_000_000:
        problems.append(Problem("error", "bad-label", "train", f"a label of {count - 1:,}", "labels count from 0"))
        return []
    for place in (ann.parent / "classes.txt", root / "classes.txt", root / "meta" / "classes.txt"):
        if place.is_file():
            names = [line.strip() for line in place.read_text(encoding="utf-8").splitlines() if line.strip()]
            if len(names) < count:
                problems.append(
                    Problem("error", "bad-label", "train", f"label {count - 1}, but {place} names {len(names)} classes")
                )
            return names
    folders: dict[int, set[str]] = {}
    for path, label in zip(train.paths, train.labels, strict=True):
        folders.setdefault(label, set()).add(path.rpartition("/")[0])
    names = [next(iter(folders[i])) if len(folders.get(i, ())) == 1 else "" for i in range(count)]
    if all(names) and len(set(names)) == count:
        short = [name.rpartition("/")[2] for name in names]
        return short if len(set(short)) == count else names
    return [f"class{i:0{len(str(count - 1))}d}" for i in range(count)]


# ---------------------------------------------------------------------------------------------- counts


def count(listing: Listing) -> None:
    """What numbers alone tell."""
    problems, splits, classes = listing.problems, listing.splits, listing.classes
    per_class = {s: Counter(splits[s].labels) for s in SPLITS}
    for s in SPLITS:
        if not len(splits[s]) and not any(p.severity == "error" and p.where == s for p in problems):
            problems.append(Problem("error", "no-images", s, f"no image in {listing.root / splits[s].prefix}"))
        empty = [path for path, size in zip(splits[s].paths, splits[s].sizes, strict=True) if size == 0]
        if empty:
            hint = "copy them again; `bblab data prepare` leaves them out"
            problems.append(
                Problem("error", "empty-image", s, f"{number(len(empty), 'file')} of 0 bytes: {some(empty)}", hint)
            )
    if len(classes) == 1:
        problems.append(Problem("error", "one-class", "train", f"one class only: {classes[0]}", "a class is a folder"))
    annotated = {s: splits[s].ann is not None for s in SPLITS}
    gaps = [classes[i] for i in range(len(classes)) if not per_class["train"][i]]
    if annotated["train"] and gaps:
        hint = "number the labels from 0 without gaps"
        problems.append(Problem("error", "empty-class", "train", f"no image in {_num(gaps, 'class', 'es')}", hint))
    if annotated["val"] and classes:
        outside = sorted({n for n in per_class["val"] if n >= len(classes)})
        if outside:
            problems.append(
                Problem("error", "class-not-in-train", "val", f"labels {some(outside)} of {len(classes)} classes",
                        "both lists number the same classes from 0"))  # fmt: skip
        absent = [classes[i] for i in range(len(classes)) if not per_class["val"][i]]
        if absent and len(splits["val"]):
            problems.append(
                Problem("warning", "class-not-in-val", "val", f"{_num(absent, 'class', 'es')} of train absent",
                        "they are trained but never scored"))  # fmt: skip
    if splits["train"].prefix == splits["val"].prefix:
        both = set(splits["train"].paths) & set(splits["val"].paths)
        if both:
            problems.append(
                Problem("error", "train-in-val", "val", f"{len(both):,} images listed in both splits: {some(both)}",
                        "they would raise the validation accuracy"))  # fmt: skip
    is_imagenet = len(classes) == 1000 and all(len(c) == 9 and c[0] == "n" and c[1:].isdigit() for c in classes)
    for s in SPLITS if is_imagenet else ():
        if 0 < len(splits[s]) != IMAGENET_COUNTS[s]:
            missing = IMAGENET_COUNTS[s] - len(splits[s])
            said = f"{len(splits[s]):,} images, ImageNet-1k has {IMAGENET_COUNTS[s]:,}"
            hint = f"{missing:,} are missing: was the copy complete?" if missing > 0 else "some may be there twice"
            problems.append(Problem("warning", "wrong-count", s, said, hint))
    counts = [n for n in per_class["train"].values() if n]
    if counts and max(counts) >= 10 * min(counts):
        few = classes[min(per_class["train"], key=per_class["train"].__getitem__)] if classes else ""
        said = f"classes have {min(counts):,} ({few}) to {max(counts):,} images"
        problems.append(Problem("note", "uneven-classes", "train", said))


# ---------------------------------------------------------------------------------------------- the value


def to_info(listing: Listing, cache: Path | None = None) -> DataInfo:
    """The listing as the value that training takes.

    Where mmpretrain would read something else from the class folders (a class missing in val, an empty one), lists
    are written into `cache` and named in the value.
    """
    splits, root = listing.splits, listing.root
    anns = {s: _relative(root, splits[s].ann) for s in SPLITS}
    digest = listing.hash()
    is_fit = listing.classes and all(len(splits[s]) for s in SPLITS)
    if not listing.is_as_stock and is_fit:
        from bblab.rooms import cache_dir

        folder = (cache or cache_dir()) / "data" / f"{digest}-{hashlib.sha256(str(root).encode()).hexdigest()[:8]}"
        for s in SPLITS:
            if splits[s].ann is None:
                anns[s] = str(write_atomically(folder / f"{s}.txt", listing.annotation(s)))
    return DataInfo(
        root=str(root),
        layout=listing.layout,
        classes=listing.classes,
        train_count=len(splits["train"]),
        val_count=len(splits["val"]),
        hash=digest,
        ann_train=anns["train"],
        ann_val=anns["val"],
        prefix_train=splits["train"].prefix,
        prefix_val=splits["val"].prefix,
        problems=tuple(listing.problems),
        prepared=_prepared_settings(root),
    )


def _relative(root: Path, ann: Path | None) -> str | None:
    if ann is None:
        return None
    return str(ann.relative_to(root)) if ann.is_relative_to(root) else str(ann)


def write_atomically(path: Path, text: str) -> Path:
    """Write by way of a temporary file that is on the disk before it takes the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def remembered(root: Path) -> dict[str, Any] | None:
    """What `bblab data prepare` wrote about the folder that it made, if it finished."""
    try:
        value = json.loads((root / META).read_text(encoding="utf-8"))
        return value if isinstance(value, dict) and value.get("is_complete") else None
    except (OSError, ValueError):
        return None


def _prepared_settings(root: Path) -> dict[str, Any] | None:
    value = remembered(root)
    return value["settings"] if value else None

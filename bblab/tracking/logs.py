"""Read the logs of trackers' trainers, and the tables of scores that their toolkits print, in one pass.

Written after the code that prints them: STVIR/pysot tools/train.py and its copies (SiamTrackers/NanoTrack, siamban,
SiamMask), researchmm/TracKit and SiamDW lib/core/function.py, researchmm/Stark and visionml/pytracking ltr_trainer.py
(also OSTrack), MegviiDetection/video_analyst text_info.py, huanglianghua/siamfc-pytorch, open-mmlab/mmtracking.

What a printed loss is differs, and so does the way to an epoch's mean:
- pysot prints each loss with the mean of the last 100 iterations in brackets (average_meter.py). Windows that lie in
  the epoch and do not overlap are averaged; an epoch shorter than a window has the mean of its printed losses.
- TracKit, STARK and pytracking print the mean since the epoch's start: its last line is the epoch's mean.
- The others print single or interval losses, which are averaged.
`[50][0/18750]` is the *last* line of epoch 50: pysot prints (iteration + 1) modulo the iterations of an epoch.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bblab.errors import BblabError, RunError
from bblab.tracking import metrics

Progress = Callable[[int, int], None]
Printed = Literal["window", "running", "single"]

WINDOW = 100
"""Iterations in the bracketed mean of pysot's AverageMeter."""
_CHUNK = 1 << 20
_LONGEST_LINE = 1 << 16
_LARGEST_JSON = 64 << 20
EXPECTED = (
    "expected lines such as `Epoch: [50][0/18750] lr: 0.000500 ... total_loss: 0.198816 (0.190224)` (pysot, NanoTrack, "
    "TracKit), `[train: 1, 50 / 1875] FPS: ... Loss/total: 1.65311` (STARK, pytracking), or a table "
    "`| Tracker Name | Accuracy | Robustness | Lost Number | EAO |`"
)


@dataclass(frozen=True, slots=True)
class Epoch:
    """One epoch of a curve. `means`: the mean of each printed value over the epoch, `lasts`: as last printed.

    A value that was no number (a loss that diverged) is nan. `iteration` of `iterations` is the last one printed.
    """

    epoch: int
    iteration: int
    iterations: int
    lr: float | None
    batch_time_s: float | None
    means: Mapping[str, float]
    lasts: Mapping[str, float]
    num_lines: int

    @property
    def is_complete(self) -> bool:
        """Logged to its end, or to the last line that the print interval leaves."""
        step = max(1, self.iteration // self.num_lines) if self.num_lines else 1
        return self.iterations > 0 and self.iteration + step > self.iterations


@dataclass(frozen=True, slots=True)
class Row:
    """One tracker's line in a table of scores, by quantity; `epoch` where its name says one."""

    tracker: str
    epoch: int | None
    quantities: Mapping[str, float]
    benchmark: str | None


@dataclass(frozen=True, slots=True)
class File:
    """What identifies a log: its path as given, size and hash; `prefixes` holds the hash after so many bytes."""

    path: str
    size_bytes: int
    sha256: str
    prefixes: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class Log:
    """All that was read of one training, from one file or several in a row."""

    files: tuple[File, ...]
    trainer: str
    epochs: tuple[Epoch, ...]
    names: tuple[str, ...]
    total: str | None
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    started: str | None
    ended: str | None
    unfrozen_at: int | None
    began_anew: bool = False
    """A second training from its first epoch on: only that is in `epochs`."""

    @property
    def last_complete(self) -> int | None:
        """The last epoch that was logged to its end."""
        if not self.epochs:
            return None
        if self.epochs[-1].is_complete:
            return self.epochs[-1].epoch
        return self.epochs[-2].epoch if len(self.epochs) > 1 else None

    def curve(self, name: str) -> dict[int, float | None]:
        """Epoch -> mean of a value; None where it was no number."""
        found = {e.epoch: e.means[name] for e in self.epochs if name in e.means}
        return {epoch: None if math.isnan(value) else value for epoch, value in found.items()}


def read(paths: Sequence[Path | str], *, marks: Sequence[int] = (), on_progress: Progress | None = None) -> Log:
    """Read logs one after the other: a training, its resumptions, the tables of its evaluation.

    `marks` are sizes in bytes of which the files' prefix hashes are wanted. A resumed training repeats epochs: the
    last pass through an epoch wins, and epochs of an abandoned pass are left out; `notes` says so. Files are read in a
    stream (memory for one epoch's lines). Raises RunError for a file that cannot be read, BblabError for one in which
    there is neither a training nor a table, with what was read instead.
    """
    reader = _Reader()
    files = []
    total = sum(_size(Path(p)) for p in paths)
    done = 0
    for given in paths:
        path = Path(given).expanduser()
        before = reader.num_understood
        first: list[str] = []
        feed = _Feed(path, marks)
        table = _performance(path)
        if table is not None:
            reader.num_understood += reader.json(table)
        for line in feed.lines():
            if not first and line.strip():
                first.append(line.strip()[:100])
            reader.line(line, whole=not feed.tail)
            if on_progress is not None and feed.new_chunk:
                feed.new_chunk = False
                on_progress(done + feed.size_bytes, total)
        reader.end_of_file(feed.tail, path.name)
        if reader.num_understood == before:
            shown = f"it begins with: {first[0]}" if first else "it is empty"
            raise BblabError(f"{path} is no log of a tracker's training: {shown}", hint=EXPECTED)
        if feed.num_replaced:
            reader.notes.append(f"{path.name}: {feed.num_replaced} lines hold bytes that are no {feed.encoding} text")
        done += feed.size_bytes
        files.append(File(str(given), feed.size_bytes, feed.hash.hexdigest(), feed.prefixes))
    return reader.log(tuple(files))


def _performance(path: Path) -> Any:  # JSON
    """The content of a JSON file of results; None for anything else."""
    if path.suffix.lower() != ".json" or _size(path) > _LARGEST_JSON:
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


# ---- bytes to lines


def _size(path: Path) -> int:
    try:
        return path.expanduser().stat().st_size
    except OSError:
        return 0


class _Feed:
    """Lines of a file in a stream, with its hash. A carriage return ends a line too: progress bars redraw theirs."""

    def __init__(self, path: Path, marks: Sequence[int]) -> None:
        self.path = path
        self.hash = hashlib.sha256()
        self.prefixes: dict[int, str] = {}
        self.size_bytes = 0
        self.num_replaced = 0
        self.encoding = "utf-8"
        self.tail = ""
        self.new_chunk = False
        self._marks = sorted(set(marks))

    def lines(self) -> Iterator[str]:
        try:
            with self.path.open("rb") as file:
                yield from self._lines(iter(lambda: file.read(_CHUNK), b""))
        except OSError as error:
            said = error.strerror or str(error)
            raise RunError(
                f"the log {self.path} cannot be read: {said}", hint="name the file with --log FILE"
            ) from None

    def _lines(self, chunks: Iterator[bytes]) -> Iterator[str]:
        decoder: codecs.IncrementalDecoder | None = None
        rest = ""
        for chunk in chunks:
            if decoder is None:
                self.encoding = self._encoding(chunk)
                decoder = codecs.getincrementaldecoder(self.encoding)(errors="replace")
            self._count(chunk)
            self.new_chunk = True
            text = rest + decoder.decode(chunk)
            *whole, rest = text.replace("\r", "\n").split("\n")
            if len(rest) > _LONGEST_LINE:
                rest = rest[-_LONGEST_LINE:]
            for line in whole:
                if "\ufffd" in line:
                    self.num_replaced += 1
                yield line
        if rest:
            self.tail = rest
            yield rest

    def _count(self, chunk: bytes) -> None:
        while self._marks and self._marks[0] <= self.size_bytes + len(chunk):
            mark = self._marks.pop(0)
            part = self.hash.copy()
            part.update(chunk[: mark - self.size_bytes])
            self.prefixes[mark] = part.hexdigest()
        self.hash.update(chunk)
        self.size_bytes += len(chunk)

    def _encoding(self, head: bytes) -> str:
        for mark, name in (
            (codecs.BOM_UTF8, "utf-8-sig"),
            (codecs.BOM_UTF16_LE, "utf-16"),
            (codecs.BOM_UTF16_BE, "utf-16"),
        ):
            if head.startswith(mark):  # PowerShell's `>` writes UTF-16
                return name
        for magic, what in _BINARY:
            if head.startswith(magic):
                raise BblabError(f"{self.path} is no text: it is {what}", hint=EXPECTED)
        if b"\0" in head[:4096]:
            shown = head[:12].hex(" ")
            raise BblabError(f"{self.path} is no text: it begins with the bytes {shown}", hint=EXPECTED)
        return "utf-8"


_BINARY = (
    (b"PK\x03\x04", "a zip file or a checkpoint"),
    (b"\x80\x02", "a pickle or an old checkpoint"),
    (b"\x1f\x8b", "compressed (gunzip it first)"),
    (b"SQLite format 3", "an SQLite file"),
    (b"\x89PNG", "a picture"),
    (b"%PDF", "a PDF"),
)


# ---- lines to epochs

_NUMBER = r"[-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+|nan|inf)"
_ITEM = re.compile(
    rf"(?P<name>[A-Za-z_][\w./]*(?: [A-Za-z_][\w./]*)?)\s*:\s*(?P<value>{_NUMBER})(?:s\b)?(?![\w.])"
    rf"(?:\s*\(\s*(?P<mean>{_NUMBER})\s*\))?",
    re.IGNORECASE,
)
_HEADERS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\bEpoch\s*:\s*\[(?P<epoch>\d+)\]\s*\[(?P<it>\d+)\s*/\s*(?P<of>\d+)\]"), "pysot"),
    (re.compile(r"\[(?P<phase>train|val\w*)\s*:\s*(?P<epoch>\d+),\s*(?P<it>\d+)\s*/\s*(?P<of>\d+)\]"), "stark"),
    (
        re.compile(r"\bEpoch(?:\((?P<phase>train|val)\))?\s*\[(?P<epoch>\d+)\]\s*\[\s*(?P<it>\d+)\s*/\s*(?P<of>\d+)\]"),
        "mmengine",
    ),
    (re.compile(r"\bEpoch\s*:\s*(?P<epoch>\d+)\s*\[(?P<it>\d+)\s*/\s*(?P<of>\d+)\]"), "siamfc"),
    (re.compile(r"(?:^|\s)epoch (?P<epoch>\d+), (?=lr: )"), "video_analyst"),
)
_TQDM = re.compile(r"\|\s*(?P<it>\d+)/(?P<of>\d+)\s*\[")
_STAMP = re.compile(r"\d{4}[-/]\d\d[-/]\d\d[ T]\d\d:\d\d:\d\d")
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_NOT_LOSSES = {
    "lr", "batchtime", "datatime", "forwardtime", "totaltime", "time", "eta", "memory", "maxmem", "fps", "data", "fwd",
    "bwd", "optim", "epoch", "iter", "step",
}  # fmt: skip
_TRAINERS = {
    "pysot": "pysot (also NanoTrack, siamban, SiamMask)",
    "trackit": "TracKit or SiamDW",
    "stark": "STARK, pytracking or OSTrack",
    "mmengine": "mmtracking or mmengine",
    "siamfc": "siamfc-pytorch",
    "video_analyst": "video_analyst",
}


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _number(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else math.nan


@dataclass(slots=True)
class _Line:
    """One printed line of a training: (value, running mean or None) by name."""

    iteration: int
    values: dict[str, tuple[float, float | None]]


@dataclass(slots=True)
class _Open:
    """An epoch that is being read."""

    epoch: int
    iterations: int
    trainer: str
    lr: float | None = None
    lines: list[_Line] = field(default_factory=list)
    others: dict[str, list[float]] = field(default_factory=dict)
    batch_times_s: list[float] = field(default_factory=list)

    @property
    def iteration(self) -> int:
        return max((line.iteration for line in self.lines), default=0)


class _Reader:
    """Takes lines, keeps epochs. A record of pysot goes on over several lines."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.num_understood = 0
        self._epochs: dict[int, Epoch] = {}
        self._open: _Open | None = None
        self._record: dict[str, tuple[float, float | None]] | None = None
        self._record_at = 0
        self._phase = "train"
        self._trainers: dict[str, int] = {}
        self._names: dict[str, None] = {}
        self._first_header = self._last_header = ""
        self._unfrozen_after: int | None = None
        self._passes: list[tuple[int, int]] = []
        self._anew: tuple[int, int] | None = None
        self._tables = _Tables()

    # -- lines

    def line(self, raw: str, *, whole: bool = True) -> None:
        """One line; not `whole` where the file ends within it."""
        text = _ANSI.sub("", raw) if "\x1b" in raw else raw
        if "|" in text:
            self.num_understood += self._tables.line(text, whole=whole)
        elif "dataset" in text or " -d " in text:
            self._tables.command(text)
        if "poch" in text or "[train" in text or "[val" in text:
            for pattern, trainer in _HEADERS:
                match = pattern.search(text)
                if match:
                    self._first_header, self._last_header = self._first_header or text, text
                    self._header(match, trainer, text)
                    return
        if "start training backbone" in text:
            self._close_record()
            self._unfrozen_after = self._open.epoch if self._open else 0
        if self._record is not None and not self._more(text):
            self._close_record()

    def _header(self, match: re.Match[str], trainer: str, text: str) -> None:
        self._close_record()
        found = match.groupdict()
        epoch = int(found["epoch"])
        if found.get("it"):
            iteration, iterations = int(found["it"]), int(found["of"])
        else:
            bar = _TQDM.search(text, match.end())
            iteration, iterations = (int(bar["it"]), int(bar["of"])) if bar else (0, 0)
        if trainer == "pysot" and iteration == 0:
            iteration = iterations
        self._phase = "train" if (found.get("phase") or "train") == "train" else "val"
        rest = text[match.end() :]
        if self._phase == "train":
            is_trackit = trainer == "pysot" and "Time:" in rest
            self._enter(epoch, iteration, iterations, "trackit" if is_trackit else trainer)
        if self._open is not None:
            self._record, self._record_at = {}, iteration
            self._more(rest, first=True)

    def _more(self, text: str, *, first: bool = False) -> bool:
        """Take the values of this line into the record; False if it is not a part of it."""
        assert self._record is not None
        if not text.strip():
            return bool(self._record) or first
        if text.startswith("[") and not first:  # another message of the logger
            return False
        items = list(_ITEM.finditer(text))
        is_record = first or (text[0] == "\t" and items)
        if not is_record and (not items or re.search(r"[A-Za-z]", _ITEM.sub("", text))):
            return False
        for item in items:
            mean = _number(item["mean"]) if item["mean"] else None
            self._record[item["name"].strip()] = (_number(item["value"]), mean)
        return True

    def _enter(self, epoch: int, iteration: int, iterations: int, trainer: str) -> None:
        current = self._open
        if current is not None and (
            epoch < current.epoch or (epoch == current.epoch and iteration < current.iteration)
        ):
            self._restart(epoch)
        elif current is not None and epoch != current.epoch:
            self._close_epoch()
        elif current is None and epoch in self._epochs:
            self._restart(epoch)
        if self._open is None:
            self._open = _Open(epoch, iterations, trainer)
        self._trainers[trainer] = self._trainers.get(trainer, 0) + 1

    def _restart(self, epoch: int) -> None:
        """The training was resumed: this epoch and what had followed it belong to an abandoned pass.

        Where nothing stays, it was not resumed: another training begins.
        """
        self._close_epoch()
        gone = sorted(e for e in self._epochs if e >= epoch)
        for e in gone:
            del self._epochs[e]
        if gone and not self._epochs:
            self._anew, self._passes = (gone[0], gone[-1]), []
            self._first_header, self._unfrozen_after = self._last_header, None
        elif gone:
            self._passes.append((epoch, gone[-1]))

    def _close_record(self) -> None:
        record, self._record = self._record, None
        if not record or self._open is None:
            return
        values = {}
        for name, pair in record.items():
            plain = _plain(name)
            if plain == "lr":
                self._open.lr = pair[0]
            elif plain in ("batchtime", "time", "totaltime"):
                self._open.batch_times_s.append(pair[1] if pair[1] is not None else pair[0])
            elif plain not in _NOT_LOSSES:
                values[name] = pair
        if not values:
            return
        if self._phase == "val":
            for name, pair in values.items():
                self._open.others[f"val {name}"] = [pair[0]]  # a running mean: the last one counts
            return
        lines = self._open.lines
        if lines and self._record_at and lines[-1].iteration == self._record_at:
            # Twice the same line: printed and logged into one file, or a progress bar drawn again. Other values: a
            # second pass that begins where the first one ended.
            if lines[-1].values != values and self._open.trainer != "video_analyst":
                lines.clear()
                self._passes.append((self._open.epoch, self._open.epoch))
            else:
                lines.pop()
        lines.append(_Line(self._record_at, values))
        self.num_understood += 1
        for name in values:
            self._names.setdefault(name)

    def _close_epoch(self) -> None:
        self._close_record()
        opened, self._open = self._open, None
        if opened is None or not opened.lines:
            return
        means, lasts = {}, {}
        for name in {n: None for line in opened.lines for n in line.values}:
            pairs = [(line.iteration, *line.values[name]) for line in opened.lines if name in line.values]
            lasts[name] = pairs[-1][2] if pairs[-1][2] is not None else pairs[-1][1]
            means[name] = _mean(pairs, printed(opened.trainer))
        for name, values in opened.others.items():
            means[name] = lasts[name] = values[-1]
            self._names.setdefault(name)
        times = opened.batch_times_s
        self._epochs[opened.epoch] = Epoch(
            opened.epoch,
            opened.iteration,
            opened.iterations,
            opened.lr,
            sum(times) / len(times) if times else None,
            means,
            lasts,
            len(opened.lines),
        )

    def end_of_file(self, tail: str, name: str) -> None:
        """The file ends; `tail` is a last line without an end, whose last number may lack digits."""
        if tail and self._record:
            items = list(_ITEM.finditer(tail))
            if items and _may_be_cut(items, tail):
                cut = items[-1]["name"].strip()
                self._record.pop(cut, None)
                self.notes.append(f"{name} ends in the middle of a line: the last {cut} is left out")
        self._close_record()
        self._tables.end()

    def json(self, value: Any) -> int:
        """Scores from a JSON file; how many trackers."""
        return self._tables.json(value)

    # -- the whole

    def log(self, files: tuple[File, ...]) -> Log:
        self._close_epoch()
        epochs = tuple(self._epochs[e] for e in sorted(self._epochs))
        notes = list(self.notes)
        if self._anew is not None:
            of = f"epoch {self._anew[0]}" if self._anew[0] == self._anew[1] else "epochs {} to {}".format(*self._anew)
            notes.append(f"two trainings: one begins anew behind {of}; only the later one is read")
        for again, last in self._passes:
            these = f"epoch {again}" if last == again else f"epochs {again} to {last}"
            verb = "is" if last == again else "are"
            notes.append(f"the training was resumed: {these} {verb} of the later pass, the earlier one is left out")
        if epochs:
            there = {e.epoch for e in epochs}
            if missing := [e for e in range(min(there), max(there)) if e not in there]:
                notes.append(f"no line of epoch {', '.join(map(str, missing[:8]))}{' ...' if len(missing) > 8 else ''}")
            bad = [e.epoch for e in epochs if any(map(math.isnan, (*e.means.values(), *e.lasts.values())))]
            if bad:
                notes.append(
                    f"a value was no number (nan or infinite) in epoch {bad[0]}" + (" and later" if bad[1:] else "")
                )
        if len(self._trainers) > 1:
            notes.append("lines of several trainers: " + ", ".join(_TRAINERS[t] for t in self._trainers))
        trainer = max(self._trainers, key=lambda t: self._trainers[t]) if self._trainers else ""
        names = tuple(n for n in self._names if any(n in e.means for e in epochs))
        rows, said = self._tables.rows, self._tables.notes
        started, ended = (m[0] if (m := _STAMP.search(t)) else None for t in (self._first_header, self._last_header))
        return Log(
            files, trainer, epochs, names, _total(names), tuple(rows), tuple(notes + said), started, ended,
            self._unfrozen_after, self._anew is not None,
        )  # fmt: skip


def printed(trainer: str) -> Printed:
    """What the numbers of this trainer's lines are."""
    return {"pysot": "window", "trackit": "running", "stark": "running"}.get(trainer, "single")  # type: ignore[return-value]


def _may_be_cut(items: Sequence[re.Match[str]], tail: str) -> bool:
    """Whether the last number of a line may lack digits: fewer than its neighbours have, or no mean where they do."""
    *others, last = items
    rest = tail[last.end() :].strip("\r\n")
    if (rest and not rest.lstrip().startswith("(")) or last["mean"]:
        return False
    others = [o for o in others if _plain(o["name"]) not in _NOT_LOSSES]
    if any(o["mean"] for o in others):
        return True

    def decimals(item: re.Match[str]) -> int:
        return len(item["value"].partition(".")[2])

    return not others or decimals(last) < max(map(decimals, others))


def trainer_name(trainer: str) -> str:
    """The trainers that print such lines, for a person."""
    return _TRAINERS.get(trainer, trainer)


def _mean(pairs: Sequence[tuple[int, float, float | None]], kind: Printed) -> float:
    """An epoch's mean from (iteration, value, running mean or None); nan if a value was no number."""
    if any(math.isnan(value) for _, value, _ in pairs):
        return math.nan
    if kind == "running":
        return pairs[-1][1]
    if kind == "window":
        windows: list[float] = []
        free = math.inf
        for iteration, _, mean in reversed(pairs):
            if mean is not None and iteration >= WINDOW and iteration <= free:
                windows.append(mean)
                free = iteration - WINDOW
        if windows:
            return math.nan if any(map(math.isnan, windows)) else sum(windows) / len(windows)
    return sum(value for _, value, _ in pairs) / len(pairs)


def _total(names: Sequence[str]) -> str | None:
    by_plain = {_plain(name): name for name in reversed(names)}
    for wanted in ("totalloss", "losstotal", "losstotaltrain", "loss", "maskloss"):
        if wanted in by_plain:
            return by_plain[wanted]
    return None


# ---- tables of scores

_EPOCH_OF = re.compile(r"(?:checkpoint|ckpt|epoch|snapshot|_e|ep)[_-]?e?(?P<epoch>\d+)", re.IGNORECASE)
_COMMAND = re.compile(r"(?:--dataset(?:_name)?|-d)[ =]+(?P<name>[\w-]+)")


def epoch_of(tracker: str) -> int | None:
    """The epoch that a tracker's name says: checkpoint_e37, checkpoint37_r255_pk-0.150."""
    match = _EPOCH_OF.search(tracker)
    return int(match["epoch"]) if match else None


_GOT_KEYS = {
    "ao": "ao", "sr": "sr50", "success_score": "auc", "precision_score": "precision", "accuracy": "accuracy",
    "robustness": "robustness",
}  # fmt: skip


class _Tables:
    """Rows of `| Tracker Name | ... |` (pysot-toolkit) and `NAME | AUC | OP50 | ...` (pytracking, in percent)."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.notes: list[str] = []
        self._columns: list[str | None] | None = None
        self._percent = False
        self._benchmark: str | None = None
        self._asked: str | None = None

    def command(self, text: str) -> None:
        """The command that prints the tables, echoed by a shell, names the data set."""
        match = _COMMAND.search(text)
        if match and metrics.benchmark(match["name"]):
            self._asked = metrics.benchmark(match["name"])

    def _say(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)

    def end(self) -> None:
        """A file's end is a table's."""
        self._columns = None
        self._asked = None

    def json(self, value: Any) -> int:
        """The performance.json of got-10k/toolkit; how many trackers it has. GOT-10k's is of its validation set."""
        if not isinstance(value, dict):
            return 0
        before = len(self.rows)
        for tracker, found in value.items():
            overall = found.get("overall", found) if isinstance(found, dict) else {}
            known = {}
            for key, quantity in _GOT_KEYS.items():
                number = overall.get(key) if isinstance(overall, dict) else None
                if isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number):
                    known[quantity] = float(number)
            if known:
                benchmark = "got10k_val" if "ao" in known else None
                self.rows.append(Row(str(tracker), epoch_of(str(tracker)), known, benchmark))
        return len(self.rows) - before

    def line(self, text: str, *, whole: bool = True) -> int:
        """1 if this line is a row of scores."""
        if not text.strip().strip("-=|+ "):
            return 0
        cells = [cell.strip() for cell in text.strip().strip("|").split("|")]
        if len(cells) < 3:
            return 0
        columns = [metrics.quantity(cell) or ("fps" if cell.lower() == "fps" else None) for cell in cells[1:]]
        if sum(c is not None for c in columns) >= 2:
            is_pysot = cells[0].lower().startswith("tracker")
            self._columns, self._percent = list(columns), not is_pysot
            self._benchmark = self._asked if is_pysot else metrics.benchmark(cells[0])
            return 0
        if cells[0].lower().startswith(("tracker", "video")):  # a table by video
            self._columns = None
        if self._columns is None:
            return 0
        if not whole and not text.rstrip().endswith("|"):
            self.notes.append(f"the last row of the table, of {cells[0]}, may be cut and is left out")
            return 0
        try:
            numbers = [float(cell) for cell in cells[1 : len(self._columns) + 1] if cell]
        except ValueError:
            return 0
        if len(numbers) < len(self._columns):
            return 0
        scale = 100 if self._percent else 1
        found = {}
        for name, number in zip(self._columns, numbers, strict=False):
            if name == "fps":
                self._say("speeds in the table are left out: a speed belongs to its device (bblab bench)")
                continue
            if name is None or not math.isfinite(number):
                continue
            # pysot-toolkit prints 0.000 where it did not compute this one.
            if name == "norm_precision" and number == 0:
                continue
            found[name] = round(number / scale, 8)
        if not found:
            return 0
        row = Row(cells[0], epoch_of(cells[0]), found, self._benchmark)
        self.rows = [
            r
            for r in self.rows
            if (r.tracker, r.benchmark, set(r.quantities)) != (row.tracker, row.benchmark, set(found))
        ]
        self.rows.append(row)
        return 1

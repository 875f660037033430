"""bblab data: look at a data set before a GPU waits for it, and make it load fast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bblab.cli import common
from bblab.errors import BblabError, RunError

if TYPE_CHECKING:
    from bblab.pretraining.data import BadFile, Problem

FolderArgument = Annotated[
    str, typer.Argument(metavar="DIR", help="Holds train/ and val/ with a folder for each class.")
]
AnnTrainOption = Annotated[
    str | None, typer.Option("--ann-train", metavar="FILE", help="A list of 'IMAGE LABEL' lines instead of folders.")
]
AnnValOption = Annotated[str | None, typer.Option("--ann-val", metavar="FILE", help="The same for validation.")]
JobsOption = Annotated[
    int | None, typer.Option("--jobs", metavar="N", min=1, max=1024, help="Processes; as many as there are cores.")
]


def register(app: typer.Typer) -> None:
    group = typer.Typer(
        help="Check a data set before training, or write a copy of it that loads fast.",
        epilog="Example: bblab data check /data/imagenet",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    group.command(epilog="Example: bblab data check /data/imagenet --quick")(check)
    group.command(epilog="Example: bblab data prepare /data/imagenet /fast/imagenet256")(prepare)
    app.add_typer(group, name="data")


def check(
    folder: FolderArgument,
    ann_train: AnnTrainOption = None,
    ann_val: AnnValOption = None,
    quick: Annotated[bool, typer.Option("--quick", help="Names and sizes only; no image is opened.")] = False,
    bad: Annotated[
        str | None,
        typer.Option("--bad", metavar="FILE|-", callback=common.writable, help="List the images that do not decode."),
    ] = None,
    jobs: JobsOption = None,
    json: common.JsonOption = None,
    lab: common.LabOption = None,
) -> None:
    """Find what would end or spoil a training: missing, empty, corrupt images, wrong labels, classes, counts.

    Every image is read and decoded; a decoder that crashes costs one image. Exit code 1 with an error finding.
    """
    if json == "-" and bad == "-":
        raise BblabError("--json - and --bad - both want stdout", hint="give one of them a file")
    if quick and bad:
        raise BblabError("--quick opens no image, so --bad has none to list", hint="leave one of them out")
    opened = common.open_lab(lab)
    machine = "-" in (json, bad)
    with common.progress_bar(quiet=machine) as tell:
        done, row = opened.check_data(
            folder, ann_train=ann_train, ann_val=ann_val, contents=not quick, jobs=jobs, on_progress=tell
        )
    if bad:
        common.write_text(bad, "".join(_line(b) for b in done.bad))
    if json:
        common.write_json(json, row)
    if not machine:
        out = common.console()
        out.print(_headline(row), markup=False, soft_wrap=True)
        if not quick and done.images:
            others = ", ".join(f"{n:,} {kind}" for kind, n in sorted(done.formats.items(), key=lambda x: -x[1]))
            rate = done.images / max(done.seconds, 1e-9)
            took = f"{_duration(done.seconds)} ({rate:,.0f}/s, {_megabytes(done.read_bytes, done.seconds)})"
            out.print(f"opened {done.images:,} images in {took}: {others or 'none decodes'}", markup=False)
        print_problems(done.problems)
        where = "names and sizes only, no image opened" if quick else ""
        if "run_id" in row:
            where = f"stored as run {row['run_id']} in {common.short(opened.store_path)}"
        if bad:
            where += f"; {bad} lists {len(done.bad):,} images"
        after = f"bblab data prepare {folder} OUT" if done.worst != "error" or _can_leave_out(done.problems) else ""
        out.print(where + (f" · next: {after}" if after else ""), style="dim", markup=False, soft_wrap=True)
    if done.worst == "error":
        errors = sum(p.severity == "error" for p in done.problems)
        said = f"{errors} {'error' if errors == 1 else 'errors'}: {row['root']} cannot be trained on as it is"
        raise RunError(said, hint="; ".join(dict.fromkeys(p.rule for p in done.problems if p.severity == "error")))


def prepare(
    folder: FolderArgument,
    out: Annotated[str, typer.Argument(metavar="OUT", help="A new folder, or one that an earlier call began.")],
    ann_train: AnnTrainOption = None,
    ann_val: AnnValOption = None,
    short_side: Annotated[
        int, typer.Option("--short-side", metavar="PX", min=16, max=4096, help="Larger images become this small.")
    ] = 256,
    quality: Annotated[int, typer.Option("--quality", metavar="Q", min=1, max=100, help="Of the JPEGs.")] = 90,
    jobs: JobsOption = None,
    json: common.JsonOption = None,
    lab: common.LabOption = None,
) -> None:
    """Write a smaller copy of a data set, which loads several times as fast; images that do not decode are left out.

    ImageNet's layout with lists of labels, class names and what was left out, readable by stock mmpretrain. Room is
    looked for before anything is written. Stopped in any way, the same command goes on; a changed source is followed.
    """
    opened = common.open_lab(lab)
    machine = json == "-"
    with common.progress_bar(quiet=machine) as tell:
        done, row = opened.prepare_data(
            folder, out, ann_train=ann_train, ann_val=ann_val, short_side_px=short_side, quality=quality, jobs=jobs,
            on_progress=tell,
        )  # fmt: skip
    if json:
        common.write_json(json, row)
    if not machine:
        paper = common.console()
        paper.print(_headline(row), markup=False, soft_wrap=True)
        number = done.info.train_count + done.info.val_count
        size = f"{common.si(done.total_bytes, 'B')}, {common.si(done.total_bytes / max(number, 1), 'B')} an image"
        did = f"{done.written:,} images written in {_duration(done.seconds)}"
        if done.seconds > 0 and done.written:
            did += f" ({done.written / done.seconds:,.0f}/s)"
        kept = f", {done.reused:,} kept from before" if done.reused else ""
        paper.print(f"{did}{kept}; {size}", markup=False, soft_wrap=True)
        print_problems(done.problems)
        where = f"stored as run {row['run_id']} in {common.short(opened.store_path)} · " if "run_id" in row else ""
        next_ = f"next: bblab pretrain SPEC --data {out}"
        paper.print(f"{done.info.root} · {where}{next_}", style="dim", markup=False, soft_wrap=True)
    if any(p.severity == "error" for p in done.problems):
        raise RunError("the copy is written but should not be trained on", hint="see the errors above")


def _headline(row: dict[str, Any]) -> str:
    layouts = {"folders": "class folders", "imagenet": "ImageNet layout", "annotations": "annotation files"}
    counts = f"{row['train_count']:,} train + {row['val_count']:,} val images, {row['classes']:,} classes"
    return f"{row['root']}: {counts} ({layouts[row['layout']]}), fingerprint {row['hash']}"


def print_problems(problems: Sequence[Problem]) -> None:
    """A line each, the worst first, with what to do."""
    from rich.text import Text

    out = common.console()
    marks = {"error": ("✗", "red"), "warning": ("▲", "yellow"), "note": ("·", "dim")}
    for severity, (mark, style) in marks.items():
        for p in (p for p in problems if p.severity == severity):
            out.print(Text(f"{mark} {p.rule} {p.where}: {p.message}", style=style), soft_wrap=True)
            if p.hint:
                out.print(Text(f"    {p.hint}"), soft_wrap=True)
    if not problems:
        out.print("nothing wrong found")


def _can_leave_out(problems: Sequence[Problem]) -> bool:
    single = ("corrupt-image", "empty-image", "missing-image")
    return all(p.rule in single for p in problems if p.severity == "error")


def _line(bad: BadFile) -> str:
    return f"{bad.split}/{bad.path}\t{bad.reason}\n"


def _megabytes(size: int, seconds: float) -> str:
    return f"{size / 1e6 / max(seconds, 1e-9):,.0f} MB/s"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{common.digits(seconds)} s"
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"

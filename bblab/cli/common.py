"""What the commands share: options, numbers as a person reads them, where output goes."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bblab.errors import BblabError, RunError

if TYPE_CHECKING:
    from rich.console import Console

    from bblab.lab import Lab

SpecArgument = Annotated[
    str, typer.Argument(metavar="SPEC", help="A built-in name, a .yaml path, NAME@s16, timm:NAME or torchvision:NAME.")
]
SpecsArgument = Annotated[
    list[str],
    typer.Argument(metavar="SPEC...", help="Built-in names, .yaml paths, NAME@s16, timm:NAME or torchvision:NAME."),
]
LabOption = Annotated[
    Path | None,
    typer.Option("--lab", metavar="DIR", help="The lab folder; else BBLAB_LAB, else your user-data folder."),
]


def writable(target: str | None) -> str | None:
    """Refuse a file that cannot be written before the work begins, not after it. Raises RunError with a remedy."""
    if target is not None and target != "-":
        _checked(target)
    return target


JsonOption = Annotated[
    str | None,
    typer.Option(
        "--json", metavar="FILE|-", callback=writable, help="Write JSON to a file; - is stdout and nothing else."
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Change the spec: s8.0.kernel=5, defaults.act=relu6."),
]


def open_lab(folder: Path | None) -> Lab:
    from bblab.lab import Lab

    return Lab(folder)


def console(*, stderr: bool = False) -> Console:
    """A Rich console; 110 columns when the output is not a terminal, so that files read well."""
    from rich.console import Console

    made = Console(stderr=stderr, highlight=False, soft_wrap=False)
    if not made.is_terminal and not stderr:
        made = Console(highlight=False, width=110)
    return made


def complain(error: BblabError) -> None:
    """Print a user's mistake to stderr: what was read, what was expected, what to do."""
    from rich.text import Text

    out = console(stderr=True)
    out.print(Text(f"bblab: {error.message}", style="bold red"), soft_wrap=True)
    if error.hint:
        out.print(Text(f"  {error.hint}"), soft_wrap=True)


def warn(text: str) -> None:
    """A line for a person on stderr."""
    from rich.text import Text

    console(stderr=True).print(Text(f"bblab: {text}", style="yellow"), soft_wrap=True)


def write_text(target: str, text: str) -> None:
    """Write to a file by way of a temporary one, or to stdout for `-`. Raises RunError with a remedy."""
    if target == "-":
        sys.stdout.write(text if text.endswith("\n") else text + "\n")
        sys.stdout.flush()
        return
    path = _checked(target)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        if path.exists() and not path.is_file():  # /dev/null, a pipe: nothing to put in its place
            path.write_text(text, encoding="utf-8")
            return
        try:
            partial.write_text(text, encoding="utf-8")
            partial.replace(path.resolve())  # a link keeps pointing at its file
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(path, error.strerror or str(error)) from None


def _checked(target: str) -> Path:
    from bblab.spec import expanded

    if not target.strip():
        raise BblabError("a file without a name was asked for", hint="name a file, or - for stdout")
    path = expanded(target)
    if path.is_dir():
        raise _unwritable(path, "it is a folder")
    if not path.parent.is_dir():
        raise _unwritable(path, f"there is no folder {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise _unwritable(path, "you may not write there")
    return path


def _unwritable(path: Path, why: str) -> RunError:
    return RunError(
        f"{path} cannot be written: {why}", hint="name a file in a folder you can write to, or - for stdout"
    )


def write_json(target: str, value: Any) -> None:
    from bblab.lab import as_json

    write_text(target, as_json(value))


@contextmanager
def progress_bar(quiet: bool) -> Iterator[Any]:
    """A callback for measuring that draws a bar on stderr, or nothing when `quiet` or not a terminal."""
    out = console(stderr=True)
    if quiet or not out.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, Progress, TextColumn

    with Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[left]}"), console=out, transient=True
    ) as bar:
        task = bar.add_task("starting", total=None, left="")

        def tell(done: int, total: int, seconds_left: float | None, text: str) -> None:
            left = "" if seconds_left is None else f"{seconds_left:.0f} s left"
            bar.update(task, completed=done, total=total or None, description=text, left=left)

        yield tell


# ---------------------------------------------------------------------------------------------- numbers


def si(value: float | None, unit: str = "") -> str:
    """Three significant digits with K, M, G: 5_293_272 -> "5.29 M"."""
    if value is None:
        return "–"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "K")):
        if abs(value) >= size * 0.9995:
            return f"{digits(value / size)} {letter}{unit}"
    text = str(value) if isinstance(value, int) else digits(value)
    return f"{text} {unit}".rstrip()


def megabytes(value: float | None) -> str:
    """Bytes as MB (10^6)."""
    return "–" if value is None else f"{digits(value / 1e6)} MB"


def milliseconds(value: float | None) -> str:
    return "–" if value is None else f"{digits(value * 1e3)} ms"


def digits(value: float, count: int = 3) -> str:
    """A number with `count` significant digits and no exponent."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = max(0, count - 1 - math.floor(math.log10(abs(float(f"{value:.{count - 1}e}")))))
    return f"{value:.{decimals}f}"


def shape(values: Any) -> str:
    return "×".join(str(v) for v in values)


def short(path: Path) -> str:
    """A path with the home folder as ~."""
    try:
        return f"~/{path.relative_to(Path.home())}"
    except ValueError:
        return str(path)

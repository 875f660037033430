"""bblab runner: the static program that times ncnn models on a phone or board."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bblab.cli import common
from bblab.errors import BblabError, RunError

ARCHES_HELP = "aarch64 (phones, boards) or x86_64."


def register(app: typer.Typer) -> None:
    group = typer.Typer(
        help="Build or list the program that times ncnn models on a phone or board.",
        epilog="Example: bblab runner build aarch64",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    group.command(epilog="Example: bblab runner build aarch64 x86_64")(build)
    group.command(name="list", epilog="Example: bblab runner list")(list_)
    app.add_typer(group, name="runner")


def build(
    arches: Annotated[list[str] | None, typer.Argument(metavar="[ARCH]...", help=ARCHES_HELP)] = None,
    arch: Annotated[list[str] | None, typer.Option("--arch", metavar="ARCH", help="The same, as an option.")] = None,
    ncnn: Annotated[
        str | None, typer.Option("--ncnn", metavar="VERSION", help="ncnn's version; that of the installed one.")
    ] = None,
    sdist: Annotated[
        Path | None, typer.Option("--sdist", metavar="FILE", help="ncnn's source archive, where no index is.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", metavar="N", min=1, max=1024, help="Compilers at once; one a core.")
    ] = None,
    json: common.JsonOption = None,
) -> None:
    """Build the runner from ncnn's own source, statically, and remember it: some minutes, once.

    The architecture is this machine's where none is named. The source is the sdist on the package index that pip is
    set to, checked by its hash. Stopped half-way, it goes on where it was.
    """
    from bblab.latency import runner

    wanted = list(dict.fromkeys([*(arches or ()), *(arch or ())])) or [runner.host_arch()]
    if sdist and ncnn:
        raise BblabError("--ncnn and --sdist both name a version", hint="give one of them")
    for name in wanted:  # all of them, before the first takes its minutes
        runner.toolchain(name)
    made = []
    for name in wanted:
        with common.progress_bar(quiet=json == "-") as tell:
            try:
                path = runner.build(name, version=ncnn, sdist=sdist, jobs=jobs, on_progress=tell)
            except KeyboardInterrupt:
                raise RunError("stopped by hand", hint="run it again: it goes on where it stopped") from None
        made += [b for b in runner.builds() if b.path == path]
    if json != "-":
        _print(made)
        first = made[0]
        use = "bblab bench SPEC --runtime ncnn,ncnn-static" if first.arch == runner.host_arch() else "bblab devices"
        written = f"; written {json}" if json else ""
        common.console().print(
            f"kept in {common.short(first.path.parent)}{written} · next: {use}",
            style="dim",
            markup=False,
            soft_wrap=True,
        )
    if json:
        common.write_json(json, [_row(b) for b in made])


def list_(json: common.JsonOption = None) -> None:
    """List the runners that have been built here."""
    from bblab.latency import runner

    found = runner.builds()
    if json != "-":
        if found:
            _print(found)
        after = "bblab bench SPEC --runtime ncnn-static" if found else "bblab runner build aarch64"
        text = f"written {json} · next: {after}" if json else f"next: {after}"
        if not found:
            text = f"no runner has been built here · {text}"
        common.console().print(text, style="dim", markup=False, soft_wrap=True)
    if json:
        common.write_json(json, [_row(b) for b in found])


def _print(found: list[Any]) -> None:
    from bblab.cli import tables

    table = tables.plain([("runner", "left"), ("ncnn", "left"), ("size", "right"), ("compiler", "left"), ("", "left")])
    for b in found:
        old = "" if b.is_current else "of an older bblab: build it again"
        table.add_row(b.arch, b.ncnn, common.megabytes(b.bytes), b.compiler, old)
    common.console().print(table)


def _row(b: Any) -> dict[str, Any]:
    return {
        "arch": b.arch,
        "ncnn": b.ncnn,
        "compiler": b.compiler,
        "bytes": b.bytes,
        "sha256": b.sha256,
        "path": str(b.path),
        "is_current": b.is_current,
    }

"""What `bblab bench` measures inside or beside whole nets: --per-op."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bblab.cli import common
from bblab.errors import BblabError

if TYPE_CHECKING:
    from bblab.lab import Lab
    from bblab.lab.benching import Measured


@dataclass(frozen=True, slots=True)
class How:
    """Where the output goes. `machine`: stdout is for a file's format alone."""

    lab: Lab
    machine: bool
    json: str | None
    csv: str | None


def one_mode(
    asked: Mapping[str, object],
    specs: Sequence[str] | None,
    *,
    device: str,
    fps: float | None,
    reference: str | None,
    budget: float | None,
) -> str:
    """The one special measurement that was asked for, "" for the usual one. Raises BblabError for what cannot be."""
    wanted = [name for name, value in asked.items() if value]
    if len(wanted) > 1:
        raise BblabError(f"{' and '.join(wanted)} are different measurements", hint="ask for one at a time")
    mode = wanted[0] if wanted else ""
    if not mode and not specs:
        raise BblabError("no spec is named", hint="for example: bblab bench mobileone_k5_se nanotrack; see bblab specs")
    if not mode:
        return mode
    if mode != "--blocks" and not specs:
        raise BblabError(f"{mode} of which net?", hint=f"for example: bblab bench mobileone_k5_se {mode}")
    if device != "host":
        raise BblabError(f"{mode} is measured on the host only, not on {device}", hint="leave --device out")
    useless = {"--per-op": {"--fps": fps, "--reference": reference, "--budget": budget}}
    for option, value in useless.get(mode, {}).items():
        if value is not None:
            raise BblabError(f"{option} has no meaning with {mode}", hint="leave it out")
    return mode


def per_op(
    how: How,
    specs: Sequence[str],
    edits: Sequence[str],
    runtimes: Sequence[str],
    threads: Sequence[int],
    forms: Any,  # a sequence of ops.Form, whose module imports torch's names
    size: str | int,
) -> None:
    with common.progress_bar(quiet=how.machine) as tell:
        done = how.lab.per_op(
            specs, edits=edits, runtimes=runtimes, threads=threads, forms=forms, size=size, on_progress=tell
        )
    show(how, done, ("per_op", "per_op_top"), "operators")
    finish(how, done, _after_operators(how, done))


def _after_operators(how: How, done: Measured) -> str:
    """The costliest row's block, beside another kernel of it where it has one."""
    parts = [part for row in done.rows for part in row["rows"] if part["kind"]]
    if not parts:
        return "bblab runs --kind operators"
    kind = max(parts, key=lambda p: p["seconds"])["kind"]
    info = how.lab.kinds.get(kind)
    kernels = ",kernel=3|5" if info is not None and info.param("kernel") else ""
    return f"bblab bench --blocks 'kind={kind}{kernels},width=64,size=32'"


def show(how: How, done: Measured, names: Sequence[str], key: str, extra: Mapping[str, Any] | None = None) -> None:
    """The pages of these reports, the first of them as CSV where asked, and JSON."""
    if done.rows:
        from bblab import reports

        pages = [reports.find(name, how.lab.rooms)(done.rows) for name in names]
        if how.csv:
            common.write_text(how.csv, pages[0].table.to_csv())
        if not how.machine:
            from bblab.cli import tables

            out = common.console()
            for page in pages:
                if page.table.cells:
                    tables.print_whole(tables.rich_table(page.table), out)
                for note in page.notes:
                    out.print(note, style="dim", markup=False, soft_wrap=True)
                out.print()
    if how.json:
        problems = [str(p) for p in done.problems]
        common.write_json(how.json, {key: list(done.rows), **(extra or {}), "problems": problems})


def finish(how: How, done: Measured, after: str) -> None:
    """Notices, where the output went, what to run next; raises the first thing that went wrong, after the others."""
    for notice in how.lab.notices:
        common.warn(notice)
    if not how.machine and done.rows:
        ids = done.run_ids
        span = f"run {ids[0]}" if len(ids) == 1 else f"runs {ids[0]} to {ids[-1]}" if ids else ""
        where = f"stored as {span} in {common.short(how.lab.store_path)}" if ids else "not stored"
        files = [target for target in (how.json, how.csv) if target]
        if files:
            where += "; written " + ", ".join(files)
        common.console().print(f"{where} · next: {after}", style="dim", markup=False, soft_wrap=True)
    for problem in done.problems[1:]:
        common.complain(problem)
    if done.problems:
        raise BblabError(done.problems[0].message, hint=done.problems[0].hint, exit_code=1)

"""What `bblab bench` measures inside or beside whole nets: --per-op, --blocks, --estimate, --pipeline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bblab.cli import common
from bblab.errors import BblabError

if TYPE_CHECKING:
    from bblab.lab import Lab
    from bblab.lab.benching import Measured


@dataclass(frozen=True, slots=True)
class How:
    """Where the output goes, and how it is measured. `machine`: stdout is for a file's format alone."""

    lab: Lab
    machine: bool
    json: str | None
    csv: str | None
    options: dict[str, Any] = field(default_factory=dict)  # runtimes, threads, budget, waits, device


def one_mode(
    asked: Mapping[str, object],
    specs: Sequence[str] | None,
    *,
    device: str,
    fps: float | None,
    reference: str | None,
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
    if mode not in ("--blocks", "--again") and not specs:
        raise BblabError(f"{mode} of which net?", hint=f"for example: bblab bench mobileone_k5_se {mode}")
    if mode == "--pipeline" and device != "host":
        raise BblabError(f"--pipeline is measured on the host only, not on {device}", hint="leave --device out")
    useless: dict[str, dict[str, object]] = {
        "--per-op": {"--fps": fps, "--reference": reference},
        "--blocks": {"--fps": fps, "--reference": reference, "a spec": specs or None},
        "--estimate": {"--fps": fps, "--reference": reference},
        "--pipeline": {"--reference": reference},
        "--again": {"--fps": fps, "--reference": reference, "a spec": specs or None},
    }
    for option, value in useless[mode].items():
        if value is not None:
            raise BblabError(f"{option} has no meaning with {mode}", hint="leave it out")
    if fps is not None and not 1 <= fps <= 1000:
        raise BblabError(f"--fps must be between 1 and 1000 frames a second, got {fps:g}")
    return mode


def check_budget(budget: float | None) -> None:
    """Raises BblabError where it is not a number of seconds above 0."""
    if budget is not None and not 0 < budget < math.inf:
        raise BblabError(f"--budget must be seconds above 0, got {budget:g}", hint="leave it out for no bound")


def per_op(
    how: How,
    specs: Sequence[str],
    edits: Sequence[str],
    forms: Any,  # a sequence of ops.Form, whose module imports torch's names
    size: str | int,
) -> None:
    with common.progress_bar(quiet=how.machine) as tell:
        done = how.lab.per_op(specs, edits=edits, forms=forms, size=size, on_progress=tell, **how.options)
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


def blocks(how: How, grid: str, forms: Any) -> None:
    with common.progress_bar(quiet=how.machine) as tell:
        done, compared = how.lab.bench_blocks(grid, form=_one_form(forms), on_progress=tell, **how.options)
    show(how, done, ("blocks",), "blocks", {"comparisons": compared})
    if not how.machine and compared:
        out = common.console()
        many = len({(c["runtime"], c["threads"]) for c in compared}) > 1
        for c in compared:
            where = f"{c['runtime']}, {c['threads']} thread{'s' * (c['threads'] > 1)}: " if many else ""
            style = "yellow" if c["verdict"] in ("cannot tell", "too small to measure", "too few processes") else "bold"
            out.print(f"{where}{_compared(c)}", style=style, markup=False, soft_wrap=True)
        out.print()
    finish(how, done, "bblab bench NET --estimate: whole nets from their blocks")


def _compared(c: Mapping[str, Any]) -> str:
    """kernel 5 against 3 (kind mobileone, width 64, size 32): 1.21 x [1.17, 1.25], slower"""
    text = f"{c['key']} {c['second']} against {c['first']} ({c['rest']}): "
    if c["ratio"] is None:
        return text + c["verdict"]
    if c["ratio_low"] is None:
        from bblab.latency.words import NO_INTERVAL_WORDS

        return text + f"{c['ratio']:.3f} × ({NO_INTERVAL_WORDS})"
    return text + f"{c['ratio']:.3f} × [{c['ratio_low']:.3f}, {c['ratio_high']:.3f}], {c['verdict']}"


def _one_form(forms: Any) -> Any:
    if len(forms) > 1:
        raise BblabError("--form both", hint="here one form is timed: deploy (the default) or train")
    return forms[0]


def estimate(how: How, specs: Sequence[str], edits: Sequence[str], forms: Any, size: str | int) -> None:
    with common.progress_bar(quiet=how.machine) as tell:
        done, accuracy = how.lab.bench_estimate(
            specs, edits=edits, form=_one_form(forms), size=size, on_progress=tell, **how.options
        )
    show(how, done, ("estimates",), "estimates", {"accuracy": accuracy})
    if not how.machine:
        for a in accuracy:
            common.console().print(_accuracy(a), style="bold", markup=False, soft_wrap=True)
    finish(how, done, f"bblab bench {specs[0]} --per-op")


def _accuracy(a: Mapping[str, Any]) -> str:
    where = f"{a['runtime']}, {a['threads']} thread{'s' * (a['threads'] > 1)}: "
    if a["nets"] < 2:
        return f"{where}the sum of the blocks is off the net by {a['mean_error']:+.1%}; one net says little of others"
    order = "every pair in the right order"
    if a["pairs_turned"]:
        pairs = "; ".join(f"{x} and {y}" for x, y in a["pairs_turned"])
        order = f"{len(a['pairs_turned'])} of {a['pairs']} pairs in the wrong order: {pairs}"
    return (
        f"{where}over {a['nets']} nets the sum of the blocks is off by {a['mean_error']:+.1%} on average, "
        f"sd {a['sd_error']:.1%}, at worst {a['worst_error']:+.1%}; {order}"
    )


def pipeline(how: How, specs: Sequence[str], edits: Sequence[str], forms: Any, fps: float) -> None:
    with common.progress_bar(quiet=how.machine) as tell:
        done = how.lab.bench_pipeline(
            specs, edits=edits, form=_one_form(forms), fps=fps, on_progress=tell, **how.options
        )
    show(how, done, ("pipeline",), "pipelines")
    finish(how, done, f"bblab bench {specs[0]} --per-op")


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

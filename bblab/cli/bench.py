"""bblab bench: specs ranked by latency on a device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bblab.cli import bench_parts, common
from bblab.errors import BblabError

if TYPE_CHECKING:
    from bblab.lab import Bench, Lab

DeviceOption = Annotated[
    str, typer.Option("--device", metavar="NAME", help="host, ssh:USER@HOST, adb:SERIAL, or a name of bblab devices.")
]
RuntimesOption = Annotated[
    str | None,
    typer.Option(
        "--runtime",
        metavar="R,...",
        help="ort (the default), ncnn (on a phone the default), openvino, torch, torch-compile, ort-cuda ...",
    ),
]
ThreadsOption = Annotated[str, typer.Option("--threads", metavar="N,...", help="Threads, for example 1,2.")]
FormOption = Annotated[str, typer.Option("--form", metavar="FORM", help="deploy, train or both.")]
SizeOption = Annotated[str, typer.Option("--size", metavar="SIZE", help="search, template or pixels.")]
BudgetOption = Annotated[
    float | None,
    typer.Option("--budget", metavar="SECONDS", help="Bound on converting and measuring together."),
]
FpsOption = Annotated[
    float | None, typer.Option("--fps", metavar="N", help="Measure also at a camera's pace, beside warm and cold.")
]
WaitOption = Annotated[
    bool, typer.Option("--wait", help="Wait for another measurement on the device to end, instead of refusing.")
]


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: bblab bench mobileone_s0@s16 nanotrack --runtime ort,ncnn --budget 60")(bench)


def bench(
    specs: Annotated[
        list[str] | None,
        typer.Argument(metavar="SPEC...", help="Built-in names, .yaml paths, NAME@s16, timm:NAME or torchvision:NAME."),
    ] = None,
    edits: common.SetOption = None,
    device: DeviceOption = "host",
    runtime: RuntimesOption = None,
    threads: ThreadsOption = "1",
    form: FormOption = "deploy",
    size: SizeOption = "search",
    reference: Annotated[
        str | None, typer.Option("--reference", metavar="SPEC", help="Ratios are against its deploy form.")
    ] = None,
    budget: BudgetOption = None,
    fps: FpsOption = None,
    per_op: Annotated[
        bool, typer.Option("--per-op", help="Where each net's time goes: its rows and operators, and their sum.")
    ] = False,
    blocks: Annotated[
        str | None,
        typer.Option("--blocks", metavar="GRID", help="Single blocks: 'kind=mobileone,kernel=3|5,width=64,size=32'."),
    ] = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Each net beside the sum of its blocks, and that sum's error.")
    ] = False,
    pipeline: Annotated[
        bool, typer.Option("--pipeline", help="A tracker's frame: crop, backbone, head, decoding; also at --fps (30).")
    ] = False,
    again: Annotated[
        bool, typer.Option("--again", help="All nets that an older protocol timed on the device, in one session.")
    ] = False,
    wait: WaitOption = False,
    csv: Annotated[str | None, typer.Option("--csv", metavar="FILE|-", help="Write the table as CSV.")] = None,
    json: common.JsonOption = None,
    lab: common.LabOption = None,
) -> None:
    """Rank specs by latency: shuffled rounds beside a reference in several processes, ratios with 95 % intervals.

    Warm calls rank: three in a row, after 6 ms of the same net. The cold call, the first after other nets, stands
    beside them, and with --fps calls at a camera's pace. Ends when the ranking has separated; where it does not, goes
    on to 11 processes, or as far as --budget reaches.
    """
    from bblab.lab import REFERENCE
    from bblab.latency import Plan

    if json == "-" and csv == "-":
        raise BblabError("--json - and --csv - both want stdout", hint="give one of them a file")
    machine = "-" in (json, csv)
    asked = {
        "--per-op": per_op, "--blocks": blocks, "--estimate": estimate, "--pipeline": pipeline, "--again": again,
    }  # fmt: skip
    mode = bench_parts.one_mode(asked, specs, device=device, fps=fps, reference=reference)
    bench_parts.check_budget(budget)
    opened = common.open_lab(lab)
    plan = Plan(max_processes=11) if budget is None else Plan(max_processes=100, budget_s=budget)
    specs = specs or []
    if mode == "--again":
        wanted = None if runtime is None else names(runtime)
        with common.progress_bar(quiet=machine) as tell:
            done = opened.bench_again(device=device, runtimes=wanted, plan=plan, waits=wait, on_progress=tell)
        return _show(opened, done, machine, json, csv, "bblab report")
    runtime = opened.usual_runtime(device) if runtime is None else runtime
    measured: dict[str, Any] = {"runtimes": names(runtime), "threads": counts(threads), "waits": wait}
    if mode:
        how = bench_parts.How(opened, machine, json, csv, {**measured, "budget": budget})
        if mode != "--pipeline":
            how.options["device"] = device
        if mode == "--per-op":
            return bench_parts.per_op(how, specs, edits or [], forms(form), pixels(size))
        if mode == "--blocks":
            return bench_parts.blocks(how, blocks or "", forms(form))
        if mode == "--estimate":
            return bench_parts.estimate(how, specs, edits or [], forms(form), pixels(size))
        return bench_parts.pipeline(how, specs, edits or [], forms(form), fps or 30.0)
    with common.progress_bar(quiet=machine) as tell:
        done = opened.bench(
            specs,
            edits=edits or (),
            device=device,
            forms=forms(form),
            size=pixels(size),
            reference=reference or REFERENCE,
            fps=fps,
            plan=plan,
            on_progress=tell,
            **measured,
        )
    _show(opened, done, machine, json, csv, _next(done, specs, device))


def _show(opened: Lab, done: Bench, machine: bool, json: str | None, csv: str | None, after: str) -> None:
    from bblab import reports

    if done.rows:
        page = reports.find("bench", opened.rooms)(done.rows)
        if csv:
            common.write_text(csv, page.table.to_csv())
        if not machine:
            from bblab.cli import tables

            out = common.console()
            tables.print_whole(tables.rich_table(page.table), out)
            for note in page.notes:
                out.print(note, style="dim", markup=False, soft_wrap=True)
            out.print()
    if json:
        common.write_json(json, {"latency": list(done.rows), "problems": [str(p) for p in done.problems]})
    finish(opened, done, machine, [t for t in (json, csv) if t], after)


def _next(done: Bench, specs: Sequence[str], device: str) -> str:
    """A duel for the first tie, else why the first number is what it is."""
    where = "" if device == "host" else f" --device {device}"
    for row in done.rows:
        for other in row["tied_with"]:
            if not row["is_reference"] and not other.endswith("(reference)"):
                return f"bblab duel {row['label'].split()[0]} {other.split()[0]}{where}"
    return f"bblab profile {specs[0]}" if len(specs) == 1 else f"bblab duel {specs[0]} {specs[1]}{where}"


def finish(opened: Lab, done: Bench, machine: bool, files: Sequence[str], after: str) -> None:
    """Notices, where the output went, what to run next; raises the first thing that went wrong, after the others."""
    for notice in opened.notices:
        common.warn(notice)
    if not machine and done.rows:
        ids = done.run_ids
        where = f"stored as runs {ids[0]} to {ids[-1]} in {common.short(opened.store_path)}" if ids else "not stored"
        if files:
            where += "; written " + ", ".join(files)
        common.console().print(f"{where} · next: {after}", style="dim", markup=False, soft_wrap=True)
    for problem in done.problems[1:]:
        common.complain(problem)
    if done.problems:
        raise BblabError(done.problems[0].message, hint=done.problems[0].hint, exit_code=1)


# Options --------------------------------------------------------------------------------------------------------


def names(text: str) -> list[str]:
    found = [name.strip() for name in text.split(",") if name.strip()]
    if not found:
        raise BblabError(f"--runtime {text!r} names none", hint="for example --runtime ort,ncnn")
    return list(dict.fromkeys(found))


def counts(text: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1 or max(found) > 1024:
        raise BblabError(f"--threads {text!r}", hint="whole numbers from 1, for example --threads 1,2")
    return list(dict.fromkeys(found))


def forms(text: str) -> Any:  # a sequence of ops.Form, whose module imports torch's names
    known = {"deploy": ("deploy",), "train": ("train",), "both": ("deploy", "train")}
    if text not in known:
        raise BblabError(f"--form {text!r}", hint="deploy, train or both")
    return known[text]


def pixels(text: str) -> str | int:
    if text in ("search", "template"):
        return text
    if text.isascii() and text.isdigit() and 0 < int(text) <= 4096:
        return int(text)
    raise BblabError(f"--size {text!r}", hint="search, template, or pixels from 1 to 4096")

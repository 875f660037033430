"""bblab profile: the truth about one spec, or a comparison of several."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Annotated

import typer

from bblab.cli import common
from bblab.cli.bench import BudgetOption, WaitOption
from bblab.cli.bench_parts import check_budget

if TYPE_CHECKING:
    from bblab.lab import Lab, Profile


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: bblab profile mobileone_k5_se nanotrack mobilenetv3_small@s16")(profile)


def profile(
    specs: common.SpecsArgument,
    edits: common.SetOption = None,
    layers: Annotated[bool, typer.Option("--layers", help="Every operation of every block, both forms.")] = False,
    no_latency: Annotated[bool, typer.Option("--no-latency", help="Do not measure on this host.")] = False,
    no_verify: Annotated[
        bool, typer.Option("--no-verify", help="Do not measure how far the deploy form is from the train form.")
    ] = False,
    witness: Annotated[
        str | None,
        typer.Option("--witness", metavar="NAMES", help="Count beside: fvcore,thop,torch, each difference explained."),
    ] = None,
    budget: BudgetOption = None,
    wait: WaitOption = False,
    csv: Annotated[
        str | None,
        typer.Option("--csv", metavar="FILE|-", callback=common.writable, help="Write the comparison table as CSV."),
    ] = None,
    json: common.JsonOption = None,
    lab: common.LabOption = None,
) -> None:
    """Parameters, MACs, memory, receptive field, tracker geometry, broken rules and latency of a spec.

    Train form and deploy form stand side by side. Several specs give a comparison table.
    """
    from bblab import reports
    from bblab.errors import BblabError
    from bblab.lab import Partial

    if json == "-" and csv == "-":
        raise BblabError("--json - and --csv - both want stdout", hint="give one of them a file")
    from bblab.cli import witnesses

    others = None if witness is None else witnesses.names(witness)
    check_budget(budget)
    opened = common.open_lab(lab)
    machine = "-" in (json, csv)
    plan = None
    if not no_latency:
        from bblab.latency import Plan

        plan = Plan(budget_s=budget)

    stdout = sys.stdout

    def on_known(known: Sequence[Profile]) -> None:
        """What needs no measuring is printed at once."""
        if not machine:
            with redirect_stdout(stdout):  # while measuring, what libraries print goes to stderr
                _draw(opened, known, layers, others or ())

    failed: BblabError | None = None
    with common.progress_bar(quiet=machine) as tell:
        try:
            profiles = opened.profile(
                specs, edits=edits or (), latency=not no_latency, verify=not no_verify, plan=plan, waits=wait,
                on_known=on_known, on_progress=tell,
            )  # fmt: skip
        except Partial as stopped:
            profiles, failed = list(stopped.profiles), stopped.because
    rows = [p.to_json() for p in profiles]
    if layers:
        for p, row in zip(profiles, rows, strict=True):
            row["layers"] = opened.layers(p.spec)
    if others:
        for p, row in zip(profiles, rows, strict=True):
            row["witnesses"] = opened.witnesses(p.spec, others)
    if not machine:
        _draw_latency(opened, profiles)
    if csv:
        common.write_text(csv, reports.find("comparison", opened.rooms)(rows).table.to_csv())
    if json:
        common.write_json(json, rows)
    for notice in opened.notices:
        common.warn(notice)
    if not machine:
        _last_line(opened, profiles, specs, [t for t in (json, csv) if t])
    if failed is not None:
        raise failed


def _draw(opened: Lab, profiles: Sequence[Profile], layers: bool, others: Sequence[str]) -> None:
    """The card of one spec or the comparison of several, without latency; then operations and witnesses."""
    from bblab import reports
    from bblab.cli import card, tables, witnesses

    out = common.console()
    if len(profiles) == 1:
        card.draw(profiles[0], out)
    else:
        page = reports.find("comparison", opened.rooms)([p.to_json() for p in profiles])
        tables.print_whole(tables.rich_table(page.table), out)
        for note in page.notes:
            out.print(note, style="dim", markup=False)
        out.print()
    for p in profiles:
        if layers:
            out.print(tables.layers_table({"name": p.spec.name, "layers": opened.layers(p.spec)}))
        if others:
            out.print(witnesses.table({"name": p.spec.name, "witnesses": opened.witnesses(p.spec, others)}))


def _draw_latency(opened: Lab, profiles: Sequence[Profile]) -> None:
    """Of one spec both forms; of several the ranking of their deploy forms."""
    from bblab import reports
    from bblab.cli import card, tables

    rows = [row for p in profiles for row in p.timing_rows]
    out = common.console()
    if rows and len(profiles) == 1:
        card.draw_latency(rows, out)
    elif rows:
        page = reports.find("bench", opened.rooms)(rows)
        tables.print_whole(tables.rich_table(page.table), out)
        for note in page.notes:
            out.print(note, style="dim", markup=False, soft_wrap=True)
        out.print()


def _last_line(opened: Lab, profiles: Sequence[Profile], specs: list[str], files: list[str]) -> None:
    ids = [str(p.run_id) for p in profiles if p.run_id is not None]
    where = (
        f"stored as run{'s' * (len(ids) > 1)} {', '.join(ids)} in {common.short(opened.store_path)}"
        if ids
        else "not stored"
    )
    if files:
        where += "; written " + ", ".join(files)
    if len(profiles) > 1:
        after = f"bblab profile {specs[0]}"
    elif profiles[0].spec.library is None and profiles[0].worst():
        after = f"bblab check {specs[0]}"
    else:
        after = f"bblab profile {specs[0]} mobilenetv3_small@s16 nanotrack"
    common.console().print(f"{where} · next: {after}", style="dim", markup=False, soft_wrap=True)
